"""The model of a config: an encoder, and a head that follows it.

A head is a projection or a classifier. Heads compute in float32, because they
are small and losses need the precision. The attribute `gives` names what losses
and predictors can read: embeddings, logits or both.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from dbl_jax.models.dcnn import DCNN
from dbl_jax.models.efficientnet import EfficientNetLite0
from dbl_jax.models.resnet import ResNet18, ResNet32, ResNet34, ResNet50
from dbl_jax.runtime.options import each, integer, number

Width = Annotated[int, integer(1, 1_000_000)]
Widths = Annotated[
  tuple[int, ...], each(integer(1, 1_000_000), "a tuple of widths")
]


class ProjectionHead(nn.Module):
  """SimCLR's projection g, section 2.1 of Chen et al. 2020.

  As in `projection_head` of google-research/simclr (model_util.py), every
  dense layer has batch norm and no bias; the last layer is without ReLU, and
  its batch norm without bias. Initial weights are flax's, not normal with
  deviation 0.01; because of batch norm the first outputs are the same.

  Attributes:
    hidden: width of all layers but the last.
    out: width D of the last layer, the embeddings.
    layers: number of dense layers.
    prototypes: adds the parameter 'prototypes' f32[num_classes, out], one
      learned embedding per class, for losses that use them.
    num_classes: C.
  """

  gives: ClassVar = ("embeddings",)
  hidden: Width = 512
  out: Width = 128
  layers: Annotated[int, integer(1, 100)] = 2
  prototypes: bool = False
  num_classes: int = 0

  @nn.compact
  def __call__(self, h: Array, train: bool) -> Array:
    """Features f32[B, F] -> embeddings f32[B, out], not normalised."""
    if self.prototypes:
      shape = (self.num_classes, self.out)
      self.param("prototypes", nn.initializers.normal(1.0), shape)
    for layer in range(1, self.layers + 1):
      last = layer == self.layers
      width = self.out if last else self.hidden
      h = nn.Dense(width, use_bias=False, name=f"dense{layer}")(h)
      h = nn.BatchNorm(
        not train, momentum=0.9, use_bias=not last, name=f"norm{layer}"
      )(h)
      if not last:
        h = nn.relu(h)
    return h


class JointHead(nn.Module):
  """A projection and a linear classifier on the same features.

  For phases with both a contrastive loss and cross-entropy.

  Attributes:
    num_classes: C.
    hidden: width of the projection's first layer.
    out: width D of the embeddings.
    prototypes: adds one learned embedding per class, see `ProjectionHead`.
  """

  gives: ClassVar = ("embeddings", "logits")
  num_classes: int
  hidden: Width = 512
  out: Width = 128
  prototypes: bool = False

  @nn.compact
  def __call__(self, h: Array, train: bool) -> Array:
    """Features f32[B, F] -> embeddings and logits, f32[B, D + C]."""
    z = ProjectionHead(
      self.hidden,
      self.out,
      prototypes=self.prototypes,
      num_classes=self.num_classes,
      name="projection",
    )(h, train)
    logits = MLPHead(self.num_classes, (), name="classifier")(h, train)
    return jnp.concatenate([z, logits], axis=-1)


class MLPHead(nn.Module):
  """A classifier: dense layers with ReLU between them.

  Attributes:
    num_classes: width of the last layer.
    hidden: widths of the layers before the last; () is a linear classifier.
    dropout: probability of dropping an input of the last layer in training;
      it uses the random stream 'dropout'.
    cosine: if not 0, logits are this scale times the cosine between the last
      layer's inputs and the weights of the class.
    scaled: multiplies each logit by a parameter 'scale', initially 1 (learnable
      weight scaling, Kang et al. 2020, eq. (3)).
  """

  gives: ClassVar = ("logits",)
  num_classes: int
  hidden: Widths = (256,)
  dropout: Annotated[float, number(0, 0.99)] = 0.0
  cosine: Annotated[float, number(0, 10_000)] = 0.0
  scaled: bool = False

  @nn.compact
  def __call__(self, h: Array, train: bool) -> Array:
    """Features f32[B, F] -> logits f32[B, num_classes]."""
    for layer, width in enumerate(self.hidden, 1):
      h = nn.relu(nn.Dense(width, name=f"dense{layer}")(h))
    h = nn.Dropout(self.dropout, deterministic=not train)(h)
    if self.cosine:
      logits = self.cosine * _Cosine(self.num_classes, name="logits")(h)
    else:
      logits = nn.Dense(self.num_classes, name="logits")(h)
    if self.scaled:
      ones = nn.initializers.ones
      logits = logits * self.param("scale", ones, (1, self.num_classes))
    return logits


class _Cosine(nn.Module):
  """Cosines f32[B, features] of rows with the columns of a kernel."""

  features: int

  @nn.compact
  def __call__(self, h: Array) -> Array:
    shape = (h.shape[-1], self.features)
    kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
    return _unit(h, 1) @ _unit(kernel, 0)


def _unit(x: Array, axis: int) -> Array:
  squares = jnp.sum(x * x, axis=axis, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))


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
  """A head's outputs: 'embeddings', 'logits' or both, by its `gives`.

  For a head without the attribute `gives` it returns both.
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
    self, inputs: Array, train: bool, encoder_mode: str = "trained"
  ) -> tuple[Array, Array]:
    """Runs encoder and head.

    Args:
      inputs: images f32[B, H, W, 3] from 0 to 1, or features f32[B, F].
      train: batch norm uses the statistics of the batch and updates its own.
      encoder_mode: 'trained'; 'frozen': the encoder always runs as for
        evaluation, so that its running statistics do not change, and its
        gradient is stopped, so that the compiler removes its backward pass;
        'cached': the inputs are its features, and it does not run.

    Returns:
      Features f32[B, F] and outputs f32[B, K].
    """
    features = inputs
    if encoder_mode != "cached":
      mean, deviation = NORMALISATIONS[self.normalisation]
      centred = inputs - jnp.array([[[mean]]])
      normalised = centred / jnp.array([[[deviation]]])
      if self.mirror and not train:
        pair = jnp.concatenate([normalised, normalised[:, :, ::-1]])
        features = jnp.stack(jnp.split(self.encoder(pair, False), 2)).mean(0)
      else:
        train_encoder = train and encoder_mode == "trained"
        features = self.encoder(normalised, train_encoder)
    if encoder_mode == "frozen":
      features = jax.lax.stop_gradient(features)
    features = features.astype(jnp.float32)
    return features, self.head(features, train)

  def with_frozen(self, trained: Mapping[str, Any]) -> Self:
    """A copy in which the encoder's frozen modules run as for evaluation.

    `trained` is a tree of bool over the encoder's parameters. Encoders that are
    frozen as a whole, or lack batch norm and the field `frozen`, are unchanged.
    """
    frozen = {
      name for name, tree in trained.items() if not any(jax.tree.leaves(tree))
    }
    has_field = "frozen" in type(self.encoder).__dataclass_fields__
    if not has_field or len(frozen) == len(trained):
      return self
    return self.clone(encoder=self.encoder.clone(frozen=tuple(sorted(frozen))))


def make_model(
  encoder: Mapping[str, Any], head: Mapping[str, Any], num_classes: int
) -> Model:
  """Builds the model of a config.

  Args:
    encoder: the config's `model`: name, dtype ('float32', 'bfloat16' or 'auto',
      the faster one on this device), normalisation, mirror and the encoder's
      options.
    head: the phase's `head`: name and the head's options.
    num_classes: number of classes C.
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
