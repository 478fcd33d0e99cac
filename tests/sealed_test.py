"""The test part is read once, for the report: never to train or to select."""

import pytest

import tiny
from dbl_jax import evaluate, train
from dbl_jax.data import sources
from dbl_jax.data.datasets import Split


class Sealed:
  """An array that may be counted; all else fails while it is sealed."""

  def __init__(self, array, seal):
    self._array, self._seal = array, seal

  def __len__(self):
    return len(self._array)

  @property
  def _opened(self):
    if self._seal["sealed"]:
      raise AssertionError("the test part was read before the report")
    return self._array

  def __array__(self, *args, **kwargs):
    return self._opened.__array__(*args, **kwargs)

  def __getitem__(self, key):
    return self._opened[key]

  def __iter__(self):
    return iter(self._opened)

  def __getattr__(self, name):
    return getattr(self._opened, name)


@pytest.fixture
def seal(monkeypatch):
  """Seals the test part until the report is written."""
  state = {"sealed": True, "reports": 0}
  load, write = sources.load, evaluate.write

  def load_sealed(options):
    dataset = load(options)
    test = Split(*(Sealed(array, state) for array in dataset.splits["test"]))
    return dataset._replace(splits=dataset.splits | {"test": test})

  def write_opened(run, dataset, split, known, out):
    state["reports"] += 1
    assert split == "test"
    state["sealed"] = False
    test = Split(*(sealed._array for sealed in dataset.splits["test"]))
    whole = dataset._replace(splits=dataset.splits | {"test": test})
    return write(run, whole, split, known, out)

  monkeypatch.setattr(sources, "load", load_sealed)
  monkeypatch.setattr(evaluate, "write", write_opened)
  return state


def test_training_and_selection_never_read_the_test_part(seal, tmp_path):
  config = tiny.get_resolved(cache_dir=str(tmp_path / "cache"))
  metrics = train.train_and_evaluate(config, tmp_path / "run")
  assert metrics["images"] == 40
  assert seal["reports"] == 1
