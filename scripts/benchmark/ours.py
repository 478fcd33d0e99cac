"""The benchmark's work as dbl_jax does it; `serve` says what each returns."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dbl_jax import config as configs
from dbl_jax.augment import views
from dbl_jax.data import pipeline
from dbl_jax.data.prepared import Dataset, Part
from dbl_jax.evaluate import make_forward
from dbl_jax.losses.contrastive import nt_xent as block_nt_xent
from dbl_jax.models.model import make_model
from dbl_jax.sharding import make_mesh, put, replicated
from dbl_jax.startup import keep_memory
from dbl_jax.steps import init_variables
from dbl_jax.trainer import Trainer, make_trainer

_BLUR_SIDE = 224  # the side that `views` states the blur's sigma for
_ENDLESS = 1 << 24  # steps; more than any round takes


def prepare(settings: dict[str, Any], tuned: bool = True) -> dict[str, str]:
  """Checks the device; sets what `dbl_jax.main` sets, if `tuned`."""
  found = jax.default_backend()
  if found != settings["device"]:
    raise RuntimeError(f"JAX runs on {found} here, not on {settings['device']}")
  if not tuned:
    return {"platform": found}
  keep_memory()
  return {"platform": found, "malloc": "keeps freed memory"}


def make_step(
  settings: dict[str, Any], model: Any = None
) -> tuple[Callable, Callable]:
  """Returns a SimCLR step and a function that makes its first arguments.

  Args:
    settings: stem, dtype, size in pixels, batch N, learning_rate, momentum,
      weight_decay, temperature.
    model: module from images f32[2N, S, S, 3] to embeddings f32[2N, D]. By
      default the project's encoder and projection head.

  Returns:
    The step, not jitted: ((variables, optimizer state), images) -> (next
    pair, loss), rows 2k and 2k + 1 being the views of example k; a function
    without arguments that returns the first pair and images.
  """
  size, project = settings["size"], model is None
  model = model or make_model(
    {
      "name": "resnet18",
      "stem": settings["stem"],
      "dtype": settings["dtype"],
    },
    {"name": "projection", "hidden": 512, "out": 128},
    num_classes=7,
  )
  optimizer = optax.chain(
    optax.add_decayed_weights(settings["weight_decay"]),
    optax.sgd(settings["learning_rate"], momentum=settings["momentum"]),
  )

  def step(state: Any, images: jax.Array) -> tuple[Any, jax.Array]:
    variables, opt_state = state

    def loss(params: Any) -> tuple[jax.Array, Any]:
      outputs, updated = model.apply(
        variables | {"params": params},
        images,
        train=True,
        mutable=["batch_stats"],
      )
      z = outputs[1] if project else outputs  # (features, embeddings)
      pairs = z.reshape(-1, 2, z.shape[-1])
      return block_nt_xent(pairs, settings["temperature"]), updated

    params = variables["params"]
    (value, updated), grads = jax.value_and_grad(loss, has_aux=True)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    return ({"params": params} | updated, opt_state), value

  def start() -> tuple[Any, jax.Array]:
    shape = (2 * settings["batch"], size, size, 3)
    images = jnp.asarray(np.random.default_rng(0).random(shape, np.float32))
    init = jax.jit(model.init, static_argnames="train")
    variables = init(jax.random.key(0), images[:2], train=True)
    return (variables, optimizer.init(variables["params"])), images

  return step, start


def step(settings: dict[str, Any], model: Any = None) -> dict[str, Any]:
  """A SimCLR training step on given views; see `make_step`."""
  facts: dict[str, Any] = {"set": prepare(settings, tuned=model is None)}
  function, start = make_step(settings, model)
  state, images = start()
  lowered = jax.jit(function, donate_argnums=0).lower(state, images)
  program, box = lowered.compile(), [state]

  def run() -> None:
    for _ in range(settings["steps_per_call"]):
      box[0], loss = program(box[0], images)
    jax.block_until_ready(loss)

  if settings["device"] == "gpu":
    # Before compilation, which may replace convolutions. On a GPU the
    # project's layers are plain convolutions.
    flops = (lowered.cost_analysis() or {}).get("flops")
    facts |= _program_facts(program) | {"flops": flops}
  return {"run": run, "units": settings["steps_per_call"], "facts": facts}


def _program_facts(program: jax.stages.Compiled) -> dict[str, Any]:
  """Returns XLA's estimates for a program, and the device's name."""
  cost, memory = program.cost_analysis() or {}, program.memory_analysis()
  return {
    "device_kind": jax.devices()[0].device_kind,
    "compiled_flops": cost.get("flops"),
    "compiled_bytes": cost.get("bytes accessed"),
    "temporary_bytes": memory and memory.temp_size_in_bytes,
    "argument_bytes": memory and memory.argument_size_in_bytes,
  }


def nt_xent(
  settings: dict[str, Any], loss: Callable = block_nt_xent
) -> dict[str, Any]:
  """NT-Xent, loss(f32[N, 2, D], temperature) -> f32[], with its gradient."""
  found = prepare(settings)
  shape = (settings["batch"], 2, settings["width"])
  z = jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))
  function = jax.value_and_grad(lambda z: loss(z, settings["temperature"]))
  program = jax.jit(function).lower(z).compile()

  def run() -> None:
    for _ in range(settings["steps_per_call"]):
      result = program(z)
    jax.block_until_ready(result)

  facts = _program_facts(program) | {"set": found, "loss": float(program(z)[0])}
  return {"run": run, "units": settings["steps_per_call"], "facts": facts}


def _family(settings: dict[str, Any]) -> dict[str, Any]:
  """Returns SimCLR's family, the blur in pixels of the view as peers have."""
  names = "crop_scale flip jitter_prob jitter_strength grey blur blur_sigma"
  scale = _BLUR_SIDE / settings["size"]
  sigmas = tuple(sigma * scale for sigma in settings["blur_sigma"])
  family = {name: settings[name] for name in names.split()}
  return family | {
    "crop_scale": tuple(settings["crop_scale"]),
    "blur_sigma": sigmas,
  }


