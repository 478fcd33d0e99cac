"""The data sets, by name, and the file each is prepared into."""

import hashlib
import inspect
import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from dbl_jax.data import datasets, inspection, regions, sampling, splits
from dbl_jax.data.datasets import Dataset, Split
from dbl_jax.data.formats import expw, fer2013, image_folder, listing
from dbl_jax.data.formats.listing import Listing
from dbl_jax.data.synthetic import (
  face_features,
  face_parameters,
  face_scene,
  synthetic_faces,
)
from dbl_jax.errors import UserError
from dbl_jax.runtime.logs import Progress

log = logging.getLogger(__name__)


class Source(NamedTuple):
  """How a data set is found and read.

  Attributes:
    fingerprint: options -> a string that changes when the data would.
    read: options, fingerprint -> the data set, with parts 'train' and 'test'.
    image_size: in pixels, unless the config sets it.
    find: options -> the image files; None if there are none.
  """

  fingerprint: Callable[[Any], str]
  read: Callable[[Any, str], Dataset]
  image_size: int
  find: Callable[[Any], Listing] | None = None


def load(options: Any) -> Dataset:
  """The data set a config names, prepared on first use.

  Args:
    options: `config.data`. `dir` may name a prepared file instead of the
      original images; then nothing else is needed.

  Returns:
    The data set, with its training part split in 'train' and 'validation'
    unless it came with both, and cut to a long tail if the config asks for it.

  Raises:
    UserError: if there is no such data set, or it cannot be read.
  """
  if options.dir.endswith(".npz"):
    dataset = _read_prepared(Path(options.dir).expanduser(), options)
  else:
    dataset = _prepare(options)
  dataset = _split_validation(dataset, options)
  kind = options.get("long_tail", "")
  if kind:
    dataset = splits.cut(dataset, kind, options.imbalance, options.split_seed)
  for warning in (*dataset.warnings, *_leaks(dataset, options)):
    log.warning("%s", warning)
  return regions.apply(dataset, options.get("region", "face"))


def _leaks(dataset: Dataset, options: Any) -> list[str]:
  """A line if parts share images, since accuracy on those is too good."""
  found = [
    f"{number} of {other} are in {one} too"
    for (one, other), number in inspection.shared(dataset.parts).items()
  ]
  if not found:
    return []
  given = "".join(
    f" --{name}={options[name]}"
    for name, usual in (("dir", ""), ("split_seed", 0), ("test_fraction", 0.2))
    if options[name] != usual
  )
  return [
    f"{dataset.name}: parts share images, so figures on them are too good:"
    f" {', '.join(found)}. They are listed by scripts/check_data.py"
    f" --name={dataset.name}{given}, those of validation as within train where"
    " it is split off that."
  ]


def _read_prepared(path: Path, options: Any) -> Dataset:
  dataset = datasets.load(path)
  found = (dataset.name, dataset.image_size)
  if found != (options.name, options.image_size):
    raise UserError(
      f"{path} holds {found[0]} at {found[1]} px, but the config asks for"
      f" data.name={options.name} at data.image_size={options.image_size}."
      " Set both to what the file holds."
    )
  _check_counts(dataset)
  return dataset


def cache_dir(options: Any) -> Path:
  """Where prepared files are kept: data.cache_dir, or the user's cache."""
  if options.cache_dir:
    return Path(options.cache_dir).expanduser()
  home = os.environ.get("XDG_CACHE_HOME")
  if not home:
    try:
      home = str(Path.home() / ".cache")
    except RuntimeError as error:
      raise UserError(
        "There is no home folder to keep prepared images in. Set"
        " --config.data.cache_dir to a folder, or the variable HOME."
      ) from error
  return Path(home) / "dbl_jax"


def _prepare(options: Any) -> Dataset:
  source = SOURCES[options.name]
  if source.find is None and options.dir:
    raise UserError(
      f"data.dir={options.dir} is given, but data.name={options.name} reads no"
      " images. Set data.name to what is there, such as image_folder, or leave"
      " data.dir out."
    )
  fingerprint = source.fingerprint(options)
  name = f"{options.name}-{options.image_size}px-{fingerprint[:16]}.npz"
  path = cache_dir(options) / name
  if path.exists():
    try:
      return datasets.load(path)
    except UserError as error:
      log.warning("%s Preparing it anew.", error)
  started = time.perf_counter()
  _check_writable(path.parent)
  log.info("Preparing %s at %d px", options.name, options.image_size)
  dataset = source.read(options, fingerprint)
  _check_counts(dataset)
  try:
    datasets.save(path, dataset)
  except OSError as error:
    raise _unwritable(path.parent, error) from error
  log.info(
    "Prepared %s images in %.1f s: %s",
    " + ".join(f"{len(p.labels)} {k}" for k, p in dataset.parts.items()),
    time.perf_counter() - started,
    path,
  )
  return dataset


def _check_writable(directory: Path) -> None:
  """Before minutes are spent on what cannot be kept."""
  try:
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory):
      pass
  except OSError as error:
    raise _unwritable(directory, error) from error


def _unwritable(directory: Path, error: OSError) -> UserError:
  return UserError(
    f"{directory}, where prepared images are kept, cannot be written"
    f" ({error.strerror or error}). Free some space, or set"
    " --config.data.cache_dir to another folder."
  )


