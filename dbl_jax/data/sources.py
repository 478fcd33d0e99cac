"""The data sets, by name, and the files each is prepared into."""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import math
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dbl_jax.data import datasets, face_crops, inspection, splits, synthetic
from dbl_jax.data.datasets import Dataset, Split
from dbl_jax.data.formats import (
  expw,
  fer2013,
  image_folder,
  images,
  listed,
  listing,
  raf_db,
  tfds,
)
from dbl_jax.data.formats.listing import Listing, Record
from dbl_jax.data.formats.stored import few
from dbl_jax.errors import UserError
from dbl_jax.runtime import files, rows
from dbl_jax.runtime.environment import available_memory, user_cache
from dbl_jax.runtime.logs import Progress

log = logging.getLogger(__name__)
# Decoded images of a shard: preparing holds one in memory, and a kill loses
# one at most.
_SHARD_BYTES = 256 << 20
# Images stay on disk if they take more than this share of the memory.
_MEMORY_SHARE = 0.25
# Images are not prepared if they would take more of the disk's free space.
_DISK_SHARE = 0.5
_CACHE_FLAG = "--config.data.cache_dir"
# Split -> indices of some of its images.
_Parts = Mapping[str, range]
# Decodes some parts, or all; calls back with how many are done, of all.
_Read = Callable[[_Parts | None, Callable[[int, int], None]], Dataset]


@dataclasses.dataclass(frozen=True)
class Source:
  """A named data set.

  Attributes:
    image_size: in pixels, unless the config sets it.
    find: data.dir, `config.data` -> the labelled image files, none of them
      read; raises UserError if files are missing, malformed or contradictory.
      None for the synthetic faces, which have no files.
    needs_dir: whether data.dir has no default.
  """

  image_size: int
  find: Callable[[Path, Any], Listing] | None = None
  needs_dir: bool = True


SOURCES: dict[str, Source] = {
  "expw": Source(expw.IMAGE_SIZE, expw.find),
  "fer2013": Source(fer2013.IMAGE_SIZE, fer2013.find),
  "image_folder": Source(image_folder.IMAGE_SIZE, image_folder.find),
  "listed": Source(listed.IMAGE_SIZE, listed.find),
  "raf_db": Source(raf_db.IMAGE_SIZE, raf_db.find),
  "synthetic_faces": Source(image_size=32),
  "tfds": Source(tfds.IMAGE_SIZE, tfds.find, needs_dir=False),
}


def load(options: Any) -> Dataset:
  """Loads the data set that a config names, and prepares it on first use.

  Args:
    options: `config.data`. `dir` may name a prepared file, or folder of shards,
      instead of the original images; then nothing else is needed.

  Returns:
    The data set, with its training split divided into 'train' and 'validation'
    unless it came with both, and cut to a long tail if the config asks for it.
    Its images are in memory, or on disk, decoded or as image files; `input`
    chooses.

  Raises:
    UserError: if there is no such data set, or it cannot be read.
  """
  given = Path(options.dir).expanduser()
  if options.dir and datasets.is_prepared(given):
    dataset = _read_prepared(given, options)
  else:
    dataset = _prepare(options)
  counts = {
    name: np.bincount(split.labels, minlength=len(dataset.class_names))
    for name, split in dataset.splits.items()
  }
  check_counts(dataset.name, dataset.class_names, counts)
  dataset = _into_memory(dataset, options)
  dataset = _split_validation(dataset, counts["train"], options)
  if kind := options.get("long_tail", ""):
    imbalance, seed = options.imbalance, options.split_seed
    dataset = splits.cut(dataset, kind, imbalance, seed, counts["train"])
  for warning in (*dataset.warnings, *_shared_images(dataset, options)):
    log.warning("%s", warning)
  return face_crops.apply(dataset, options.get("region", "face"))


def find(options: Any) -> Listing:
  """Finds the images of the data set that a config names, as they are stored.

  Data without image files (synthetic faces, a prepared file) give their decoded
  images. The options are `config.data`.

  Raises:
    UserError: if there is no such data set, or its files are not in order.
  """
  source, given = SOURCES[options.name], Path(options.dir).expanduser()
  if source.find is None or (options.dir and datasets.is_prepared(given)):
    return inspection.listing_of(load(options))
  if source.needs_dir and not options.dir:
    raise UserError(
      f"data.name={options.name} needs --config.data.dir: the folder or zip"
      " that holds the images, or a prepared .npz file."
    )
  return source.find(given, options)


