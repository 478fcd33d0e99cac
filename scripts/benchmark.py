"""Measures dbl_jax and its peers on the same work, in alternation.

python scripts/benchmark.py [--peers=PYTHON] [--device=cpu|gpu] \
  [--only=step,augment,input,phase2,nt_xent,startup] [--rounds=5] [--quick] \
  [--cases=PATTERN] [--systems=PATTERNS] [--together] [--out=benchmark.json]

The whole benchmark takes about half an hour on two cores.
"""

import datetime
import json
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from dbl_jax.cli import parse_flags, run_main
from dbl_jax.errors import UserError

sys.path.insert(0, str(Path(__file__).resolve().with_suffix("")))

_INSTALL = (
  "python3 -m venv .peers && .peers/bin/pip install -r"
  " scripts/benchmark/peers/peers.txt"
)
_PEERS = flags.DEFINE_string(
  "peers", None, f"Python of the peers' environment: {_INSTALL}"
)
_DEVICE = flags.DEFINE_enum(
  "device", None, ["cpu", "gpu"], "Default: the GPU, if available."
)
_ONLY = flags.DEFINE_list("only", None, "Parts. Default: all.")
_CASES = flags.DEFINE_multi_string(
  "cases", ["*"], "Names of cases, such as 'small stem*N=256'; repeatable."
)
_SYSTEMS = flags.DEFINE_list(
  "systems", ["*"], "Names of systems, such as dbl_jax,PyTorch*."
)
_ROUNDS = flags.DEFINE_integer(
  "rounds", 5, "How often each system is measured; slow ones less often.", 1
)
_QUICK = flags.DEFINE_bool("quick", False, "Small cases, to test that all run.")
_TOGETHER = flags.DEFINE_bool(
  "together", False, "Prepare a case's systems at once: shorter, less exact."
)
_OUT = flags.DEFINE_string(
  "out", "benchmark.json", "File for all results; a .log lies next to it."
)


def main(argv: Sequence[str]) -> None:
  """Measures what the flags select, and writes each case when it is done."""
  parse_flags(argv)
  import cases
  import results
  import runner
  from dbl_jax.runtime import environment

  out = Path(_OUT.value).expanduser()
  device = _DEVICE.value or ("gpu" if environment.gpus() else "cpu")
  setup = runner.Setup(
    pythons={"ours": sys.executable} | _peers(),
    device=device,
    rounds=_ROUNDS.value,
    log=out.with_suffix(".log"),
    round_seconds=0.2 if _QUICK.value else 1.5,
    together=_TOGETHER.value,
  )
  selected = cases.make_cases(
    device, _QUICK.value, _kinds([*cases.UNITS]), _CASES.value, _SYSTEMS.value
  )
  if not selected:
    raise UserError("--cases and --systems do not match any case of --only.")
  hardware = environment.describe()
  load = hardware["load_average"]
  if load is not None and load > 0.25 * hardware["cores"]:
    load = f"Other work is running (load {hardware['load_average']})"
    print(f"{load}: timings will be noisy. Wait until the machine is idle.")
  for path in (out, setup.log):
    path.write_text("")
  started = time.perf_counter()
  record: dict[str, Any] = {
    "command": shlex.join(argv),
    "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "device": device,
    "quick": _QUICK.value,
    "rounds": setup.rounds,
    "hardware": hardware,
    "notes": (cases.FOLDER / "NOTES.md").read_text(),
    "versions": {},
    "cases": [],
  }
  for number, case in enumerate(selected, start=1):
    title = f"case {number} of {len(selected)}: {case.kind}, {case.name}"
    print(f"\n{title}", flush=True)
    result = runner.run_case(case, setup)
    print(results.case_table(result), flush=True)
    for row in result["systems"]:
      if found := row.pop("versions", {}):
        record["versions"].setdefault(row["side"], {}).update(found)
    record["cases"].append(result)
    record["seconds"] = round(time.perf_counter() - started, 1)
    out.write_text(json.dumps(record, indent=2) + "\n")
  print(f"\nResults: {out}; log: {setup.log}")


def _kinds(known: Sequence[str]) -> list[str]:
  chosen = known if _ONLY.value is None else _ONLY.value
  if unknown := {*(chosen or [""])} - {*known}:
    raise UserError(
      f"--only={','.join(chosen)}: unknown part {min(unknown)!r}."
      f" Expected some of {', '.join(known)}."
    )
  return list(dict.fromkeys(chosen))


def _peers() -> dict[str, str]:
  """Returns the peers' Python by its side's name; empty without --peers."""
  if _PEERS.value is None:
    print(f"No --peers: only dbl_jax is measured. To add them: {_INSTALL}")
    return {}
  found = shutil.which(str(Path(_PEERS.value).expanduser()))
  if found is None:
    raise UserError(
      f"--peers={_PEERS.value} is not a program. Give the Python of the peers'"
      f" environment, made by: {_INSTALL}"
    )
  # Not resolved: a virtual environment's Python is a link.
  return {"peers": str(Path(found).absolute())}


if __name__ == "__main__":
  run_main(main)
