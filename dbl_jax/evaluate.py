"""What a run comes to: metrics.json, scores, the confusion matrix, the page."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dbl_jax import config as configs
from dbl_jax.data import sources
from dbl_jax.data.datasets import Dataset, Split
from dbl_jax.errors import UserError
from dbl_jax.evaluation import activation_maps, predictions, predictors, report
from dbl_jax.evaluation.forward import evaluate, jit_eval_step, make_forward
from dbl_jax.evaluation.predictors import FitContext
from dbl_jax.models.model import Model, make_model
from dbl_jax.runtime import distributed, sharding, trees
from dbl_jax.runtime.logs import read_rows
from dbl_jax.runtime.provenance import provenance
from dbl_jax.training import checkpoint, inputs, steps

log = logging.getLogger(__name__)


class Run(NamedTuple):
  """Where a model comes from.

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
  """Phase -> steps left out because loss or gradient were not finite."""
  return {
    row["phase"]: int(row[steps.SKIPPED])
    for row in history
    if steps.SKIPPED in row
  }


def better_lost(
  history: list[dict[str, Any]], phase: str, step: int
) -> int | None:
  """The step of a checkpoint that validated better but was damaged since.

  Args:
    history: rows of the run's metrics.jsonl.
    phase: one that keeps its best checkpoint.
    step: the best there is.

  Returns:
    The step that the journal says was best; None where that is `step`.
  """
  scores = {
    row["step"]: row[f"val_{checkpoint.METRIC}"]
    for row in history
    if row["phase"] == phase and f"val_{checkpoint.METRIC}" in row
  }
  best = max(scores, key=lambda one: (scores[one], one), default=step)
  return None if scores.get(step) == scores.get(best) else best


def write(
  run: Run, dataset: Dataset, split: str, known: FitContext, out: Path
) -> dict[str, Any]:
  """Evaluates a part of the data and writes all of it.

  Args:
    run: where the model comes from.
    dataset: the data.
    split: name of the part.
    known: the model, and what a predictor may look at.
    out: folder to write to, made if need be.

  Returns:
    What `metrics.json` holds.
  """
  part, names = dataset.splits[split], dataset.class_names
  # On several hosts all take part in whatever runs the model.
  fitted = predictors.fit(run.config[run.phase].predictor, known)
  seen = known.forward(part.images)
  result, scores = evaluate(fitted, seen, part.labels, names)
  validation = fitted.scores(*known.validation)
  metrics = {"dataset": dataset.name, "split": split} | result
  metrics |= {
    "phase": run.phase,
    "checkpoint_step": run.step,
    "made_by": run.made_by,
    "seed": run.config.seed,
    "data_fingerprint": dataset.fingerprint,
    "skipped_steps": skipped_steps(run.history),
    "better_checkpoint_lost": better_lost(run.history, run.phase, run.step)
    if run.config[run.phase].keep == "best"
    else None,
    "config": run.config.to_dict(),
  }
  if not distributed.is_main():
    return metrics
  counts = np.bincount(known.labels, minlength=len(names))
  predictions.save(
    out / f"scores_{split}.npz",
    predictions.Predictions(
      names,
      counts,
      part.labels,
      scores,
      known.validation_labels,
      validation,
      fitted.name in predictors.CALIBRATED,
    ),
  )
  report.write(
    out,
    metrics,
    train_counts=counts.tolist(),
    history=run.history,
    view_pairs=_view_pairs(run.config, dataset),
    activation=_activation(run, known.variables, part, scores, names),
    title=f"{' + '.join(configs.phases(run.config))} on {dataset.name}",
  )
  return metrics


