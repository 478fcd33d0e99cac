"""What follows the encoder: a projection for phase 1, a classifier for phase 2.

Both compute in float32: they are small, and losses want the precision.
"""

import flax.linen as nn
import jax


class ProjectionHead(nn.Module):
  """SimCLR's projection g, section 2.1 of Chen et al. 2020.

  As in `projection_head` of google-research/simclr (model_util.py): every
  dense layer has batch norm and no bias; after the last there is no ReLU, and
  its batch norm has a scale alone. Initial weights are flax's, not a normal
  of deviation 0.01; batch norm makes the first outputs the same.

  Attributes:
    hidden: width of all layers but the last.
    out: width of the last.
    layers: number of dense layers, at least 1.
  """

  hidden: int = 512
  out: int = 128
  layers: int = 2

  @nn.compact
  def __call__(self, h: jax.Array, train: bool) -> jax.Array:
    """Features f32[B, F] -> embeddings f32[B, out], not normalised."""
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


class MLPHead(nn.Module):
  """A classifier: dense layers with ReLU between them.

  Attributes:
    num_classes: width of the last layer.
    hidden: widths of the layers before it; () makes the classifier linear.
    dropout: probability of dropping an input of the last layer in training,
      which then draws from the random stream 'dropout'.
  """

  num_classes: int
  hidden: tuple[int, ...] = (256,)
  dropout: float = 0.0

  @nn.compact
  def __call__(self, h: jax.Array, train: bool) -> jax.Array:
    """Features f32[B, F] -> logits f32[B, num_classes]."""
    for layer, width in enumerate(self.hidden, 1):
      h = nn.relu(nn.Dense(width, name=f"dense{layer}")(h))
    h = nn.Dropout(self.dropout, deterministic=not train)(h)
    return nn.Dense(self.num_classes, name="logits")(h)
