"""Writes a model as an ONNX graph, batch norm folded into convolutions."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from ml_collections import ConfigDict
from onnx import TensorProto, helper, numpy_helper

from dbl_jax.data import faces
from dbl_jax.errors import UserError
from dbl_jax.models import efficientnet, resnet
from dbl_jax.models import model as models
from dbl_jax.models.dcnn import DCNN
from dbl_jax.models.layers import EPSILON

# Version of the operators; onnxruntime 1.14 and later support it.
_OPSET = 18

Tree = Mapping[str, Any]


class _Graph:
  """A graph under construction: nodes, and constants by name."""

  def __init__(self) -> None:
    self.nodes: list[onnx.NodeProto] = []
    self.constants: list[onnx.TensorProto] = []

  def constant(self, value: Any, dtype: Any = np.float32) -> str:
    name = f"w{len(self.constants)}"
    array = np.ascontiguousarray(value, dtype)
    self.constants.append(numpy_helper.from_array(array, name))
    return name

  def add(self, kind: str, *inputs: str, out: str = "", **options: Any) -> str:
    out = out or f"{kind.lower()}{len(self.nodes)}"
    self.nodes.append(helper.make_node(kind, list(inputs), [out], **options))
    return out

  def conv(
    self,
    x: str,
    kernel: Any,
    bias: Any,
    stride: int = 1,
    relu: bool = False,
    **options: Any,
  ) -> str:
    """kernel [K, K, C, F]; the padding defaults to K // 2."""
    kernel = np.asarray(kernel)
    if "auto_pad" not in options:
      options["pads"] = [kernel.shape[0] // 2] * 4
    x = self.add(
      "Conv",
      x,
      self.constant(kernel.transpose(3, 2, 0, 1)),
      self.constant(bias),
      strides=[stride] * 2,
      **options,
    )
    return self.add("Relu", x) if relu else x

  def conv_norm(
    self,
    x: str,
    trees: tuple[Tree, Tree],
    conv: str,
    norm: str,
    stride: int = 1,
    relu: bool = False,
    epsilon: float = EPSILON,
    **options: Any,
  ) -> str:
    """A convolution and the batch norm after it, as one convolution."""
    params, stats = trees
    scale = params[norm]["scale"] / np.sqrt(stats[norm]["var"] + epsilon)
    bias = params[norm]["bias"] - stats[norm]["mean"] * scale
    kernel = params[conv]["kernel"] * scale
    return self.conv(x, kernel, bias, stride, relu, **options)

  def dense(self, x: str, layer: Tree) -> str:
    bias = layer.get("bias", np.zeros(layer["kernel"].shape[1]))
    kernel = self.constant(layer["kernel"])
    return self.add("Gemm", x, kernel, self.constant(bias))

  def unit(self, x: str) -> str:
    """Rows scaled to unit length."""
    axes = self.constant([1], np.int64)
    squares = self.add("ReduceSumSquare", x, axes, keepdims=1)
    squares = self.add("Max", squares, self.constant([[1e-24]]))
    return self.add("Div", x, self.add("Sqrt", squares))

  def mean_pixel(self, x: str) -> str:
    return self.add("Flatten", self.add("GlobalAveragePool", x))


def build(
  config: ConfigDict,
  phase: str,
  variables: Tree,
  class_names: Sequence[str],
  temperature: float = 1.0,
) -> onnx.ModelProto:
  """Builds the graph of a classifier.

  Args:
    config: resolved config of the run.
    phase: phase with the head, an `MLPHead` or `JointHead`.
    variables: 'params' and 'batch_stats' of the model.
    class_names: C names.
    temperature: divisor of the logits before the softmax.

  Returns:
    A model with the input 'images', uint8[N, S, S, 3] in RGB, and the outputs
    'probabilities' f32[N, C] and 'features' f32[N, F]. N is free.

  Raises:
    UserError: if the encoder is not supported.
  """
  graph, head = _Graph(), config[phase].head
  model = models.make_model(config.model, head, len(class_names))
  params, stats = variables["params"], variables["batch_stats"]
  mean, deviation = map(np.array, models.NORMALISATIONS[model.normalisation])
  x = graph.add("Cast", "images", to=TensorProto.FLOAT)
  x = graph.add("Transpose", x, perm=[0, 3, 1, 2])
  shape = (1, 3, 1, 1)
  x = graph.add("Mul", x, graph.constant((1 / 255 / deviation).reshape(shape)))
  x = graph.add("Sub", x, graph.constant((mean / deviation).reshape(shape)))
  if model.mirror:
    last = -config.data.image_size - 1
    reverse = (graph.constant([i], np.int64) for i in (-1, last, 3, -1))
    x = graph.add("Concat", x, graph.add("Slice", x, *reverse), axis=0)
  trees = params["encoder"], stats["encoder"]
  if isinstance(model.encoder, DCNN):
    x = _dcnn(graph, x, trees[0], model.encoder)
  elif isinstance(model.encoder, resnet.ResNet18):
    x = _resnet(graph, x, trees, model.encoder)
  elif isinstance(model.encoder, efficientnet.EfficientNetLite0):
    x = _efficientnet(graph, x, trees, model.encoder)
  else:
    raise UserError(
      f"The encoder {config.model.name!r} cannot be written as ONNX; DCNN, the"
      " ResNets and EfficientNet can."
    )
  classifier = params["head"].get("classifier", params["head"])
  if model.mirror:
    width = classifier[min(classifier)]["kernel"].shape[0]
    pair = graph.add("Reshape", x, graph.constant([2, -1, width], np.int64))
    axes = graph.constant([0], np.int64)
    x = graph.add("ReduceMean", pair, axes, keepdims=0)
  features = graph.add("Identity", x, out="features")
  cosine = getattr(model.head, "cosine", 0.0)
  logits = _classifier(graph, features, classifier, cosine)
  logits = graph.add("Div", logits, graph.constant(temperature))
  graph.add("Softmax", logits, out="probabilities", axis=1)
  size = config.data.image_size
  proto = _model(
    graph,
    (TensorProto.UINT8, "images", ["N", size, size, 3]),
    (TensorProto.FLOAT, "probabilities", ["N", len(class_names)]),
    (TensorProto.FLOAT, "features", ["N", "F"]),
  )
  helper.set_model_props(proto, {"classes": json.dumps(class_names)})
  return proto


def build_detector(name: str) -> onnx.ModelProto:
  """Builds a network of the face detector: 'pnet', 'rnet' or 'onet'.

  It has the input 'images', uint8[N, H, W, 3], and the output 'faces',
  f32[N, h, w, 5 or 15], as `faces.run` gives it.
  """
  graph = _Graph()
  x = graph.add("Cast", "images", to=TensorProto.FLOAT)
  x = graph.add("Sub", x, graph.constant(127.5))
  x = graph.add("Div", x, graph.constant(128))
  x = graph.add("Transpose", x, perm=[0, 3, 1, 2])
  layers, pools = faces.layers(name), faces.POOLS[name]
  for i, (kernel, bias, slope) in enumerate(layers):
    weights = graph.constant(kernel.transpose(3, 2, 0, 1))
    x = graph.add("Conv", x, weights, graph.constant(bias))
    x = graph.add("PRelu", x, graph.constant(slope[:, None, None]))
    if i < len(pools):
      shape = [pools[i]] * 2
      x = graph.add(
        "MaxPool", x, kernel_shape=shape, strides=[2, 2], ceil_mode=1
      )
  graph.add("Transpose", x, perm=[0, 2, 3, 1], out="faces")
  return _model(
    graph,
    (TensorProto.UINT8, "images", ["N", "H", "W", 3]),
    (TensorProto.FLOAT, "faces", ["N", "h", "w", len(layers[-1][1])]),
  )


def _model(graph: _Graph, *ends: tuple[int, str, list[Any]]) -> onnx.ModelProto:
  """The model of a graph with one input, given first, and its outputs."""
  images, *outputs = [
    helper.make_tensor_value_info(name, dtype, shape)
    for dtype, name, shape in ends
  ]
  proto = helper.make_model(
    helper.make_graph(
      graph.nodes, "dbl_jax", [images], outputs, graph.constants
    ),
    opset_imports=[helper.make_opsetid("", _OPSET)],
    producer_name="dbl_jax",
    ir_version=8,
  )
  onnx.checker.check_model(proto, full_check=True)
  return proto


def _resnet(
  graph: _Graph, x: str, trees: tuple[Tree, Tree], encoder: Any
) -> str:
  _, stride = resnet.STEMS[encoder.stem]
  x = graph.conv_norm(x, trees, "stem", "stem_norm", stride, relu=True)
  if encoder.stem == "imagenet":
    x = graph.add(
      "MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]
    )
  for stage, blocks in enumerate(encoder.blocks, 1):
    for block in range(1, blocks + 1):
      name = f"stage{stage}_block{block}"
      pair = trees[0][name], trees[1][name]
      stride = 2 if stage > 1 and block == 1 else 1
      last = sum(layer.startswith("conv") for layer in pair[0])
      y = x
      for layer in range(1, last + 1):
        # The stride is that of the first 3x3 convolution.
        strided = layer == (1 if last == 2 else 2)
        y = graph.conv_norm(
          y,
          pair,
          f"conv{layer}",
          f"norm{layer}",
          stride if strided else 1,
          relu=layer < last,
        )
      if "shortcut_conv" in pair[0]:
        x = graph.conv_norm(x, pair, "shortcut_conv", "shortcut_norm", stride)
      x = graph.add("Relu", graph.add("Add", x, y))
  return graph.mean_pixel(x)


def _efficientnet(
  graph: _Graph, x: str, trees: tuple[Tree, Tree], encoder: Any
) -> str:
  def conv(
    x: str, trees: tuple[Tree, Tree], conv: str, norm: str, **options: Any
  ) -> str:
    options |= {"epsilon": efficientnet.EPSILON, "auto_pad": "SAME_UPPER"}
    return graph.conv_norm(x, trees, conv, norm, **options)

  def relu6(x: str) -> str:
    return graph.add("Clip", x, graph.constant(0.0), graph.constant(6.0))

  stride = efficientnet.STEMS[encoder.stem]
  x = relu6(conv(x, trees, "stem", "stem_norm", stride=stride))
  for stage, (blocks, _, stride, *_) in enumerate(efficientnet.STAGES, 1):
    for block in range(1, blocks + 1):
      name = f"stage{stage}_block{block}"
      pair, y = (trees[0][name], trees[1][name]), x
      if "expand_conv" in pair[0]:
        y = relu6(conv(y, pair, "expand_conv", "expand_norm"))
      kernel = pair[0]["depthwise_conv"]["kernel"]
      y = conv(
        y,
        pair,
        "depthwise_conv",
        "depthwise_norm",
        stride=stride if block == 1 else 1,
        group=kernel.shape[-1],
      )
      y = conv(relu6(y), pair, "project_conv", "project_norm")
      x = graph.add("Add", x, y) if block > 1 else y
  return graph.mean_pixel(relu6(conv(x, trees, "last", "last_norm")))


def _dcnn(graph: _Graph, x: str, params: Tree, encoder: DCNN) -> str:
  for layer in range(1, 7):
    block = params[f"conv{layer}"]
    x = graph.conv(x, block["conv"]["kernel"], block["bias"], relu=True)
    if layer in (1, 2, 4) or (layer == 6 and encoder.last_pool):
      x = graph.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
  if encoder.pooling == "average":
    return graph.mean_pixel(x)
  x = graph.add("Transpose", x, perm=[0, 2, 3, 1])
  return graph.add(
    "Relu", graph.dense(graph.add("Flatten", x), params["dense"])
  )


def _classifier(graph: _Graph, x: str, params: Tree, cosine: float) -> str:
  for name in sorted(name for name in params if name.startswith("dense")):
    x = graph.add("Relu", graph.dense(x, params[name]))
  kernel = np.asarray(params["logits"]["kernel"])
  if cosine:
    length = np.linalg.norm(kernel, axis=0, keepdims=True)
    kernel = cosine * kernel / np.maximum(length, 1e-12)
    x = graph.dense(graph.unit(x), {"kernel": kernel})
  else:
    x = graph.dense(x, params["logits"])
  if "scale" in params:
    x = graph.add("Mul", x, graph.constant(params["scale"]))
  return x
