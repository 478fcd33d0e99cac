"""Trainers as `dbl_jax.main` makes them, on random images.

The one place of the benchmark that knows trainers and feeds.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from dbl_jax import config as configs
from dbl_jax.augment import views
from dbl_jax.benchmarks.ours.augment import family, random_images
from dbl_jax.data import pipeline
from dbl_jax.data.datasets import Dataset, Split
from dbl_jax.evaluation.forward import make_forward
from dbl_jax.models.model import make_model
from dbl_jax.runtime import sharding
from dbl_jax.training import steps
from dbl_jax.training.phase import Trainer, make_trainer

_ENDLESS = 1 << 24  # steps; more than any round takes


class Run(NamedTuple):
  """A trainer and what it runs on.

  Attributes:
    trainer: of one phase.
    dataset: with parts 'train' and 'validation'.
    mesh: one device.
  """

  trainer: Trainer
  dataset: Dataset
  mesh: jax.sharding.Mesh


def pretraining(settings: dict[str, Any]) -> Run:
  """Phase 1.

  Args:
    settings: stem, dtype, size, batch, images, class_shares, temperature, the
      optimizer's and the family's, and input: 'resident' or 'tf_data'.
  """
  config = _config(settings)
  config.pretrain = configs.simclr()
  config.pretrain.update(batch_size=settings["batch"], epochs=1000)
  config.pretrain.augment.update(family(settings), rotation=0.0)
  config.pretrain.losses.nt_xent.temperature = settings["temperature"]
  config.pretrain.optimizer.update(
    name="sgd",
    learning_rate=settings["learning_rate"],
    momentum=settings["momentum"],
    weight_decay=settings["weight_decay"],
  )
  return _start(config, "pretrain", settings, start=None)


def classifying(settings: dict[str, Any]) -> Run:
  """Phase 2 on a frozen encoder that knows nothing: it costs as much.

  Args:
    settings: as for `pretraining`, and epochs, hidden, cached_views.
  """
  config = _config(settings)
  config.classify = configs.classifier()
  config.classify.update(
    batch_size=settings["batch"],
    epochs=settings["epochs"],
    cached_views=settings["cached_views"],
  )
  config.classify.augment.update(
    crop_scale=tuple(settings["crop_scale"]),
    crop_ratio=(3 / 4, 4 / 3),
    flip=settings["flip"],
  )
  config.classify.head.hidden = (settings["hidden"],)
  config.classify.optimizer.learning_rate = settings["learning_rate"]
  model = make_model(
    config.model, config.classify.head, len(settings["class_shares"])
  )
  fresh = steps.init_variables(model, jax.random.key(0), settings["size"])
  return _start(config, "classify", settings, jax.device_get(fresh))


def _config(settings: dict[str, Any]) -> ConfigDict:
  config = configs.base()
  config.data.update(image_size=settings["size"], input=settings["input"])
  config.model.update(stem=settings["stem"], dtype=settings["dtype"])
  return config


def _start(
  config: ConfigDict,
  phase: str,
  settings: dict[str, Any],
  start: dict[str, Any] | None,
) -> Run:
  shares = settings["class_shares"]
  images = random_images(settings)
  labels = np.random.default_rng(0).choice(len(shares), len(images), p=shares)
  train = Split(images, labels.astype(np.int32))
  dataset = Dataset(
    name="random pixels",
    class_names=tuple(map(str, range(len(shares)))),
    splits={"train": train, "validation": Split(*(a[:8] for a in train))},
    fingerprint="",
  )
  mesh = sharding.make_mesh(jax.devices()[:1])
  jax.set_mesh(mesh)
  config = configs.resolve(config)
  trainer = make_trainer(config, phase, dataset, mesh, start)
  return Run(trainer, dataset, mesh)


class Stepper:
  """Runs a trainer as the training loop does, a number of steps at a time."""

  def __init__(self, run: Run):
    self._trainer = run.trainer
    self._state = run.trainer.state
    self._take: Callable[[int], Any] | None = None

  def begin(self) -> None:
    """Starts the input."""
    trainer = self._trainer
    self._take = pipeline.reader(trainer.feed, 0, _ENDLESS, trainer.most)

  def end(self) -> None:
    """Stops the input."""
    self._take = None

  def advance(self, count: int) -> None:
    """Does `count` steps and waits for them."""
    trainer = self._trainer
    assert self._take is not None  # begun
    while count:
      some = min(count, trainer.most)
      self._state, figures = trainer.steps(
        self._state, trainer.feed.resident, self._take(some), trainer.key, some
      )
      count -= some
    jax.block_until_ready(figures)


class Batches:
  """The input alone: each batch as the model would get it, f32 in [0, 1]."""

  def __init__(self, run: Run, size: int):
    self._feed = run.trainer.feed
    self._take: Callable[[int], Any] | None = None

    @jax.jit
    def read(resident: jax.Array | None, batches: Any) -> jax.Array:
      batch = jax.tree.map(lambda leaf: leaf[0], batches)
      return views.plain(pipeline.gather(resident, batch), size)

    self._read = read

  def begin(self) -> None:
    """Starts the input and drops what it has ready: no head start."""
    self._take = pipeline.reader(self._feed, 0, _ENDLESS, most=1)
    for _ in range(8):
      self.next()

  def end(self) -> None:
    """Stops the input."""
    self._take = None

  def next(self) -> jax.Array:
    """The next batch, f32[B, S, S, 3]."""
    assert self._take is not None  # begun
    return self._read(self._feed.resident, self._take(1))


def cached_phase(run: Run) -> Callable[[], None]:
  """A whole phase on features: extraction, then all of its steps.

  What `make_trainer` does once is done anew at each call, but for compiling.

  Args:
    run: made with cached_views = 1.

  Returns:
    The function.
  """
  trainer, train = run.trainer, run.dataset.splits["train"]
  start = jax.device_get(trainer.state)
  placement = sharding.replicated(run.mesh)

  def phase() -> None:
    state = sharding.put(start, placement)
    forward = make_forward(trainer.predict_step, state.model(), run.mesh)
    features = forward(train.images)[0][:, None]
    feed = pipeline.make_pipeline(
      features, train.labels, trainer.feed.sampler, run.mesh, "resident"
    )
    stepper = Stepper(
      run._replace(trainer=trainer._replace(feed=feed, state=state))
    )
    stepper.begin()
    stepper.advance(trainer.total)
    stepper.end()

  return phase