def with_external(dataset: Dataset, path: str, options: Any) -> Dataset:
  """Adds the split 'external': a test set from elsewhere, in class folders.

  The path is a folder or zip. A class is recognised by the name of a folder
  around the image, whatever its case. Other folders are left out and named.

  Raises:
    UserError: if no image lies in a folder named like a class, or images
      cannot be read.
  """
  known = {name.casefold(): i for i, name in enumerate(dataset.class_names)}
  found = image_folder.find_images(Path(path).expanduser())
  records, others = [], Counter[str]()
  for name, file in found.items():
    folders = name.split("/")[:-1]
    labels = [known[f.casefold()] for f in folders if f.casefold() in known]
    if labels:
      records.append(Record(name, labels[-1], file))
    else:
      others["/".join(folders) or "the folder itself"] += 1
  left_out = few((f"{n} in {folder}" for folder, n in others.items()), 10)
  if not records:
    raise UserError(
      f"{path}: no image lies in a folder named like a class of the run"
      f" ({few(dataset.class_names, 10)}); found {left_out}. Sort the images"
      " into such folders, or classify them by scripts/predict.py."
    )
  if others:
    log.warning("%s: left out, as no class is named so: %s", path, left_out)
  listed = Listing(dataset.class_names, {"external": tuple(records)})
  progress = Progress("external images: decoding").count
  decoded = _reader(listed, "external", options)(None, progress)
  decoded = face_crops.apply(decoded, options.get("region", "face"))
  dataset = dataset._replace(
    splits=dataset.splits | decoded.splits,
    names={**dataset.names, **decoded.names},
  )
  progress = Progress("external images: comparing").count
  shared = inspection.shared(dataset.splits, progress)
  for (one, other), number in shared.items():
    if other == "external" and one != "test":
      log.warning("%d of the external images are in %s too", number, one)
  return dataset


def with_unlabelled(
  dataset: Dataset, phase: str, paths: str, options: Any
) -> tuple[Dataset, str]:
  """Adds a split for a phase that needs no labels: 'train' and further images.

  The split is 'unlabelled_PHASE', whose labels are zeros. Images with the same
  pixels as one of another split are left out.

  Args:
    dataset: as loaded by `load`.
    phase: its name.
    paths: folders or zips of images at any depth, separated by commas.
    options: `config.data`.

  Returns:
    The data set, and the fingerprint of the further images.

  Raises:
    UserError: if a path holds no images, or they cannot be read.
  """
  records = []
  given = filter(None, (path.strip() for path in paths.split(",")))
  for number, path in enumerate(given):
    found = image_folder.find_images(Path(path).expanduser())
    records += [Record(f"{number}/{n}", 0, file) for n, file in found.items()]
  listed = Listing((), {"train": tuple(records)})
  fingerprint = _fingerprint(listed, paths, options)
  named = listed._replace(class_names=("unlabelled",))
  further = _of_files(named, "unlabelled", fingerprint, options)
  cut = face_crops.apply(
    _into_memory(further, options), options.get("region", "face")
  )
  progress = Progress(f"unlabelled images for {phase}: comparing").count
  known = inspection.digests(
    {**dataset.splits, "": cut.splits["train"]}, progress
  )
  digests = known.pop("")
  taken = set(itertools.chain(*known.values()))
  new = np.array([digest not in taken for digest in digests], bool)
  log.info(
    "%d unlabelled images for %s; %d are in the data set's splits, left out",
    sum(new),
    phase,
    len(new) - sum(new),
  )
  unseen = rows.take(cut.splits["train"].images, np.flatnonzero(new))
  together = rows.concatenate([dataset.splits["train"].images, unseen])
  split = Split(together, np.zeros(len(together), np.int32))
  splits = dataset.splits | {f"unlabelled_{phase}": split}
  names = dict(dataset.names)
  if "train" in names:
    more = [r.name for r, is_new in zip(records, new, strict=True) if is_new]
    names[f"unlabelled_{phase}"] = [*names["train"], *more]
  return dataset._replace(splits=splits, names=names), fingerprint


