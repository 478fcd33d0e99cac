"""The data sets, by name, and the file each is prepared into."""

import contextlib
import dataclasses
import hashlib
import logging
import math
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dbl_jax.data import datasets, inspection, regions, splits, synthetic
from dbl_jax.data.datasets import Dataset, Split
from dbl_jax.data.formats import (
  expw,
  fer2013,
  image_folder,
  listed,
  listing,
  raf_db,
  tfds,
)
from dbl_jax.data.formats.listing import Listing, Record
from dbl_jax.data.formats.stored import few
from dbl_jax.errors import UserError
from dbl_jax.runtime import files
from dbl_jax.runtime.environment import user_cache
from dbl_jax.runtime.logs import Progress
from dbl_jax.runtime.provenance import available_memory

log = logging.getLogger(__name__)


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
    options: `config.data`. `dir` may name a prepared file instead of the
      original images; then nothing else is needed.

  Returns:
    The data set, with its training split divided into 'train' and 'validation'
    unless it came with both, and cut to a long tail if the config asks for it.

  Raises:
    UserError: if there is no such data set, or it cannot be read.
  """
  if options.dir.endswith(".npz"):
    dataset = _read_prepared(Path(options.dir).expanduser(), options)
  else:
    dataset = _prepare(options)
  labels, classes = dataset.splits["train"].labels, len(dataset.class_names)
  dataset = _split_validation(dataset, options)
  if kind := options.get("long_tail", ""):
    dataset = splits.cut(
      dataset,
      kind,
      options.imbalance,
      options.split_seed,
      np.bincount(labels, minlength=classes),
    )
  for warning in (*dataset.warnings, *_shared_images(dataset, options)):
    log.warning("%s", warning)
  return regions.apply(dataset, options.get("region", "face"))


def find(options: Any) -> Listing:
  """Finds the images of the data set that a config names, as they are stored.

  Args:
    options: `config.data`.

  Returns:
    The listing. Data without image files (synthetic faces, a prepared file)
    give their decoded images.

  Raises:
    UserError: if there is no such data set, or its files are not in order.
  """
  source = SOURCES[options.name]
  if source.find is None or options.dir.endswith(".npz"):
    return inspection.listing_of(load(options))
  if source.needs_dir and not options.dir:
    raise UserError(
      f"data.name={options.name} needs --config.data.dir: the folder or zip"
      " that holds the images, or a prepared .npz file."
    )
  return source.find(Path(options.dir).expanduser(), options)


def with_external(dataset: Dataset, path: str, options: Any) -> Dataset:
  """Adds the split 'external': a test set from elsewhere, in class folders.

  A class is recognised by the name of a folder around the image, whatever its
  case. Folders of other classes are left out and named.

  Args:
    dataset: as loaded by `load`.
    path: a folder or zip.
    options: `config.data`.

  Returns:
    The data set with one more split.

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
  progress = _progress("external images")
  decoded = _decode(listed, "external", options, progress)
  decoded = regions.apply(decoded, options.get("region", "face"))
  dataset = dataset._replace(
    splits=dataset.splits | decoded.splits,
    names={**dataset.names, **decoded.names},
  )
  for (one, other), number in inspection.shared(dataset.splits).items():
    if other == "external" and one != "test":
      log.warning("%d of the external images are in %s too", number, one)
  return dataset


