"""Trains many systems with many seeds, each shared phase once.

A config is split into its phases. A stage is one phase and the stage it starts
from; stages that differ only in the phase's name are the same. Each stage has
its own workdir, named by a hash of its content: a killed sweep resumes, and a
larger one trains only the new stages. Several processes can share a sweep; each
stage is trained by one of them.
"""

import collections
import gc
import hashlib
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from dbl_jax import config as configs
from dbl_jax import train, workdirs
from dbl_jax.compare.statistics import RunResult, run_result
from dbl_jax.data import face_crops, sources
from dbl_jax.errors import UserError
from dbl_jax.evaluation import predictions
from dbl_jax.runtime import distributed, environment, files
from dbl_jax.runtime.logs import clock, print_line
from dbl_jax.training.phase import check_phases

# Seconds of training, and the hardware.
_COST = "cost.json"
_SCORES = "scores_test.npz"
_RESULTS = (_SCORES, "metrics.json", "report.html")
_POLL_SECONDS = 10.0


class Stage(NamedTuple):
  """One phase to train.

  Attributes:
    config: resolved, with this phase only.
    workdir: its own folder.
    parent: workdir of the stage it starts from.
  """

  config: ConfigDict
  workdir: Path
  parent: Path | None


# (system, seed) -> its stages in training order; the last one has the result.
Sweep = dict[tuple[str, int], list[Stage]]


def is_done(workdir: Path) -> bool:
  """Whether a stage has its results."""
  return all((workdir / name).exists() for name in _RESULTS)


def plan(
  systems: Mapping[str, ConfigDict], seeds: Sequence[int], out: Path
) -> Sweep:
  """Splits every system's config into stages, for each seed.

  Configs are not resolved; `out` is the folder of the workdirs.

  Raises:
    UserError: a config is invalid.
  """
  sweep: Sweep = {}
  for seed, (system, config) in itertools.product(seeds, systems.items()):
    config = config.copy_and_resolve_references()
    config.seed = seed
    config = configs.with_dtype(configs.resolve(config))
    parent, chain = None, sweep.setdefault((system, seed), [])
    for name in configs.phases(config):
      single = config.copy_and_resolve_references()
      with single.unlocked():
        for other in configs.phases(config):
          if other != name:
            del single[other]
        if parent is not None:
          single.init_from = str(parent)
      chain.append(Stage(single, _folder(single, name, parent, out), parent))
      parent = chain[-1].workdir
  return sweep


def _folder(
  config: ConfigDict, phase: str, parent: Path | None, out: Path
) -> Path:
  """The folder of an equal stage, or a new one named by a hash."""
  content = config.to_dict()
  for field in configs.CHANGEABLE_FIELDS:
    group, _, leaf = field.rpartition(".")
    (content[group] if group else content).pop(leaf, None)
  for field, former in configs.NEW_FIELDS.items():
    if content[field] == former:  # keeps names from before the field existed
      del content[field]
  content["phase"] = content.pop(phase)
  if parent is not None:
    content["init_from"] = parent.name
  text = json.dumps(content, sort_keys=True, default=str)
  digest = hashlib.sha256(text.encode()).hexdigest()[:12]
  prefix = f"seed{config.seed}-{'+'.join(config[phase].losses)}-"
  named = out.resolve() / f"{prefix}{digest}"
  if named.is_dir():
    return named
  for folder in sorted(named.parent.glob(f"{prefix}*")):
    # The data may have been moved since, or an earlier version may have given
    # the same config another hash.
    try:
      stored = configs.migrate(json.loads((folder / "config.json").read_text()))
      changed = configs.differences(stored, config.to_dict())
      free: tuple[str, ...] = configs.CHANGEABLE_FIELDS
      if not Path(stored["data"]["dir"]).exists():
        free += ("data.dir",)
      if parent is not None and Path(stored["init_from"]).name == parent.name:
        free += ("init_from",)
    except (OSError, ValueError, TypeError):
      continue
    if all(change.startswith(free) for change in changed):
      return folder
  return named


def stages(sweep: Sweep) -> list[Stage]:
  """All stages, each once, parents first."""
  found: dict[Path, Stage] = {}
  for stage in itertools.chain.from_iterable(sweep.values()):
    found.setdefault(stage.workdir, stage)
  return list(found.values())


def run(sweep: Sweep) -> dict[Path, str]:
  """Trains every unfinished stage and logs the progress.

  A failed stage does not stop the others. Every system is checked before any
  training. Stages that another process is training are waited for, and taken
  over if that process dies.

  Returns:
    Workdir of each failed stage -> reason.

  Raises:
    UserError: phases, data and devices of a system do not fit together.
  """
  _check({key: c for key, c in sweep.items() if not is_done(c[-1].workdir)})
  every = stages(sweep)
  todo = collections.deque(
    stage for stage in every if not is_done(stage.workdir)
  )
  total, started, waiting = len(todo), time.monotonic(), 0
  print_line(
    f"sweep: {len(sweep)} results, {len(every) - total} stages done,"
    f" {total} to train"
  )
  failed: dict[Path, str] = {}
  while todo:
    stage = todo.popleft()
    if is_done(stage.workdir):  # by another process
      continue
    if stage.parent in failed:
      failed[stage.workdir] = f"needs {stage.parent.name}, which failed"
      continue
    untrained = stage.parent is not None and not is_done(stage.parent)
    if untrained or workdirs.is_held(stage.workdir):
      todo.append(stage)
      waiting += 1
      if waiting == len(todo):
        print_line(f"sweep: waiting for other processes, {waiting} stages left")
      if waiting >= len(todo):
        time.sleep(_POLL_SECONDS)
      continue
    waiting = 0
    left = sum(not is_done(one.workdir) for one in (stage, *todo))
    per_stage = (time.monotonic() - started) / max(total - left, 1)
    rest = f", about {clock(per_stage * left)} left" if left < total else ""
    users = [system for (system, _), chain in sweep.items() if stage in chain]
    print_line(
      f"sweep: stage {total - left + 1} of {total}{rest}: seed"
      f" {stage.config.seed}, for {', '.join(sorted(set(users)))}\n "
      f" {stage.workdir}"
    )
    try:
      _train(stage)
    except workdirs.InUseError:  # another process was faster
      todo.append(stage)
    except UserError as error:
      failed[stage.workdir] = str(error)
      print_line(f"sweep: failed: {error}")
    gc.collect()
  return failed


