"""Looks at a data set before it is trained on.

python scripts/check_data.py --name=fer2013 --dir=/data/fer2013 [--out=DIR] \
  [--distance=8] [--split_seed=0] [--test_fraction=.2]

Counts, sizes, imbalance, unreadable files, the same and nearly the same image
within a part or in two; a picture of each class. Leaves with status 2 if an
image cannot be read, or a part lacks what training or testing needs.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from dbl_jax.cli import parse_flags, printable, run_main
from dbl_jax.errors import UserError

_NAME = flags.DEFINE_string(
  "name", None, "As data.name: expw, fer2013, image_folder, raf_db."
)
_DIR = flags.DEFINE_string(
  "dir", "", "As data.dir: the folder, zip, .csv or prepared .npz."
)
_SPLIT_SEED = flags.DEFINE_integer(
  "split_seed", 0, "As data.split_seed, for data without parts of their own."
)
_TEST_FRACTION = flags.DEFINE_float(
  "test_fraction", 0.2, "As data.test_fraction, for data without a test part."
)
_OUT = flags.DEFINE_string(
  "out", None, "Folder for pictures and lists. Default: data_check/NAME."
)
_DISTANCE = flags.DEFINE_integer(
  "distance",
  None,
  "Bits of 128 in which near twins may differ. Default: 8.",
  lower_bound=0,
  upper_bound=128,
)


def _options() -> Any:
  """The config's section on data, as the flags leave it."""
  from dbl_jax import config as configs

  config = configs.base()
  config.classify = configs.classifier()
  config.data.name, config.data.dir = _NAME.value, _DIR.value
  config.data.split_seed = _SPLIT_SEED.value
  config.data.test_fraction = _TEST_FRACTION.value
  return configs.resolve(config).data


def main(argv: Sequence[str]) -> None:
  """Reads, prints, writes."""
  parse_flags(argv)
  if _NAME.value is None:
    raise UserError("Which data? Give --name=fer2013 --dir=FOLDER, say.")
  from dbl_jax.data import inspection, sources
  from dbl_jax.data.formats import listing
  from dbl_jax.runtime.logs import Progress

  options = _options()
  found = inspection.find(options)
  total = sum(len(records) for records in found.parts.values())
  line = Progress("reading", total)
  facts = inspection.examine(
    found, lambda n, of: line.show(n, f"{n}/{of}", last=n == of)
  )
  distance = inspection.NEAR if _DISTANCE.value is None else _DISTANCE.value
  twins = inspection.find_twins(facts, distance)
  told = inspection.report(found, facts, twins, distance)
  print("\n".join(map(printable, [f"{options.name} {options.dir}", "", *told])))
  out = Path(_OUT.value or f"data_check/{options.name}").expanduser()
  pairs = inspection.twin_pairs(facts, twins)
  inspection.write(found, facts, pairs, out)
  with (out / "findings.csv").open(
    "w", newline="", encoding="utf-8", errors="backslashreplace"
  ) as file:
    csv.writer(file).writerows(inspection.table(found, facts, twins))
  print(f"Pictures of each class, twins and a list of findings: {out}")
  bad = sum(bool(fact.error) for fact in facts)
  if bad:
    raise UserError(
      f"{bad} of {total} images cannot be read: see above and"
      f" {out / 'findings.csv'}. Training needs them whole, or removed."
    )
  sources.check_counts(options.name, found.class_names, listing.counts(found))


if __name__ == "__main__":
  run_main(main)
