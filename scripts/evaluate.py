"""Evaluates a finished run, on its data or another copy.

python scripts/evaluate.py --workdir=runs/dbl [--data_dir=D] [--split=test] \
  [--external=DIR] [--predictor=logit_adjusted] [--mistakes] [--out=DIR]
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from dbl_jax.cli import parse_flags, printable, run_main
from dbl_jax.errors import UserError

_MAX_LISTED = 30  # classes; the report has the recall of more
_WORKDIR = flags.DEFINE_string("workdir", None, "Workdir of the run.")
_DATA_DIR = flags.DEFINE_string(
  "data_dir", None, "Another copy of the data. Default: that of the run."
)
_SPLIT = flags.DEFINE_string("split", "test", "'train', 'validation', 'test'.")
_EXTERNAL = flags.DEFINE_string(
  "external",
  None,
  "A test set from elsewhere: a folder or zip with a folder of images for each"
  " class. Some of the run's classes may be missing.",
)
_PREDICTOR = flags.DEFINE_string(
  "predictor",
  None,
  "Another predictor, such as 'logit_adjusted', fitted on the training split"
  " and selected on validation. Default: that of the run.",
)
_MISTAKES = flags.DEFINE_bool(
  "mistakes",
  False,
  "Show the most confident mistakes in the report. They may be people's faces.",
)
_OUT = flags.DEFINE_string(
  "out",
  None,
  "Folder for the report. Default: WORKDIR/evaluation/SPLIT[_PREDICTOR].",
)


def main(argv: Sequence[str]) -> None:
  """Restores a model, evaluates it and prints the metrics."""
  parse_flags(argv)
  if _WORKDIR.value is None:
    raise UserError("--workdir is required, such as --workdir=runs/dbl.")
  from dbl_jax import evaluate
  from dbl_jax.runtime import distributed

  distributed.initialize()
  workdir = Path(_WORKDIR.value).expanduser()
  split = "external" if _EXTERNAL.value is not None else _SPLIT.value
  name = "_".join(filter(None, [split, _PREDICTOR.value]))
  out = Path(_OUT.value or workdir / "evaluation" / name).expanduser()
  metrics = evaluate.evaluate_workdir(
    workdir,
    _DATA_DIR.value,
    _SPLIT.value,
    out,
    _PREDICTOR.value,
    _EXTERNAL.value,
    _MISTAKES.value,
  )
  classes = metrics["per_class"]
  for name, row in classes.items() if len(classes) <= _MAX_LISTED else ():
    recall = "-" if row["recall"] is None else f"{row['recall']:.1%}"
    print(f"  {printable(name):12} recall {recall:>6}  of {row['count']}")
  tiers = {k: row for k, row in metrics["tiers"].items() if row["classes"]}
  for name, row in tiers.items() if len(tiers) > 1 else ():
    accuracy = f"{row['accuracy']:.1%}"
    print(
      f"  {name:6}-shot accuracy {accuracy:>6}  of {row['classes']} classes"
    )
  print(
    f"{metrics['split']}: {metrics['images']} images, overall accuracy"
    f" {metrics['overall_accuracy']:.1%}, mean-class accuracy"
    f" {metrics['mean_class_accuracy']:.1%}\nReport: {out / 'report.html'}"
  )


if __name__ == "__main__":
  run_main(main)
