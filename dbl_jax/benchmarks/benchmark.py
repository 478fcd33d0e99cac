"""The benchmark as a whole: checks what is asked, measures, writes, shows."""

import datetime
import json
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dbl_jax.benchmarks import runner, tables
from dbl_jax.benchmarks.cases import PARTS, Case, make_cases
from dbl_jax.errors import UserError
from dbl_jax.runtime import provenance
from dbl_jax.runtime.logs import clock

_DEVICES = ("cpu", "gpu")
_WITHOUT_PEERS = (
  "No --peers: PyTorch, lightly, kornia and tf.data are left out. To measure"
  " them too:\n"
  "  python3 -m venv .peers\n"
  "  .peers/bin/pip install -r scripts/peers/peers.txt\n"
  "  python scripts/benchmark.py --peers=.peers/bin/python"
)
# What a reader must know to judge the numbers.
_NOTES = (
  "Each system of a case runs in a process of its own; all of them are"
  " measured in turn, round by round, in the order reversed each time.",
  "times_as_fast: the first system's speed over the row's, by medians.",
  "augment, input: figures are of whole rounds, since what works in the"
  " background delivers in bursts; else of single calls.",
  "peak_mib: highest resident memory of the process, imports and compilation"
  " included, a DataLoader's workers not. temporary_mib: of XLA's programs as"
  " XLA says; of PyTorch on a GPU the most it used, on CPU what the process"
  " grew by at the first call.",
  "step: both views as one batch of 2N, SGD with momentum and weight decay,"
  " NT-Xent at the same temperature. PyTorch on CPU uses the memory layout"
  " that was faster in a trial and, like dbl_jax, keeps freed memory; on GPU"
  " channels_last, autocast to bfloat16 and cuDNN's benchmark mode. Flax as it"
  " comes has neither this project's layers nor its malloc settings.",
  "augment, input: the same family and probabilities; hue, contrast, resizing"
  " and blur are each library's own. Workers start anew each round, and what"
  " they have ready when the clock starts is dropped.",
  "phase2: 'each step' is a few steps, scaled to the number of all; 'features"
  " once' is the whole phase, extraction included, compilation not.",
)


class Options(NamedTuple):
  """What the command line asks for.

  Attributes:
    command: the command line.
    peers: Python of the peers' environment, or None.
    peers_work: folder of the peers' work.
    device: 'cpu', 'gpu', or None for the GPU if there is one.
    parts: names of parts, or None for all.
    rounds: how often each system is measured.
    quick: small cases only.
    out: file for the results.
  """

  command: tuple[str, ...]
  peers: str | None
  peers_work: Path
  device: str | None
  parts: Sequence[str] | None
  rounds: int
  quick: bool
  out: Path


def run(options: Options) -> None:
  """Measures, shows each case when it is done, and writes the results.

  Args:
    options: what the command line asks for.

  Raises:
    UserError: an option is impossible, or the file cannot be written.
  """
  parts = _check_parts(options.parts)
  device = _check_device(options.device)
  pythons = {"ours": sys.executable}
  if options.peers is not None:
    pythons["peers"] = _check_python(options.peers)
  log = options.out.with_suffix(".log")
  _check_writable(options.out, log)
  setup = runner.Setup(
    pythons=pythons,
    work={
      "ours": "dbl_jax.benchmarks.ours",
      "peers": str(options.peers_work.resolve()),
    },
    absent="no --peers",
    device=device,
    rounds=options.rounds,
    round_seconds=0.2 if options.quick else runner.ROUND_SECONDS,
    log=log,
  )
  cases = make_cases(device, options.quick, parts)
  measure(cases, setup, options)