def _shared_images(dataset: Dataset, options: Any) -> list[str]:
  """Returns a warning if splits share images, as accuracy is then too high."""
  shared = [
    f"{number} of {other} are in {one} too"
    for (one, other), number in _count_shared(dataset, options).items()
  ]
  if not shared:
    return []
  defaults = {"dir": "", "split_seed": 0, "test_fraction": 0.2}
  given = "".join(
    f" --{name}={options[name]}"
    for name, default in defaults.items()
    if options[name] != default
  )
  return [
    f"{dataset.name}: splits share images, so metrics on them are too good:"
    f" {', '.join(shared)}. scripts/check_data.py"
    f" --name={dataset.name}{given} lists them. If validation was split off"
    " train, its duplicates are listed within train."
  ]


def _count_shared(dataset: Dataset, options: Any) -> dict[tuple[str, str], int]:
  """As `inspection.shared`; for images on disk, which takes long, cached."""
  if _in_memory(dataset):
    return inspection.shared(dataset.splits)
  fields = ("image_size", "align", "validation_fraction", "split_seed")
  key = f"{dataset.fingerprint} {[options[field] for field in fields]}"
  digest = hashlib.sha256(key.encode()).hexdigest()
  path = cache_dir(options) / f"shared-{digest[:32]}.json"
  pairs = [*itertools.combinations(dataset.splits, 2)]
  with contextlib.suppress(OSError, ValueError, RecursionError):
    numbers = json.loads(path.read_bytes())
    # A damaged file must not hide that splits share images.
    expected = [int] * len(pairs)
    if isinstance(numbers, list) and [*map(type, numbers)] == expected:
      return {pair: n for pair, n in zip(pairs, numbers, strict=True) if n}
  progress = Progress(f"{dataset.name}: comparing splits").count
  shared = inspection.shared(dataset.splits, progress)
  content = json.dumps([shared.get(pair, 0) for pair in pairs])
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, content.encode())
  except OSError as error:
    log.warning(
      "%s cannot be written (%s), so splits are compared at each start",
      path,
      error.strerror or error,
    )
  return shared


def _read_prepared(path: Path, options: Any) -> Dataset:
  try:
    dataset = datasets.load(path)
  except OSError as error:
    raise UserError(
      f"data.dir={path} cannot be read ({error.strerror}); expected a prepared"
      " file. Check the path, and that you may read it."
    ) from error
  found = (dataset.name, dataset.image_size)
  if found != (options.name, options.image_size):
    raise UserError(
      f"{path} holds {found[0]} at {found[1]} px, but the config asks for"
      f" data.name={options.name} at data.image_size={options.image_size}."
      " Set both to what the file holds."
    )
  return dataset


def cache_dir(options: Any) -> Path:
  """Returns the folder of prepared files: data.cache_dir, or the user's cache.

  Raises UserError if neither is known.
  """
  if options.cache_dir:
    return Path(options.cache_dir).expanduser()
  try:
    return user_cache()
  except RuntimeError as error:
    raise UserError(
      "There is no home folder to keep prepared images in. Set"
      " --config.data.cache_dir to a folder, or the variable HOME."
    ) from error


def _prepare(options: Any) -> Dataset:
  """Prepares the original images of a data set, or opens what is prepared."""
  if SOURCES[options.name].find is not None:
    found = find(options)
    # Before hours of work; others are read when they are indexed.
    if all(isinstance(records, tuple) for records in found.splits.values()):
      check_counts(options.name, found.class_names, listing.counts(found))
    fingerprint = _fingerprint(found, options.dir, options)
    dataset = _of_files(found, options.name, fingerprint, options)
    return dataset._replace(former=listing.former_fingerprint(found))
  if options.dir:
    raise UserError(
      f"data.dir={options.dir} is given, but data.name={options.name} reads no"
      " images. Set data.name to what is there, such as image_folder, or leave"
      " data.dir out."
    )
  sizes = {"train": options.num_train, "test": options.num_test}
  read = functools.partial(_draw, options)
  return _prepared(
    options.name, _synthetic_fingerprint(options), sizes, read, options
  )


