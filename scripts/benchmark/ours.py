"""The benchmark's work as dbl_jax does it; `serve` says what each returns."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dbl_jax import config as configs
from dbl_jax.augment import views
from dbl_jax.data import pipeline
from dbl_jax.data.datasets import Dataset, Split
from dbl_jax.evaluation.predictions import make_forward
from dbl_jax.losses.metric_learning import nt_xent as block_nt_xent
from dbl_jax.models.model import make_model
from dbl_jax.runtime.distributed import make_mesh, put, replicated
from dbl_jax.runtime.environment import tune_malloc
from dbl_jax.training.loop import CompiledPhase, compile_phase
from dbl_jax.training.phase import make_phase
from dbl_jax.training.steps import init_variables, make_eval_step

_BLUR_SIDE = 224  # side of the views for which `views` gives the blur's sigma
_ENDLESS = 1 << 24  # steps; more than in any round


def prepare(settings: dict[str, Any], tuned: bool = True) -> dict[str, str]:
  """Checks the device; sets what `dbl_jax.main` sets, if `tuned`."""
  found = jax.default_backend()
  if found != settings["device"]:
    raise RuntimeError(f"JAX runs on {found} here, not on {settings['device']}")
  if tuned:
    tune_malloc()
  return {"platform": found, "malloc": "keeps freed memory" if tuned else ""}


def step(settings: dict[str, Any], model: Any = None) -> dict[str, Any]:
  """A SimCLR training step on given views.

  `model` maps images f32[2N, S, S, 3] to embeddings f32[2N, D]; by default the
  project's encoder and projection head.
  """
  project = model is None
  facts: dict[str, Any] = {"set": prepare(settings, tuned=project)}
  model = model or make_simclr(settings)
  optimizer = optax.chain(
    optax.add_decayed_weights(settings["weight_decay"]),
    optax.sgd(settings["learning_rate"], momentum=settings["momentum"]),
  )

  def train(state: Any, images: jax.Array) -> tuple[Any, jax.Array]:
    variables, opt_state = state

    def loss(params: Any) -> tuple[jax.Array, Any]:
      now = variables | {"params": params}
      z, updated = model.apply(now, images, train=True, mutable=["batch_stats"])
      z = z[1] if project else z  # (features, embeddings)
      pairs = z.reshape(-1, 2, z.shape[-1])  # rows 2k, 2k + 1: example k
      return block_nt_xent(pairs, settings["temperature"]), updated

    params = variables["params"]
    (value, updated), grads = jax.value_and_grad(loss, has_aux=True)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    return ({"params": params} | updated, opt_state), value

  shape = (2 * settings["batch"], settings["size"], settings["size"], 3)
  images = jnp.asarray(np.random.default_rng(0).random(shape, np.float32))
  init = jax.jit(model.init, static_argnames="train")
  variables = init(jax.random.key(0), images[:2], train=True)
  state = [(variables, optimizer.init(variables["params"]))]
  lowered = jax.jit(train, donate_argnums=0).lower(state[0], images)
  program = lowered.compile()

  def run() -> None:
    for _ in range(settings["steps_per_call"]):
      state[0], loss = program(state[0], images)
    jax.block_until_ready(loss)

  if settings["device"] == "gpu":
    # Before compilation, which may replace the convolutions.
    flops = (lowered.cost_analysis() or {}).get("flops")
    facts |= _program_facts(program) | {"flops": flops}
  return {"run": run, "units": settings["steps_per_call"], "facts": facts}


def make_simclr(settings: dict[str, Any]) -> Any:
  """Returns the project's model: encoder and projection head."""
  encoder = {"name": "resnet18"} | {k: settings[k] for k in ("stem", "dtype")}
  head = {"name": "projection", "hidden": 512, "out": 128}
  return make_model(encoder, head, num_classes=7)


