"""Any image classification set of tensorflow-datasets (tfds).

`data.tfds` names it as tfds does, 'cifar10' or 'name/config:1.0.0'. `data.dir`
is tfds's data_dir (by default `~/tensorflow_datasets`), or the folder of one
prepared set, which holds its `dataset_info.json`. Splits may be sliced as in
tfds: `--config.data.test_split='train[80%:]'`.

tfds downloads and prepares a set only if `data.download` is set. Records are
read at random, so that several threads can decode them.
"""

import functools
import hashlib
import importlib
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dbl_jax.data.datasets import SPLITS
from dbl_jax.data.formats import stored
from dbl_jax.data.formats.listing import Listing, Record
from dbl_jax.data.formats.stored import StoredFile, few
from dbl_jax.errors import UserError

IMAGE_SIZE = 32
# A TFRecord is length u64, its CRC u32, data, CRC u32.
_HEAD, _TAIL = 12, 4


def find(path: Path, options: Any) -> Listing:
  """Finds the splits of a prepared set, see `Source.find`.

  The path is tfds's data_dir, or the folder of a prepared set. The options
  `tfds`, `download`, `image_feature`, `label_feature` and the names of the
  splits are used.
  """
  builder = _builder(path, options)
  info = builder.info
  image, label = _features(info, options)
  splits, digest = {}, hashlib.sha256(info.full_name.encode())
  for split, name in _split_names(info, options).items():
    files = info.splits[name].file_instructions
    splits[split] = _Examples(info, name, image, label)
    digest.update(f"\n{split} {image} {label}\n".encode())
    for part in files:
      file = stored.of_path(Path(part.filename))
      row = (file.origin.rsplit("/", 1)[-1], file.size, file.stamp)
      digest.update(f"{row} {part.skip} {part.take}\n".encode())
  names = tuple(info.features[label].names)
  return Listing(names, splits, (), digest.hexdigest())


def _builder(path: Path, options: Any) -> Any:
  """Returns the builder of a prepared set, which it prepares if asked to."""
  try:
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise UserError(
      "data.name=tfds needs tensorflow-datasets, which is not installed here:"
      " pip install tensorflow-datasets."
    ) from error
  tfds.disable_progress_bar()
  # Makes our builder of RAF-DB known to tfds.
  importlib.import_module("dbl_jax.data.formats.raf_db_dataset_builder")
  if (path / "dataset_info.json").is_file():
    return tfds.builder_from_directory(path)
  name, folder = options.tfds, path if options.dir else None
  if not name:
    raise UserError(
      "data.name=tfds needs --config.data.tfds, such as cifar10, or a"
      f" --config.data.dir with a dataset_info.json, which {path} lacks."
    )
  try:
    builder = tfds.builder(name, data_dir=folder)
  except (tfds.core.DatasetNotFoundError, ValueError, AttributeError) as error:
    raise UserError(
      f"tensorflow-datasets does not know the set {name!r}"
      f" ({str(error).splitlines()[0]}). Expected the name of a builder, such"
      " as cifar10 or name/config:1.0.0."
    ) from error
  if not builder.is_prepared():
    if not options.download:
      raise UserError(
        f"{builder.data_path} does not hold a prepared {name}, and downloads"
        " are off. Set --config.data.dir to tfds's data_dir that has it, or"
        " --config.data.download=True to let tfds prepare it there."
      )
    try:
      builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # builders raise anything
      manual = getattr(builder, "MANUAL_DOWNLOAD_INSTRUCTIONS", None) or ""
      raise UserError(
        f"tensorflow-datasets cannot prepare {name}: {str(error)[:300]}"
        f"{' It needs files by hand: ' if manual else ''}{manual.strip()}"
      ) from error
  return builder


def _features(info: Any, options: Any) -> tuple[str, str]:
  """Returns the names of the features that hold the image and the class."""
  import tensorflow_datasets as tfds

  found = []
  kinds = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
  for what, kind in kinds.items():
    given = options[f"{what}_feature"]
    names = [n for n, f in info.features.items() if isinstance(f, kind)]
    # If there are several, those that the set's authors meant.
    keys = info.supervised_keys or ()
    chosen = [n for n in names if n == given] if given else names
    if len(chosen) > 1 and not given:
      chosen = [n for n in chosen if n in keys[:2]] or chosen
    if len(chosen) != 1:
      raise UserError(
        f"{info.full_name} has {few(names) or 'no feature'} of the kind"
        f" {kind.__name__}; expected one"
        + (f" named {given!r}" if given else "")
        + f". Set --config.data.{what}_feature, or take another set: video,"
        " several labels an image and plain numbers are not supported."
      )
    found += chosen
  return found[0], found[1]


