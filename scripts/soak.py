"""Kills training runs at random moments; nothing may be lost.

python scripts/soak.py --kills=200 --seed=0 [--phase=save,report]

Prints a line per kill and which moments were hit. Status 1 if a run that was
killed and started again differs from one left alone.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from dbl_jax.cli import parse_flags, run_main
from dbl_jax.errors import UserError

_KILLS = flags.DEFINE_integer("kills", 20, "How many.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the moments.")
_PHASE = flags.DEFINE_list("phase", [], "Moments to aim at; all by default.")
_OUT = flags.DEFINE_string(
  "out", "", "Folder for the runs, kept. Default: none."
)
_CONFIG = Path(__file__).resolve().parent.parent / "tests" / "tiny.py"
# More faces to draw, saves and changes than the tests' run has.
_FIELDS = (
  "data.num_train=1500",
  "pretrain.epochs=6",
  "pretrain.evaluate_every=1.",
  "classify.epochs=8",
)


def main(argv: Sequence[str]) -> None:
  """Soaks as the flags say."""
  parse_flags(argv)
  from dbl_jax import soak

  moments = _PHASE.value or list(soak.MOMENTS)
  unknown = set(moments) - set(soak.MOMENTS)
  if unknown:
    raise UserError(
      f"--phase={','.join(sorted(unknown))}: no such moment. There are"
      f" {', '.join(soak.MOMENTS)}."
    )
  if not _CONFIG.exists():
    raise UserError(
      f"{_CONFIG} is missing: the runs to kill are of its config."
    )
  with tempfile.TemporaryDirectory() as temporary:
    tally = soak.soak(
      soak.command(*_FIELDS, config=str(_CONFIG)),
      Path(_OUT.value or temporary).resolve(),
      _KILLS.value,
      _SEED.value,
      moments,
      lambda line: print(line, flush=True),
    )
  hit = ", ".join(f"{name} {n}" for name, n in tally.kills.most_common())
  print(
    f"{tally.kills.total()} kills over {len(tally.ended)} runs: {hit}\n"
    f"{len(tally.faults)} faults"
  )
  print(*tally.faults, sep="\n")
  sys.exit(bool(tally.faults))


if __name__ == "__main__":
  run_main(main)
