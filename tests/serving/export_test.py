"""Exported models give what JAX gives."""

import json
import shlex
import sys

import jax
import mains
import numpy as np
import onnxruntime
import pytest
import safetensors.numpy
import yaml
from scipy import special

import tiny
from dbl_jax import config as configs
from dbl_jax import evaluate, train
from dbl_jax.data import faces
from dbl_jax.models import torch_weights
from dbl_jax.models.model import make_model
from dbl_jax.serving import onnx_graph, web
from dbl_jax.training import steps
from dbl_jax.training.steps import by_path

pytestmark = pytest.mark.usefixtures("lax_conv")

NAMES = tuple("abcdefg")
RESNET = {"name": "resnet18", "stem": "medium"}
MODELS = {
  "linear": (RESNET, {"name": "mlp", "hidden": ()}),
  "hidden": (RESNET | {"stem": "imagenet"}, {"name": "mlp", "hidden": (8, 9)}),
  "cosine": (RESNET | {"stem": "small"}, {"name": "mlp", "cosine": 16.0}),
  "scaled": (RESNET, {"name": "mlp", "hidden": (), "scaled": True}),
  "joint": ({"name": "resnet34"}, {"name": "joint", "out": 8}),
  "bottleneck": (
    {"name": "resnet50", "normalisation": "imagenet"},
    {"name": "mlp", "hidden": ()},
  ),
  "efficientnet": (
    {"name": "efficientnet_lite0", "stem": "imagenet"},
    {"name": "mlp", "hidden": ()},
  ),
  "dcnn": ({"name": "dcnn"}, {"name": "mlp", "hidden": ()}),
  "mirror": ({"name": "dcnn", "mirror": True}, {"name": "mlp"}),
  "average": (
    {"name": "dcnn", "pooling": "average"},
    {"name": "mlp", "hidden": ()},
  ),
  "last pool": ({"name": "dcnn", "last_pool": True}, {"name": "mlp"}),
}


def config_of(encoder, head):
  config = configs.base()
  config.data.image_size = 20
  config.classify = configs.supervised()
  config.model = encoder | {
    "dtype": "float32",
    "normalisation": encoder.get("normalisation", "half"),
  }
  config.classify.head = head
  return configs.resolve(config)


def random_variables(config):
  """Variables at random, those of batch norm too."""
  model = make_model(config.model, config.classify.head, len(NAMES))
  shapes = jax.eval_shape(
    lambda: steps.init_variables(model, jax.random.key(0), 20)
  )
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    name = path[-1].key
    if name in ("var", "scale"):
      return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
    fan = max(np.prod(leaf.shape[:-1]), 1) if name == "kernel" else 25
    return (rng.standard_normal(leaf.shape) / fan**0.5).astype(np.float32)

  return model, jax.tree.map_with_path(draw, shapes)


@pytest.mark.parametrize("name", MODELS)
def test_onnx_gives_probabilities_and_features_of_jax(name):
  config = config_of(*MODELS[name])
  model, variables = random_variables(config)
  proto = onnx_graph.build(config, "classify", variables, NAMES)
  session = onnxruntime.InferenceSession(proto.SerializeToString())
  images = np.random.default_rng(1).integers(0, 256, (3, 20, 20, 3), np.uint8)
  features, outputs = jax.jit(lambda x: model.apply(variables, x, train=False))(
    images.astype(np.float32) / 255
  )
  expected = jax.nn.softmax(outputs[:, -len(NAMES) :])
  for count in (3, 1):  # the batch is free
    found = session.run(None, {"images": images[:count]})
    np.testing.assert_allclose(found[0], expected[:count], atol=1e-5)
    scale = np.abs(features).max()
    np.testing.assert_allclose(
      found[1] / scale, features[:count] / scale, atol=1e-5
    )


def test_safetensors_have_torchvisions_names():
  _, variables = random_variables(config_of(*MODELS["bottleneck"]))
  arrays = torch_weights.to_torch(variables)
  assert arrays["conv1.weight"].shape == (64, 3, 7, 7)
  assert arrays["layer1.0.downsample.1.running_var"].shape == (256,)
  assert arrays["layer4.2.conv3.weight"].shape == (2048, 512, 1, 1)
  assert arrays["bn1.weight"].shape == (64,)
  assert arrays["fc.weight"].shape == (7, 2048)
  leaves = [by_path(variables[kind]) for kind in ("params", "batch_stats")]
  assert len(arrays) == sum(map(len, leaves))  # no two share a name