def _of_files(
  found: Listing, name: str, fingerprint: str, options: Any
) -> Dataset:
  """Opens the images of a listing, prepared, or as the files they are."""
  path = _prepared_path(name, fingerprint, options)
  exists = os.path.exists(path) or os.path.exists(f"{path}.npz")
  read = _reader(found, name, options)
  automatic = options.input == "auto"
  if (automatic and exists) or not _stay_encoded(found, options):
    sizes = {split: len(records) for split, records in found.splits.items()}
    return _prepared(name, fingerprint, sizes, read, options)
  size = _decoded_bytes(found, options)
  log.info(
    "%s: images are not prepared, which would take %.1f GB of the disk of %s,"
    " but decoded when they are read",
    name,
    size / 1e9,
    path.parent,
  )
  if automatic and not _is_large(size):
    dataset = read(None, Progress(f"{name}: decoding").count)
  else:
    dataset = _encoded(found, name, options)
  return dataset._replace(fingerprint=fingerprint)


def _encoded(found: Listing, name: str, options: Any) -> Dataset:
  """Opens a listing as a data set whose images are decoded when indexed."""
  size = options.image_size
  splits_: dict[str, Split] = {}
  names: dict[str, list[str]] = {}
  for split, records in found.splits.items():
    # tfds has the labels next to the images, which takes long to read.
    reading = Progress(f"{name}: reading labels of {split}").count
    progress = None if isinstance(records, tuple) else reading

    def row(i: int, records: Sequence[Record] = records) -> tuple[str, int]:
      return records[i][:2]

    rows_ = images.in_threads(row, range(len(records)), progress)
    names[split] = [one for one, _ in rows_]
    labels = np.array([label for _, label in rows_], np.int32)

    def decode(index: np.ndarray, split: str = split) -> np.ndarray:
      parts = {split: index.tolist()}
      decoded = listing.decode(found, name, size, parts=parts)
      return np.asarray(decoded.splits[split].images)

    sources = [(len(labels), decode)]
    images_ = rows.Rows(sources, (size, size, 3), np.dtype(np.uint8))
    splits_[split] = Split(images_, labels)
  return Dataset(name, found.class_names, splits_, "", found.warnings, names)


def _stay_encoded(found: Listing, options: Any) -> bool:
  """Whether images not prepared yet are decoded when they are read.

  Searching for faces takes too long for that.
  """
  if options.align == "face" or options.input != "auto":
    return options.align == "none" and options.input == "encoded"
  folder = cache_dir(options).absolute()
  above = filter(os.path.exists, (folder, *folder.parents))
  with contextlib.suppress(OSError):
    disk = shutil.disk_usage(next(above, folder))
    # Some network file systems do not know their size.
    allowed = _DISK_SHARE * disk.free if disk.total else math.inf
    return _decoded_bytes(found, options) > allowed
  return False


def _decoded_bytes(found: Listing, options: Any) -> int:
  return sum(map(len, found.splits.values())) * options.image_size**2 * 3


def _prepared_path(name: str, fingerprint: str, options: Any) -> Path:
  """The folder of shards of a data set; with .npz, its single file."""
  aligned = "-aligned" if options.align == "face" else ""
  form = f"{name}-{options.image_size}px{aligned}-{fingerprint[:16]}"
  return cache_dir(options) / form