def _check(sweep: Sweep) -> None:
  """Traces all phases of each system, with one of its seeds."""
  mesh, data, dataset = distributed.make_mesh(), None, None
  for system, chain in {name: c for (name, _), c in sweep.items()}.items():
    first, start = chain[0].config, None
    try:
      if dataset is None or data != first.data.to_dict():
        data, dataset = first.data.to_dict(), sources.load(first.data)
      if first.init_from:
        start, _ = train.load_start(first)
      with jax.set_mesh(mesh):
        for stage in chain:
          images, _ = train.add_unlabelled(stage.config, dataset)
          start = check_phases(stage.config, images, mesh, start)
    except UserError as error:
      raise UserError(
        f"{system}: {error} Nothing was trained. Correct it, or remove the"
        " system from the sweep."
      ) from error


def _train(stage: Stage) -> None:
  """Trains a stage and adds the time to its cost."""
  started, elsewhere = time.monotonic(), False
  try:
    train.train_and_evaluate(stage.config, stage.workdir)
  except workdirs.InUseError:
    elsewhere = True  # the other process counts its time
    raise
  finally:
    if not elsewhere and stage.workdir.is_dir():
      seconds, hardware = _cost(stage)
      cost = {
        "seconds": round(seconds + time.monotonic() - started, 1),
        "hardware": list(dict.fromkeys([*hardware, environment.words()])),
      }
      files.write(stage.workdir / _COST, json.dumps(cost).encode() + b"\n")


def _cost(stage: Stage) -> tuple[float, tuple[str, ...]]:
  """Seconds of training so far, and the machines used."""
  try:
    cost = json.loads((stage.workdir / _COST).read_text())
    return float(cost["seconds"]), tuple(map(str, cost["hardware"]))
  except (OSError, ValueError, KeyError, TypeError):
    return 0.0, ()


def results(sweep: Sweep, reference: str | None = None) -> list[RunResult]:
  """Loads the results of finished runs.

  The curve of logit adjustment is that of the reference only, if it is given.

  Raises:
    UserError: scores are damaged, or stages of a run saw different images.
  """
  found = []
  for (system, seed), chain in sweep.items():
    if is_done(chain[-1].workdir):
      seconds, hardware = zip(*map(_cost, chain), strict=True)
      found.append(
        run_result(
          system,
          seed,
          predictions.load(chain[-1].workdir / _SCORES),
          reference in (None, system),
          seconds=sum(seconds) or None,
          # Systems on a region can be compared with those on the whole face.
          fingerprint=face_crops.whole(_fingerprint(chain)),
          hardware=tuple(itertools.chain.from_iterable(hardware)),
        )
      )
  return found


def _fingerprint(chain: Sequence[Stage]) -> str:
  """Fingerprint of the images that all stages of a system saw."""
  found = []
  for stage in chain:
    path = stage.workdir / "metrics.json"
    try:
      found.append(str(json.loads(path.read_text())["data_fingerprint"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise UserError(
        f"{path} cannot be read or is damaged ({error!r}). If it is damaged,"
        " move it away and run the same command again, which writes it from the"
        " checkpoint."
      ) from error
  if len(set(found)) > 1:
    raise UserError(
      "Stages of one system saw different images, as the data changed between"
      f" them: {', '.join(str(stage.workdir) for stage in chain)}. Train them"
      " again in another --out."
    )
  return found[0]


def encoder_epochs(sweep: Sweep) -> dict[str, float]:
  """System -> epochs in which its encoder, or a part of it, is trained."""
  epochs: dict[str, float] = {}
  for (system, _), chain in sweep.items():
    phases = [c[name] for c, *_ in chain for name in configs.phases(c)]
    epochs[system] = sum(
      phase.epochs
      for phase in phases
      if any(pattern.startswith("encoder") for pattern in phase.trained)
    )
  return epochs


def missing(sweep: Sweep, failed: Mapping[Path, str]) -> list[str]:
  """A line for each run without result, with the reason."""
  return [
    f"{system}, seed {seed}: {failed.get(chain[-1].workdir, 'not finished')}"
    for (system, seed), chain in sweep.items()
    if not is_done(chain[-1].workdir)
  ]


def with_budget(
  config: ConfigDict,
  data: Mapping[str, Any],
  epochs: int,
  head_epochs: int,
  batch_size: int = 0,
) -> ConfigDict:
  """Copies a system's config with other fields of data and training budget.

  `epochs` are those of the first phase, which trains the encoder, `head_epochs`
  those of later phases that have any; `batch_size` is an upper limit. 0 leaves
  what the config has.
  """
  config = config.copy_and_resolve_references()
  config.data.update(data)
  first, *rest = configs.phases(config)
  if epochs:
    config[first].epochs = epochs
  if batch_size:
    resolved = configs.resolve(config)  # where it depends on the data
    for name in (first, *rest):
      config[name].batch_size = min(resolved[name].batch_size, batch_size)
  for name in rest:
    if head_epochs and config[name].epochs != 0:
      config[name].epochs = head_epochs
  return config
