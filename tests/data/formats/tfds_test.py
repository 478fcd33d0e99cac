"""Sets of tensorflow-datasets, written here by a builder without a network."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

import tiny
from dbl_jax.data import inspection, sources
from dbl_jax.data.formats import tfds as tfds_reader
from dbl_jax.errors import UserError

NUMBERS = {"train": 40, "test": 10}


def images(split):
  rng = np.random.default_rng(NUMBERS[split])
  return rng.integers(0, 256, (NUMBERS[split], 16, 16, 3), np.uint8)


class Shapes(tfds.core.GeneratorBasedBuilder):
  """Three classes, an image and a mask, and two labels."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    features = {
      "image": tfds.features.Image(shape=(16, 16, 3), encoding_format="png"),
      "mask": tfds.features.Image(shape=(16, 16, 1)),
      "label": tfds.features.ClassLabel(names=["round", "square", "long"]),
      "colour": tfds.features.ClassLabel(num_classes=2),
      "size": tfds.features.Scalar(np.float32),
    }
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(features),
      supervised_keys=("image", "label"),
    )

  def _split_generators(self, _):
    return {split: self._generate_examples(split) for split in NUMBERS}

  def _generate_examples(self, split):
    for i, image in enumerate(images(split)):
      yield (
        i,
        {
          "image": image,
          "mask": image[..., :1],
          "label": i % 3,
          "colour": -1 if split == "test" else i % 2,
          "size": float(i),
        },
      )


@pytest.fixture(scope="module", params=["tfrecord", "array_record"])
def prepared(request, tmp_path_factory):
  root = tmp_path_factory.mktemp(request.param)
  builder = Shapes(data_dir=root, file_format=request.param)
  builder.download_and_prepare()
  return builder


def options(builder, tmp_path, **data):
  data = {"name": "tfds", "tfds": "shapes", "image_size": 16} | data
  data.setdefault("dir", str(builder.data_path.parents[1]))
  return tiny.get_resolved(cache_dir=str(tmp_path), **data).data


def by_pixels(split):
  return {image.tobytes(): label for image, label in zip(*split, strict=True)}


@pytest.mark.parametrize(("form", "reads"), [("auto", 50), ("encoded", 100)])
def test_a_set_is_found_decoded_and_split(
  prepared, tmp_path, monkeypatch, form, reads
):
  read, indices = tfds_reader._Examples.__getitem__, []
  monkeypatch.setattr(
    tfds_reader._Examples,
    "__getitem__",
    lambda self, i: indices.append(i) or read(self, i),
  )
  dataset = sources.load(options(prepared, tmp_path, input=form))
  assert len(indices) == reads  # encoded: for the labels, and once more
  assert dataset.class_names == ("round", "square", "long")
  splits = dataset.splits
  assert [len(splits[s].labels) for s in splits] == [37, 3, 10]
  expected = by_pixels((images("test"), np.arange(10) % 3))
  assert by_pixels(splits["test"]) == expected
  found = by_pixels(splits["train"]) | by_pixels(splits["validation"])
  assert found == by_pixels((images("train"), np.arange(40) % 3))


def test_the_folder_of_a_set_and_shares_of_a_split(prepared, tmp_path):
  given = options(
    prepared,
    tmp_path,
    dir=str(prepared.data_path),
    tfds="",
    train_split="train[:75%]",
    validation_split="train[75%:]",
  )
  splits = sources.load(given).splits
  assert [len(splits[s].labels) for s in splits] == [30, 10, 10]
  found = by_pixels(splits["train"]) | by_pixels(splits["validation"])
  assert found == by_pixels((images("train"), np.arange(40) % 3))
  lines = inspection.report(inspection.inspect(sources.find(given)))
  assert "Unreadable files: none" in lines


@pytest.mark.parametrize(
  ("data", "message"),
  [
    ({"tfds": ""}, "needs --config.data.tfds, such as cifar10"),
    ({"tfds": "no such"}, "does not know the set 'no such'"),
    ({"tfds": "cifar10"}, r"cifar10/.* does not hold a prepared cifar10, and"),
    ({"test_split": "tost"}, r"no split 'tost' \(it has t"),
    ({"validation_split": "train[1:1]"}, r"no split 'train\[1:1\]'"),
    ({"image_feature": "label"}, "kind Image; expected one named 'label'"),
    ({"label_feature": "colour"}, r"test\[0\] has the label -1; expected 0 to"),
  ],
)
def test_what_cannot_be_read_is_named(prepared, tmp_path, data, message):
  with pytest.raises(UserError, match=message):
    sources.load(options(prepared, tmp_path, **data))


def test_a_file_cut_off_is_named(prepared, tmp_path):
  (path,) = prepared.data_path.glob("*-test.*")
  whole = path.read_bytes()
  path.write_bytes(whole[:-9])
  try:
    with pytest.raises(UserError, match=r"shapes.* is damaged"):
      sources.load(options(prepared, tmp_path))
  finally:
    path.write_bytes(whole)
