"""PyTorch ready to be measured: threads, precision, and torchvision.

Import it before anything that imports torchvision.
"""

import ctypes
import importlib
import os
from typing import Any

import torch

# Operators that torchvision registers on import.
_OPERATORS = (
  "nms",
  "qnms",
  "roi_align",
  "_roi_align_backward",
  "roi_pool",
  "_roi_pool_backward",
  "ps_roi_align",
  "_ps_roi_align_backward",
  "ps_roi_pool",
  "_ps_roi_pool_backward",
  "deform_conv2d",
  "_deform_conv2d_backward",
  "_cuda_version",
)


def _import_torchvision() -> tuple[str, list[torch.library.Library]]:
  """Imports torchvision, whatever PyTorch it was built for.

  A wheel built for CUDA cannot load its compiled operators next to PyTorch for
  CPU, and then fails on registering them. Models and transforms do not call
  them, so their names suffice.
  """
  try:
    importlib.import_module("torchvision")
    return "as installed", []
  except RuntimeError:
    library = torch.library.Library("torchvision", "DEF")
    for name in _OPERATORS:
      library.define(f"{name}(Tensor a) -> Tensor")
  importlib.import_module("torchvision")
  return "without its compiled operators, which are not used", [library]


# The library's names last as long as it does.
_TORCHVISION, _DECLARED = _import_torchvision()


def set_up(device: str) -> tuple[torch.device, dict[str, Any]]:
  """Gives PyTorch all cores, or the GPU with its fast paths.

  Args:
    device: 'cpu' or 'gpu'.

  Returns:
    The device and what was set.

  Raises:
    RuntimeError: PyTorch does not find the requested GPU.
  """
  threads = len(os.sched_getaffinity(0))
  torch.set_num_threads(threads)
  torch.manual_seed(0)
  settings: dict[str, Any] = {
    "threads": threads,
    "gomp_spincount": os.environ.get("GOMP_SPINCOUNT", ""),
    "torchvision": _TORCHVISION,
  }
  if device == "cpu":
    settings["malloc"] = _keep_memory()
    return torch.device("cpu"), settings
  if not torch.cuda.is_available():
    raise RuntimeError("PyTorch does not find a GPU")
  torch.backends.cudnn.benchmark = True
  settings |= {
    "device": torch.cuda.get_device_name(),
    "cudnn_benchmark": True,
  }
  return torch.device("cuda"), settings


def _keep_memory() -> str:
  """Makes glibc retain freed memory for the next step, as dbl_jax does."""
  libc = ctypes.CDLL(None)
  if not hasattr(libc, "gnu_get_libc_version"):
    return "default"
  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD, M_ARENA_MAX of malloc.h.
  for option, value in ((-4, 0), (-1, -1), (-2, 1 << 28), (-8, 1)):
    libc.mallopt(option, value)
  return "keeps freed memory"


def wait(device: torch.device) -> None:
  """Until all work given to the device is done."""
  if device.type == "cuda":
    torch.cuda.synchronize()


def peak_bytes(device: torch.device) -> dict[str, int]:
  """Peak memory of the device used by PyTorch; empty on CPU."""
  if device.type == "cpu":
    return {}
  return {"device_peak_bytes": torch.cuda.max_memory_allocated()}
