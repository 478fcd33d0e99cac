"""Weights under PyTorch's names, read without PyTorch or running code.

Files are `.safetensors`, or `.pth` and `.pt` of `torch.save`; models are
torchvision's and timm's ResNets and EfficientNet-Lite0 (timm's
tf_efficientnet_lite0 and efficientnet_lite_pytorch). A `.pth` file is a pickle,
which may call any function when it is loaded. Here it may only call those that
build tensors.
"""

import collections
import io
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from dbl_jax.errors import UserError
from dbl_jax.models import efficientnet

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
# Names of modules in PyTorch -> ours, in a block of a ResNet and of
# EfficientNet: timm's, those of its first stage, which has no first
# convolution, and efficientnet_lite_pytorch's.
_RESNET = {
  "downsample.0": "shortcut_conv",
  "downsample.1": "shortcut_norm",
  **{f"conv{i}": f"conv{i}" for i in (1, 2, 3)},
  **{f"bn{i}": f"norm{i}" for i in (1, 2, 3)},
}
_LAYERS = [
  f"{name}_{kind}"
  for name in ("expand", "depthwise", "project")
  for kind in ("conv", "norm")
]
_LITE, _LITE_FIRST, _PORTED = (
  dict(zip(names, _LAYERS[-len(names) :], strict=True))
  for names in (
    ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3"),
    ("conv_dw", "bn1", "conv_pw", "bn2"),
    (
      *("_expand_conv", "_bn0", "_depthwise_conv"),
      *("_bn1", "_project_conv", "_bn2"),
    ),
  )
)
# Likewise outside the blocks.
_RESNET_STEM = {"conv1": "stem", "bn1": "stem_norm"}
_LITE_STEM = {"conv_stem": "stem", "conv_head": "last"}
_LITE_STEM |= {"bn1": "stem_norm", "bn2": "last_norm"}
_PORTED_STEM = {"_conv_stem": "stem", "_conv_head": "last"}
_PORTED_STEM |= {"_bn0": "stem_norm", "_bn1": "last_norm"}
_NAME = re.compile(
  r"(?:module\.|encoder_q\.|backbone\.)?"
  r"(?:(layer|blocks\.)(\d+)\.(\d+)\.|_blocks\.(\d+)\.)?(.+)\.(\w+)"
)
_IGNORED = "num_batches_tracked"  # a counter of batch norm


def load_encoder(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
  """Loads the weights of a ResNet or EfficientNet as variables of ours.

  The names in the file are those of torchvision, timm or
  efficientnet_lite_pytorch.

  Returns:
    Variables 'params' and 'batch_stats', each under 'encoder', with an empty
      'head'; and names outside of the encoder, such as 'fc.weight'.

  Raises:
    UserError: if the file cannot be read, is not a file of weights, or
      contains other objects than arrays.
  """
  found: dict[str, dict[tuple[str, ...], np.ndarray]]
  found, unused = {"params": {}, "batch_stats": {}}, []
  for name, array in read(path).items():
    if name.endswith(_IGNORED):
      continue
    modules = _modules(name)
    if not modules:
      unused.append(name)
      continue
    leaf = name.rpartition(".")[2]
    if leaf == "weight":
      leaf = "kernel" if array.ndim == 4 else "scale"
    if array.ndim == 4:  # [F, C, K, K] -> [K, K, C, F]
      array = array.transpose(2, 3, 1, 0)
    kind = "batch_stats" if leaf.startswith("running_") else "params"
    place = ("encoder", *modules, leaf.removeprefix("running_"))
    found[kind][place] = np.ascontiguousarray(array, np.float32)
  if not found["params"]:
    raise UserError(
      f"{path} lacks the weights of a ResNet or EfficientNet; its names are"
      f" {', '.join(unused[:5]) or '-'}. Expected names of torchvision or"
      " timm, such as conv1.weight and layer1.0.bn1.running_mean."
    )
  variables = {
    kind: {"encoder": {}, "head": {}} | unflatten_dict(arrays)
    for kind, arrays in found.items()
  }
  return variables, tuple(unused)


def _modules(name: str) -> tuple[str, ...]:
  """Our modules of a parameter in PyTorch; empty for other parameters."""
  found = _NAME.fullmatch(name)
  if found is None:
    return ()
  kind, stage, block, index, module, _ = found.groups()
  number = 0
  if index:
    names, (number, count) = _PORTED, _stage_of(int(index))
  elif kind:
    number, count = int(stage) + (kind != "layer"), int(block) + 1
    names = _RESNET if kind == "layer" else _lite_names(number)
  else:
    names = _RESNET_STEM | _LITE_STEM | _PORTED_STEM
  if module not in names:
    return ()
  ours = names[module]
  return (f"stage{number}_block{count}", ours) if number else (ours,)


def _lite_names(stage: int) -> dict[str, str]:
  return _LITE if stage > 1 else _LITE_FIRST


def _stage_of(index: int) -> tuple[int, int]:
  """Stage and block of EfficientNet, from 1, of a block's index, from 0."""
  for stage, (blocks, *_) in enumerate(efficientnet.STAGES, 1):
    if index < blocks:
      return stage, index + 1
    index -= blocks
  return 0, 0


def to_torch(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """All arrays of a model under torchvision's names, or timm's EfficientNet's.

  Args:
    variables: 'params' and 'batch_stats' of the model.

  Returns:
    Name -> array in PyTorch's layout. A linear head is 'fc', of EfficientNet
      'classifier'; parameters without a name in PyTorch keep their path, with
      dots.
  """
  arrays, lite = {}, "last" in variables["params"]["encoder"]
  for kind in ("params", "batch_stats"):
    for path, leaf in flatten_dict(variables[kind]).items():
      array = np.asarray(leaf)
      if array.ndim == 4:  # [K, K, C, F] -> [F, C, K, K]
        array = array.transpose(3, 2, 0, 1)
      elif array.ndim == 2:  # [in, out] -> [out, in]
        array = array.T
      arrays[_torch_name(path, lite)] = np.ascontiguousarray(array)
  return arrays


def _torch_name(path: tuple[str, ...], lite: bool) -> str:
  part, *modules, leaf = path

  def theirs(names: dict[str, str], ours: str) -> str:
    return {value: key for key, value in names.items()}.get(ours, ours)

  if part == "head":
    linear = "classifier" if lite else "fc"
    modules = [linear] if modules == ["logits"] else ["head", *modules]
  elif found := re.fullmatch(r"stage(\d+)_block(\d+)", modules[0]):
    stage, block = int(found[1]), int(found[2]) - 1
    names = _lite_names(stage) if lite else _RESNET
    first = f"blocks.{stage - 1}" if lite else f"layer{stage}"
    modules = [first, str(block), theirs(names, modules[1])]
  else:
    modules[0] = theirs(_LITE_STEM if lite else _RESNET_STEM, modules[0])
  leaves = {"kernel": "weight", "scale": "weight"}
  leaves |= {"mean": "running_mean", "var": "running_var"}
  return ".".join([*modules, leaves.get(leaf, leaf)])


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
      f"{path} is damaged, or not a file of PyTorch weights"
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

  In Python, since the unpickler in C allocates as much as a damaged file asks.
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
      f"{self._path} contains {module}.{name}, which is not an array. It was"
      " not loaded, since a pickle can run any program. If you trust the file,"
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
