"""Fuzzes all readers of files with random and damaged inputs.

python scripts/fuzz.py [--minutes=5] [--only='expw labels',zips] [--seed=1]

A reader must return what tests/properties.py states, or raise UserError. Ends
with the smallest input that breaks one, or with the number of inputs.
Needs the extra `dev`: pip install -e '.[dev]'.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from dbl_jax.cli import parse_flags, run_main
from dbl_jax.errors import UserError

_MINUTES = flags.DEFINE_float("minutes", 5.0, "How long.", lower_bound=0.0)
_ONLY = flags.DEFINE_list("only", None, "Names of readers. Default: all.")
_SEED = flags.DEFINE_integer(
  "seed", None, "Seed of the inputs. Default: from the clock; printed."
)
_BATCH = 200


def main(argv: Sequence[str]) -> None:
  """Fuzzes the readers in turn until the time is over."""
  parse_flags(argv)
  sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
  try:
    import hypothesis
    import properties
  except ImportError as error:
    raise UserError(
      f"Fuzzing needs the extra 'dev' ({error}). Run: pip install -e '.[dev]'"
    ) from error
  names = _ONLY.value or list(properties.READERS)
  unknown = [name for name in names if name not in properties.READERS]
  if unknown:
    raise UserError(
      f"--only={','.join(names)}: unknown reader {unknown[0]!r}. Expected some"
      f" of {', '.join(properties.READERS)}."
    )
  seed = int(time.time()) if _SEED.value is None else _SEED.value
  print(f"seed {seed}", flush=True)
  tried = dict.fromkeys(names, 0)

  def run(name: str, number: int) -> None:
    inputs, check = properties.READERS[name]

    @hypothesis.seed(seed + number)
    @hypothesis.settings(
      max_examples=_BATCH,
      database=None,
      deadline=None,
      suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(inputs)
    def reads(data: object) -> None:
      tried[name] += 1
      properties.holds(check, data)

    reads()

  end, number = time.monotonic() + 60 * _MINUTES.value, 0
  while number < len(names) or time.monotonic() < end:
    run(names[number % len(names)], number)
    number += 1
  for name, count in tried.items():
    print(f"{name:24} {count:9,} inputs")
  print(f"{'all':24} {sum(tried.values()):9,} inputs, all readers passed")


if __name__ == "__main__":
  run_main(main)
