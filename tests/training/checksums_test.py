import numpy as np

from dbl_jax.training import checkpoint


def test_any_changed_value_is_seen():
  array = np.arange(6, dtype=np.float32).reshape(2, 3)
  before = checkpoint.of_arrays({"a": array, "b": np.float32(1)})
  assert checkpoint.of_arrays({"b": np.float32(1), "a": array}) == before
  for place in np.ndindex(array.shape):
    changed = array.copy()
    changed[place] = np.nextafter(changed[place], np.float32(9))
    assert checkpoint.of_arrays({"a": changed, "b": np.float32(1)}) != before


def test_text_is_known_whatever_its_order():
  assert checkpoint.of_text({"a": 1, "b": 2}) == checkpoint.of_text(
    {"b": 2, "a": 1}
  )
  assert checkpoint.of_text({"a": 1}) != checkpoint.of_text({"a": 2})
