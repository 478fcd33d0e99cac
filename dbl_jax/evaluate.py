"""Evaluation of a run: metrics.json, scores, confusion matrix and report."""

import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from scipy import special

from dbl_jax import config as configs
from dbl_jax.augment import views
from dbl_jax.data import sources
from dbl_jax.data.datasets import Dataset, Split
from dbl_jax.data.formats.stored import few
from dbl_jax.errors import UserError
from dbl_jax.evaluation import (
  activation_maps,
  pictures,
  plots,
  predictions,
  predictors,
  report,
)
from dbl_jax.evaluation.metrics import by_tier, confusion_of
from dbl_jax.evaluation.predictions import evaluate, make_forward
from dbl_jax.evaluation.predictors import FitContext
from dbl_jax.models.model import gives, make_model
from dbl_jax.runtime import distributed
from dbl_jax.runtime.environment import provenance
from dbl_jax.runtime.logs import read_rows
from dbl_jax.training import checkpoint, steps
from dbl_jax.training.steps import first_difference

logger = logging.getLogger(__name__)


class TrainedRun(NamedTuple):
  """Provenance of a model.

  Attributes:
    config: the run's resolved config.
    phase: the phase that trained it.
    step: the checkpoint's step.
    history: rows of the run's metrics.jsonl.
    made_by: versions and source, see `provenance`.
  """

  config: ConfigDict
  phase: str
  step: int
  history: list[dict[str, Any]]
  made_by: dict[str, Any]


def skipped_steps(history: list[dict[str, Any]]) -> dict[str, int]:
  """Phase -> number of steps skipped, as loss or gradient was not finite."""
  return {
    row["phase"]: int(row[steps.SKIPPED])
    for row in history
    if steps.SKIPPED in row
  }


def better_lost(
  history: list[dict[str, Any]], phase: str, step: int
) -> int | None:
  """Finds a checkpoint that validated better but was damaged later.

  Returns the best step in the history of a phase with keep="best", or None if
  it is `step`, the best checkpoint that exists.
  """
  keys = (f"val_{checkpoint.METRIC}", f"knn_{checkpoint.METRIC}")
  scores = {
    row["step"]: row[key]
    for row in history
    for key in keys
    if row["phase"] == phase and key in row
  }
  best = max(scores, key=lambda one: (scores[one], one), default=step)
  return None if scores.get(step) == scores.get(best) else best


def write(
  run: TrainedRun,
  dataset: Dataset,
  split: str,
  context: FitContext,
  out: Path,
  mistakes: bool = False,
) -> dict[str, Any]:
  """Evaluates a split and writes metrics, scores and the report to `out`.

  With `mistakes` the report shows the most confident ones. Returns the content
  of `metrics.json`.
  """
  part, names, phase = dataset.splits[split], dataset.class_names, run.phase
  # All hosts take part in every forward pass.
  fitted = predictors.fit(run.config[phase].predictor, context)
  model_outputs = context.forward(part.images)
  result, scores = evaluate(fitted, model_outputs, part.labels, names)
  validation = fitted.scores(*context.validation)
  temperature, calibrated = None, fitted.name in predictors.CALIBRATED
  if calibrated:
    labels = context.validation_labels
    temperature = predictors.fit_temperature(validation, labels)
  best = run.config[phase].keep == "best"
  lost = better_lost(run.history, phase, run.step) if best else None
  counts = np.bincount(context.labels, minlength=len(names))
  metrics = {
    "dataset": dataset.name,
    "split": split,
    **result,
    "tiers": by_tier(confusion_of(result), counts),
    "temperature": temperature,
    "phase": phase,
    "checkpoint_step": run.step,
    "made_by": run.made_by,
    "seed": run.config.seed,
    "data_fingerprint": dataset.fingerprint,
    "skipped_steps": skipped_steps(run.history),
    "better_checkpoint_lost": lost,
    "config": run.config.to_dict(),
  }
  if not distributed.is_main():
    return metrics
  held_out = context.validation_labels, validation
  stored = predictions.Predictions(
    names, counts, part.labels, scores, *held_out, calibrated
  )
  predictions.save(out / f"scores_{split}.npz", stored)
  predicted = scores.argmax(axis=1)
  report.write(
    out,
    metrics,
    train_counts=counts.tolist(),
    history=run.history,
    view_pairs=_view_pairs(run.config, dataset),
    activation=_activation(run, context.variables, part, predicted, names),
    extra=pictures.sections(
      part,
      model_outputs[0],
      scores,
      temperature or 1.0,
      names,
      calibrated,
      mistakes,
    ),
    title=f"{' + '.join(configs.phases(run.config))} on {dataset.name}",
  )
  return metrics