def _random_images(settings: dict[str, Any]) -> np.ndarray:
  """Returns uint8[images, S, S, 3], the same for all systems."""
  size = settings["size"]
  return np.random.default_rng(0).integers(
    256, size=(settings["images"], size, size, 3), dtype=np.uint8
  )


def augment(settings: dict[str, Any]) -> dict[str, Any]:
  """SimCLR's views of images that lie on the device as uint8."""
  found = prepare(settings)
  images = jnp.asarray(_random_images(settings))
  batch, count = settings["batch"], settings["batches_per_call"]
  options = _family(settings) | {
    "num_views": settings["views"],
    "out_size": settings["size"],
  }

  @jax.jit
  def draw(images: jax.Array, key: jax.Array, number: jax.Array) -> jax.Array:
    key = jax.random.fold_in(key, number)
    ids = jax.random.randint(key, (batch,), 0, len(images))
    return views.make_views(key, ids, images[ids], **options)

  key, calls = jax.random.key(0), [0]

  def run() -> None:
    for _ in range(count):
      calls[0] += 1
      drawn = draw(images, key, jnp.int32(calls[0]))
    drawn.block_until_ready()

  run()  # compiles
  facts = {"set": found | {"images": "resident"}}
  units = count * batch * settings["views"]
  return {"run": run, "units": units, "facts": facts}


def _make_trainer(
  settings: dict[str, Any], phase: str
) -> tuple[Trainer, np.ndarray]:
  """Returns a trainer as `dbl_jax.main` makes it, and its random images.

  Args:
    settings: stem, dtype, size, batch, images, class_shares, the optimizer's
      and the family's, input ('resident' or 'tf_data'); for 'classify' also
      epochs, hidden and cached_views.
    phase: 'pretrain' for SimCLR, 'classify' for a head on a frozen encoder
      of random weights, which costs as much as any other.
  """
  config, shares = configs.base(), settings["class_shares"]
  config.data.update(image_size=settings["size"], input=settings["input"])
  config.model.update(stem=settings["stem"], dtype=settings["dtype"])
  start = None
  if phase == "pretrain":
    config.pretrain = configs.simclr()
    config.pretrain.update(epochs=1000)
    config.pretrain.augment.update(_family(settings), rotation=0.0)
    config.pretrain.losses.nt_xent.temperature = settings["temperature"]
    config.pretrain.optimizer.update(
      name="sgd",
      momentum=settings["momentum"],
      weight_decay=settings["weight_decay"],
    )
  else:
    config.classify = configs.classifier()
    config.classify.update(
      epochs=settings["epochs"], cached_views=settings["cached_views"]
    )
    config.classify.augment.update(
      crop_scale=tuple(settings["crop_scale"]),
      crop_ratio=(3 / 4, 4 / 3),
      flip=settings["flip"],
    )
    config.classify.head.hidden = (settings["hidden"],)
    model = make_model(config.model, config.classify.head, len(shares))
    fresh = init_variables(model, jax.random.key(0), settings["size"])
    start = jax.device_get(fresh)
  config[phase].batch_size = settings["batch"]
  config[phase].optimizer.learning_rate = settings["learning_rate"]
  images = _random_images(settings)
  labels = np.random.default_rng(0).choice(len(shares), len(images), p=shares)
  train = Part(images, labels.astype(np.int32))
  dataset = Dataset(
    name="random pixels",
    class_names=tuple(map(str, range(len(shares)))),
    parts={"train": train, "validation": Part(*(a[:8] for a in train))},
    fingerprint="",
  )
  mesh = make_mesh(jax.devices()[:1])
  jax.set_mesh(mesh)
  config = configs.resolve(config)
  return make_trainer(config, phase, dataset, mesh, start), images