def _program_facts(program: jax.stages.Compiled) -> dict[str, Any]:
  """Returns XLA's estimates for a program, and the device's name."""
  cost, memory = program.cost_analysis() or {}, program.memory_analysis()
  return {
    "device_kind": jax.devices()[0].device_kind,
    "compiled_bytes": cost.get("bytes accessed"),
    "temporary_bytes": memory and memory.temp_size_in_bytes,
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
  names = "crop_scale flip jitter_prob jitter_strength grey blur"
  scale = _BLUR_SIDE / settings["size"]
  sigma = {"blur_sigma": tuple(scale * s for s in settings["blur_sigma"])}
  return {name: settings[name] for name in names.split()} | sigma


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
  units = count * batch * settings["views"]
  return {"run": run, "units": units, "facts": {"set": found}}


def _compile_phase(
  settings: dict[str, Any], name: str
) -> tuple[CompiledPhase, np.ndarray]:
  """Returns a phase as `dbl_jax.main` compiles it, and its random images.

  Phase 'classify' trains a head on a frozen encoder of random weights, which
  costs as much as any other.
  """
  config, shares = configs.base(), settings["class_shares"]
  config.data.update(image_size=settings["size"], input=settings["input"])
  config.model.update(stem=settings["stem"], dtype=settings["dtype"])
  start = None
  if name == "pretrain":
    config.pretrain = configs.simclr()
    config.pretrain.epochs = 1000
    config.pretrain.augment.update(_family(settings), rotation=0.0)
    config.pretrain.losses.nt_xent.temperature = settings["temperature"]
    kept = {name: settings[name] for name in ("momentum", "weight_decay")}
    config.pretrain.optimizer.update(kept, name="sgd")
  else:
    config.classify = configs.classifier()
    kept = {name: settings[name] for name in ("epochs", "cached_views")}
    config.classify.update(kept)
    kept = {name: settings[name] for name in ("crop_scale", "flip")}
    config.classify.augment.update(kept, crop_ratio=(3 / 4, 4 / 3))
    config.classify.head.hidden = (settings["hidden"],)
    model = make_model(config.model, config.classify.head, len(shares))
    fresh = init_variables(model, jax.random.key(0), settings["size"])
    start = jax.device_get(fresh)
  config[name].batch_size = settings["batch"]
  config[name].optimizer.learning_rate = settings["learning_rate"]
  images = _random_images(settings)
  labels = np.random.default_rng(0).choice(len(shares), len(images), p=shares)
  train = Split(images, labels.astype(np.int32))
  dataset = Dataset(
    name="random pixels",
    class_names=tuple(map(str, range(len(shares)))),
    splits={"train": train, "validation": Split(*(a[:8] for a in train))},
    fingerprint="",
  )
  mesh = make_mesh(jax.devices()[:1])
  jax.set_mesh(mesh)
  config = configs.resolve(config)
  phase = make_phase(config, name, dataset, start)
  return compile_phase(phase, dataset.splits, mesh, config), images


def _timed(
  source: pipeline.InputPipeline,
  advance: Callable[[Any, int], None],
  count: int,
  most: int = 1,
  dropped: int = 0,
) -> dict[str, Any]:
  """Returns work that reads `count` batches from an input, compiled.

  `advance` takes a reader, for at most `most` batches at once, and a number of
  batches. It drops `dropped` batches first, so that prefetching is not counted.
  """
  box: list[Any] = []

  def begin() -> None:
    box.append(pipeline.batch_reader(source, 0, _ENDLESS, most))
    if dropped:
      advance(box[0], dropped)

  def run() -> None:
    advance(box[0], count)

  begin()
  run()
  box.clear()
  return {"run": run, "begin": begin, "end": box.clear}


def _make_advance(compiled: CompiledPhase) -> Callable[[Any, int], None]:
  """Returns a function that trains as the loop does, for `_timed`."""
  state, key = [compiled.state], compiled.phase.key
  most = compiled.max_steps_per_dispatch

  def advance(take: Any, count: int) -> None:
    while count:
      some = min(count, most)
      state[0], metrics = compiled.train_steps(
        state[0], compiled.pipeline.resident, take(some), key, some
      )
      count -= some
    jax.block_until_ready(metrics)

  return advance


def feed(settings: dict[str, Any]) -> dict[str, Any]:
  """The input, alone ('plain') or with views and training step ('train')."""
  found, count = prepare(settings), settings["batches_per_call"]
  compiled, _ = _compile_phase(settings, "pretrain")

  @jax.jit
  def read(resident: jax.Array | None, batches: Any) -> jax.Array:
    batch = jax.tree.map(lambda leaf: leaf[0], batches)
    return views.plain(pipeline.gather(resident, batch), settings["size"])

  def advance(take: Any, count: int) -> None:
    for _ in range(count):
      batch = read(compiled.pipeline.resident, take(1))
    batch.block_until_ready()

  source, most = compiled.pipeline, compiled.max_steps_per_dispatch
  if settings["work"] == "train":
    work = _timed(source, _make_advance(compiled), count, most)
  else:
    work = _timed(source, advance, count, dropped=8)
  options = {"input": settings["input"], "steps_per_dispatch": most}
  units, facts = count * settings["batch"], {"set": found | options}
  return work | {"units": units, "facts": facts}


def phase2(settings: dict[str, Any]) -> dict[str, Any]:
  """Phase 2 on features extracted once, or encoding at each step.

  A unit is the whole phase. With cached_views = 0 only steps_per_call steps
  are done: each takes as long as any other.
  """
  found, count = prepare(settings), settings["steps_per_call"]
  compiled, images = _compile_phase(settings, "classify")
  phase, source = compiled.phase, compiled.pipeline
  most = compiled.max_steps_per_dispatch
  facts = {"set": found | {"steps": phase.num_steps}}
  if not settings["cached_views"]:
    work = _timed(source, _make_advance(compiled), count, most)
    return work | {"units": count / phase.num_steps, "facts": facts}
  labels, start = compiled.splits["train"].labels, jax.device_get(phase.state)
  mesh = make_mesh(jax.devices()[:1])
  predict_step = make_eval_step(phase.model, phase.images, mesh)

  def run() -> None:
    """Extraction, then all steps: repeats what `compile_phase` did."""
    state = put(start, replicated(mesh))
    forward = make_forward(predict_step, state.model(), mesh)
    features = forward(images)[0][:, None]
    rows = pipeline.make_pipeline(
      features, labels, phase.sampler, mesh, "resident"
    )
    advance = _make_advance(
      dataclasses.replace(compiled, pipeline=rows, state=state)
    )
    advance(pipeline.batch_reader(rows, 0, _ENDLESS, most), phase.num_steps)

  run()  # compiles
  return {"run": run, "units": 1, "facts": facts}