def with_unlabelled(
  dataset: Dataset, phase: str, paths: str, options: Any
) -> tuple[Dataset, str]:
  """Adds a split for a phase that needs no labels: 'train' and further images.

  Args:
    dataset: as loaded by `load`.
    phase: its name; the split is 'unlabelled_PHASE', whose labels are zeros.
    paths: folders or zips of images at any depth, separated by commas.
    options: `config.data`.

  Returns:
    The data set, and the fingerprint of the further images. Images with the
    same pixels as one of another split are left out.

  Raises:
    UserError: if a path holds no images, or they cannot be read.
  """
  records = []
  given = filter(None, (path.strip() for path in paths.split(",")))
  for number, path in enumerate(given):
    found = image_folder.find_images(Path(path).expanduser())
    records += [Record(f"{number}/{n}", 0, file) for n, file in found.items()]
  listed = Listing((), {"train": tuple(records)})
  _check_memory(len(records), options)
  fingerprint = _fingerprint(listed, paths, options)
  form = _form("unlabelled", options)
  cached = cache_dir(options) / f"{form}-{fingerprint[:16]}.npz"
  try:
    further = files.load(cached)["images"]
  except (OSError, KeyError, ValueError):
    progress = _progress("unlabelled images")
    decoded = _decode(listed, "unlabelled", options, progress)
    further = decoded.splits["train"].images
    with _writing(cached.parent), files.replacing(cached) as file:
      np.savez(file, images=further)
  whole = Split(further, np.zeros(len(further), np.int32))
  cut = Dataset("", (), {"train": whole}, "")
  cut = regions.apply(cut, options.get("region", "face"))
  taken = {d for s in dataset.splits.values() for d in inspection.digests(s)}
  new = [d not in taken for d in inspection.digests(cut.splits["train"])]
  log.info(
    "%d unlabelled images for %s; %d are in the data set's splits and left out",
    sum(new),
    phase,
    len(new) - sum(new),
  )
  further = cut.splits["train"].images[new]
  together = np.concatenate([dataset.splits["train"].images, further])
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
    for (one, other), number in inspection.shared(dataset.splits).items()
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
    f" {', '.join(shared)}. They are listed by scripts/check_data.py"
    f" --name={dataset.name}{given}, those of validation as within train where"
    " it is split off that."
  ]


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
  _check_counts(dataset)
  return dataset


def cache_dir(options: Any) -> Path:
  """Returns the folder of prepared files: data.cache_dir, or the user's cache.

  Raises:
    UserError: if neither is known.
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
  """Reads the prepared file of a data set, or makes it."""
  found: Listing | None = None
  former = ""
  if SOURCES[options.name].find is not None:
    found = find(options)
    _check_memory(sum(map(len, found.splits.values())), options)
    fingerprint = _fingerprint(found, options.dir, options)
    former = listing.former_fingerprint(found)
  elif options.dir:
    raise UserError(
      f"data.dir={options.dir} is given, but data.name={options.name} reads no"
      " images. Set data.name to what is there, such as image_folder, or leave"
      " data.dir out."
    )
  else:
    _check_memory(options.num_train + options.num_test, options)
    fingerprint = _synthetic_fingerprint(options)
  name = f"{_form(options.name, options)}-{fingerprint[:16]}.npz"
  path = cache_dir(options) / name
  if path.exists():
    try:
      return datasets.load(path)._replace(former=former)
    except UserError as error:
      why = error.__cause__ or error
      log.warning("%s is damaged (%s). Preparing it anew.", path, why)
  started = time.perf_counter()
  _check_writable(path.parent)
  log.info("Preparing %s at %d px", options.name, options.image_size)
  if found is None:
    dataset = _draw(options, fingerprint)
  else:
    progress = _progress(options.name)
    dataset = _decode(found, options.name, options, progress)._replace(
      fingerprint=fingerprint, former=former
    )
  _check_counts(dataset)
  with _writing(path.parent):
    datasets.save(path, dataset)
  log.info(
    "Prepared %s images in %.1f s: %s",
    " + ".join(f"{len(p.labels)} {k}" for k, p in dataset.splits.items()),
    time.perf_counter() - started,
    path,
  )
  return dataset


def _form(name: str, options: Any) -> str:
  """Name of a prepared file but for the fingerprint of its images."""
  aligned = "-aligned" if options.align == "face" else ""
  return f"{name}-{options.image_size}px{aligned}"


def _decode(
  found: Listing,
  name: str,
  options: Any,
  progress: Callable[[int, int], None],
) -> Dataset:
  """Decodes a listing as the config asks for."""
  aligned = options.align == "face"
  return listing.decode(found, name, options.image_size, progress, aligned)


def _fingerprint(found: Listing, paths: str, options: Any) -> str:
  """Fingerprint of a listing's content; of files that did not change, cached.

  A file counts as unchanged if path, size and time of change are the same.
  """
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
  prepared = any(cached.parent.glob("*.npz"))
  if not prepared:
    _check_writable(cached.parent)
  progress = _progress(options.name, "comparing")
  fingerprint = listing.fingerprint(found, progress)
  try:
    with _writing(cached.parent):
      files.write(cached, fingerprint.encode())
  except UserError:
    if not prepared:  # else it may be shared and read-only
      raise
  return fingerprint


def _check_memory(number: int, options: Any) -> None:
  """Raises UserError if so many images do not fit into memory.

  The images and the splits made of them are in memory at the same time.
  """
  size, available = options.image_size, available_memory()
  needed = 2 * number * size**2 * 3
  if available is not None and needed > available:
    fitting = int(size * math.sqrt(available / needed))
    raise UserError(
      f"{number} images of {size} x {size} pixels need {needed / 1e9:.1f} GB of"
      f" memory; {available / 1e9:.1f} GB are available. Set"
      f" --config.data.image_size to at most {fitting}, use fewer images, or a"
      " machine with more memory."
    )


def _check_writable(directory: Path) -> None:
  """Raises UserError before minutes are spent on what cannot be written."""
  with _writing(directory), tempfile.TemporaryFile(dir=directory):
    pass


@contextlib.contextmanager
def _writing(directory: Path) -> Iterator[None]:
  """Makes a folder; errors while it is written to become UserError."""
  try:
    directory.mkdir(parents=True, exist_ok=True)
    yield
  except OSError as error:
    raise UserError(
      f"{directory}, where prepared images are kept, cannot be written"
      f" ({error.strerror or error}). Free some space, or set"
      " --config.data.cache_dir to another folder."
    ) from error


def _check_counts(dataset: Dataset) -> None:
  counts = {
    name: np.bincount(split.labels, minlength=len(dataset.class_names))
    for name, split in dataset.splits.items()
  }
  check_counts(dataset.name, dataset.class_names, counts)


def check_counts(
  name: str, class_names: Sequence[str], counts: Mapping[str, ArrayLike]
) -> None:
  """Checks that a data set suffices for training and testing.

  Args:
    name: name of the data set, for messages.
    class_names: C names.
    counts: split -> int[C], images per class; with 'train' and 'test'.

  Raises:
    UserError: if not, with what is missing.
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


