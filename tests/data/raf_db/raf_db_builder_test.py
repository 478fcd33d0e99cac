"""The builder under tfds's own test; apart, as it imports TensorFlow."""

import pathlib
import tempfile

import raf_db_fixture as fixture
import tensorflow_datasets as tfds

from dbl_jax.data.raf_db import layout, raf_db_dataset_builder


class RafDbTest(tfds.testing.DatasetBuilderTestCase):
  DATASET_CLASS = raf_db_dataset_builder.RafDb
  SPLITS = {"train": 9, "test": 7}  # noqa: RUF012

  @classmethod
  def setUpClass(cls):
    folder = tempfile.TemporaryDirectory()
    cls.addClassCleanup(folder.cleanup)
    root = fixture.write(pathlib.Path(folder.name) / "raf_db")
    cls.EXAMPLE_DIR = str(root)
    super().setUpClass()

  def test_as_dataset_gives_rgb_and_the_layouts_labels(self):
    found = layout.read(self.EXAMPLE_DIR)
    builder = raf_db_dataset_builder.RafDb(
      layout=found, data_dir=pathlib.Path(self.tmp_dir) / "rgb"
    )
    builder.download_and_prepare()
    examples = tfds.as_numpy(builder.as_dataset(split="train"))
    labels = {}
    for example in examples:
      assert example["image"].shape == (12, 12, 3)
      labels[example["file_name"].decode()] = int(example["label"])
    expected = {r.name: r.label for r in found.records if r.split == "train"}
    assert labels == expected
    assert builder.info.features["label"].names == list(layout.CLASS_NAMES)
    assert builder.info.citation.startswith("@inproceedings")
