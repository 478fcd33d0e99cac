"""Disentangled and balanced learning for long-tailed images, in JAX.

The names below are the public API; docs/api.md has an example of each. They
are imported on first use, so that `import dbl_jax` is fast.
"""

import importlib
from typing import Any

_MODULES = {
  "augment.ops": (
    "random_flip",
    "random_gaussian_blur",
    "random_grey",
    "random_jitter",
    "random_resized_crop",
    "random_rotate",
  ),
  "data.sampling": (
    "Sampler",
    "batch_indices",
    "class_probabilities",
    "make_sampler",
  ),
  "evaluate": ("LoadedModel", "load"),
  "evaluation.metrics": (
    "by_tier",
    "confusion_matrix",
    "confusion_of",
    "mean_class_interval",
    "summarise",
    "top_k_accuracy",
    "wilson_interval",
  ),
  "losses": ("LossInputs", "loss_inputs"),
  "losses.cross_entropy": (
    "balanced_softmax",
    "class_weights",
    "cross_entropy",
    "label_aware_smoothing",
    "ldam",
  ),
  "losses.metric_learning": (
    "balanced_contrastive",
    "center",
    "locality_preserving",
    "nt_xent",
    "sup_con",
  ),
  "models.dcnn": ("DCNN",),
  "models.efficientnet": ("EfficientNetLite0",),
  "models.model": ("JointHead", "MLPHead", "ProjectionHead"),
  "models.resnet": ("ResNet18", "ResNet32", "ResNet34", "ResNet50"),
  "train": ("train_and_evaluate",),
}
_HOME = {name: home for home, names in _MODULES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
  if name not in _HOME:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
  return __all__