@pytest.mark.parametrize("name", ["linear", "bottleneck"])
def test_exported_weights_are_read_back(name, tmp_path):
  _, variables = random_variables(config_of(*MODELS[name]))
  arrays = torch_weights.to_torch(variables)
  arrays["bn1.num_batches_tracked"] = np.array(7)  # as PyTorch writes
  safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors")
  loaded, unused = torch_weights.load_encoder(tmp_path / "a.safetensors")
  assert set(unused) == {"fc.weight", "fc.bias"}
  for kind in ("params", "batch_stats"):
    jax.tree.map(
      np.testing.assert_array_equal,
      loaded[kind]["encoder"],
      variables[kind]["encoder"],
    )


@pytest.mark.parametrize("name", ["pnet", "rnet", "onet"])
def test_networks_of_the_detector(name):
  proto = onnx_graph.build_detector(name)
  session = onnxruntime.InferenceSession(proto.SerializeToString())
  size = faces.SIZES.get(name, 31)
  shape = (2, size, size, 3)
  images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  np.testing.assert_allclose(
    session.run(None, {"images": images})[0], faces.run(name, images), atol=1e-4
  )


def test_a_run_is_exported_by_one_command(tmp_path, monkeypatch):
  config = tiny.get_config()
  del config.pretrain
  config.model = configs.dcnn()
  config.model.pooling = "average"
  config.classify = configs.supervised()
  config.classify.update(epochs=0, batch_size=32)  # compiles no training
  run = tmp_path / "run"
  train.train_and_evaluate(configs.resolve(config), run)
  monkeypatch.setattr(web, "_fetch_runtime", lambda folder: None)
  done = mains.run("export", [f"--workdir={run}", "--web"])
  assert done.status == 0, done.err
  out = run / "export"
  files = {"model.onnx", "model.jaxexp", "model.safetensors", "model.json"}
  assert {p.name for p in out.iterdir()} == files | {"README.md", "web"}
  assert '"classes": ["' in (out / "web" / "index.html").read_text()
  metrics = json.loads((run / "metrics.json").read_text())
  _, header, card = (out / "README.md").read_text().split("---\n", 2)
  (entry,) = yaml.safe_load(header)["model-index"]
  values = {m["type"]: m["value"] for m in entry["results"][0]["metrics"]}
  assert values == {
    "accuracy": round(metrics["overall_accuracy"], 4),
    "recall": round(metrics["mean_class_accuracy"], 4),
  }
  command = shlex.join(sys.orig_argv)  # of training and of the export
  assert f"```sh\n{command}\n{command}\n```" in card
  for text in ("| fear |", "| **fear** |", "| validation | ", "Not for:"):
    assert text in card
  facts = json.loads((out / "model.json").read_text())
  assert facts["image_size"] == 16
  stored = json.loads((run / "template.json").read_text())
  assert (facts["template"], facts["grey"]) == (stored["landmarks"], False)
  # Probabilities are calibrated in all ways to get them.
  loaded = evaluate.load(run)
  assert facts["temperature"] == metrics["temperature"] == loaded.temperature
  assert loaded.temperature != 1
  images = np.zeros((2, 16, 16, 3), np.uint8)
  session = onnxruntime.InferenceSession(out / "model.onnx")
  probabilities, _ = session.run(None, {"images": images})
  np.testing.assert_allclose(probabilities, loaded.predict(images), atol=1e-5)
  logits = loaded(images)[1]
  np.testing.assert_allclose(
    probabilities,
    special.softmax(logits / metrics["temperature"], axis=1),
    atol=1e-5,
  )


def test_what_cannot_be_exported_gives_one_line(finished, tmp_path):
  for flags, message in {
    "": "--workdir is required",
    f"--workdir={tmp_path}": "not hold a checkpoint",
    f"--workdir={finished[1]}": "encoder 'tiny' cannot be written as ONNX",
  }.items():
    done = mains.run("export", flags.split())
    assert done.status == 2
    assert message in done.err