def _split_names(info: Any, options: Any) -> dict[str, str]:
  """Returns tfds's name of each of our splits."""
  names = {
    split: options[f"{split}_split"] or (split if split in info.splits else "")
    for split in SPLITS
  }
  for split, name in names.items():
    try:
      known = bool(name) and info.splits[name].num_examples > 0
    except (ValueError, KeyError, AssertionError):
      known = False
    if not known and (name or split != "validation"):
      raise UserError(
        f"{info.full_name} has no split {name or split!r} (it has"
        f" {few(info.splits)}). Set --config.data.{split}_split to one of them,"
        f" or to a share of one, such as 'train[:80%]'."
      )
  return {split: name for split, name in names.items() if name}


class _Examples(Sequence[Record]):
  """The records of a split, read when indexed."""

  def __init__(self, info: Any, name: str, image: str, label: str):
    self._info, self._name, self._keys = info, name, (image, label)
    self._split = info.splits[name]

  def __len__(self) -> int:
    return self._split.num_examples

  def __getitem__(self, index: Any) -> Any:
    if not 0 <= index < len(self):
      raise IndexError(index)
    origin = f"{self._info.full_name} {self._name}[{index}]"
    image, label = self._example(index, origin)
    file = StoredFile(origin, len(image), 0, lambda: image)
    return Record(f"{self._name} {index}", label, file)

  def _example(self, index: int, origin: str) -> tuple[bytes, int]:
    from tensorflow_datasets.proto import tf_example_pb2

    image_key, label_key = self._keys
    try:
      # Several times as fast as tfds, which parses all features.
      example = tf_example_pb2.Example.FromString(self._read(index))
      found = example.features.feature
      image = found[image_key].bytes_list.value[0]
      label = found[label_key].int64_list.value[0]
    except UserError:
      raise
    except Exception as error:  # parsers raise any error for damaged files
      raise UserError(
        f"{origin} is damaged ({str(error)[:200]}); expected a whole example."
        " Copy or prepare the set again."
      ) from error
    classes = len(self._info.features[label_key].names)
    if not 0 <= label < classes:
      raise UserError(
        f"{origin} has the label {label}; expected 0 to {classes - 1}. If the"
        " split is without labels, set another in data.test_split."
      )
    return image, label

  @functools.cached_property
  def _read(self) -> Callable[[int], bytes]:
    """Returns a function of the index of an example: its serialized bytes."""
    files = self._split.file_instructions
    if self._info.file_format.value == "array_record":
      from array_record.python import array_record_data_source

      source = array_record_data_source.ArrayRecordDataSource(files)
      return source.__getitem__
    if self._info.file_format.value != "tfrecord":
      raise UserError(
        f"{self._info.full_name} is stored as {self._info.file_format.value};"
        " expected tfrecord or array_record. Prepare it as one of these."
      )
    opened = [os.open(part.filename, os.O_RDONLY) for part in files]
    places = [
      _offsets(part.filename)[part.skip : part.skip + part.take]
      for part in files
    ]
    ends = np.cumsum([len(rows) for rows in places])

    def read(index: int) -> bytes:
      part = int(np.searchsorted(ends, index, side="right"))
      start, size = places[part][index - ends[part]].tolist()
      return os.pread(opened[part], size, start)

    return read


def _offsets(path: str) -> np.ndarray:
  """Finds the place of each record of a TFRecord file, int64[n, 2]."""
  places, at, size = [], 0, os.path.getsize(path)
  with open(path, "rb") as file:
    while at < size:
      file.seek(at)
      head = file.read(_HEAD)
      length = struct.unpack("<Q", head[:8])[0] if len(head) == _HEAD else size
      if at + _HEAD + length + _TAIL > size:
        raise UserError(
          f"{path} is damaged or cut off at byte {at} of {size}; expected whole"
          " records. Copy or prepare the set again."
        )
      places.append((at + _HEAD, length))
      at += _HEAD + length + _TAIL
  return np.array(places, np.int64).reshape(-1, 2)
