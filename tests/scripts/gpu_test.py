"""scripts/gpu.sh: what travels is small and exact, and verdicts are right."""

import tarfile

import numpy as np
import pytest

import gpu
from dbl_jax.data import datasets, sources
from dbl_jax.data.datasets import Dataset, Split


@pytest.mark.parametrize("colour", [False, True])
def test_packed_images_are_restored_exactly(colour, tmp_path, monkeypatch):
  rng = np.random.default_rng(0)
  shape = (30, 48, 48, 3 if colour else 1)
  images = rng.integers(256, size=shape, dtype=np.uint8)
  images = np.broadcast_to(images, (30, 48, 48, 3))
  labels = (np.arange(30) % 2).astype(np.int32)
  parts = {name: Split(images, labels) for name in ("train", "test")}
  dataset = Dataset("raf_db", ("a", "b"), parts, "made here", ("few images",))

  def load(options):
    datasets.save(tmp_path / options.cache_dir / "raf_db.npz", dataset)

  monkeypatch.setattr(sources, "load", load)
  monkeypatch.setattr(gpu, "_PACKED", tmp_path / "carry" / "data.npz")
  gpu.pack("a folder")
  gpu.unpack(tmp_path / "carry" / "data.npz", tmp_path / "whole.npz")
  found = datasets.load(tmp_path / "whole.npz")
  assert found._replace(splits={}) == dataset._replace(splits={})
  for part in found.splits.values():
    np.testing.assert_array_equal(part.images, images)
    np.testing.assert_array_equal(part.labels, labels)
  if not colour:  # one channel's worth of noise for each part, and no more
    size = (tmp_path / "carry" / "data.npz").stat().st_size
    assert size < 2 * 30 * 48 * 48 * 1.05
  few = gpu.unpack(tmp_path / "carry" / "data.npz", tmp_path / "few.npz", 10)
  assert few.splits["train"].images.shape == (3, 48, 48, 3)


VERDICTS = {
  "ok": ({"classify": [2.0, 1.5]}, {"classify": [2.05, 1.7]}),
  "failed: no memory": ("no memory", {"classify": [2.0]}),
  "classify: 2.0 is not 2.2": ({"classify": [2.0]}, {"classify": [2.2]}),
  "classify: nan is not 2.2": ({"classify": [np.nan]}, {"classify": [2.2]}),
  "not finite": ({"classify": [2.0, np.inf]}, {"classify": [2.0, 1.0]}),
}


@pytest.mark.parametrize("verdict", VERDICTS)
def test_precisions_are_compared_at_the_first_step(verdict):
  half, full = VERDICTS[verdict]
  run = gpu._compare({"bfloat16": half, "float32": full})
  assert run["verdict"] == verdict


def test_results_are_collected_without_checkpoints(tmp_path, monkeypatch):
  monkeypatch.setattr(gpu, "_WORK", tmp_path)
  stage = tmp_path / "table" / "stages" / "seed0"
  (stage / "checkpoints").mkdir(parents=True)
  for name in ("metrics.json", "metrics.jsonl", "scores_test.npz", "x.png"):
    (stage / name).write_text(name)
  (stage / "checkpoints" / "params.json").write_text("large")
  (stage.parent.parent / "table.md").write_text("| system |")
  gpu.collect(tmp_path)
  gpu.collect(tmp_path)  # again, as a run does every half minute
  names = {}
  for archive in ("table", "scores"):
    with tarfile.open(tmp_path / f"{archive}.tar.xz") as file:
      names[archive] = {name.split("/")[-1] for name in file.getnames()}
  assert names["table"] == {"table.md", "metrics.json", "metrics.jsonl"}
  assert names["scores"] == {"scores_test.npz"}
