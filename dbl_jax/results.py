"""What a run comes to: metrics.json, the confusion matrix, the page."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dbl_jax import (
  checkpoint,
  distributed,
  inputs,
  report,
  sharding,
  steps,
)
from dbl_jax import config as configs
from dbl_jax.data import sources
from dbl_jax.data.prepared import Dataset
from dbl_jax.errors import UserError
from dbl_jax.evaluate import Forward, compiled, evaluate, make_forward
from dbl_jax.models.model import make_model
from dbl_jax.progress import read_rows


class Run(NamedTuple):
  """Where a model comes from.

  Attributes:
    config: the run's resolved config.
    phase: the phase that trained it.
    step: the checkpoint's step.
    history: rows of the run's metrics.jsonl.
  """

  config: ConfigDict
  phase: str
  step: int
  history: list[dict[str, Any]]


def write(
  run: Run, dataset: Dataset, split: str, forward: Forward, out: Path
) -> dict[str, Any]:
  """Evaluates a part of the data and writes all three.

  Args:
    run: where the model comes from.
    dataset: the data.
    split: name of the part.
    forward: the model.
    out: folder to write to, made if need be.

  Returns:
    What `metrics.json` holds.
  """
  train = dataset.parts["train"]
  predictor = run.config[run.phase].predictor
  result = evaluate(
    predictor, forward, train, dataset.parts[split], dataset.class_names
  )
  metrics = {"dataset": dataset.name, "split": split} | result
  metrics |= {
    "phase": run.phase,
    "predictor": predictor,
    "checkpoint_step": run.step,
    "config": run.config.to_dict(),
  }
  if not distributed.is_main():
    return metrics
  report.write(
    out,
    metrics,
    train_counts=np.bincount(
      train.labels, minlength=len(dataset.class_names)
    ).tolist(),
    history=run.history,
    view_pairs=_view_pairs(run.config, dataset),
    title=f"{' + '.join(configs.phases(run.config))} on {dataset.name}",
  )
  return metrics


def _view_pairs(
  config: ConfigDict, dataset: Dataset
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """One training image of each class and two views of it, for the eye."""
  images, labels = dataset.parts["train"]
  _, first = np.unique(labels, return_index=True)
  views = dict(config[configs.phases(config)[0]]) | {"views": 2}
  draw = jax.jit(inputs.of_images(views, dataset.image_size, "frozen").draw)
  ids = jnp.asarray(first, jnp.int32)
  pair = draw(jax.random.key(config.seed), ids, jnp.asarray(images[first]))
  return images[first], np.asarray(pair[0]), np.asarray(pair[1])


def evaluate_workdir(
  workdir: Path, data_dir: str | None, split: str, out: Path
) -> dict[str, Any]:
  """Restores a run's model and evaluates it.

  Args:
    workdir: of the run.
    data_dir: another copy of the data, or None for the run's own.
    split: 'train', 'validation' or 'test'.
    out: folder to write to, made if need be.

  Returns:
    What `metrics.json` holds.

  Raises:
    UserError: if there is no checkpoint, or the data's classes are others.
  """
  phase = last_phase(workdir)
  directory = checkpoint.phase_dir(workdir, phase)
  meta = checkpoint.load_meta(directory)
  config = configs.from_dict(meta["config"])
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
  if split not in dataset.parts:
    raise UserError(
      f"--split={split}: no such part. There are {', '.join(dataset.parts)}."
    )
  model = make_model(config.model, config[phase].head, len(dataset.class_names))
  mesh = sharding.make_mesh()
  images = inputs.of_images(config[phase], dataset.image_size, "frozen")
  forward = make_forward(
    compiled(steps.make_eval_step(model, images), mesh),
    sharding.put(variables, sharding.replicated(mesh)),
    mesh,
  )
  history = read_rows(workdir / "metrics.jsonl")
  return write(Run(config, phase, step, history), dataset, split, forward, out)


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