def _view_pairs(
  config: ConfigDict, dataset: Dataset
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """One training image of each class and two views of it, for the eye."""
  images, labels = dataset.splits["train"]
  _, first = np.unique(labels, return_index=True)
  views = dict(config[configs.phases(config)[0]]) | {"views": 2, "mixup": 0.0}
  draw = jax.jit(inputs.of_images(views, dataset.image_size, "frozen").draw)
  ids = jnp.asarray(first, jnp.int32)
  pair, _ = draw(
    jax.random.key(config.seed), ids, jnp.asarray(images[first]), None
  )
  return images[first], np.asarray(pair[0]), np.asarray(pair[1])


def _activation(
  run: Run,
  variables: Mapping[str, Any],
  part: Split,
  scores: np.ndarray,
  class_names: tuple[str, ...],
) -> bytes | None:
  """Class activation maps, where the head is linear on averages of a map."""
  config = run.config
  head = variables["params"]["head"]
  averaged = config.model.get("pooling", "average") == "average"
  if set(head) != {"logits"} or "bias" not in head["logits"] or not averaged:
    return None
  model = make_model(config.model, config[run.phase].head, len(class_names))
  predicted = scores.argmax(axis=1)
  chosen = activation_maps.examples(part.labels, predicted, len(class_names), 4)
  images = inputs.of_images(config[run.phase], part.images.shape[1], "frozen")
  _, found = jax.jit(
    lambda rows: model.apply(
      variables, images.plain(rows), train=False, mutable=["intermediates"]
    )
  )(part.images[chosen])
  maps = found.get("intermediates", {}).get("encoder", {}).get("maps", [None])
  # Of a map of few pixels there is nothing to tell apart.
  if maps[0] is None or maps[0].shape[1] * maps[0].shape[2] < 4:
    return None
  of_classes = activation_maps.class_activation_maps(
    np.asarray(maps[0], np.float32), np.asarray(head["logits"]["kernel"])
  )
  return activation_maps.activation_figure(
    part.images[chosen],
    of_classes[np.arange(len(chosen)), predicted[chosen]],
    part.labels[chosen],
    predicted[chosen],
    class_names,
    "",
  )


def evaluate_workdir(
  workdir: Path,
  data_dir: str | None,
  split: str,
  out: Path,
  predictor: str | None = None,
) -> dict[str, Any]:
  """Restores a run's model and evaluates it.

  Args:
    workdir: of the run.
    data_dir: another copy of the data, or None for the run's own.
    split: 'train', 'validation' or 'test'.
    out: folder to write to, made if need be.
    predictor: name in `predictors.PREDICTORS`, or None for the run's own.

  Returns:
    What `metrics.json` holds.

  Raises:
    UserError: if there is no checkpoint, it does not fit its config, or the
      data's classes are others; or its images, unless `data_dir` names them.
  """
  phase = last_phase(workdir)
  directory = checkpoint.phase_dir(workdir, phase)
  meta = checkpoint.load_meta(directory)
  config = _config_of(meta, phase, predictor, directory)
  variables, step = checkpoint.load_model(directory, config[phase].keep)
  if data_dir is not None:
    config.data.dir = data_dir
  dataset = sources.load(config.data)
  if list(dataset.class_names) != list(meta["class_names"]):
    raise UserError(
      f"The run in {workdir} knows the classes"
      f" {', '.join(meta['class_names'])}, in this order; the data has"
      f" {', '.join(dataset.class_names)}. Evaluate it on data with its own"
      " classes."
    )
  _check_images(dataset, meta, workdir, data_dir)
  if split not in dataset.splits:
    raise UserError(
      f"--split={split}: no such part. There are {', '.join(dataset.splits)}."
    )
  model = make_model(config.model, config[phase].head, len(dataset.class_names))
  _check_shapes(model, variables, dataset.image_size, directory)
  mesh = sharding.make_mesh()
  images = inputs.of_images(config[phase], dataset.image_size, "frozen")
  step_of = jit_eval_step(steps.make_eval_step(model, images), mesh)
  history = read_rows(workdir / "metrics.jsonl")
  run = Run(config, phase, step, history, provenance())
  model_known = known(step_of, variables, dataset, mesh)
  return write(run, dataset, split, model_known, out)


def _config_of(
  meta: Mapping[str, Any], phase: str, predictor: str | None, directory: Path
) -> ConfigDict:
  """The config of a checkpoint, which may be a stranger's or another version's.

  Raises:
    UserError: if it is none that this version knows.
  """
  config = configs.from_dict(meta["config"])
  if not isinstance(config.get(phase), ConfigDict):
    raise UserError(
      f"The config kept in {directory} has no phase {phase!r}. Expected the"
      " checkpoints of a run; train it again."
    )
  if predictor is not None:
    config[phase].predictor = predictor
  config = configs.resolve(config)
  # A stranger's must not choose where folders are made.
  if not Path(config.data.cache_dir).expanduser().is_dir():
    config.data.cache_dir = ""
  return config


def _check_images(
  dataset: Dataset, meta: Mapping[str, Any], workdir: Path, data_dir: str | None
) -> None:
  """Other images may be split otherwise: those trained on, be in test now."""
  if dataset.fingerprint == meta.get("fingerprint", dataset.fingerprint):
    return
  what = f"The run in {workdir} was trained on other images than are there now"
  if data_dir is None:
    raise UserError(
      f"{what}: files were added, removed or changed. To evaluate on them all"
      " the same, name them with --data_dir; without a test part of their own,"
      " images it was trained on may be among those it is tested on."
    )
  log.warning(
    "%s in --data_dir: without a test part of their own, images it was trained"
    " on may be among those it is tested on.",
    what,
  )


def _check_shapes(
  model: Model, variables: Mapping[str, Any], size: int, directory: Path
) -> None:
  """Raises UserError if parameters are not those of the config beside them."""
  expected = jax.eval_shape(
    lambda: steps.init_variables(model, jax.random.key(0), size)
  )
  if differs := trees.first_difference(variables, expected):
    raise UserError(
      f"The checkpoint in {directory} does not fit its config: {differs.path}"
      f" has shape {differs.found}, expected {differs.expected}. It is damaged,"
      " or of another version; train it again."
    )


def known(
  eval_step: Any,
  variables: dict[str, Any],
  dataset: Dataset,
  mesh: jax.sharding.Mesh,
) -> FitContext:
  """A trained model with the parts that predictors may look at.

  Args:
    eval_step: of the model over images, compiled.
    variables: of the model.
    dataset: with 'train' and 'validation'.
    mesh: the devices.

  Returns:
    It.
  """
  placed = sharding.put(variables, sharding.replicated(mesh))
  return FitContext(
    make_forward(eval_step, placed, mesh),
    variables,
    dataset.splits,
    len(dataset.class_names),
  )


def last_phase(workdir: Path) -> str:
  """The latest phase of which a run has checkpoints."""
  if not workdir.is_dir():
    raise UserError(
      f"--workdir={workdir} is not a folder. Give the workdir of a run."
    )
  for name in reversed(configs.PHASES):
    if checkpoint.phase_dir(workdir, name).is_dir():
      return name
  raise UserError(
    f"--workdir={workdir} holds no checkpoint: expected"
    f" {workdir / 'checkpoints'}, which a run makes."
  )