def _prepared(
  name: str,
  fingerprint: str,
  sizes: Mapping[str, int],
  read: _Read,
  options: Any,
) -> Dataset:
  """Opens the prepared files of a data set; makes those missing or damaged.

  `sizes` has the number of images of each split, of which `read` decodes some.
  The images stay on disk.
  """
  folder = _prepared_path(name, fingerprint, options)
  path = folder.with_name(f"{folder.name}.npz")
  parts = _shards(sizes, options.image_size)
  paths = [path]
  if len(parts) > 1:
    # Earlier versions made a single file of any size.
    every = {split: range(size) for split, size in sizes.items()}
    if whole := _open_shard((path, every), fingerprint):
      return whole
    path = folder
    paths = datasets.shard_paths(path, len(parts))
  opened = functools.partial(_open_shard, fingerprint=fingerprint)
  shards = images.in_threads(opened, [*zip(paths, parts, strict=True)])
  if missing := [i for i, shard in enumerate(shards) if shard is None]:
    started, total = time.perf_counter(), sum(sizes.values())
    files.make_writable(path.parent, _CACHE_FLAG)
    log.info("Preparing %s at %d px", name, options.image_size)
    if len(missing) < len(paths):
      log.info("%d of %d shards are missing", len(missing), len(paths))
    progress = Progress(f"{name}: decoding")
    for i in missing:
      done = sum(len(rows) for part in parts[:i] for rows in part.values())

      def show(now: int, _: int, done: int = done) -> None:
        progress.count(done + now, total)

      shard = read(parts[i], show)._replace(fingerprint=fingerprint)
      with files.writing(path.parent, _CACHE_FLAG):
        datasets.save(paths[i], shard)
      del shard  # before the next is decoded
      shards[i] = datasets.load_shard(paths[i])
    log.info(
      "Prepared %s images in %.1f s: %s",
      " + ".join(f"{number} {split}" for split, number in sizes.items()),
      time.perf_counter() - started,
      path,
    )
  return datasets.join([shard for shard in shards if shard is not None], path)


