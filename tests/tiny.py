"""A run small enough for tests: a two-layer encoder on a few small faces.

Also a config file: `--config=tests/tiny.py` runs it from the command line.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dbl_jax import config as configs
from dbl_jax.data import pipeline, sources
from dbl_jax.models import model
from dbl_jax.training import phase


class TinyEncoder(nn.Module):
  stem: str = "imagenet"
  pooling: str = "flatten"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, train):
    x = nn.Conv(8, (3, 3), (4, 4), dtype=self.dtype, name="conv")(x)
    x = nn.BatchNorm(not train, momentum=0.9, dtype=self.dtype, name="norm")(x)
    return nn.relu(x).mean(axis=(1, 2), dtype=jnp.float32)


model.ENCODERS["tiny"] = TinyEncoder


def get_config(kind: str = "two_phases") -> ConfigDict:
  """The run of the tests; with `soak`, three phases and data in shards."""
  config = configs.base()
  config.pretrain = configs.simclr()
  if kind == "soak":
    sources._SHARD_BYTES = 100_000
    config.finetune = configs.finetune()
  config.classify = configs.classifier()
  config.data.update(num_train=150, num_test=40, image_size=16)
  config.model.name = "tiny"
  for name in phase.phases(config):
    config[name].epochs = 2
    config[name].batch_size = 32
  config.pretrain.head.update(hidden=16, out=8)
  config.classify.head.hidden = (16,)
  config.log_every = 2
  config.tensorboard = False
  return config


def get_resolved(**data) -> ConfigDict:
  config = get_config()
  config.data.update(data)
  return configs.resolve(config)


# Fields of the run that tests interrupt: it validates and saves more often.
RUN = {
  "seed": 3,
  "log_every": 4,
  "pretrain.evaluate_every": 1.0,
  "classify.epochs": 4,
}


def steps_of(compiled, count, most=None):
  """Yields the state after each dispatch of a phase, and the metrics of each.

  A dispatch has `most` steps, by default as many as the phase's may have.
  """
  state, length = compiled.state, compiled.max_steps_per_dispatch
  next_batches = pipeline.batch_reader(compiled.pipeline, 0, count, length)
  most = most or length
  for done in range(0, count, most):
    now = min(most, count - done)
    state, metrics = compiled.train_steps(
      state,
      compiled.pipeline.resident,
      next_batches(now),
      compiled.phase.key,
      now,
    )
    metrics = jax.device_get(metrics)
    rows = [{k: v[i] for k, v in metrics.items()} for i in range(now)]
    yield jax.device_get(state), rows


def get_run(cache_dir) -> ConfigDict:
  config = get_config()
  config.update_from_flattened_dict(RUN | {"data.cache_dir": str(cache_dir)})
  return configs.resolve(config)
