"""What a later phase lacks is told before the first begins to train."""

import sys

import pytest
from ml_collections import ConfigDict

import tiny
from dbl_jax import config as configs
from dbl_jax import train
from dbl_jax.data import pipeline
from dbl_jax.errors import UserError
from dbl_jax.losses import terms
from dbl_jax.training import loop, phase

CONTRASTIVE = {"nt_xent": {"temperature": 0.1}}
LDAM = {"ldam": {"scale": 30.0}}
# Message -> fields.
WRONG = {
  r"classify: trained=\('head', 'tail'\): 'tail' matches no parameter": {
    "classify.trained": ("head", "tail")
  },
  "selects no parameters": {"classify.trained": ()},
  "classify: batch_size=512 is larger than the training split": {
    "classify.batch_size": 512
  },
  "classify: batch_size=36 does not divide over 8 devices": {
    "classify.batch_size": 36
  },
  "neither inherits nor trains encoder/conv/bias": {
    "classify.inherit": ("encodr",)
  },
  "neither inherits nor trains encoder/norm/bias": {
    "classify.inherit": ("encoder/conv",)
  },
  "classify: inherit=.*'haed' matches no parameter": {
    "classify.inherit": ("encoder", "haed")
  },
  "classify: The model to start from has another architecture": {
    "classify.inherit": ("encoder", "head")
  },
  "classify.cached_views=1 caches": {"classify.trained": ("encoder", "head")},
  "classify: predictor='tau_normalised' needs a linear head": {
    "classify.predictor": "tau_normalised"
  },
  (
    "pretrain.predictor='head' reads logits, but head.name='projection' gives"
    " embeddings. Set head.name to joint or mlp"
  ): {"pretrain.predictor": "head"},
  "classify.losses.cross_entropy reads logits, but": {
    "classify.head": {"name": "projection"}
  },
  "classify.losses.nt_xent reads embeddings, but head.name='mlp'": {
    "classify.losses": CONTRASTIVE,
    "classify.views": 2,
  },
  "pretrain.losses.nt_xent.temperature is missing": {
    "pretrain.losses": {"nt_xent": {}}
  },
  "compares with prototypes, which the head does not": {
    "pretrain.losses": {"balanced_contrastive": {"temperature": 0.1}}
  },
  r"ldam has scale=30.0, but its logits are head.cosine=0.0 times": {
    "classify.losses": LDAM
  },
  r"head.cosine=10.0 times cosines. Set both to the same": {
    "classify.losses": LDAM,
    "classify.head.cosine": 10.0,
  },
  "classify.losses is empty": {"classify.losses": {}},
  "classify.losses is .*, or all weights are 0": {
    "classify.losses": {"cross_entropy": {"weight": 0.0}}
  },
  r"classify.losses.cross_entropy=1.0 is invalid. Expected options": {
    "classify.losses": {"cross_entropy": 1.0}
  },
  "classify.head.scaled='no' is invalid. Expected True or False": {
    "classify.head": {"name": "mlp", "hidden": (), "scaled": "no"}
  },
}


@pytest.fixture(autouse=True)
def nothing_trains(monkeypatch, eight_devices):
  monkeypatch.setattr(
    loop, "run_phase", lambda *_: pytest.fail("training began")
  )
  monkeypatch.setattr(loop, "extract", lambda *_: pytest.fail("encoding began"))


def changed(fields, cache):
  config = tiny.get_config()
  config.data.cache_dir = cache
  for name, value in fields.items():
    *path, last = name.split(".")
    section = config
    for part in path:
      section = section[part]
    section[last] = value
  return config


@pytest.mark.parametrize("message", WRONG)
def test_a_mistake_is_reported_before_training(message, cache, tmp_path):
  fields = WRONG[message]
  with pytest.raises(UserError, match=message):
    train.train_and_evaluate(configs.resolve(changed(fields, cache)), tmp_path)
  assert not (tmp_path / "checkpoints").exists()


def test_so_is_what_is_not_installed(cache, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "sklearn", None)
  config = changed({"classify.predictor": "svm"}, cache)
  with pytest.raises(UserError, match="classify: predictor='svm' needs scikit"):
    train.train_and_evaluate(configs.resolve(config), tmp_path)


def test_so_are_features_that_need_tensorflow(cache, tmp_path, monkeypatch):
  """Images fit the device; 64 views of their features do not."""
  monkeypatch.setattr(pipeline, "_HOST_LIMIT", 150_000)
  monkeypatch.setitem(sys.modules, "tensorflow", None)
  config = changed({"classify.cached_views": 64}, cache)
  with pytest.raises(UserError, match=r"classify: .* needs TensorFlow"):
    train.train_and_evaluate(configs.resolve(config), tmp_path)


def test_a_loss_of_the_user_s_is_tried_on_shapes(cache, tmp_path, monkeypatch):
  """A bug of theirs, with its trace, but not after a night."""

  def broken(seen):
    return (seen.logits @ seen.targets).mean(), {}

  monkeypatch.setitem(terms.TERMS, "theirs", terms.Term(broken))
  config = changed({"classify.losses": {"theirs": {}}}, cache)
  with pytest.raises(TypeError, match="dot_general"):
    train.train_and_evaluate(configs.resolve(config), tmp_path)


def test_nothing_is_computed_to_see_it(cache, monkeypatch):
  config = configs.resolve(changed({}, cache))
  dataset = train.sources.load(config.data)
  mesh = train.distributed.make_mesh()
  monkeypatch.setattr(
    phase.distributed, "put", lambda *_: pytest.fail("something was placed")
  )
  left = phase.check_phases(config, dataset, mesh, None)
  kernel = left["params"]["head"]["logits"]["kernel"]
  assert kernel.shape == (16, 7)


@pytest.mark.parametrize(
  ("q", "losses", "warns"),
  [
    (0.0, {"cross_entropy": {}}, False),
    (0.0, {"cross_entropy": {"weighting": "inverse"}}, True),
    (0.5, {"balanced_softmax": {}}, True),
    (1.0, {"balanced_softmax": {}}, False),
    (0.0, {"balanced_softmax": {"strength": 0.0}}, False),
    (0.0, {"ldam": {}}, True),
  ],
)
def test_balancing_twice_is_warned_of(q, losses, warns, caplog):
  phase._warn_of_double_balance("x", ConfigDict({"q": q, "losses": losses}))
  assert ("corrects for the class sizes twice" in caplog.text) == warns