def _view_pairs(
  config: ConfigDict, dataset: Dataset
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """One training image of each class and two augmented views of it."""
  images, labels = dataset.splits["train"]
  _, ids = np.unique(labels, return_index=True)
  ids = ids[: plots.MAX_VIEW_PAIRS].astype(np.int32)
  augment = config[configs.phases(config)[0]].augment.items()
  draw = _compiled_views(dataset.image_size, tuple(augment))
  first, second = draw(jax.random.key(config.seed), ids, images[ids])
  return images[ids], np.asarray(first), np.asarray(second)


@functools.lru_cache(maxsize=4)  # compiling takes seconds
def _compiled_views(
  size: int, augment: tuple[tuple[str, Any], ...]
) -> Callable[..., jax.Array]:
  options = {"num_views": 2, "out_size": size} | dict(augment)
  return jax.jit(functools.partial(views.make_views, **options))


def make_activation(
  config: ConfigDict, phase: str, num_classes: int
) -> Callable[..., jax.Array | None] | None:
  """Makes the function that computes class activation maps of a phase's model.

  It takes (variables, images uint8[n, S, S, 3], classes int[n]) and returns
  f32[n, h, w] or None, see `activation_maps`. It is None without a classifier.
  """
  if "logits" not in gives(config[phase].head.name):
    return None
  model = make_model(config.model, config[phase].head, num_classes)
  images = steps.image_inputs(config[phase], config.data.image_size, "frozen")
  return lambda variables, rows, classes: activation_maps.class_activation_maps(
    model, variables, images.plain(rows), classes
  )


def _activation(
  run: TrainedRun,
  variables: Mapping[str, Any],
  part: Split,
  predicted: np.ndarray,
  class_names: tuple[str, ...],
) -> bytes | None:
  """Draws class activation maps of some images, if the model has them."""
  compute = make_activation(run.config, run.phase, len(class_names))
  chosen = activation_maps.examples(part.labels, predicted)
  if compute is None or not len(chosen):
    return None
  shown, labels = part.images[chosen], part.labels[chosen]
  predicted = predicted[chosen]
  maps = jax.jit(compute)(variables, shown, predicted)
  if maps is None:
    return None
  overlays = [
    activation_maps.overlay(image, one)
    for image, one in zip(shown, np.asarray(maps), strict=True)
  ]
  pairs = np.concatenate([shown, overlays], axis=2)
  return plots.activation_figure(pairs, labels, predicted, class_names)


@dataclasses.dataclass(frozen=True)
class LoadedModel:
  """A trained model. Made by `load`.

  Attributes:
    config: resolved config of the run.
    phase: name of the phase that trained the model.
    step: step of its checkpoint.
    class_names: C names in the order of the labels.
    variables: 'params' and 'batch_stats', as host arrays.
    eval_step: compiled forward pass, (variables, images) -> features, outputs.
    mesh: the devices.
    meta: what the checkpoint stores about the run.
    temperature: fitted on validation when the run ended, see
      `predictors.fit_temperature`; 1 before.
  """

  config: ConfigDict
  phase: str
  step: int
  class_names: tuple[str, ...]
  variables: dict[str, Any]
  eval_step: Any
  mesh: jax.sharding.Mesh
  meta: Mapping[str, Any]
  temperature: float = 1.0

  def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Runs encoder and head.

    Args:
      images: uint8[n, S, S, 3], RGB, S as in training (`data.image_size`).

    Returns:
      Features f32[n, F] and outputs of the head f32[n, K].

    Raises:
      ValueError: if the images have another shape or dtype.
    """
    images, size = np.asarray(images), self.config.data.image_size
    if images.shape[1:] != (size, size, 3) or images.dtype != np.uint8:
      raise ValueError(
        f"images are {images.dtype}{list(images.shape)}; expected"
        f" uint8[n, {size}, {size}, 3]"
      )
    return make_forward(self.eval_step, self.variables, self.mesh)(images)

  def predict(self, images: np.ndarray) -> np.ndarray:
    """Calibrated probabilities f32[n, C]: softmax of logits / temperature.

    Images are as in `__call__`.

    Raises:
      UserError: if the model is not a classifier, such as SimCLR alone.
    """
    self.require_classifier()
    logits = predictors.logits(len(self.class_names)).scores(*self(images))
    return special.softmax(logits / self.temperature, axis=1)

  def require_classifier(self, hint: str = "") -> None:
    """Raises UserError, with a hint, if the model is not a classifier."""
    head = self.config[self.phase].head.name
    if "logits" not in gives(head):
      raise UserError(
        f"The run has the head {head!r}, which is not a classifier. {hint}Train"
        " one on its encoder with configs/classifier.py and"
        " --config.init_from."
      )


def load(workdir: Path | str, predictor: str | None = None) -> LoadedModel:
  """Loads the model of a run.

  Args:
    workdir: workdir of the run.
    predictor: replaces the config's predictor unless None.

  Returns:
    The model of the last phase that has a checkpoint.

  Raises:
    UserError: if no checkpoint is found, or it does not match its config.
  """
  workdir = Path(workdir).expanduser()
  phase = last_phase(workdir)
  directory = checkpoint.phase_dir(workdir, phase)
  meta = checkpoint.load_meta(directory)
  config = _config_of(meta, phase, predictor, directory)
  variables, step = checkpoint.load_model(directory, config[phase].keep)
  names, size = tuple(meta["class_names"]), config.data.image_size
  model = make_model(config.model, config[phase].head, len(names))
  expected = jax.eval_shape(
    lambda: steps.init_variables(model, jax.random.key(0), size)
  )
  if differs := first_difference(variables, expected):
    raise UserError(
      f"The checkpoint in {directory} does not fit its config: {differs[0]}"
      f" has shape {differs[1]}, expected {differs[2]}. It is damaged"
      " or from another version; train it again."
    )
  mesh = distributed.make_mesh()
  images = steps.image_inputs(config[phase], size, "frozen")
  return LoadedModel(
    config,
    phase,
    step,
    names,
    variables,
    steps.make_eval_step(model, images, mesh),
    mesh,
    meta,
    _temperature(workdir, phase, step),
  )


def _temperature(workdir: Path, phase: str, step: int) -> float:
  """The temperature of a run's model, if the run has measured it."""
  try:
    metrics = json.loads((workdir / "metrics.json").read_bytes())
    if (metrics["phase"], metrics["checkpoint_step"]) == (phase, step):
      return float(metrics["temperature"])
  except (OSError, ValueError, TypeError, KeyError):
    pass  # unfinished, of an earlier version, or with another predictor
  return 1.0


def evaluate_workdir(
  workdir: Path,
  data_dir: str | None,
  split: str,
  out: Path,
  predictor: str | None = None,
  external: str | None = None,
  mistakes: bool = False,
) -> dict[str, Any]:
  """Restores the model of a run and evaluates it.

  Args:
    workdir: workdir of the run.
    data_dir: another copy of the data, or None for the run's data.
    split: 'train', 'validation' or 'test'.
    out: output folder; created if missing.
    predictor: name in `predictors.PREDICTORS`, or None for the run's predictor.
    external: a folder or zip of class folders to evaluate on in place of the
      split, or None; see `sources.with_external`.
    mistakes: whether the report shows the most confident mistakes.

  Returns:
    The content of `metrics.json`.

  Raises:
    UserError: if no checkpoint is found, it does not match its config, or the
      data has other classes; or other images, unless `data_dir` is given.
  """
  loaded = load(workdir, predictor)
  config = loaded.config
  if data_dir is not None:
    config.data.dir = data_dir
  dataset = sources.load(config.data)
  if tuple(dataset.class_names) != loaded.class_names:
    raise UserError(
      f"The run in {workdir} has the classes"
      f" {few(loaded.class_names, 10)}, in this order; the data has"
      f" {few(dataset.class_names, 10)}. Evaluate it on data with the run's"
      " classes."
    )
  if not checkpoint.same_images(
    loaded.meta, dataset.fingerprint, dataset.former
  ):
    # A new split may put training images into the test split.
    message = (
      f"The run in {workdir} was trained on other images than are there now."
      " If the test split is drawn from them, it may include images that the"
      " run was trained on."
    )
    if data_dir is None:
      raise UserError(f"{message} To evaluate on them, give --data_dir.")
    logger.warning(message)
  if external is not None:
    dataset = sources.with_external(dataset, external, config.data)
    split = "external"
  if split not in dataset.splits:
    raise UserError(
      f"--split={split}: expected one of {', '.join(dataset.splits)}."
    )
  history = read_rows(workdir / "metrics.jsonl")
  run = TrainedRun(config, loaded.phase, loaded.step, history, provenance())
  context = fit_context(
    loaded.eval_step, loaded.variables, dataset, loaded.mesh
  )
  return write(run, dataset, split, context, out, mistakes)


def _config_of(
  meta: Mapping[str, Any], phase: str, predictor: str | None, directory: Path
) -> ConfigDict:
  """The config of a checkpoint, which may come from another version.

  Raises:
    UserError: if this version cannot read it.
  """
  try:
    config = configs.from_dict(meta["config"])
  except ValueError as error:
    raise UserError(
      f"The config stored in {directory} cannot be read ({error}). Expected the"
      " checkpoints of a run; train it again."
    ) from error
  if not isinstance(config.get(phase), ConfigDict):
    raise UserError(
      f"The config stored in {directory} lacks the phase {phase!r}. Expected"
      " the checkpoints of a run; train it again."
    )
  if predictor is not None:
    config[phase].predictor = predictor
  config = configs.resolve(config)
  # A checkpoint from elsewhere must not choose where folders are created.
  if not Path(config.data.cache_dir).expanduser().is_dir():
    config.data.cache_dir = ""
  return config


def fit_context(
  eval_step: Any,
  variables: dict[str, Any],
  dataset: Dataset,
  mesh: jax.sharding.Mesh,
) -> FitContext:
  """Combines a trained model with the splits a predictor is fitted on.

  `eval_step` is its compiled forward pass over images.
  """
  placed = distributed.put(variables, distributed.replicated(mesh))
  return FitContext(
    make_forward(eval_step, placed, mesh),
    variables,
    dataset.splits,
    len(dataset.class_names),
  )


def last_phase(workdir: Path) -> str:
  """Name of the last phase that has checkpoints."""
  if not workdir.is_dir():
    raise UserError(
      f"--workdir={workdir} is not a folder. Give the workdir of a run."
    )
  for name in reversed(configs.PHASES):
    if checkpoint.phase_dir(workdir, name).is_dir():
      return name
  raise UserError(
    f"--workdir={workdir} does not hold a checkpoint. Expected the folder"
    f" {workdir / 'checkpoints'}, which a run creates."
  )
