import numpy as np

from dbl_jax import checksums


def test_any_changed_value_is_seen():
  array = np.arange(6, dtype=np.float32).reshape(2, 3)
  before = checksums.of_arrays({"a": array, "b": np.float32(1)})
  assert checksums.of_arrays({"b": np.float32(1), "a": array}) == before
  for place in np.ndindex(array.shape):
    changed = array.copy()
    changed[place] = np.nextafter(changed[place], np.float32(9))
    assert checksums.of_arrays({"a": changed, "b": np.float32(1)}) != before


def test_text_is_known_whatever_its_order():
  assert checksums.of_text({"a": 1, "b": 2}) == checksums.of_text(
    {"b": 2, "a": 1}
  )
  assert checksums.of_text({"a": 1}) != checksums.of_text({"a": 2})