def measure(
  cases: Sequence[Case], setup: runner.Setup, options: Options
) -> None:
  """Runs cases, shows them, and writes the results.

  Args:
    cases: what to measure.
    setup: where and how.
    options: for the record.
  """
  started, date = time.perf_counter(), datetime.datetime.now(datetime.UTC)
  hardware = provenance.describe()
  _say(_headline(hardware, setup, cases))
  if "peers" not in setup.pythons:
    _say(_WITHOUT_PEERS)
  if provenance.is_busy(hardware):
    _say(
      f"Other work is running here (load {hardware['load_average']}): times"
      " will scatter, PyTorch's most of all. Better wait until it is done."
    )
  record = {
    "command": shlex.join(options.command),
    "date": date.isoformat(timespec="seconds"),
    "device": setup.device,
    "quick": options.quick,
    "rounds": setup.rounds,
    "hardware": hardware,
    "notes": _NOTES,
  }

  done: list[dict[str, Any]] = []
  versions: dict[str, dict[str, str]] = {}

  def write() -> None:
    seconds = {"seconds": round(time.perf_counter() - started, 1)}
    whole = record | seconds | {"versions": versions, "cases": done}
    options.out.write_text(json.dumps(whole, indent=2) + "\n")

  def show(case: dict[str, Any]) -> None:
    _clear_line()
    _say("\n" + tables.case_table(case))
    for row in case["systems"]:
      told = versions.setdefault(row["side"], {})
      told |= row.pop("versions", {})
    done.append(case)
    write()  # what is measured is not lost if the rest is interrupted

  runner.run(cases, setup, _Progress(len(cases)), show)
  passed = clock(time.perf_counter() - started)
  _say(f"\n{len(cases)} cases in {passed}: {options.out}; log: {setup.log}")


class _Progress:
  """A line about where the benchmark is: on a terminal kept up to date."""

  def __init__(self, total: int):
    self._total = total
    self._terminal = sys.stdout.isatty()
    self._told = -1

  def __call__(self, number: int, case: Case, left: float, doing: str) -> None:
    line = (
      f"case {number + 1} of {self._total}, about {clock(left)} left:"
      f" {case.part}, {case.name}"
    )
    if self._terminal:
      width = shutil.get_terminal_size().columns - 1
      _clear_line()
      print(f"{line}: {doing}"[:width], end="", flush=True)
    elif number != self._told:
      self._told = number
      _say(line)


def _clear_line() -> None:
  if sys.stdout.isatty():
    print("\r\033[K", end="")


def _say(text: str) -> None:
  print(text, flush=True)


def _headline(
  hardware: dict[str, Any], setup: runner.Setup, cases: Sequence[Case]
) -> str:
  names = {
    "cpu": f"{hardware['cores']} cores of {hardware['cpu']}",
    "gpu": ", ".join(hardware["gpus"]) or "a GPU",
  }
  seconds = sum(case.seconds for case in cases)
  return (
    f"{len(cases)} cases on {names[setup.device]}, {setup.rounds} rounds each;"
    f" about {clock(seconds)} on two cores"
  )


def _check_parts(parts: Sequence[str] | None) -> list[str]:
  if parts is None:
    return list(PARTS)
  unknown = [part for part in parts if part not in PARTS]
  if unknown or not parts:
    raise UserError(
      f"--only={','.join(parts)}: there is no part"
      f" {(unknown or [''])[0]!r}. There are {', '.join(PARTS)}."
    )
  return [part for part in PARTS if part in parts]


def _check_device(device: str | None) -> str:
  if device is None:
    return "gpu" if provenance.gpus() else "cpu"
  if device not in _DEVICES:
    raise UserError(f"--device={device}: give 'cpu' or 'gpu'.")
  return device


def _check_python(python: str) -> str:
  found = shutil.which(str(Path(python).expanduser()))
  if found is None:
    raise UserError(
      f"--peers={python}: no such program. Give the Python of the peers'"
      " environment, made by: python3 -m venv .peers; .peers/bin/pip install"
      " -r scripts/peers/peers.txt."
    )
  # Not resolved: a virtual environment's Python is a link.
  return str(Path(found).absolute())


def _check_writable(*paths: Path) -> None:
  for path in paths:
    try:
      path.write_text("")
    except OSError as error:
      raise UserError(
        f"--out={path}: cannot be written: {error.strerror}. Choose a file in"
        " a folder you may write to."
      ) from error
