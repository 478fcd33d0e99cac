"""Many systems, many seeds: what is shared is trained once, nothing twice.

Every config is cut into its phases. A stage is one phase, with the stage it
starts from; stages that agree in everything but the phase's name are one. Each
has a workdir of its own, named after its content, so a grid that was killed
goes on, and one that grows trains what is new. Several processes may work on
one grid: each trains what no other is at.
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
from dbl_jax.compare.records import Record
from dbl_jax.data import regions, sources
from dbl_jax.errors import UserError
from dbl_jax.evaluation import predictions
from dbl_jax.runtime import files, provenance, sharding
from dbl_jax.runtime.logs import clock, say
from dbl_jax.training import checkpoint
from dbl_jax.training.phase import check_phases

# How long a stage was trained, and on what.
_COST = "cost.json"
_SCORES = "scores_test.npz"
_RESULTS = (_SCORES, "metrics.json", "report.html")
# Seconds between looks at what other processes train.
_LOOK_EVERY = 10.0


class Stage(NamedTuple):
  """One phase to train.

  Attributes:
    config: resolved, with this phase alone.
    workdir: its own.
    before: the stage it starts from.
  """

  config: ConfigDict
  workdir: Path
  before: "Stage | None"


class Entry(NamedTuple):
  """A system with a seed, and the stage that gives its result."""

  system: str
  seed: int
  stage: Stage


def plan(
  systems: Mapping[str, ConfigDict], seeds: Sequence[int], out: Path
) -> list[Entry]:
  """What a table needs, seed by seed.

  Args:
    systems: name -> config, not resolved.
    seeds: of each system.
    out: folder of the workdirs.

  Returns:
    For each seed and system the stage that ends it.

  Raises:
    UserError: for a config that cannot be.
  """
  entries = []
  for seed in seeds:
    for system, config in systems.items():
      config = config.copy_and_resolve_references()
      config.seed = seed
      entries.append(Entry(system, seed, _last_stage(config, out)))
  return entries


def _last_stage(config: ConfigDict, out: Path) -> Stage:
  resolved = configs.resolve(config)
  before: Stage | None = None
  for name in configs.phases(resolved):
    single = resolved.copy_and_resolve_references()
    with single.unlocked():
      for other in configs.PHASES:
        if other != name and other in single:
          del single[other]
      if before is not None:
        single.init_from = str(before.workdir)
    before = Stage(single, _workdir(single, name, before, out), before)
  assert before is not None  # a resolved config has a phase
  return before


def _workdir(
  config: ConfigDict, name: str, before: Stage | None, out: Path
) -> Path:
  """Named after all that decides the result."""
  what = config.to_dict()
  for field in configs.FREE_FIELDS:
    group, _, leaf = field.rpartition(".")
    (what[group] if group else what).pop(leaf, None)
  for field, before_it in configs.LATER_FIELDS.items():
    if what[field] == before_it:  # names from before the field stay
      del what[field]
  what["phase"] = what.pop(name)
  if before is not None:
    what["init_from"] = before.workdir.name
  text = json.dumps(what, sort_keys=True, default=str)
  digest = hashlib.sha256(text.encode()).hexdigest()[:12]
  loss = "+".join(config[name].losses)
  return out.resolve() / f"seed{config.seed}-{loss}-{digest}"


def stages(entries: Sequence[Entry]) -> list[Stage]:
  """All stages of the entries, each once, before those that need it."""
  found: dict[Path, Stage] = {}
  for entry in entries:
    for stage in _chain(entry.stage):
      found.setdefault(stage.workdir, stage)
  return list(found.values())


def run(entries: Sequence[Entry]) -> dict[Path, str]:
  """Trains every stage that is not finished, and says how far it is.

  A stage whose training fails does not stop the others. What is seen to be
  impossible from the start does. Stages that another process trains are waited
  for, and taken over should it die.

  Args:
    entries: as made by `plan`.

  Returns:
    Workdir of each stage that failed -> why.

  Raises:
    UserError: naming a system whose phases, data and devices do not fit.
  """
  _check([entry for entry in entries if not is_done(entry.stage)])
  every = stages(entries)
  todo = collections.deque(stage for stage in every if not is_done(stage))
  say(
    f"grid: {len(entries)} results, {len(every) - len(todo)} stages done,"
    f" {len(todo)} to train"
  )
  failed: dict[Path, str] = {}
  started, total, elsewhere = time.monotonic(), len(todo), 0
  while todo:
    stage = todo.popleft()
    if is_done(stage):  # by another process
      continue
    before = stage.before
    if before is not None and before.workdir in failed:
      failed[stage.workdir] = f"needs {before.workdir.name}, which failed"
      continue
    if _is_elsewhere(stage):
      todo.append(stage)
      elsewhere += 1
      if elsewhere == len(todo):
        say(f"grid: waiting for other processes, {elsewhere} stages left")
      if elsewhere >= len(todo):
        time.sleep(_LOOK_EVERY)
      continue
    elsewhere = 0
    left = sum(not is_done(one) for one in (stage, *todo))
    say(
      f"grid: {_estimate(total, left, started)}: seed {stage.config.seed}, for"
      f" {', '.join(_users(stage, entries))}\n  {stage.workdir}"
    )
    try:
      _train(stage)
    except workdirs.InUseError:  # another was faster
      todo.append(stage)
    except UserError as error:
      failed[stage.workdir] = str(error)
      say(f"grid: failed: {error}")
    gc.collect()
  return failed


def _estimate(total: int, left: int, started: float) -> str:
  """Which stage of how many is next, and how long all may take."""
  spent = (time.monotonic() - started) / max(total - left, 1)
  in_time = f", about {clock(spent * left)} left" if left < total else ""
  return f"stage {total - left + 1} of {total}{in_time}"


def _users(stage: Stage, entries: Sequence[Entry]) -> list[str]:
  """The systems that need a stage."""
  return sorted({e.system for e in entries if _needs(e.stage, stage)})


def _is_elsewhere(stage: Stage) -> bool:
  """Whether another process trains a stage, or what it starts from."""
  waits = stage.before is not None and not is_done(stage.before)
  return waits or workdirs.is_held(stage.workdir)


def _check(entries: Sequence[Entry]) -> None:
  """Each system once, from its first phase to its last, as `run` says."""
  mesh, loaded = sharding.make_mesh(), None
  for entry in {entry.system: entry for entry in reversed(entries)}.values():
    data = entry.stage.config.data.to_dict()
    try:
      if loaded is None or loaded[0] != data:
        loaded = data, sources.load(entry.stage.config.data)
      first, *_ = chain = _chain(entry.stage)
      given, left = first.config.init_from, None
      if given:
        left, _ = checkpoint.load_start(given, train.START_PHASES)
      with jax.set_mesh(mesh):
        for stage in chain:
          left = check_phases(stage.config, loaded[1], mesh, left)
    except UserError as error:
      raise UserError(
        f"{entry.system}: {error} Nothing was trained; mend it, or leave the"
        " system out."
      ) from error


def _needs(stage: Stage, other: Stage) -> bool:
  return other.workdir in {one.workdir for one in _chain(stage)}


def _chain(stage: Stage | None) -> list[Stage]:
  return [] if stage is None else [*_chain(stage.before), stage]


def is_done(stage: Stage) -> bool:
  """Whether a stage has its results."""
  return all((stage.workdir / name).exists() for name in _RESULTS)


def _train(stage: Stage) -> None:
  started = time.monotonic()
  try:
    train.train_and_evaluate(stage.config, stage.workdir)
  except workdirs.InUseError:
    raise  # the other process counts its time
  except BaseException:
    _add_cost(stage, started)
    raise
  _add_cost(stage, started)


def _add_cost(stage: Stage, started: float) -> None:
  if stage.workdir.is_dir():
    seconds, hardware = _cost(stage)
    cost = {
      "seconds": round(seconds + time.monotonic() - started, 1),
      "hardware": list(dict.fromkeys([*hardware, provenance.words()])),
    }
    files.write(stage.workdir / _COST, json.dumps(cost).encode() + b"\n")


def _cost(stage: Stage) -> tuple[float, tuple[str, ...]]:
  """Seconds of training, and the machines they were spent on."""
  try:
    cost = json.loads((stage.workdir / _COST).read_text())
    return float(cost["seconds"]), tuple(map(str, cost["hardware"]))
  except (OSError, ValueError, KeyError, TypeError):
    return 0.0, ()


def records(entries: Sequence[Entry]) -> list[Record]:
  """What the finished entries hand over to be compared.

  Raises:
    UserError: if scores are damaged, or stages saw different images.
  """
  found = []
  for system, seed, stage in entries:
    if not is_done(stage):
      continue
    scores = predictions.load(stage.workdir / _SCORES)
    seconds, hardware = zip(*map(_cost, _chain(stage)), strict=True)
    found.append(
      Record(
        system=system,
        seed=seed,
        class_names=scores.class_names,
        train_counts=scores.train_counts,
        labels=scores.labels,
        scores=scores.scores,
        probabilities_ok=scores.calibrated,
        seconds=sum(seconds) or None,
        validation_labels=scores.validation_labels,
        validation_scores=scores.validation_scores,
        # A system of a region is compared with those of the whole face.
        fingerprint=regions.whole(_fingerprint(stage)),
        hardware=tuple(itertools.chain.from_iterable(hardware)),
      )
    )
  return found


def _fingerprint(stage: Stage) -> str:
  """Of the images that a stage and those before it have seen."""
  found = {}
  for one in _chain(stage):
    path = one.workdir / "metrics.json"
    try:
      found[one.workdir] = str(json.loads(path.read_text())["data_fingerprint"])
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise UserError(
        f"{path} is missing or damaged ({error!r}). Delete it and run the same"
        " command again: what is trained is not lost."
      ) from error
  if len(set(found.values())) > 1:
    raise UserError(
      "Stages of one system saw different images, as the data changed between"
      f" them: {', '.join(map(str, found))}. Delete these folders to train them"
      " again, or use another --out."
    )
  return found[stage.workdir]


def encoder_epochs(entries: Sequence[Entry]) -> dict[str, float]:
  """System -> epochs in which its encoder, or a part of it, is trained."""
  epochs = {}
  for entry in entries:
    phases = [
      stage.config[name]
      for stage in _chain(entry.stage)
      for name in configs.phases(stage.config)
    ]
    epochs[entry.system] = sum(
      phase.epochs
      for phase in phases
      if any(pattern.startswith("encoder") for pattern in phase.trained)
    )
  return epochs


def missing(entries: Sequence[Entry], failed: Mapping[Path, str]) -> list[str]:
  """A line for each entry without result, and why."""
  return [
    f"{system}, seed {seed}: {failed.get(stage.workdir, 'not finished')}"
    for system, seed, stage in entries
    if not is_done(stage)
  ]


def with_budget(
  config: ConfigDict,
  data: Mapping[str, Any],
  epochs: int,
  head_epochs: int,
  batch_size: int = 0,
) -> ConfigDict:
  """A system's config on given data, its encoder trained as long as others'.

  Args:
    config: the system's.
    data: fields of `config.data` that differ from the defaults.
    epochs: of the phase that trains the whole encoder; 0: the config's own.
    head_epochs: of the phase after it, unless that has none; 0: its own.
    batch_size: at most, of any phase; 0: its own.

  Returns:
    A copy.
  """
  config = config.copy_and_resolve_references()
  config.data.update(data)
  first, *rest = configs.phases(config)
  if epochs:
    config[first].epochs = epochs
  for name in (first, *rest) if batch_size else ():
    config[name].batch_size = min(config[name].batch_size, batch_size)
  for name in rest:
    if head_epochs and config[name].epochs != 0:
      config[name].epochs = head_epochs
  return config
