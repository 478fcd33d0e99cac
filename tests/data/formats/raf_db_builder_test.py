"""The builder under tfds's own test; apart, as it imports TensorFlow."""

import pathlib
import tempfile

import numpy as np
import pytest
import samples
import tensorflow_datasets as tfds

import tiny
from dbl_jax import config as configs
from dbl_jax import train
from dbl_jax.data import pipeline, sampling, sources
from dbl_jax.data.datasets import RAF_DB_NAMES
from dbl_jax.data.formats import listing, raf_db, raf_db_dataset_builder
from dbl_jax.errors import UserError
from dbl_jax.runtime import distributed


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

  def test_a_class_balanced_run_over_it_by_tf_data(self):
    root = pathlib.Path(self.tmp_dir) / "run"
    manual = root / "tfds" / "downloads" / "manual"
    codes = np.repeat(range(1, 8), (8, 5, 4, 3, 2, 2, 2))
    samples.write_raf_db(
      manual,
      [
        *((f"train_{i:05d}.jpg", code) for i, code in enumerate(codes)),
        *(row for row in samples.RAF_DB_ROWS if row[0].startswith("test")),
      ],
    )
    config = tiny.get_config()
    del config.pretrain
    config.classify = configs.supervised()
    config.classify.update(q=0.0, batch_size=8, epochs=2)
    config.data.update(
      name="tfds",
      tfds="raf_db",
      dir=str(root / "tfds"),
      cache_dir=str(root / "cache"),
      image_size=16,
      input="tf_data",
    )
    with pytest.raises(UserError, match="does not hold a prepared raf_db"):
      train.train_and_evaluate(configs.resolve(config), root / "workdir")
    config.data.download = True
    config = configs.resolve(config)
    found = raf_db.find(manual)
    dataset = sources.load(config.data)
    assert dataset.class_names == RAF_DB_NAMES
    for split, records in found.splits.items():
      expected = listing.decode(found, "raf_db", 16).splits[split]
      parts = ("train", "validation") if split == "train" else (split,)
      assert sorted(
        (image.tobytes(), label)
        for part in parts
        for image, label in zip(*dataset.splits[part], strict=True)
      ) == sorted(
        (image.tobytes(), record.label)
        for image, record in zip(expected.images, records, strict=True)
      )
    # The largest class has seven images, the smallest one: equally often drawn.
    images, labels = dataset.splits["train"]
    sampler = sampling.make_sampler(labels, 7, 0.0, 8, seed=0)
    feed = pipeline.make_pipeline(
      images, labels, sampler, distributed.make_mesh(), "tf_data"
    )
    drawn = pipeline.batch_reader(feed, 0, 250, 250)(250)["label"]
    frequencies = np.bincount(np.ravel(drawn), minlength=7) / drawn.size
    np.testing.assert_allclose(frequencies, 1 / 7, atol=0.04)
    metrics = train.train_and_evaluate(config, root / "workdir")
    assert metrics["images"] == 7
