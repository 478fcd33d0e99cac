"""The data sets, by name, and the file each is prepared into."""

import hashlib
import inspect
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dbl_jax.data import (
  face_features,
  face_parameters,
  face_scene,
  prepared,
  sampling,
  synthetic_faces,
)
from dbl_jax.data.prepared import Dataset, Part
from dbl_jax.errors import UserError

log = logging.getLogger(__name__)


class Source(NamedTuple):
  """How a data set is found and read.

  Attributes:
    fingerprint: options -> a string that changes when the data would.
    read: options, fingerprint -> the data set, with parts 'train' and 'test'.
    image_size: in pixels, unless the config sets it.
  """

  fingerprint: Callable[[Any], str]
  read: Callable[[Any, str], Dataset]
  image_size: int


def load(options: Any) -> Dataset:
  """The data set a config names, prepared on first use.

  Args:
    options: `config.data`. `dir` may name a prepared file instead of the
      original images; then nothing else is needed.

  Returns:
    The data set, with its training part split in 'train' and 'validation'.

  Raises:
    UserError: if there is no such data set, or it cannot be read.
  """
  if options.dir.endswith(".npz"):
    dataset = _read_prepared(Path(options.dir).expanduser(), options)
  else:
    dataset = _prepare(options)
  for warning in dataset.warnings:
    log.warning("%s", warning)
  return _split_validation(dataset, options)


def _read_prepared(path: Path, options: Any) -> Dataset:
  dataset = prepared.load(path)
  found = (dataset.name, dataset.image_size)
  if found != (options.name, options.image_size):
    raise UserError(
      f"{path} holds {found[0]} at {found[1]} px, but the config asks for"
      f" data.name={options.name} at data.image_size={options.image_size}."
      " Set both to what the file holds."
    )
  return dataset


def cache_dir(options: Any) -> Path:
  """Where prepared files are kept: data.cache_dir, or the user's cache."""
  if options.cache_dir:
    return Path(options.cache_dir).expanduser()
  home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
  return Path(home) / "dbl_jax"


def _prepare(options: Any) -> Dataset:
  source = SOURCES[options.name]
  fingerprint = source.fingerprint(options)
  name = f"{options.name}-{options.image_size}px-{fingerprint[:16]}.npz"
  path = cache_dir(options) / name
  if path.exists():
    try:
      return prepared.load(path)
    except UserError as error:
      log.warning("%s Preparing it anew.", error)
  started = time.perf_counter()
  dataset = source.read(options, fingerprint)
  prepared.save(path, dataset)
  log.info(
    "Prepared %s images in %.1f s: %s",
    " + ".join(f"{len(p.labels)} {k}" for k, p in dataset.parts.items()),
    time.perf_counter() - started,
    path,
  )
  return dataset


def _split_validation(dataset: Dataset, options: Any) -> Dataset:
  whole = dataset.parts["train"]
  counts = np.bincount(whole.labels, minlength=len(dataset.class_names))
  empty = [dataset.class_names[c] for c in np.flatnonzero(counts == 0)]
  if empty:
    raise UserError(
      f"{dataset.name}: no training image of {', '.join(empty)}. Every class"
      " needs at least one; check the labels, or leave the class out."
    )
  single = [dataset.class_names[c] for c in np.flatnonzero(counts == 1)]
  if single:
    log.warning(
      "%s has a single training image: none is left to validate on.",
      ", ".join(single),
    )
  train, validation = sampling.stratified_split(
    whole.labels, options.validation_fraction, options.split_seed
  )
  if not len(validation):
    raise UserError(
      f"{dataset.name}: {len(whole.labels)} training images leave none for"
      " validation. At least one class needs two images."
    )
  parts = {
    "train": Part(whole.images[train], whole.labels[train]),
    "validation": Part(whole.images[validation], whole.labels[validation]),
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
    parts[part] = Part(images, labels)
  return Dataset(options.name, synthetic_faces.CLASS_NAMES, parts, fingerprint)


def _raf_db_fingerprint(options: Any) -> str:
  from dbl_jax.data.raf_db import layout

  return layout.fingerprint(_directory(options))


def _read_raf_db(options: Any, fingerprint: str) -> Dataset:
  from dbl_jax.data import raf_db

  class_names, parts, warnings = raf_db.load(
    _directory(options), str(cache_dir(options)), options.image_size
  )
  parts = {name: Part(*part) for name, part in parts.items()}
  return Dataset(
    options.name, tuple(class_names), parts, fingerprint, tuple(warnings)
  )


def _directory(options: Any) -> str:
  if not options.dir:
    raise UserError(
      f"data.name={options.name} needs --config.data.dir: the folder or zip"
      " that holds the images, or a prepared .npz file."
    )
  return str(Path(options.dir).expanduser())


SOURCES: dict[str, Source] = {
  "raf_db": Source(_raf_db_fingerprint, _read_raf_db, image_size=100),
  "synthetic_faces": Source(
    _synthetic_fingerprint, _read_synthetic, image_size=32
  ),
}