def _check_counts(dataset: Dataset) -> None:
  found = {
    name: np.bincount(part.labels, minlength=len(dataset.class_names))
    for name, part in dataset.parts.items()
  }
  check_counts(dataset.name, dataset.class_names, found)


def check_counts(
  name: str, class_names: Sequence[str], counts: Mapping[str, ArrayLike]
) -> None:
  """Sees that a data set can be trained and tested on.

  Args:
    name: of the data set, for messages.
    class_names: C names.
    counts: part -> int[C], its images of each class; with 'train' and 'test'.

  Raises:
    UserError: if not, saying what is missing.
  """
  train = np.asarray(counts["train"])
  empty = [class_names[c] for c in np.flatnonzero(train == 0).tolist()]
  if empty:
    raise UserError(
      f"{name}: no training image of {', '.join(empty)}. Every class needs at"
      " least one; check the labels, or leave the class out."
    )
  for part in ("validation", "test"):
    if part in counts and not np.any(counts[part]):
      raise UserError(
        f"{name}: no image in the part {part}. Some classes need two images and"
        " more, of which one is for it."
      )
  if "validation" not in counts and train.max() < 2:
    raise UserError(
      f"{name}: {train.sum()} training images leave none for validation. At"
      " least one class needs two images."
    )


def _split_validation(dataset: Dataset, options: Any) -> Dataset:
  """The data set with a validation part, split off unless it has its own."""
  if "validation" in dataset.parts:
    return dataset
  whole = dataset.parts["train"]
  counts = np.bincount(whole.labels, minlength=len(dataset.class_names))
  single = [dataset.class_names[c] for c in np.flatnonzero(counts == 1)]
  if single:
    log.warning(
      "%s has a single training image: none is left to validate on.",
      ", ".join(single),
    )
  train, validation = sampling.stratified_split(
    whole.labels, options.validation_fraction, options.split_seed
  )
  parts = {
    "train": Split(whole.images[train], whole.labels[train]),
    "validation": Split(whole.images[validation], whole.labels[validation]),
    "test": dataset.parts["test"],
  }
  return dataset._replace(parts=parts)


def _synthetic_fingerprint(options: Any) -> str:
  # The code is the data: other drawing code must not find the old file.
  modules = (
    synthetic_faces,
    face_parameters,
    face_scene,
    face_features,
  )
  code = "".join(inspect.getsource(module) for module in modules)
  what = f"{options.num_train} {options.num_test} {options.image_seed}"
  return hashlib.sha256((code + what).encode()).hexdigest()


def _read_synthetic(options: Any, fingerprint: str) -> Dataset:
  parts = {}
  for part, number in (
    ("train", options.num_train),
    ("test", options.num_test),
  ):
    images, labels = synthetic_faces.make_split(
      part, number, options.image_size, options.image_seed
    )
    parts[part] = Split(images, labels)
  return Dataset(options.name, synthetic_faces.CLASS_NAMES, parts, fingerprint)


def _of_files(find: Callable[[Path, Any], Listing], image_size: int) -> Source:
  """A source whose image files `find` lists, given the folder and options."""

  def find_in_dir(options: Any) -> Listing:
    return find(_directory(options), options)

  def fingerprint(options: Any) -> str:
    return listing.fingerprint(find_in_dir(options))

  def read(options: Any, _: str) -> Dataset:
    found = find_in_dir(options)
    return listing.decode(
      found, options.name, options.image_size, _progress(options)
    )

  return Source(fingerprint, read, image_size, find_in_dir)


def _progress(options: Any) -> Callable[[int, int], None]:
  """A line about decoding, which takes minutes for large data sets."""
  line: Progress | None = None

  def show(count: int, total: int) -> None:
    nonlocal line
    line = line or Progress(f"{options.name}: decoding", total)
    line.show(count, f"{count}/{total}", last=count == total)

  return show


def _find_raf_db(options: Any) -> Listing:
  from dbl_jax.data.raf_db import layout

  return layout.as_listing(layout.read(_directory(options)))


def _raf_db_fingerprint(options: Any) -> str:
  from dbl_jax.data.raf_db import layout

  return layout.fingerprint(_directory(options))


def _read_raf_db(options: Any, fingerprint: str) -> Dataset:
  from dbl_jax.data import raf_db

  class_names, parts, warnings = raf_db.load(
    str(_directory(options)),
    str(cache_dir(options)),
    options.image_size,
    _progress(options),
  )
  return Dataset(
    options.name,
    tuple(class_names),
    {name: Split(*part) for name, part in parts.items()},
    fingerprint,
    tuple(warnings),
  )


def _directory(options: Any) -> Path:
  if not options.dir:
    raise UserError(
      f"data.name={options.name} needs --config.data.dir: the folder or zip"
      " that holds the images, or a prepared .npz file."
    )
  return Path(options.dir).expanduser()


SOURCES: dict[str, Source] = {
  "expw": _of_files(expw.find, expw.IMAGE_SIZE),
  "fer2013": _of_files(fer2013.find, fer2013.IMAGE_SIZE),
  "image_folder": _of_files(image_folder.find, image_folder.IMAGE_SIZE),
  "raf_db": Source(
    _raf_db_fingerprint, _read_raf_db, image_size=100, find=_find_raf_db
  ),
  "synthetic_faces": Source(
    _synthetic_fingerprint, _read_synthetic, image_size=32
  ),
}
