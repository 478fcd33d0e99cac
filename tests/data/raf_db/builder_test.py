"""The builder under tfds's own test; apart, as it imports TensorFlow."""

import pathlib
import tempfile

import numpy as np
import samples
import tensorflow_datasets as tfds

from dbl_jax.data import pipeline, sampling
from dbl_jax.data.formats.expressions import RAF_DB_NAMES
from dbl_jax.data.raf_db import raf_db_dataset_builder, reader
from dbl_jax.runtime import sharding


class RafDbTest(tfds.testing.DatasetBuilderTestCase):
  DATASET_CLASS = raf_db_dataset_builder.RafDb
  SPLITS = {"train": 9, "test": 7}  # noqa: RUF012

  @classmethod
  def setUpClass(cls):
    folder = tempfile.TemporaryDirectory()
    cls.addClassCleanup(folder.cleanup)
    root = samples.write_raf_db(pathlib.Path(folder.name) / "raf_db")
    cls.EXAMPLE_DIR = str(root)
    super().setUpClass()

  def test_tf_data_over_it_is_rgb_and_class_balanced(self):
    found = reader.find(pathlib.Path(self.EXAMPLE_DIR))
    builder = raf_db_dataset_builder.RafDb(
      listing=found, data_dir=pathlib.Path(self.tmp_dir) / "rgb"
    )
    builder.download_and_prepare()
    examples = list(tfds.as_numpy(builder.as_dataset(split="train")))
    names = [example["file_name"].decode() for example in examples]
    labels = np.array([example["label"] for example in examples], np.int32)
    assert dict(zip(names, labels, strict=True)) == {
      record.name: record.label for record in found.splits["train"]
    }
    assert builder.info.features["label"].names == list(RAF_DB_NAMES)
    assert builder.info.citation.startswith("@inproceedings")
    # Two of the seven classes have two images each, and are drawn no more.
    rows = np.stack([example["image"] for example in examples])
    assert rows.shape == (9, 12, 12, 3)
    sampler = sampling.make_sampler(labels, 7, 0.0, 8, seed=0)
    feed = pipeline.make_pipeline(
      rows, labels, sampler, sharding.make_mesh(), "tf_data"
    )
    batches = pipeline.batch_reader(feed, 0, 200, 200)(200)
    drawn = np.asarray(batches["label"]).ravel()
    frequencies = np.bincount(drawn, minlength=7) / len(drawn)
    np.testing.assert_allclose(frequencies, 1 / 7, atol=0.04)
    index = np.asarray(batches["id"]).ravel() % 9
    np.testing.assert_array_equal(labels[index], drawn)
    np.testing.assert_array_equal(
      rows[index], np.asarray(batches["row"]).reshape(-1, 12, 12, 3)
    )
