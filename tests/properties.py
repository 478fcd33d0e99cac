"""Readers of strangers' files, and what they may do with any bytes at all.

`READERS` has for each a strategy of inputs and a property: the reader gives
what it promises or raises UserError, and nothing else. properties_test.py
tries a few, always the same; scripts/fuzz.py tries fresh ones for as long as
asked.
"""

import contextlib
import io
import json
import tarfile
import tempfile
import types
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from dbl_jax import config as configs
from dbl_jax import workdirs
from dbl_jax.data import datasets
from dbl_jax.data.formats import (
  expw,
  fer2013,
  image_folder,
  images,
  listed,
  listing,
  raf_db,
  stored,
)
from dbl_jax.errors import UserError
from dbl_jax.evaluation import predictions
from dbl_jax.training import checkpoint

SPLIT = types.SimpleNamespace(
  test_fraction=0.2, validation_fraction=0.1, split_seed=0
)
_ENDS = st.sampled_from([b"\n", b"\r\n", b"\r", b"\n\n", b"\x0b", b"\n \n"])
_GAPS = st.sampled_from([b" ", b"\t", b"  ", b",", b"", b"\xc2\xa0", b'"'])
_STARTS = st.sampled_from([b"", b"", b"\xef\xbb\xbf", b"\xff\xfe", b"\0"])


def _tables(
  right: tuple[st.SearchStrategy[bytes], ...],
  *fields: st.SearchStrategy[bytes],
) -> st.SearchStrategy[bytes]:
  """Tables of rows that are right, nearly all, and of any rows at all."""
  clean = st.lists(st.tuples(*right), min_size=1, max_size=20)
  whole = st.builds(
    lambda rows, end: end.join(map(b" ".join, rows)),
    clean,
    st.sampled_from([b"\n", b"\r\n", b"\n\n"]),
  )
  return st.one_of(whole, _messy(*fields))


