"""Phase 1 on images that nobody labelled."""

import logging

import numpy as np
import pytest
from PIL import Image

import tiny
from dbl_jax import config as configs
from dbl_jax import train
from dbl_jax.data import sources
from dbl_jax.errors import UserError
from dbl_jax.evaluate import load
from dbl_jax.training.phase import make_phase


@pytest.fixture
def config(tmp_path):
  config = tiny.get_config()
  config.data.cache_dir = str(tmp_path / "cache")
  config.pretrain.unlabelled = str(tmp_path / "more")
  return configs.resolve(config)


@pytest.fixture
def dataset(config, tmp_path):
  """The drawn faces; the folder has 20 new images, 3 of test, 2 of train."""
  dataset = sources.load(config.data)
  rng = np.random.default_rng(0)
  images = [
    *rng.integers(0, 256, (20, 16, 16, 3), np.uint8),
    *dataset.splits["test"].images[:3],
    *dataset.splits["train"].images[:2],
  ]
  for i, image in enumerate(images):
    folder = tmp_path / "more" / f"day{i % 3}"
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(folder / f"{i}.png")
  return dataset


def test_images_of_the_splits_are_left_out(config, dataset, caplog):
  paths = config.pretrain.unlabelled
  with caplog.at_level(logging.INFO):
    added, mark = sources.with_unlabelled(
      dataset, "pretrain", paths, config.data
    )
  assert "20 unlabelled images for pretrain; 5 are in" in caplog.text
  images = added.splits["unlabelled_pretrain"].images
  known = len(dataset.splits["train"].labels)
  assert len(images) == known + 20
  np.testing.assert_array_equal(images[:known], dataset.splits["train"].images)
  test = {image.tobytes() for image in dataset.splits["test"].images}
  assert not test & {image.tobytes() for image in images}
  again = sources.with_unlabelled(dataset, "pretrain", paths, config.data)
  np.testing.assert_array_equal(
    images, again[0].splits["unlabelled_pretrain"].images
  )
  assert mark == again[1]
  phase = make_phase(config, "pretrain", added, None)
  assert len(phase.sampler.order) == known + 20


def test_a_run_trains_on_them_and_is_bound_to_them(config, dataset, tmp_path):
  run = tmp_path / "run"
  train.train_and_evaluate(config, run)
  assert load(run).class_names == dataset.class_names
  (tmp_path / "more" / "day0" / "0.png").unlink()
  with pytest.raises(UserError, match="trained on other unlabelled images"):
    train.train_and_evaluate(config, run)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"pretrain.q": 0.5}, r"pretrain\.q=0\.5 needs labels"),
    ({"classify.unlabelled": "x"}, r"losses\.cross_entropy needs labels"),
    (
      {"pretrain.cached_views": 1, "pretrain.trained": ("head",)},
      r"cached_views=1 caches features of the training split only",
    ),
  ],
)
def test_what_needs_labels_is_refused(config, fields, message):
  config = config.copy_and_resolve_references()
  config.update_from_flattened_dict(fields)
  with pytest.raises(UserError, match=message):
    configs.resolve(config)


def test_a_folder_without_images_is_named(config, dataset, tmp_path):
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match="empty does not hold an image"):
    sources.with_unlabelled(
      dataset, "pretrain", str(tmp_path / "empty"), config.data
    )
