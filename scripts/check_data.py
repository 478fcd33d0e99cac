"""Inspects a data set before it is trained on.

python scripts/check_data.py --name=fer2013 --dir=/data/fer2013 [--out=DIR] \
  [--distance=8] [--split_seed=0] [--test_fraction=.2]

Reports counts, sizes, imbalance, unreadable files, exact and near-duplicates
within a split and between two; writes contact sheets of up to 30 classes.
Exits with status 2 if an image cannot be read, or a split lacks what training
or testing needs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from dbl_jax.cli import parse_flags, printable, run_main
from dbl_jax.errors import UserError

_NAME = flags.DEFINE_string(
  "name", None, "Name of the data set, as in config.data.name."
)
_DIR = flags.DEFINE_string(
  "dir", "", "As data.dir: the folder, zip, .csv or prepared .npz."
)
_SPLIT_SEED = flags.DEFINE_integer(
  "split_seed", 0, "As data.split_seed, for data without splits of their own."
)
_TEST_FRACTION = flags.DEFINE_float(
  "test_fraction", 0.2, "As data.test_fraction, for data without a test split."
)
_OUT = flags.DEFINE_string(
  "out", None, "Folder for pictures and lists. Default: data_check/NAME."
)
_DISTANCE = flags.DEFINE_integer(
  "distance",
  None,
  "Bits of 128 in which near-duplicates may differ. Default: 8.",
  lower_bound=0,
  upper_bound=128,
)


def _options() -> Any:
  """Returns the data section of the config, with the flags applied."""
  from dbl_jax import config as configs

  config = configs.base()
  config.classify = configs.classifier()
  config.data.name, config.data.dir = _NAME.value, _DIR.value
  config.data.split_seed = _SPLIT_SEED.value
  config.data.test_fraction = _TEST_FRACTION.value
  return configs.resolve(config).data


def main(argv: Sequence[str]) -> None:
  """Reads the data set, prints the report and writes the lists."""
  parse_flags(argv)
  if _NAME.value is None:
    raise UserError("--name is required, such as --name=fer2013 --dir=FOLDER.")
  from dbl_jax.data import inspection, sources
  from dbl_jax.data.formats import listing
  from dbl_jax.runtime.logs import Progress

  options = _options()
  found = sources.find(options)
  total = sum(len(records) for records in found.splits.values())
  findings = inspection.inspect(
    found,
    inspection.NEAR if _DISTANCE.value is None else _DISTANCE.value,
    Progress("reading").count,
  )
  lines = [f"{options.name} {options.dir}", "", *inspection.report(findings)]
  print("\n".join(map(printable, lines)))
  out = Path(_OUT.value or f"data_check/{options.name}").expanduser()
  inspection.write(findings, out)
  print(f"Contact sheets and a list of findings: {out}")
  bad = sum(bool(fact.error) for fact in findings.facts)
  if bad:
    raise UserError(
      f"{bad} of {total} images cannot be read: see above and"
      f" {out / 'findings.csv'}. Training needs them whole, or removed."
    )
  sources.check_counts(options.name, found.class_names, listing.counts(found))


if __name__ == "__main__":
  run_main(main)