def _messy(*fields: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
  right = st.tuples(*fields)
  near = st.lists(st.one_of(*fields, st.binary(max_size=5)), max_size=9)
  gap = st.one_of(st.just(b" "), _GAPS)
  row = st.builds(lambda g, r: g.join(r), gap, st.one_of(right, right, near))
  row = st.one_of(row, row, row, st.binary(max_size=40), _texts(40))
  return st.builds(
    lambda start, rows, end: start + end.join(rows),
    _STARTS,
    st.lists(row, max_size=20),
    st.one_of(st.just(b"\n"), _ENDS),
  )


def _texts(size: int) -> st.SearchStrategy[bytes]:
  text = st.text(st.characters(exclude_categories=["Cs"]), max_size=size)
  return text.map(str.encode)


def _any_of(*words: str) -> st.SearchStrategy[bytes]:
  return st.sampled_from([word.encode() for word in words])


def _numbers(low: int, high: int) -> st.SearchStrategy[bytes]:
  strange = _any_of("nan", "-inf", "1e999", "1_0", "٣", "0x1", "-0", "²")
  usual = st.integers(low, high).map(lambda n: str(n).encode())
  return st.one_of(usual, usual, usual, strange)


@st.composite
def _damaged(draw: st.DrawFn, wholes: tuple[bytes, ...]) -> bytes:
  """A whole file with bytes changed, cut out or put in."""
  data = bytearray(draw(st.sampled_from(wholes)))
  for _ in range(draw(st.sampled_from([0, 1, 1, 2, 5]))):
    place = draw(st.integers(0, len(data)))
    end = min(len(data), place + draw(st.integers(0, 12)))
    data[place:end] = draw(st.binary(max_size=12))
  if draw(st.integers(0, 4)) == 0:
    del data[draw(st.integers(0, len(data))) :]
  return bytes(data)


def _stored(data: bytes) -> stored.StoredFile:
  return stored.StoredFile("a file", len(data), 0, lambda: data)


def check_raf_db(data: bytes) -> None:
  """Names are once and of a part, labels are classes."""
  rows = raf_db._parse(data, "labels")
  assert {split for split, _ in rows.values()} == {"train", "test"}
  assert all(0 <= label < 7 for _, label in rows.values())


def check_kaggle(data: bytes) -> None:
  """Every row has an image and a label."""
  text = data.decode("utf-8", "replace")
  rows = stored.unique_rows(text, "a table", raf_db._parse_table_row)
  assert not any("," in image + label for image, (label, _) in rows.items())


def check_expw(data: bytes) -> None:
  """Faces are once; labels are classes, boxes have an area; all are split."""
  faces, _ = expw._parse(_stored(data))
  assert len({face[:2] for face in faces}) == len(faces)
  for _, _, label, (left, top, right, bottom) in faces:
    assert 0 <= label < 7
    assert right - left >= 1
    assert bottom - top >= 1
  if faces:
    records = [
      listing.Record(f"{photo}#{face}", label, _stored(b""), box)
      for photo, face, label, box in faces
    ]
    parts = expw._split(records, [photo for photo, *_ in faces], SPLIT)
    whole = [record.name for rows in parts.values() for record in rows]
    assert sorted(whole) == sorted(record.name for record in records)


def check_fer2013(data: bytes) -> None:
  """Labels are classes, and every picture is one or is refused."""
  for records in fer2013._read_table(_stored(data)).values():
    assert records
    for record in records:
      assert 0 <= record.label < 7
      try:
        picture = record.file.read()
      except UserError:
        continue
      assert picture.startswith(b"P5 48 48 255\n")
      assert len(picture) == 13 + 48 * 48


def check_names(names: list[str]) -> None:
  """Every image of a folder is in one part and class, or left out aloud."""
  files = {name: _stored(name.encode("utf-8", "replace")) for name in names}
  tree, said = image_folder.read_tree(Path("d"), dict(sorted(files.items())))
  kept = [n for part in tree.values() for c in part.values() for n in c]
  assert len(set(kept)) == len(kept)
  assert len(kept) == len(files) or said
  image_folder._class_names(tree, Path("d"))


def check_list(data: bytes) -> None:
  """Images are once, and labels are numbers."""
  rows = listed._read(_stored(data), lambda name: _stored(b""))
  assert len(set(rows.names)) == len(rows) == len(rows.labels) > 0
  assert all(0 <= label < 10**5 for label in rows.labels)
  listed._class_names(rows)


def check_override(given: tuple[str, Any]) -> None:
  """A config with a field of any value is resolved, and is then the same."""
  config = configs.base()
  config.pretrain, config.classify = configs.simclr(), configs.classifier()
  field, value = given
  # As the command line does.
  with contextlib.suppress(TypeError, KeyError, ValueError):
    config.update_from_flattened_dict({field: value})
  once = configs.resolve(config)
  assert configs.resolve(once).to_dict() == once.to_dict()


def check_meta(given: tuple[bytes, bytes, bytes]) -> None:
  """A run with any metadata and config is refused, or left as it is."""
  meta, metrics, stored_config = given
  with (
    tempfile.TemporaryDirectory() as folder,
    mock.patch.object(workdirs, "logger"),
    mock.patch.object(checkpoint, "logger"),
  ):
    step = checkpoint.phase_dir(Path(folder), "classify") / "1"
    for name, content in {
      "_CHECKPOINT_METADATA": b"{}",
      "meta/metadata": meta,
      "metrics/metrics": metrics,
      "../../../config.json": stored_config,
    }.items():
      (step / name).parent.mkdir(parents=True, exist_ok=True)
      (step / name).write_bytes(content)
    found = checkpoint.load_meta(step.parent)
    assert all(isinstance(name, str) for name in found["class_names"])
    for config in ("there", "lost"):
      (Path(folder) / "config.json").unlink(config == "lost")
      workdirs.remember(_CONFIG, Path(folder), True)
    assert step.is_dir()


def check_picture(data: bytes) -> None:
  """An array of the size asked for."""
  found = images.decode(data, 8, "a file")
  assert found.shape == (8, 8, 3)
  assert found.dtype == np.uint8


def _of_file(read: Callable[[Path], Any]) -> Callable[[bytes], None]:
  def check(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
      path = Path(folder, "a.npz")
      path.write_bytes(data)
      read(path)
      assert [p.name for p in Path(folder).iterdir()] == ["a.npz"]

  return check


def _read_prepared(path: Path) -> None:
  dataset = datasets.load(path)
  for part in dataset.splits.values():
    assert part.images.dtype == np.uint8
    assert len(part.images) == len(part.labels)
    assert set(part.labels.tolist()) <= set(range(len(dataset.class_names)))


def _read_archive(path: Path) -> None:
  for name, file in stored.open_tree(path, "expected images").items():
    assert ".." not in name.split("/")
    try:
      file.read()
    except UserError:
      continue


def _pictures() -> tuple[bytes, ...]:
  pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
  found = []
  for kind in ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    found.append(file.getvalue())
  return tuple(found)


def _archives() -> tuple[bytes, ...]:
  found = []
  for method, name in (
    (zipfile.ZIP_STORED, "test/b/1.png"),
    (zipfile.ZIP_DEFLATED, "test\\b\\1.png"),
    (zipfile.ZIP_BZIP2, "1.png"),
    (zipfile.ZIP_LZMA, "test/b/1.png"),
    (zipfile.ZIP_STORED, "test/b/../1.png"),
  ):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
      archive.writestr("train/a/0.png", b"abc" * 9)
      archive.writestr(name, b"d")
    found.append(file.getvalue())
  return tuple(found)


def _tars() -> tuple[bytes, ...]:
  found = []
  for mode, form in (
    ("w", tarfile.USTAR_FORMAT),
    ("w", tarfile.GNU_FORMAT),
    ("w", tarfile.PAX_FORMAT),
    ("w:gz", tarfile.GNU_FORMAT),
    ("w:xz", tarfile.GNU_FORMAT),
  ):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode, format=form) as archive:
      for i, name in enumerate(
        ("train/a/0.png", "test/" + "b" * 60 + "/" + "1" * 60)
      ):
        entry = tarfile.TarInfo(name)
        entry.size, entry.mtime = 3, 1.5 * i
        archive.addfile(entry, io.BytesIO(b"abc"))
    found.append(file.getvalue())
  return tuple(found)


def _written(save: Callable[[Path], None]) -> bytes:
  with tempfile.TemporaryDirectory() as folder:
    save(Path(folder, "a.npz"))
    return Path(folder, "a.npz").read_bytes()


def _npz(
  meta: dict[str, Any], others: dict[str, np.ndarray], deep: bool
) -> bytes:
  """A prepared file, whole, whose fields and arrays may be any."""
  labels = np.int32([0, 1, 0])
  fields = {
    "format": 1,
    "name": "x",
    "class_names": ["a", "b"],
    "parts": ["train", "test"],
    "fingerprint": "",
    "warnings": [],
  } | meta
  text = b"[" * 10**5 if deep else json.dumps(fields).encode()
  content = {
    "meta": np.frombuffer(text, np.uint8),
    "train_images": np.zeros((3, 2, 2, 3), np.uint8),
    "train_labels": labels,
    "test_images": np.zeros((3, 2, 2, 3), np.uint8),
    "test_labels": labels,
  } | others
  return _written(lambda path: np.savez(path, **content))


_JSON = st.recursive(
  st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=3)),
  lambda inner: st.one_of(
    st.lists(inner, max_size=3),
    st.dictionaries(st.text(max_size=3), inner, max_size=3),
  ),
  max_leaves=5,
)
_VALUES = st.one_of(
  _JSON,
  st.floats(),
  st.sampled_from(["", "auto", "sgd", "nan", "1e999", "(", "\0", "\udcff"]),
  st.lists(st.floats(), max_size=3).map(tuple),
)
_CONFIG = configs.base()
_CONFIG.pretrain, _CONFIG.classify = configs.simclr(), configs.classifier()
_FIELDS = sorted(configs.field_names(_CONFIG))
_CONFIG = configs.with_dtype(configs.resolve(_CONFIG))


