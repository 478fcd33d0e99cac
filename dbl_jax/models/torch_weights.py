"""Reads weights that PyTorch stored, without PyTorch and without running code.

`.safetensors`, and `.pth` or `.pt` files of `torch.save`, of torchvision's and
timm's ResNets. A `.pth` file is a pickle, which may call any function when it
is loaded. Here it may call those that build tensors, and nothing else.
"""

import collections
import io
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from dbl_jax.errors import UserError

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar")
_DTYPES: dict[str, np.dtype[Any]] = {
  "FloatStorage": np.dtype("<f4"),
  "DoubleStorage": np.dtype("<f8"),
  "HalfStorage": np.dtype("<f2"),
  "LongStorage": np.dtype("<i8"),
  "IntStorage": np.dtype("<i4"),
  "ShortStorage": np.dtype("<i2"),
  "CharStorage": np.dtype("<i1"),
  "ByteStorage": np.dtype("<u1"),
  "BoolStorage": np.dtype("?"),
}
# Of `torch.save` before version 1.6.
_OLD_MAGIC = 0x1950A86A20F9469CFC6C
# torchvision's names -> ours, in the order of replacement.
_NAMES: tuple[tuple[str, Any], ...] = (
  (r"^module\.|^encoder_q\.|^backbone\.", ""),
  (r"^conv1\.", "stem/"),
  (r"^bn1\.", "stem_norm/"),
  (
    r"^layer(\d)\.(\d+)\.",
    lambda match: f"stage{match[1]}_block{int(match[2]) + 1}/",
  ),
  (r"downsample\.0\.", "shortcut_conv/"),
  (r"downsample\.1\.", "shortcut_norm/"),
  (r"conv(\d)\.", r"conv\1/"),
  (r"bn(\d)\.", r"norm\1/"),
  (r"running_mean$", "mean"),
  (r"running_var$", "var"),
)


class Weights(NamedTuple):
  """An encoder's variables.

  Attributes:
    variables: 'params' and 'batch_stats', each under 'encoder'; 'head' is
      empty.
    unused: names in the file that are no part of the encoder, as 'fc.weight'.
  """

  variables: dict[str, Any]
  unused: tuple[str, ...]


def load_encoder(path: Path) -> Weights:
  """Loads a ResNet's weights as variables of `models.resnet`.

  Args:
    path: a file of PyTorch weights with torchvision's names.

  Returns:
    The encoder's variables and what was left out.

  Raises:
    UserError: if the file cannot be read, is no file of weights, or contains
      other objects than arrays.
  """
  params: dict[str, Any] = {}
  batch_stats: dict[str, Any] = {}
  unused = []
  for name, array in read(path).items():
    translated = name
    for pattern, replacement in _NAMES:
      translated = re.sub(pattern, replacement, translated)
    *modules, leaf = translated.split("/")
    if not modules or not leaf.isidentifier():
      if not name.endswith("num_batches_tracked"):
        unused.append(name)
      continue
    tree = batch_stats if leaf in ("mean", "var") else params
    for module in modules:
      tree = tree.setdefault(module, {})
    if leaf == "weight":
      leaf = "kernel" if array.ndim == 4 else "scale"
    if array.ndim == 4:  # [F, C, K, K] -> [K, K, C, F]
      array = array.transpose(2, 3, 1, 0)
    tree[leaf] = np.ascontiguousarray(array, np.float32)
  if not params:
    raise UserError(
      f"{path} has no weights of a ResNet: it names"
      f" {', '.join(unused[:5]) or 'nothing'}. Expected torchvision's names,"
      " such as conv1.weight and layer1.0.bn1.running_mean."
    )
  return Weights(
    {
      "params": {"encoder": params, "head": {}},
      "batch_stats": {"encoder": batch_stats, "head": {}},
    },
    tuple(unused),
  )


