"""Weights of PyTorch, read without it.

PyTorch 2.14 wrote the files; the features are of torchvision's ResNets, of
timm's tf_efficientnet_lite0 and of efficientnet_lite_pytorch's.
"""

from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

import tiny
from dbl_jax import config as configs
from dbl_jax import train
from dbl_jax.errors import UserError
from dbl_jax.models import model, torch_weights

FILES = Path(__file__).parent / "torch_files"


def numbers(*shape):
  return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("name", ["zip", "old", "wrapped", "safetensors"])
def test_each_format_gives_the_same_arrays(name, tmp_path):
  path = FILES / f"{name}.pth"
  if name == "safetensors":
    path = tmp_path / "a.safetensors"
    arrays = torch_weights.read(FILES / "zip.pth")
    arrays = {k: np.ascontiguousarray(v) for k, v in arrays.items()}
    safetensors.numpy.save_file(arrays, path)
  variables, unused = torch_weights.load_encoder(path)
  encoder, head = variables["params"].values()
  kernel = numbers(2, 3, 1, 1).transpose(2, 3, 1, 0)
  np.testing.assert_array_equal(encoder["stem"]["kernel"], kernel)
  np.testing.assert_array_equal(encoder["stem_norm"]["scale"], numbers(2))
  stats = variables["batch_stats"]["encoder"]["stem_norm"]
  np.testing.assert_array_equal(stats["var"], numbers(2) + 1)
  assert head == {}
  (name,) = unused
  assert name.removeprefix("module.") == "fc.weight"
  array = torch_weights.read(path)[name]  # float16, transposed
  np.testing.assert_array_equal(array, numbers(4, 2).T)


@pytest.mark.usefixtures("lax_conv")
@pytest.mark.parametrize(
  ("name", "encoder", "unused"),
  [
    ("resnet18", "resnet18", ("fc.bias", "fc.weight")),
    ("resnet50", "resnet50", ("fc.bias", "fc.weight")),
    ("timm", "efficientnet_lite0", ()),
    ("ported", "efficientnet_lite0", ("_fc.bias", "_fc.weight")),
  ],
)
def test_features_equal_those_of_pytorch(name, encoder, unused, tmp_path):
  # Both draw the weights from this generator.
  rng, arrays = np.random.default_rng(0), {}
  with np.load(FILES / "features.npz") as stored:
    expected, names = stored[name], stored[f"{name}_names"]
  for entry in names:
    key, _, shape = str(entry).partition(" ")
    shape = tuple(int(n) for n in shape.split(",") if n)
    if key.endswith("num_batches_tracked"):
      continue
    if len(shape) == 4:
      array = rng.standard_normal(shape) * (2 / np.prod(shape[1:])) ** 0.5
    elif key.endswith(("running_var", "weight")):
      array = rng.uniform(0.5, 1.5, shape)
    else:
      array = rng.standard_normal(shape) * 0.2
    arrays[key] = array.astype(np.float32)
  safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors")
  variables, left = torch_weights.load_encoder(tmp_path / "a.safetensors")
  assert left == unused
  normalisation = model.ENCODERS[encoder].pretrained_normalisation
  network = model.make_model(
    {"name": encoder, "dtype": "float32", "normalisation": normalisation},
    {"name": "mlp", "hidden": ()},
    7,
  )
  images = np.random.default_rng(1).uniform(size=(2, 3, 40, 40))
  features, _ = jax.jit(
    lambda variables, x: network.apply(
      variables, x, False, mutable="intermediates"
    )
  )(
    with_head(network, variables),
    images.astype(np.float32).transpose(0, 2, 3, 1),
  )
  scale = np.abs(expected).max()
  np.testing.assert_allclose(
    features[0] / scale, expected / scale, rtol=1e-5, atol=1e-5
  )
  if name != "ported":  # written back under the same names
    written = torch_weights.to_torch(variables)
    assert written.keys() == arrays.keys() - set(unused)
    for key, array in written.items():
      np.testing.assert_array_equal(array, arrays[key])


def with_head(network, variables):
  """Variables with a head of zeros; the encoder's shapes are checked."""
  images = np.zeros((1, 40, 40, 3), np.float32)
  shapes = jax.eval_shape(
    lambda: network.init(jax.random.key(0), images, train=False)
  )
  for kind in ("params", "batch_stats"):
    loaded = jax.tree.map(np.shape, variables[kind]["encoder"])
    assert loaded == jax.tree.map(lambda x: x.shape, shapes[kind]["encoder"])
  head = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes["params"])
  params = variables["params"] | {"head": head["head"]}
  return variables | {"params": params}


@pytest.mark.parametrize("name", ["malicious", "malicious_old"])
def test_a_pickle_that_calls_a_program_is_refused(name):
  with pytest.raises(UserError, match=r"contains posix\.system"):
    torch_weights.load_encoder(FILES / f"{name}.pth")
  assert not Path("/tmp/pwned").exists()


def test_a_file_that_is_no_weights_gives_one_line(tmp_path):
  data = (FILES / "zip.pth").read_bytes()
  for name, content in {
    "cut.pth": data[:1000],
    "empty.pth": b"",
    "text.safetensors": b"no weights",
    "flipped.pth": (FILES / "old.pth").read_bytes().replace(b"q", b"r"),
  }.items():
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
      UserError, match=r"is damaged, or not a file of PyTorch"
    ):
      torch_weights.load_encoder(tmp_path / name)
  with pytest.raises(UserError, match="cannot be read: No such file"):
    torch_weights.load_encoder(tmp_path / "missing.pth")
  safetensors.numpy.save_file(
    {"head.w": numbers(2)}, tmp_path / "b.safetensors"
  )
  with pytest.raises(
    UserError, match=r"lacks the weights of a ResNet.*head\.w"
  ):
    torch_weights.load_encoder(tmp_path / "b.safetensors")


def test_a_run_starts_from_a_file_with_imagenets_normalisation(tmp_path):
  config = tiny.get_config()
  del config.pretrain
  config.model.name = "resnet18"
  config.init_from = str(FILES / "zip.pth")
  resolved = configs.resolve(config)
  assert resolved.model.stem == "imagenet"
  assert resolved.model.normalisation == "imagenet"
  # The file has the first layers alone, which is said by name.
  with pytest.raises(UserError, match=r"encoder/stage1_block1/.*None"):
    train.train_and_evaluate(resolved, tmp_path)