@st.composite
def _metas(draw: st.DrawFn) -> tuple[bytes, bytes, bytes]:
  """Metadata, metrics and config of a step: right but for a few values."""
  config = _CONFIG.to_dict()
  meta = {"config": config, "class_names": ["a", "b"], "fingerprint": "0"}
  metrics = {checkpoint.METRIC: 0.5}
  texts = []
  for content in (meta, metrics, config):
    place: dict[str, Any] = content
    if draw(st.integers(0, 3)) == 0:
      while isinstance(inner := place[draw(st.sampled_from([*place]))], dict):
        place = inner or place
        if not inner:
          break
      place[draw(st.sampled_from([*place]))] = draw(_VALUES)
    texts.append(json.dumps(content).encode())
  if draw(st.integers(0, 9)) == 0:
    sums = draw(_JSON)
    texts[0] = json.dumps(meta | {"checksums": sums, "format": sums}).encode()
  which = draw(st.integers(0, 5))
  return tuple(  # type: ignore[return-value]
    draw(_damaged((text,))) if i == which else text
    for i, text in enumerate(texts)
  )


_ARRAYS = hnp.arrays(
  st.sampled_from([np.uint8, np.int32, np.int64, np.float32, np.bool_, "U3"]),
  hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3),
)
_CONTENTS = st.builds(
  _npz,
  st.dictionaries(
    st.sampled_from(["format", "name", "class_names", "parts", "warnings"]),
    _JSON,
    max_size=1,
  ),
  st.dictionaries(
    st.sampled_from(["meta", "train_images", "train_labels", "test_labels"]),
    _ARRAYS,
    max_size=1,
  ),
  st.sampled_from([False] * 9 + [True]),
)


def _prepared() -> bytes:
  part = datasets.Split(np.zeros((3, 2, 2, 3), np.uint8), np.int32([0, 1, 0]))
  dataset = datasets.Dataset("x", ("a", "b"), {"train": part, "test": part}, "")
  return _written(lambda path: datasets.save(path, dataset))


