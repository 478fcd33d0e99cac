"""A run: trains its phases in order, then evaluates the test split."""

import contextlib
import logging
import shlex
import sys
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from dbl_jax import config as configs
from dbl_jax import evaluate, workdirs
from dbl_jax.data import face_crops, sources
from dbl_jax.data.datasets import Dataset
from dbl_jax.errors import UserError
from dbl_jax.models import torch_weights
from dbl_jax.runtime import distributed, signals
from dbl_jax.runtime.environment import provenance
from dbl_jax.runtime.logs import MetricWriter, print_line
from dbl_jax.training import checkpoint, loop, optim, steps
from dbl_jax.training.phase import Phase, check_phases, make_phase
from dbl_jax.training.steps import by_path

logger = logging.getLogger(__name__)
# A run starts from the first of these phases that the earlier run has.
START_PHASES = ("finetune", "pretrain", "classify")


def train_and_evaluate(
  config: ConfigDict, workdir: Path, *, accept_changes: bool = False
) -> dict[str, Any]:
  """Trains all phases of a config, evaluates the test split and reports.

  Called again with the same config and workdir, it resumes. Ctrl-C and SIGTERM
  save a checkpoint and end the run.

  Args:
    config: as returned by `config.resolve`.
    workdir: folder of the run; created if missing.
    accept_changes: resume even if config or images have changed.

  Returns:
    The content of `metrics.json`.

  Raises:
    UserError: for anything the user can correct.
    signals.Stopped: if a signal ended the run.
  """
  workdir, config = workdir.expanduser().resolve(), configs.with_dtype(config)
  with (
    workdirs.plain_errors(workdir),
    contextlib.ExitStack() as stack,
    signals.listening() as stop,
  ):
    with distributed.main_first("workdir"):
      if distributed.is_main():
        workdirs.make(workdir)
        stack.enter_context(workdirs.only_run(workdir))
      workdirs.remember(config, workdir, accept_changes)
    return _run(config, workdir, stop, accept_changes)


def _run(
  config: ConfigDict, workdir: Path, stop: signals.Stop, accept_changes: bool
) -> dict[str, Any]:
  """Runs all phases in a locked workdir; see `train_and_evaluate`."""
  made_by = provenance()
  variables: dict[str, Any] | None = None
  start_classes: tuple[str, ...] = ()
  init = None
  if config.init_from:
    variables, start_classes = load_start(config)
    init = checkpoint.array_checksum(variables)
  with distributed.main_first("data"):
    dataset, further = add_unlabelled(config, sources.load(config.data))
  if variables is not None:
    _check_classes(config, dataset, variables, start_classes)
  mesh = distributed.make_mesh()
  with jax.set_mesh(mesh):
    check_phases(config, dataset, mesh, variables)
  print_line(_headline(config, dataset, mesh))
  with MetricWriter(workdir, config.tensorboard) as writer, jax.set_mesh(mesh):
    for name in configs.phases(config):
      phase = make_phase(config, name, dataset, variables)
      _write_parameter_overview(phase, workdir / f"parameters_{name}.txt")
      directory = checkpoint.phase_dir(workdir, name)
      with distributed.main_first(f"checkpoints of {name}"):
        checkpoint.quarantine_damaged(directory)
      with checkpoint.open_manager(directory) as manager:
        # Cached features belong to one encoder, so its checksum is stored.
        cached = variables is not None and phase.config.cached_views
        meta = {
          "config": config.to_dict(),
          "class_names": dataset.class_names,
          "command": shlex.join(sys.orig_argv),
          "fingerprint": dataset.fingerprint,
          "former": dataset.former,
          "init": init,
          "phase": name,
          "start": checkpoint.array_checksum(variables) if cached else None,
        }
        if name in further:
          meta["unlabelled"] = further[name]
        compiled = loop.compile_phase(phase, dataset.splits, mesh, config)
        with stop.in_order():
          loop.run_phase(
            compiled,
            manager,
            writer,
            meta,
            config.log_every,
            stop,
            accept_changes,
          )
      variables, step = checkpoint.load_model(directory, phase.config.keep)
      _report_losses(phase, step, writer.rows())
    assert variables is not None  # a config has a phase
    run = evaluate.TrainedRun(config, name, step, writer.rows(), made_by)
    predict_step = steps.make_eval_step(phase.model, phase.images, mesh)
    context = evaluate.fit_context(predict_step, variables, dataset, mesh)
    metrics = evaluate.write(run, dataset, "test", context, workdir)
  _store_template(config, dataset, workdir)
  return metrics