def _shards(sizes: Mapping[str, int], image_size: int) -> list[_Parts]:
  """Divides the images of all splits, in their order, into shards."""
  step = max(1, _SHARD_BYTES // (image_size**2 * 3))
  shards: list[_Parts] = []
  for start in range(0, max(sum(sizes.values()), 1), step):
    part: dict[str, range] = {}
    before = 0
    for split, size in sizes.items():
      first, last = max(start - before, 0), min(start + step - before, size)
      if first < last or (not size and not start):
        part[split] = range(first, max(first, last))
      before += size
    shards.append(part)
  return shards


def _open_shard(given: tuple[Path, _Parts], fingerprint: str) -> Dataset | None:
  """Opens a file of some parts; None if it is missing or damaged."""
  path, parts = given
  try:
    shard = datasets.load_shard(path)
    sizes = {split: len(one.labels) for split, one in shard.splits.items()}
    expected = {split: len(rows) for split, rows in parts.items()}
    if (shard.fingerprint, sizes) == (fingerprint, expected):
      return shard
    why: object = "it belongs to another data set"
  except (FileNotFoundError, NotADirectoryError):
    return None
  except UserError as error:
    why = error.__cause__ or error
  log.warning("%s is damaged (%s). Preparing it anew.", path, why)
  return None


def _into_memory(dataset: Dataset, options: Any) -> Dataset:
  """Reads the images into memory, unless they are to stay on disk.

  The images and the splits made of them are in memory at the same time: a
  UserError if the config wants that and they do not fit.
  """
  if _in_memory(dataset):
    return dataset
  available = available_memory()
  size = sum(split.images.nbytes for split in dataset.splits.values())
  automatic = options.input == "auto"
  if _is_large(size) if automatic else options.input != "resident":
    log.info("%s: %.1f GB of images stay on disk", dataset.name, size / 1e9)
    return dataset
  if available is not None and 2 * size > available:
    raise UserError(
      f"data.input=resident needs {2 * size / 1e9:.1f} GB of memory for"
      f" {dataset.name}; {available / 1e9:.1f} GB are available. Set"
      " --config.data.input=auto, which leaves the images on disk."
    )
  loaded = {
    k: s._replace(images=s.images[:]) for k, s in dataset.splits.items()
  }
  return dataset._replace(splits=loaded)


def _in_memory(dataset: Dataset) -> bool:
  return all(isinstance(s.images, np.ndarray) for s in dataset.splits.values())


def _is_large(size: int) -> bool:
  """Whether so many bytes of images should not be held in memory."""
  available = available_memory()
  return available is not None and size > _MEMORY_SHARE * available


def _reader(found: Listing, name: str, options: Any) -> _Read:
  size, aligned = options.image_size, options.align == "face"
  return functools.partial(listing.decode, found, name, size, aligned)


def _fingerprint(found: Listing, paths: str, options: Any) -> str:
  """Fingerprint of a listing's content; of files that did not change, cached.

  A file counts as unchanged if path, size and time of change are the same.
  """
  if found.fingerprint:  # else all records of tfds would be read
    return found.fingerprint
  key = f"{listing.former_fingerprint(found)} {os.path.abspath(paths)}"
  digest = hashlib.sha256(os.fsencode(key)).hexdigest()
  name = f"content-{digest[:32]}.txt"
  cached = cache_dir(options) / name
  with contextlib.suppress(OSError, UnicodeDecodeError):
    if re.fullmatch("[0-9a-f]{64}", text := cached.read_text()):
      return text
  files_ = [r.file for rows in found.splits.values() for r in rows]
  if all(file.crc is not None for file in files_):
    return listing.fingerprint(found)
  # What is prepared may be shared and read-only.
  optional = any(cached.parent.glob("*.npz")) or _stay_encoded(found, options)
  if not optional:
    files.make_writable(cached.parent, _CACHE_FLAG)
  progress = Progress(f"{options.name}: comparing").count
  fingerprint = listing.fingerprint(found, progress)
  try:
    with files.writing(cached.parent, _CACHE_FLAG):
      files.write(cached, fingerprint.encode())
  except UserError:
    if not optional:
      raise
  return fingerprint


def check_counts(
  name: str, class_names: Sequence[str], counts: Mapping[str, ArrayLike]
) -> None:
  """Raises UserError unless a data set suffices for training and testing.

  `counts` has the images per class, int[C], of 'train', 'test' and perhaps
  'validation'.
  """
  train = np.asarray(counts["train"])
  empty = [class_names[c] for c in np.flatnonzero(train == 0).tolist()]
  if empty:
    raise UserError(
      f"{name}: no training image of {few(empty, 10)}. Every class needs at"
      " least one; check the labels, or leave the class out."
    )
  for split in ("validation", "test"):
    if split in counts and not np.any(counts[split]):
      raise UserError(
        f"{name}: no image in the split {split}. Some classes need two images"
        " and more, of which one is for it."
      )
  if "validation" not in counts and train.max() < 2:
    raise UserError(
      f"{name}: {train.sum()} training images leave none for validation. At"
      " least one class needs two images."
    )


def _split_validation(
  dataset: Dataset, counts: np.ndarray, options: Any
) -> Dataset:
  """Splits 'validation' off 'train', unless the data set has its own."""
  if "validation" in dataset.splits:
    return dataset
  labels = dataset.splits["train"].labels
  single = [dataset.class_names[c] for c in np.flatnonzero(counts == 1)]
  if single:
    log.warning(
      "%s has a single training image: none is left to validate on.",
      few(single, 10),
    )
  fraction, seed = options.validation_fraction, options.split_seed
  if how := options.get("groups", ""):
    groups = splits.groups_of(dataset, how)
    dataset = splits.with_state(dataset, f"groups {groups.tolist()}")
    train, validation = splits.split_off(
      labels, fraction, seed, splits.VALIDATION, groups
    )
    if not len(validation):
      raise UserError(
        f"data.groups={how}: each group has more images than"
        f" data.validation_fraction={fraction} of its class. Set it higher."
      )
  else:
    train, validation = splits.stratified_split(labels, fraction, seed)
  return splits.take(dataset, {"train": train, "validation": validation})


def _synthetic_fingerprint(options: Any) -> str:
  what = (
    f"{options.name} {synthetic.VERSION} {options.num_train}"
    f" {options.num_test} {options.image_seed}"
  )
  return hashlib.sha256(what.encode()).hexdigest()


def _draw(options: Any, parts: _Parts, _: object) -> Dataset:
  numbers = {"train": options.num_train, "test": options.num_test}
  size, seed = options.image_size, options.image_seed
  drawn = {
    split: Split(*synthetic.make_split(split, numbers[split], size, seed, some))
    for split, some in parts.items()
  }
  return Dataset(options.name, synthetic.CLASS_NAMES, drawn, "")