def read(path: Path) -> dict[str, np.ndarray]:
  """Reads the arrays of a file by name.

  Args:
    path: of a state dict, or of a dict with one under 'state_dict' or 'model'.

  Returns:
    Name -> array.

  Raises:
    UserError: see `load_encoder`.
  """
  try:
    if path.suffix == ".safetensors":
      return dict(safetensors.numpy.load_file(path))
    content = _read_pickle(path)
  except OSError as error:
    raise UserError(f"{path} cannot be read: {error.strerror}.") from error
  except UserError:
    raise
  except Exception as error:  # a damaged pickle raises nearly anything
    raise UserError(
      f"{path} is damaged, or no file of PyTorch weights"
      f" ({type(error).__name__}: {error})."
    ) from error
  for key in ("state_dict", "model"):
    if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
      content = content[key]
  if not isinstance(content, Mapping):
    raise UserError(
      f"{path} holds a {type(content).__name__}. Expected a state dict."
    )
  return {k: v for k, v in content.items() if isinstance(v, np.ndarray)}


def _read_pickle(path: Path) -> Any:
  if not zipfile.is_zipfile(path):
    return _read_old(path)
  with zipfile.ZipFile(path) as archive:
    (index,) = (n for n in archive.namelist() if n.endswith("data.pkl"))
    folder = index.removesuffix("data.pkl")

    def storage(saved: tuple[Any, ...]) -> np.ndarray:
      _, kind, key, *_ = saved
      data = archive.read(f"{folder}data/{key}")
      return np.frombuffer(data, _DTYPES[kind])

    return _Unpickler(path, archive.read(index), storage).load()


def _read_old(path: Path) -> Any:
  """Of `torch.save` before version 1.6: pickles, then the storages."""
  with path.open("rb") as file:

    def unpickle(storage: Callable[..., Any] | None = None) -> Any:
      return _Unpickler(path, file, storage).load()

    if unpickle() != _OLD_MAGIC:
      raise ValueError("it does not begin as torch.save writes")
    unpickle(), unpickle()  # protocol version, properties of the system
    storages: dict[str, np.ndarray] = {}

    def storage(saved: tuple[Any, ...]) -> np.ndarray:
      _, kind, key, _, size, *_ = saved
      if size * _DTYPES[kind].itemsize > path.stat().st_size:
        raise ValueError("a storage larger than the file")
      return storages.setdefault(key, np.zeros(size, _DTYPES[kind]))

    content = unpickle(storage)
    for key in unpickle():
      (size,) = np.fromfile(file, "<i8", 1)
      # Tensors are views of the storages.
      storages[key][:] = np.fromfile(file, storages[key].dtype, size)
    return content


class _Unpickler(pickle._Unpickler):
  """Builds arrays from tensors and refuses any other object.

  In Python: the one in C allocates any memory that a damaged file asks for.
  """

  def __init__(
    self,
    path: Path,
    file: Any,
    storage: Callable[[tuple[Any, ...]], np.ndarray] | None,
  ):
    super().__init__(io.BytesIO(file) if isinstance(file, bytes) else file)
    self._path, self._storage = path, storage

  def persistent_load(self, saved: Any) -> np.ndarray:
    """An array of a storage, which the pickle names."""
    if self._storage is None:
      raise ValueError("a storage where none is expected")
    return self._storage(saved)

  def find_class(self, module: str, name: str) -> Any:
    """One of the few functions and classes that are allowed."""
    if (module, name) == ("collections", "OrderedDict"):
      return collections.OrderedDict
    if module == "torch._utils" and name == "_rebuild_tensor_v2":
      return _tensor
    if module == "torch._utils" and name == "_rebuild_parameter":
      return lambda data, *_: data
    if module in ("torch", "torch.storage") and name in _DTYPES:
      return name
    raise UserError(
      f"{self._path} contains {module}.{name}, which is not an array. Nothing"
      " of it was loaded: a pickle can run any program. If you trust the file,"
      " save its state_dict as .safetensors with PyTorch."
    )


def _tensor(
  storage: np.ndarray,
  offset: int,
  shape: tuple[int, ...],
  strides: tuple[int, ...],
  *_: Any,
) -> np.ndarray:
  """A view of a storage, checked to stay inside it."""
  last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
  if min(shape, default=1) and not (0 <= offset <= last < storage.size):
    raise ValueError("a tensor exceeds its storage")
  if min((offset, *shape, *strides), default=0) < 0:
    raise ValueError("a tensor has a negative size")
  return np.lib.stride_tricks.as_strided(
    storage[offset:], shape, [s * storage.itemsize for s in strides]
  )
