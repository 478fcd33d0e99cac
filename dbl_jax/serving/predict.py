"""Predictions for photos: find faces, align them as in training, classify."""

import csv
import dataclasses
import functools
import io
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import special

from dbl_jax import evaluate
from dbl_jax.data import face_crops, faces, sources
from dbl_jax.data.datasets import Dataset
from dbl_jax.data.formats import image_folder, images, stored
from dbl_jax.data.formats.stored import StoredFile
from dbl_jax.errors import UserError
from dbl_jax.evaluation import predictors
from dbl_jax.runtime import files
from dbl_jax.training import checkpoint

logger = logging.getLogger(__name__)

NOTES = ALIGNED, WHOLE, NO_FACE = "aligned", "whole picture", "no face found"
# Photos whose faces are classified together, and faces in a full batch.
_CHUNK, _BATCH = 64, 32
# A picture is a crop already if it is nearly square, and either its landmarks
# are this close to the template (in its side), or it is small, in pixels.
NEAR, SQUARE, SMALL = 0.12, 1.1, 256
# Of drawn photos: classes shown, and the least longer side, for legible text.
_BARS, _SMALLEST = 3, 480
_COLOUR, _PAPER, _INK = "#0072b2", "#ffffff", "#111111"


@dataclasses.dataclass(frozen=True)
class Prediction:
  """The prediction for a face, or the reason for its absence.

  Attributes:
    photo: path of the photo.
    note: 'aligned', 'whole picture', 'no face found', or the error.
    box: left, top, right, bottom of the face in pixels of the upright photo;
      None unless aligned.
    scores: f32[C], or None without a prediction.
  """

  photo: str
  note: str
  box: tuple[float, ...] | None = None
  scores: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Predictor:
  """A trained model that reads photos. Made by `load`.

  Attributes:
    class_names: C names.
    image_size: side in pixels of the model's input.
    region: name in `face_crops.REGIONS` of what the model was trained on.
    template: f64[5, 2], see `face_crops.align`; None for data without faces.
    grey: whether the model was trained on grey images.
    calibrated: whether scores are probabilities.
    classify: uint8[n, S, S, 3] -> scores f32[n, C].
    activation: uint8[n, S, S, 3], classes int[n] -> class activation maps
      f32[n, h, w] or None, see `evaluate.make_activation`; None without them.
    searches: whether training images were searched for faces too, so that
      crops are also aligned (`data.align=face`).
  """

  class_names: tuple[str, ...]
  image_size: int
  region: str
  template: np.ndarray | None
  grey: bool
  calibrated: bool
  classify: Callable[[np.ndarray], np.ndarray]
  activation: Callable[..., jax.Array | None] | None = None
  searches: bool = False

  def predict(self, photos: Sequence[StoredFile]) -> Iterator[Prediction]:
    """Yields the predictions of photos, one for each face, in order.

    A photo that cannot be read yields a prediction with the error as note.
    """
    for start in range(0, len(photos), _CHUNK):
      chunk = photos[start : start + _CHUNK]
      found = [f for part in images.in_threads(self.read, chunk) for f in part]
      crops = [crop for _, crop in found if crop is not None]
      scores = iter(self.classify(np.stack(crops)) if crops else ())
      for prediction, crop in found:
        if crop is not None:
          prediction = dataclasses.replace(prediction, scores=next(scores))
        yield prediction

  def read(
    self, photo: StoredFile
  ) -> list[tuple[Prediction, np.ndarray | None]]:
    """Finds the faces of a photo.

    Returns:
      For each face its place and the input of `classify`, uint8[S, S, 3]; or a
        note with the reason for its absence, and None.
    """
    try:
      found = self._crops(photo.read(), photo.origin)
    except UserError as error:
      return [(Prediction(photo.origin, str(error)), None)]
    return [
      (
        Prediction(photo.origin, ALIGNED if box else WHOLE, box),
        self._as_trained(crop),
      )
      for box, crop in found
    ] or [(Prediction(photo.origin, NO_FACE), None)]

  def _crops(
    self, data: bytes, origin: str
  ) -> list[tuple[tuple[float, ...] | None, np.ndarray]]:
    """Box and crop of each face, or None and the whole picture."""
    size, template = self.image_size, self.template
    if template is None:
      return [(None, images.decode(data, size, origin))]
    with images.opened(data, origin) as image:
      photo = images.to_rgb(image, origin)
    found = faces.detect(photo)
    if self.searches:  # training too uses an image without a face whole
      whole = not found and _is_square(photo)
    else:
      whole = _is_crop(photo, found, template)
    if whole:
      return [(None, images.decode(data, size, origin))]
    pixels = np.asarray(photo)
    return [
      (face.box, face_crops.align(pixels, face.landmarks, template, size))
      for face in found
    ]

  def _as_trained(self, crop: np.ndarray) -> np.ndarray:
    if self.grey:
      crop = np.asarray(Image.fromarray(crop).convert("L").convert("RGB"))
    if self.region != "face":
      crop = face_crops.crop(crop[None], self.region)[0]
    return crop


