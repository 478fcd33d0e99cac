"""Predicts photos with a trained model: finds faces, aligns, classifies them.

python scripts/predict.py --workdir=runs/dbl PHOTO|FOLDER|PATTERN ... \
  [--out=faces.csv] [--draw=DIR] [--predictor=logit_adjusted] [--align=none]
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from dbl_jax.cli import parse_flags, printable, run_main
from dbl_jax.errors import UserError

_WORKDIR = flags.DEFINE_string("workdir", None, "Workdir of the run.")
_OUT = flags.DEFINE_string(
  "out", None, "File for the predictions, .csv or .json."
)
_DRAW = flags.DEFINE_string(
  "draw", None, "Folder for the photos with boxes, labels and scores."
)
_PREDICTOR = flags.DEFINE_string(
  "predictor", None, "Another predictor, as in evaluate.py. Needs the data."
)
_ALIGN = flags.DEFINE_enum(
  "align",
  "auto",
  ("auto", "face", "none"),
  "'none': whole pictures, resized as in training. 'auto': faces are found and"
  " aligned if the training images show faces.",
)


def main(argv: Sequence[str]) -> None:
  """Prints a line for each face and writes what the flags ask for."""
  photos = parse_flags(argv, positional=True)
  if _WORKDIR.value is None or not photos:
    raise UserError(
      "--workdir and photos are required, such as --workdir=runs/dbl and"
      " 'photos/*.jpg'."
    )
  out = None if _OUT.value is None else Path(_OUT.value).expanduser()
  if out and out.suffix.lower() not in (".csv", ".json"):
    raise UserError(f"--out={out}: expected a name that ends in .csv or .json.")
  # NumPy's threads for products would disturb those that read photos.
  os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
  from dbl_jax.runtime.files import make_writable
  from dbl_jax.serving import predict

  found = predict.find(photos)
  folder = None if _DRAW.value is None else Path(_DRAW.value).expanduser()
  if folder:
    make_writable(folder, "--draw")
  if out:
    make_writable(out.parent, "--out")
  predictor = predict.load(_WORKDIR.value, _PREDICTOR.value, _ALIGN.value)
  predictions = []
  for one in predictor.predict(found):
    predictions.append(one)
    print(printable(_line(one, predictor.class_names, predictor.calibrated)))
  if out:
    table = predict.rows(
      predictions, predictor.class_names, predictor.calibrated
    )
    predict.write(out, table)
    print(f"Predictions: {printable(str(out))}")
  if folder:
    predict.draw_all(found, predictions, predictor, folder)
    print(f"Pictures: {printable(str(folder))}")
  unread = sum(one.note not in predict.NOTES for one in predictions)
  if unread:
    raise UserError(f"{unread} of {len(found)} photos could not be read.")


def _line(one: Any, class_names: Sequence[str], calibrated: bool) -> str:
  """A line of text for a prediction."""
  if one.scores is None:
    # An error names the photo itself.
    named = one.note.startswith(one.photo)
    return one.note if named else f"{one.photo}: {one.note}"
  best = one.scores.argmax()
  score = f"{one.scores[best]:.0%}" if calibrated else f"{one.scores[best]:.3g}"
  where = one.note
  if one.box:
    left, top, right, bottom = map(round, one.box)
    where = f"face {right - left}x{bottom - top} at {left},{top}"
  return f"{one.photo}: {class_names[best]} {score} ({where})"


if __name__ == "__main__":
  run_main(main)