class _Steps:
  """Runs a trainer as the training loop does, some steps at a time."""

  def __init__(self, trainer: Trainer):
    self._trainer, self._state = trainer, trainer.state
    self._take: Any = None

  def begin(self) -> None:
    trainer = self._trainer
    self._take = pipeline.reader(trainer.feed, 0, _ENDLESS, trainer.most)

  def end(self) -> None:
    self._take = None

  def advance(self, count: int) -> None:
    """Does `count` steps and waits for them."""
    trainer = self._trainer
    while count:
      some = min(count, trainer.most)
      self._state, metrics = trainer.steps(
        self._state, trainer.feed.resident, self._take(some), trainer.key, some
      )
      count -= some
    jax.block_until_ready(metrics)


class _Batches:
  """The input alone: batches as the model gets them, f32[B, S, S, 3]."""

  def __init__(self, trainer: Trainer, size: int):
    self._feed, self._take = trainer.feed, None

    @jax.jit
    def read(resident: jax.Array | None, batches: Any) -> jax.Array:
      batch = jax.tree.map(lambda leaf: leaf[0], batches)
      return views.plain(pipeline.gather(resident, batch), size)

    self._read = read

  def begin(self) -> None:
    self._take = pipeline.reader(self._feed, 0, _ENDLESS, 1)
    self.advance(8)  # what is prefetched gives no head start

  def end(self) -> None:
    self._take = None

  def advance(self, count: int) -> None:
    for _ in range(count):
      batch = self._read(self._feed.resident, self._take(1))
    batch.block_until_ready()


def feed(settings: dict[str, Any]) -> dict[str, Any]:
  """The input, alone ('plain') or with views and training step ('train')."""
  found, count = prepare(settings), settings["batches_per_call"]
  trainer, _ = _make_trainer(settings, "pretrain")
  source: Any = _Batches(trainer, settings["size"])
  if settings["work"] == "train":
    source = _Steps(trainer)
  set_to = {"input": settings["input"], "steps_per_dispatch": trainer.most}
  return _stepping(source, count) | {
    "units": count * settings["batch"],
    "facts": {"set": found | set_to},
  }


def _stepping(source: _Steps | _Batches, count: int) -> dict[str, Any]:
  """Returns the functions of work that advances by `count`, compiled."""
  source.begin()
  source.advance(count)
  source.end()
  return {
    "run": lambda: source.advance(count),
    "begin": source.begin,
    "end": source.end,
  }


def phase2(settings: dict[str, Any]) -> dict[str, Any]:
  """Phase 2 on features extracted once, or encoding at each step.

  A unit is the whole phase. With cached_views = 0 only steps_per_call steps
  are done: each takes as long as any other.
  """
  found, count = prepare(settings), settings["steps_per_call"]
  trainer, images = _make_trainer(settings, "classify")
  facts = {"set": found | {"steps": trainer.total}}
  if not settings["cached_views"]:
    work = _stepping(_Steps(trainer), count)
    return work | {"units": count / trainer.total, "facts": facts}
  labels, start = trainer.parts["train"].labels, jax.device_get(trainer.state)
  mesh = make_mesh(jax.devices()[:1])

  def run() -> None:
    """Extraction, then all steps: what `make_trainer` did once, anew."""
    state = put(start, replicated(mesh))
    forward = make_forward(trainer.predict_step, state.model(), mesh)
    features = forward(images)[0][:, None]
    rows = pipeline.make_feed(
      features, labels, trainer.feed.sampler, mesh, "resident"
    )
    steps = _Steps(trainer._replace(feed=rows, state=state))
    steps.begin()
    steps.advance(trainer.total)

  run()  # compiles
  return {"run": run, "units": 1, "facts": facts}