def _scores() -> bytes:
  labels, scores = np.int32([0, 1]), np.zeros((2, 2), np.float32)
  found = predictions.Predictions(
    ("a", "b"), np.int64([3, 1]), labels, scores, labels, scores, True
  )
  return _written(lambda path: predictions.save(path, found))


_PIXELS = st.one_of(
  st.just(b" ".join([b"7"] * 48**2)),
  st.lists(_numbers(-1, 256), max_size=5).map(b" ".join),
  st.builds(
    lambda n, last: b" ".join([b"7"] * n + [last]),
    st.integers(2302, 2304),
    _numbers(0, 255),
  ),
)
_USAGE = _any_of("Training", "PublicTest", "PrivateTest", "Test", " Training")
_FER_ROW = st.builds(
  lambda fields: b",".join(fields),
  st.one_of(
    st.tuples(_numbers(0, 6), _PIXELS, _USAGE),
    st.lists(st.binary(max_size=9), max_size=5),
  ),
)
_FER_ROWS = st.builds(
  lambda start, rows, tail, end: (
    start + end.join([b"emotion,pixels,Usage", *rows, *(tail or [])])
  ),
  _STARTS,
  st.lists(_FER_ROW, max_size=5),
  st.one_of(
    st.none(), st.just([b"0,1,Training", b"0,1,PublicTest", b"0,1,PrivateTest"])
  ),
  st.one_of(st.just(b"\n"), _ENDS),
)
_RIGHT_STEM = st.builds(
  lambda part, n: b"%s_%d.jpg" % (part, n),
  _any_of("train", "test"),
  st.integers(0, 299),
)
_STEMS = st.one_of(
  _any_of("train_1.jpg", "test_1.jpg", "train_..", "valid_1.jpg"),
  st.integers(0, 99).map(lambda n: b"train_%d.jpg" % n),
  st.integers(0, 99).map(lambda n: b"test_%d.jpg" % n),
)
_NAMES = st.lists(
  st.lists(
    st.one_of(
      st.sampled_from(["train", "Test", "val", "a", "b", "", "x\ny"]),
      st.text(max_size=4),
    ),
    min_size=1,
    max_size=4,
  ).map(lambda parts: "/".join([*parts, "0.png"])),
  max_size=12,
  unique=True,
)
_CODE = _numbers(0, 8)

# Name -> inputs, property.
READERS: dict[str, tuple[st.SearchStrategy, Callable[[Any], None]]] = {
  "raf_db labels": (
    _tables((_RIGHT_STEM, _any_of(*"1234567")), _STEMS, _CODE),
    check_raf_db,
  ),
  "raf_db Kaggle's table": (
    _tables(
      (_RIGHT_STEM, st.just(b","), _any_of(*"1234567")),
      _STEMS,
      st.just(b","),
      _CODE,
    ),
    check_kaggle,
  ),
  "expw labels": (
    _tables(
      (
        _RIGHT_STEM,
        *[st.integers(-5, 20).map(lambda n: b"%d" % n)] * 3,
        *[st.integers(19, 99).map(lambda n: b"%d.5" % n)] * 2,
        st.just(b"50"),
        _any_of(*"0123456" * 4, "7"),
      ),
      _STEMS,
      _numbers(0, 3),
      *[_numbers(-5, 40)] * 2,
      *[_numbers(20, 99)] * 2,
      _numbers(0, 99),
      _numbers(0, 7),
    ),
    check_expw,
  ),
  "fer2013 table": (_FER_ROWS, check_fer2013),
  "image_folder names": (_NAMES, check_names),
  "pictures": (_damaged(_pictures()), check_picture),
  "lists": (
    _messy(st.one_of(_STEMS, _texts(9)), st.one_of(_CODE, _any_of("999999"))),
    check_list,
  ),
  "config overrides": (
    st.tuples(st.sampled_from(_FIELDS), _VALUES),
    check_override,
  ),
  "metadata of checkpoints": (_metas(), check_meta),
  "tars": (_damaged(_tars()), _of_file(_read_archive)),
  "zips": (_damaged(_archives()), _of_file(_read_archive)),
  "prepared files": (_damaged((_prepared(),)), _of_file(_read_prepared)),
  "prepared fields": (_CONTENTS, _of_file(_read_prepared)),
  "scores": (_damaged((_scores(),)), _of_file(predictions.load)),
}


def holds(check: Callable[[Any], None], given: Any) -> None:
  """A reader keeps its promise, or raises UserError."""
  with warnings.catch_warnings():
    # Pillow and zipfile warn of what they then raise, or mend.
    warnings.simplefilter("ignore")
    with contextlib.suppress(UserError):
      check(given)
