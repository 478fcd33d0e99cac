"""RAF-DB in memory, by way of a tfds build that is kept for the next time."""

import contextlib
import functools
import hashlib
import io
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dbl_jax.data.formats import images
from dbl_jax.data.raf_db import layout as layout_lib
from dbl_jax.errors import UserError

log = logging.getLogger(__name__)


class _Example(NamedTuple):
  name: str
  label: int
  data: bytes


def load(
  data_dir: str,
  cache_dir: str,
  image_size: int,
  progress: Callable[[int, int], None] | None = None,
) -> tuple[
  tuple[str, ...], dict[str, tuple[np.ndarray, np.ndarray]], list[str]
]:
  """Builds RAF-DB with tfds, or finds the build, and decodes it.

  The build is kept under `cache_dir/tfds`, one for each state of each data
  folder. TensorFlow itself is not imported.

  Args:
    data_dir: the folder that holds `basic`, `basic` itself, or a zip of either.
    cache_dir: where the build is kept.
    image_size: height and width to return, in pixels.
    progress: called with the number of images decoded, and of all.

  Returns:
    The class names; for 'train' and 'test' the images uint8[n, S, S, 3] and
    labels int32[n], in the order of the file names; and warnings.

  Raises:
    UserError: if data_dir does not hold RAF-DB's files, an image cannot be
      read, or tensorflow-datasets is not installed.
  """
  layout = layout_lib.read(data_dir)
  state = f"{Path(data_dir).resolve()}\n{layout_lib.fingerprint(data_dir)}"
  key = hashlib.sha256(state.encode()).hexdigest()[:32]
  directory = Path(cache_dir).resolve() / "tfds" / key
  examples = _examples(layout, directory)
  try:
    parts = _decode(examples, layout, image_size, progress)
  except UserError:
    # Nobody will ask for this build again once the image is mended.
    shutil.rmtree(directory, ignore_errors=True)
    raise
  warnings = layout_lib.count_warnings(layout)
  return layout_lib.CLASS_NAMES, parts, warnings


def _decode(
  examples: dict[str, list[_Example]],
  layout: layout_lib.Layout,
  image_size: int,
  progress: Callable[[int, int], None] | None,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  origins = {record.name: record.origin for record in layout.records}
  decoded = images.decode_all(
    [
      images.Picture(
        origins[example.name], functools.partial(bytes, example.data)
      )
      for part in examples.values()
      for example in part
    ],
    image_size,
    progress,
  )
  parts, start = {}, 0
  for split, part in examples.items():
    labels = np.array([example.label for example in part], np.int32)
    parts[split] = (decoded[start : start + len(part)], labels)
    start += len(part)
  return parts


def _examples(
  layout: layout_lib.Layout, directory: Path
) -> dict[str, list[_Example]]:
  builder_module = _import_builder()
  with _quiet():

    def make() -> Any:
      return builder_module.RafDb(
        layout=layout, data_dir=directory, file_format="array_record"
      )

    builder = make()
    if builder.data_path.exists():
      try:
        return _read(builder, layout)
      # Whatever a damaged file makes its reader raise, building again mends.
      except Exception as error:
        log.warning("%s is damaged (%s); building again.", directory, error)
        shutil.rmtree(directory)
        builder = make()
    _build(builder, directory)
    return _read(builder, layout)


def _build(builder: Any, directory: Path) -> None:
  try:
    builder.download_and_prepare()
  except OSError as error:
    # Another run may have put the same build in place in the meantime.
    if not builder.data_path.exists():
      raise UserError(
        f"{directory} cannot be written ({error}). Free some space, or name"
        " another cache folder."
      ) from error


def _read(builder: Any, layout: layout_lib.Layout) -> dict[str, list[_Example]]:
  import tensorflow_datasets as tfds

  expected: dict[str, list[str]] = {}
  for record in layout.records:
    expected.setdefault(record.split, []).append(record.name)
  parts = {}
  for split in ("train", "test"):
    source = builder.as_data_source(
      split, decoders={"image": tfds.decode.SkipDecoding()}
    )
    part = [
      _Example(found["file_name"].decode(), found["label"], found["image"])
      for found in source.__getitems__(list(range(len(source))))
    ]
    # tfds shuffles by a hash of the name.
    parts[split] = sorted(part)
    if [example.name for example in parts[split]] != sorted(expected[split]):
      raise ValueError(f"its {split} part has other images than the label file")
  return parts


def _import_builder() -> Any:
  try:
    import array_record.python.array_record_module  # noqa: F401

    from dbl_jax.data.raf_db import raf_db_dataset_builder
  except ImportError as error:
    raise UserError(
      f"Reading RAF-DB's images needs tensorflow-datasets ({error}). Run"
      " 'pip install tensorflow-datasets', or prepare the data where it is"
      " installed and carry the prepared .npz file here."
    ) from error
  return raf_db_dataset_builder


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps tfds from printing, logging and drawing progress bars."""
  import tensorflow_datasets as tfds
  from absl import logging as absl_logging

  verbosity = absl_logging.get_verbosity()
  absl_logging.set_verbosity(absl_logging.ERROR)
  tfds.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    absl_logging.set_verbosity(verbosity)
