"""A run: its phases one after the other, then the test part and the report."""

import contextlib
import logging
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from dbl_jax import config as configs
from dbl_jax import evaluate, workdirs
from dbl_jax.data import sources
from dbl_jax.data.datasets import Dataset
from dbl_jax.errors import UserError
from dbl_jax.runtime import distributed, sharding, signals, trees
from dbl_jax.runtime.logs import MetricWriter, say
from dbl_jax.runtime.provenance import provenance
from dbl_jax.training import checkpoint, loop, optim
from dbl_jax.training.phase import Trainer, check_phases, make_trainer

log = logging.getLogger(__name__)


def train_and_evaluate(
  config: ConfigDict, workdir: Path, *, accept_changes: bool = False
) -> dict[str, Any]:
  """Runs all phases of a config, then the test part once, and reports.

  Run again with the same config and workdir, it goes on where it stopped.
  Ctrl-C and SIGTERM end it in order.

  Args:
    config: as `config.resolve` returns it.
    workdir: folder of the run, made if need be.
    accept_changes: go on with a run of another config or other images, which
      is refused otherwise.

  Returns:
    What `metrics.json` holds.

  Raises:
    UserError: for anything the user can mend.
    stopping.Stopped: if a signal ended it.
  """
  workdir = workdir.expanduser().resolve()
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
  """`train_and_evaluate`, in a workdir that is this run's."""
  made_by = provenance()
  variables: dict[str, Any] | None = None
  known_classes: tuple[str, ...] = ()
  if config.init_from:
    variables, known_classes = checkpoint.load_start(
      config.init_from, configs.PHASES
    )
  with distributed.main_first("data"):
    dataset = sources.load(config.data)
  if variables is not None:
    _check_classes(config, dataset, variables, known_classes)
  mesh = sharding.make_mesh()
  with jax.set_mesh(mesh):
    check_phases(config, dataset, mesh, variables)
  say(_headline(config, dataset, mesh))
  with MetricWriter(workdir, config.tensorboard) as journal, jax.set_mesh(mesh):
    for name in configs.phases(config):
      trainer = make_trainer(config, name, dataset, mesh, variables)
      _describe(trainer, workdir / f"parameters_{name}.txt")
      directory = checkpoint.phase_dir(workdir, name)
      with distributed.main_first(f"checkpoints of {name}"):
        checkpoint.quarantine_damaged(directory)
      with checkpoint.open_manager(directory) as manager:
        meta = {
          "config": config.to_dict(),
          "class_names": dataset.class_names,
          "fingerprint": dataset.fingerprint,
          "phase": name,
          # Whose features are cached: those of one model go with one head.
          "start": None
          if variables is None or not trainer.phase.cached_views
          else checkpoint.of_arrays(variables),
        }
        with stop.in_order():
          loop.run_phase(
            trainer,
            manager,
            journal,
            meta,
            config.log_every,
            stop,
            accept_changes,
          )
      _say_skipped(name, journal.rows())
      keep = trainer.phase.keep
      variables, step = checkpoint.load_model(directory, keep)
      lost = evaluate.better_lost(journal.rows(), name, step)
      if keep == "best" and lost is not None:
        log.warning(
          "%s: the best checkpoint, of step %d, was damaged and is set aside;"
          " step %d is taken. Start over in another --workdir for the result"
          " of a run that lost nothing.",
          name,
          lost,
          step,
        )
    assert variables is not None  # a config has a phase
    run = evaluate.Run(config, trainer.name, step, journal.rows(), made_by)
    known = evaluate.known(trainer.predict_step, variables, dataset, mesh)
    return evaluate.write(run, dataset, "test", known, workdir)


def _say_skipped(phase: str, rows: list[dict[str, Any]]) -> None:
  """Says how many steps of a phase changed nothing."""
  skipped = evaluate.skipped_steps(rows).get(phase, 0)
  if skipped:
    say(
      f"{phase}: {skipped} steps skipped, whose loss or gradient was not finite"
    )


def _check_classes(
  config: ConfigDict,
  dataset: Dataset,
  variables: dict[str, Any],
  known: tuple[str, ...],
) -> None:
  """A classifier taken over must mean the same classes, in the same order."""
  inherit = config[configs.phases(config)[0]].inherit
  head = trees.by_path({"head": variables["params"]["head"]})
  takes_head = any(optim.matches(path, inherit) for path in head)
  if takes_head and known != tuple(dataset.class_names):
    raise UserError(
      f"The run in config.init_from={config.init_from} knows the classes"
      f" {', '.join(known)}, in this order; the data has"
      f" {', '.join(dataset.class_names)}. Inherit its encoder alone"
      " (inherit=('encoder',)), or use data with its classes."
    )


def _describe(trainer: Trainer, path: Path) -> None:
  """Writes tables of the parameters a phase trains and of those it does not."""
  try:
    from clu import parameter_overview
  except ImportError:  # a machine with what training needs and no more
    return
  leaves = jax.tree.leaves_with_path(trainer.state.params)
  trained = jax.tree.leaves(trainer.trained)
  groups: dict[str, dict[str, Any]] = {"Trained": {}, "Frozen": {}}
  for (path_to_leaf, leaf), changes in zip(leaves, trained, strict=True):
    name = jax.tree_util.keystr(path_to_leaf, simple=True, separator="/")
    groups["Trained" if changes else "Frozen"][name] = leaf
  tables = [
    f"{title}\n"
    + parameter_overview.get_parameter_overview(found, include_stats=False)
    for title, found in groups.items()
    if found
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
