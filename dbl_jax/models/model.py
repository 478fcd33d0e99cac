"""The model of a config: an encoder and a head."""

from collections.abc import Mapping
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from dbl_jax.models.dcnn import DCNN
from dbl_jax.models.efficientnet import EfficientNetLite0
from dbl_jax.models.heads import JointHead, MLPHead, ProjectionHead
from dbl_jax.models.resnet import ResNet18, ResNet32, ResNet34, ResNet50

ENCODERS: dict[str, Any] = {
  "dcnn": DCNN,
  "efficientnet_lite0": EfficientNetLite0,
  "resnet18": ResNet18,
  "resnet32": ResNet32,
  "resnet34": ResNet34,
  "resnet50": ResNet50,
}
HEADS: dict[str, Any] = {
  "joint": JointHead,
  "mlp": MLPHead,
  "projection": ProjectionHead,
}

# Mean and deviation that normalise pixels in [0, 1], per channel.
NORMALISATIONS = {
  "half": ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
  "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
  "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def auto_dtype() -> str:
  """The computation's faster type on this device."""
  return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def gives(head: str) -> tuple[str, ...]:
  """What a head's outputs are: 'embeddings', 'logits' or both.

  A head without the attribute `gives` is taken to give both.
  """
  return getattr(HEADS[head], "gives", ("embeddings", "logits"))


class Model(nn.Module):
  """Encoder f, then a head: projection g or classifier.

  Attributes:
    encoder: images -> features f32[B, F].
    head: features -> embeddings or logits f32[B, K].
    normalisation: name in `NORMALISATIONS`.
    mirror: outside training, features are averages over the image and its
      mirror image.
  """

  encoder: nn.Module
  head: nn.Module
  normalisation: str = "half"
  mirror: bool = False

  def __call__(
    self, inputs: Array, train: bool, encoder: str = "trained"
  ) -> tuple[Array, Array]:
    """Runs encoder and head.

    Args:
      inputs: images f32[B, H, W, 3] from 0 to 1, or features f32[B, F].
      train: batch norm uses the statistics of the batch and updates its own.
      encoder: 'trained'; 'frozen': it runs as for evaluation even if `train`,
        so that its running statistics do not change, and gets no gradient, so
        that the compiler removes its backward pass; 'cached': the inputs are
        its features, and it does not run.

    Returns:
      Features f32[B, F] and outputs f32[B, K].
    """
    features = inputs
    if encoder != "cached":
      mean, deviation = NORMALISATIONS[self.normalisation]
      centred = inputs - jnp.array([[[mean]]])
      normalised = centred / jnp.array([[[deviation]]])
      if self.mirror and not train:
        pair = jnp.concatenate([normalised, normalised[:, :, ::-1]])
        features = jnp.stack(jnp.split(self.encoder(pair, False), 2)).mean(0)
      else:
        features = self.encoder(normalised, train and encoder == "trained")
    if encoder == "frozen":
      features = jax.lax.stop_gradient(features)
    features = features.astype(jnp.float32)
    return features, self.head(features, train)

  def with_frozen(self, names: tuple[str, ...]) -> Self:
    """A copy in which these modules of the encoder run as for evaluation.

    An encoder without batch norm has no field `frozen` and is unchanged.
    """
    if "frozen" not in type(self.encoder).__dataclass_fields__:
      return self
    return self.clone(encoder=self.encoder.clone(frozen=names))


def make_model(
  encoder: Mapping[str, Any], head: Mapping[str, Any], num_classes: int
) -> Model:
  """Builds the model of a config.

  Args:
    encoder: the config's `model`: name, dtype ('float32', 'bfloat16' or 'auto',
      the faster one on this device), normalisation, mirror and the encoder's
      options.
    head: the phase's `head`: name and the head's own options.
    num_classes: number of classes C.

  Returns:
    The model.
  """
  encoder, head = dict(encoder), dict(head)
  dtype = encoder.pop("dtype")
  normalisation = encoder.pop("normalisation", None) or "half"
  mirror = encoder.pop("mirror", False)
  dtype = auto_dtype() if dtype == "auto" else dtype
  encoder_class = ENCODERS[encoder.pop("name")]
  head_class = HEADS[head.pop("name")]
  if "num_classes" in head_class.__dataclass_fields__:
    head["num_classes"] = num_classes
  return Model(
    encoder_class(dtype=jnp.dtype(dtype), **encoder),
    head_class(**head),
    normalisation,
    mirror,
  )