def _split_validation(dataset: Dataset, options: Any) -> Dataset:
  """Splits 'validation' off 'train', unless the data set has its own."""
  if "validation" in dataset.splits:
    return dataset
  whole = dataset.splits["train"]
  counts = np.bincount(whole.labels, minlength=len(dataset.class_names))
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
      whole.labels, fraction, seed, splits.VALIDATION, groups
    )
    if not len(validation):
      raise UserError(
        f"data.groups={how}: each group has more images than"
        f" data.validation_fraction={fraction} of its class. Set it higher."
      )
  else:
    train, validation = splits.stratified_split(whole.labels, fraction, seed)
  return splits.take(dataset, {"train": train, "validation": validation})


def _synthetic_fingerprint(options: Any) -> str:
  what = (
    f"{options.name} {synthetic.VERSION} {options.num_train}"
    f" {options.num_test} {options.image_seed}"
  )
  return hashlib.sha256(what.encode()).hexdigest()


def _draw(options: Any, fingerprint: str) -> Dataset:
  numbers = {"train": options.num_train, "test": options.num_test}
  drawn = {
    name: Split(
      *synthetic.make_split(
        name, number, options.image_size, options.image_seed
      )
    )
    for name, number in numbers.items()
  }
  return Dataset(options.name, synthetic.CLASS_NAMES, drawn, fingerprint)


def _progress(name: str, doing: str = "decoding") -> Callable[[int, int], None]:
  """Prints a line about work that takes minutes for large data sets."""
  line: Progress | None = None

  def show(count: int, total: int) -> None:
    nonlocal line
    line = line or Progress(f"{name}: {doing}", total)
    line.show(count, f"{count}/{total}", last=count == total)

  return show