def _is_crop(
  photo: Image.Image, found: Sequence[faces.Face], template: np.ndarray
) -> bool:
  """Whether a picture shows one face only, cut out as in training."""
  if not _is_square(photo):
    return False
  if not found:
    return max(photo.size) <= SMALL
  apart = found[0].landmarks / photo.size - template
  return bool(np.linalg.norm(apart, axis=1).mean() < NEAR)


def _is_square(photo: Image.Image) -> bool:
  return max(photo.size) <= SQUARE * min(photo.size)


def find(arguments: Iterable[str]) -> list[StoredFile]:
  """Finds the photos that a command line names.

  Args:
    arguments: photos, folders or zips of photos, and patterns such as
      'photos/*.jpg'.

  Returns:
    The photos, those of a folder sorted.

  Raises:
    UserError: if an argument does not match a photo.
  """
  found: list[StoredFile] = []
  for argument in arguments:
    path = Path(argument).expanduser()
    if path.is_dir() or (path.suffix.lower() == ".zip" and path.is_file()):
      tree = stored.open_tree(path, "expected photos")
      inside = [f for name, f in tree.items() if image_folder.is_image(name)]
    elif path.is_file():
      inside = [stored.of_path(path)]
    else:
      parent = Path(path.anchor or ".")
      pattern = str(path.relative_to(path.anchor))
      matches = sorted(parent.glob(pattern)) if path.name else []
      inside = [stored.of_path(match) for match in matches if match.is_file()]
    if not inside:
      raise UserError(
        f"{argument}: no photo found. Expected a photo, a folder or zip with"
        " photos, or a pattern such as 'photos/*.jpg'."
      )
    found += inside
  return found


def load(
  workdir: Path | str, predictor: str | None = None, align: str = "auto"
) -> Predictor:
  """Loads the model of a run, to read photos.

  The template of the alignment is that stored at the end of the run. If it is
  missing, it is computed from the training images and stored.

  Args:
    workdir: workdir of the run.
    predictor: replaces the config's predictor unless None. All but 'head'
      need the run's data.
    align: 'face', 'none', or 'auto': faces are searched for if the training
      images show faces.

  Returns:
    The predictor.

  Raises:
    UserError: if the model is missing or not a classifier, or the data that
      its predictor needs are missing.
  """
  workdir = Path(workdir).expanduser()
  loaded = evaluate.load(workdir, predictor)
  phase = loaded.config[loaded.phase]
  if phase.predictor in predictors.READS_LOGITS:
    loaded.require_classifier("Use --predictor=knn, or another run. ")
  template, grey = find_template(workdir, loaded)
  if align == "none":
    template = None
  elif align == "face" and template is None:
    template = face_crops.FALLBACK
  fitted = _fit(loaded)
  calibrated = fitted.name in predictors.CALIBRATED
  forward = _make_forward(loaded)
  activation = evaluate.make_activation(
    loaded.config, loaded.phase, len(loaded.class_names)
  )

  def classify(crops: np.ndarray) -> np.ndarray:
    scores = fitted.scores(*forward(crops))
    if not calibrated:
      return scores
    return special.softmax(scores / loaded.temperature, axis=1)

  return Predictor(
    loaded.class_names,
    loaded.config.data.image_size,
    loaded.config.data.get("region", "face"),
    template,
    grey,
    calibrated,
    classify,
    activation and functools.partial(jax.jit(activation), loaded.variables),
    loaded.config.data.align == "face",
  )