def _store_template(
  config: ConfigDict, dataset: Dataset, workdir: Path
) -> None:
  """Stores how faces are aligned, for predictions without the data.

  Not for synthetic faces, which are drawn again. For a region of the face, the
  first prediction computes it from the whole faces.
  """
  has_files = sources.SOURCES[config.data.name].find is not None
  if not distributed.is_main() or not has_files:
    return
  if config.data.region == "face" and face_crops.load_template(workdir) is None:
    images = dataset.splits["train"].images
    face_crops.store_template(workdir, images, config.data.align == "face")


def add_unlabelled(
  config: ConfigDict, dataset: Dataset
) -> tuple[Dataset, dict[str, str]]:
  """Adds the unlabelled images of all phases; see `sources.with_unlabelled`.

  Returns:
    The data set, and phase -> fingerprint of its unlabelled images.
  """
  fingerprints = {}
  for name in configs.phases(config):
    if paths := config[name].get("unlabelled"):
      dataset, fingerprints[name] = sources.with_unlabelled(
        dataset, name, paths, config.data
      )
  return dataset, fingerprints


def load_start(config: ConfigDict) -> tuple[dict[str, Any], tuple[str, ...]]:
  """Variables of the run or file to start from, and the run's classes."""
  if config.init_from.endswith(torch_weights.SUFFIXES):
    path = Path(config.init_from).expanduser()
    variables, unused = torch_weights.load_encoder(path)
    names = ", ".join(unused) or "-"
    print_line(f"Encoder from {config.init_from}; unused parameters: {names}")
    return variables, ()
  return checkpoint.load_start(config.init_from, START_PHASES)


def _report_losses(phase: Phase, step: int, rows: list[dict[str, Any]]) -> None:
  """Reports skipped steps, and a best checkpoint lost to damage.

  `step` is that of the checkpoint that the next phase starts from; the rows are
  all those of metrics.jsonl.
  """
  skipped = evaluate.skipped_steps(rows).get(phase.name, 0)
  if skipped:
    print_line(
      f"{phase.name}: skipped {skipped} steps because loss or gradient was not"
      " finite"
    )
  lost = evaluate.better_lost(rows, phase.name, step)
  if phase.config.keep == "best" and lost is not None:
    logger.warning(
      "%s: the best checkpoint, of step %d, was damaged and is in quarantine;"
      " step %d is used instead. To get the result without damage, train again"
      " in another --workdir.",
      phase.name,
      lost,
      step,
    )


def _check_classes(
  config: ConfigDict,
  dataset: Dataset,
  variables: dict[str, Any],
  start_classes: tuple[str, ...],
) -> None:
  """Raises UserError if an inherited head has other classes than the data."""
  inherit = config[configs.phases(config)[0]].inherit
  head = by_path({"head": variables["params"]["head"]})
  inherits_head = any(optim.matches(path, inherit) for path in head)
  if inherits_head and start_classes != tuple(dataset.class_names):
    raise UserError(
      f"The run in config.init_from={config.init_from} has the classes"
      f" {', '.join(start_classes)}, in this order; the data has"
      f" {', '.join(dataset.class_names)}. Inherit only its encoder"
      " (inherit=('encoder',)), or use data with the run's classes."
    )


def _write_parameter_overview(phase: Phase, path: Path) -> None:
  """Writes tables of trained and frozen parameters, where clu is installed."""
  try:
    from clu import parameter_overview
  except ImportError:  # training itself does not need clu
    return
  groups: dict[str, dict[str, Any]] = {"Trained": {}, "Frozen": {}}
  trained = by_path(phase.trained)
  for name, leaf in by_path(phase.state.params).items():
    groups["Trained" if trained[name] else "Frozen"][name] = leaf
  tables = [
    f"{title}\n"
    + parameter_overview.get_parameter_overview(leaves, include_stats=False)
    for title, leaves in groups.items()
    if leaves
  ]
  if distributed.is_main():
    path.write_text("\n\n".join(tables) + "\n")


def _headline(
  config: ConfigDict, dataset: Dataset, mesh: jax.sharding.Mesh
) -> str:
  counts = {name: len(part.labels) for name, part in dataset.splits.items()}
  sizes = ", ".join(f"{count} {name}" for name, count in counts.items())
  device = mesh.devices.flat[0]
  return (
    f"{' + '.join(configs.phases(config))} on {dataset.name}: {sizes} images,"
    f" {len(dataset.class_names)} classes, {dataset.image_size} px;"
    f" {mesh.size} x {device.device_kind}"
  )