def _make_forward(
  loaded: evaluate.LoadedModel,
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
  """The forward pass with weights as constants of the compiled program.

  On CPU kernels are then transformed once, not at every call.
  """
  step = jax.jit(lambda crops: loaded.eval_step(loaded.variables, crops))

  def forward(crops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # Two shapes, since each is compiled.
    size = 1 if len(crops) < _BATCH // 2 else _BATCH
    padding = ((0, -len(crops) % size), (0, 0), (0, 0), (0, 0))
    batches = np.pad(crops, padding).reshape(-1, size, *crops.shape[1:])
    parts = [jax.device_get(step(jnp.asarray(batch))) for batch in batches]
    features, outputs = map(np.concatenate, zip(*parts, strict=True))
    return features[: len(crops)], outputs[: len(crops)]

  return forward


def _fit(loaded: evaluate.LoadedModel) -> predictors.FittedPredictor:
  """Fits the run's predictor; only 'head' does without the data."""
  name = loaded.config[loaded.phase].predictor
  if name == "head":
    return predictors.logits(len(loaded.class_names))
  dataset = sources.load(loaded.config.data)
  if not checkpoint.same_images(
    loaded.meta, dataset.fingerprint, dataset.former
  ):
    raise UserError(
      f"predictor={name!r} is fitted on the training images, which have"
      " changed. Restore them, or use --predictor=head."
    )
  context = evaluate.fit_context(
    loaded.eval_step, loaded.variables, dataset, loaded.mesh
  )
  return predictors.fit(name, context)


def find_template(
  workdir: Path, loaded: evaluate.LoadedModel
) -> tuple[np.ndarray | None, bool]:
  """Finds the template of a run: the stored one, or by its training images.

  Returns what `face_crops.load_template` does; without the images a default,
  with a warning.
  """
  if (found := face_crops.load_template(workdir)) is not None:
    return found
  dataset = _training_faces(loaded)
  if dataset is None:
    return face_crops.FALLBACK, False
  aligned = loaded.config.data.align == "face"
  return face_crops.store_template(
    workdir, dataset.splits["train"].images, aligned
  )


def _training_faces(loaded: evaluate.LoadedModel) -> Dataset | None:
  """The run's data as whole faces, or None with a warning."""
  options = loaded.config.data.copy_and_resolve_references()
  with options.unlocked():
    options.region = "face"
  try:
    return sources.load(options)
  except UserError as error:
    logger.warning(
      "The run's training images cannot be read, so faces are aligned to the"
      " default template; use --align=none for a model of other things. (%s)",
      error,
    )
    return None


def rows(
  predictions: Iterable[Prediction],
  class_names: Sequence[str],
  calibrated: bool,
) -> list[dict[str, Any]]:
  """Predictions as plain values.

  Each has 'photo', 'note', 'box', 'label' and, if `calibrated`,
  'probabilities', else 'scores' by class; missing values are None.
  """
  values = "probabilities" if calibrated else "scores"
  found = []
  for one in predictions:
    box = one.box and [round(edge, 1) for edge in one.box]
    row: dict[str, Any] = {"photo": one.photo, "note": one.note, "box": box}
    label = by_class = None
    if one.scores is not None:
      label = class_names[int(one.scores.argmax())]
      rounded = (round(float(score), 6) for score in one.scores)
      by_class = dict(zip(class_names, rounded, strict=True))
    found.append(row | {"label": label, values: by_class})
  return found


def write(path: Path, table: Sequence[dict[str, Any]]) -> None:
  """Writes rows as JSON or, by the file's name, CSV with a column per class.

  If a class has the name of another column, such as 'left', its column gets the
  kind of its values as a prefix: 'scores left'.
  """
  if path.suffix.lower() == ".json":
    content = json.dumps(table, indent=1, ensure_ascii=False)
  else:
    flat = []
    for row in table:
      *plain, values = row
      edges = row["box"] or [None] * 4
      box = dict(zip(("left", "top", "right", "bottom"), edges, strict=True))
      cells = {name: row[name] for name in plain if name != "box"}
      scores = {
        f"{values} {name}" if name in cells | box else name: value
        for name, value in (row[values] or {}).items()
      }
      flat.append(cells | box | scores)
    columns = dict.fromkeys(name for row in flat for name in row)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(columns))
    writer.writeheader()
    writer.writerows(flat)
    content = text.getvalue()
  files.write(path, content.encode("utf-8", "backslashreplace"))


def draw_all(
  photos: Sequence[StoredFile],
  predictions: Iterable[Prediction],
  predictor: Predictor,
  folder: Path,
) -> None:
  """Writes each photo that has predictions as a JPEG with them.

  They are those of `predictor.predict(photos)`. The folder exists; photos of
  equal names get a number.
  """
  by_origin = {photo.origin: photo for photo in photos}
  taken: set[str] = set()
  for origin, group in itertools.groupby(predictions, lambda one: one.photo):
    found = [(p.box, p.scores) for p in group if p.scores is not None]
    if not found:
      continue
    stem, number = Path(origin).stem, 1
    while (name := stem if number == 1 else f"{stem}-{number}") in taken:
      number += 1
    taken.add(name)
    names, calibrated = predictor.class_names, predictor.calibrated
    picture = draw(by_origin[origin], found, names, calibrated)
    picture.save(folder / f"{name}.jpg", quality=90)


def draw(
  photo: StoredFile,
  faces: Sequence[tuple[tuple[float, ...] | None, np.ndarray]],
  class_names: Sequence[str],
  calibrated: bool,
) -> Image.Image:
  """Draws boxes, labels and the scores of the first classes as bars.

  Args:
    photo: the file.
    faces: box, or None for the whole picture, and scores f32[C].
    class_names: C names.
    calibrated: whether the scores are probabilities, so that they have a unit.

  Returns:
    RGB, upright.

  Raises:
    UserError: if the photo cannot be read.
  """
  with images.opened(photo.read(), photo.origin) as image:
    canvas = images.to_rgb(image, photo.origin)
  scale = max(1.0, _SMALLEST / max(canvas.size))
  canvas = canvas.resize([round(side * scale) for side in canvas.size])
  text_size = max(12, round(max(canvas.size) / 60))
  folder = Path(matplotlib.get_data_path(), "fonts/ttf")
  font = ImageFont.truetype(folder / "DejaVuSans.ttf", text_size)
  pen = ImageDraw.Draw(canvas)
  for box, scores in faces:
    edges = [e * scale for e in box] if box else [0, 0, *canvas.size]
    pen.rectangle(edges, outline=_COLOUR, width=max(2, text_size // 5))
    first = np.argsort(-scores)[:_BARS]
    names = [" ".join(class_names[c].split()) for c in first]  # in one line
    lines = [
      f"{name} {scores[c]:.0%}" if calibrated else name
      for c, name in zip(first, names, strict=True)
    ]
    shares = relative(scores, calibrated)[first]
    _draw_bars(pen, canvas.size, edges, lines, shares, font)
  return canvas


def _draw_bars(
  pen: ImageDraw.ImageDraw,
  canvas: tuple[int, int],
  edges: Sequence[float],
  lines: Sequence[str],
  shares: np.ndarray,
  font: ImageFont.FreeTypeFont,
) -> None:
  """Draws a panel below a box, or at its lower edge if space is missing."""
  height = font.size * 1.4
  width = max(edges[2] - edges[0], *(pen.textlength(x, font) for x in lines))
  left = max(0, min(edges[0], canvas[0] - width))
  top = min(edges[3], canvas[1] - height * len(lines))
  for row, (line, share) in enumerate(zip(lines, shares, strict=True)):
    y = top + row * height
    pen.rectangle((left, y, left + width, y + height), fill=_PAPER)
    right = left + float(share) * width
    pen.rectangle((left, y + height * 0.85, right, y + height), _COLOUR)
    pen.text((left, y), line, _INK, font)


def relative(scores: np.ndarray, calibrated: bool) -> np.ndarray:
  """Lengths f32[C] of bars: probabilities, or exp(score) up to a factor."""
  return scores if calibrated else np.exp(scores - scores.max())
