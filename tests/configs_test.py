"""Every system of the table, from its config to its result, on drawn faces."""

import ast
import json
import operator
import re
from pathlib import Path
from typing import Annotated

import jax
import mains
import numpy as np
import pytest

import tiny
from dbl_jax import cli
from dbl_jax import config as configs
from dbl_jax.data import sources
from dbl_jax.errors import UserError
from dbl_jax.evaluation import predictions
from dbl_jax.losses import terms
from dbl_jax.models import model
from dbl_jax.runtime import distributed, options
from dbl_jax.training.phase import check_phases

FOLDER = Path(__file__).parents[1] / "configs"
VARIANTS = [
  "balanced_softmax",
  "center_loss",
  "cifar_lt",
  "dbl",
  "dbl:balanced_contrastive",
  "dbl:fine_tuned",
  "dbl:three_phases",
  "dbl_plus",
  "dcnn",
  "decoupling",
  "decoupling:lws",
  "decoupling:nearest_class_mean",
  "decoupling:tau_normalised",
  "dlp_cnn:svm",
  "ldam_drw",
  "logit_adjustment",
  "mixup",
  "pretrained",
  "regions",
  "resampling",
  "reweighting",
  "simclr",
]
# With the tests' encoder equal to one of these but for an option.
CHECKED = [
  "basic",
  "dbl:sup_con",
  "dlp_cnn",
  "mixup:only",
  "regions:mouth",
  "resampling:0.5",
  "reweighting:effective",
]


def command(name, cache):
  """A system on few faces, with the tests' encoder, as flags."""
  file, colon, variant = name.partition(":")
  config = f"{FOLDER / file}.py{colon}{variant}"
  fields = {
    "data.name": "synthetic_faces",
    "data.long_tail": "",
    "data.num_train": 60,
    "data.num_test": 20,
    "data.image_size": 16,
    "data.cache_dir": cache,
    "tensorboard": False,
  }
  given = cli.load_config(config)
  fields["model.name"] = "tiny"
  for phase in configs.phases(given):
    fields[f"{phase}.batch_size"] = 16
    if given[phase].epochs is None or name.startswith("cifar_lt"):
      fields[f"{phase}.epochs"] = 1
  if name == "dbl:fine_tuned":
    fields["classify.trained"] = ("encoder/norm", "head")
  flags = [f"--config.{field}={value}" for field, value in fields.items()]
  return [f"--config={config}", *flags]


def test_every_config_is_tried_here():
  tried = {name.partition(":")[0] for name in VARIANTS + CHECKED}
  tried |= {"classifier"}
  assert {path.stem for path in FOLDER.glob("*.py")} == tried


@pytest.fixture
def rbg():
  """Other random numbers, which compile sooner."""
  with jax.default_prng_impl("unsafe_rbg"):
    yield


@pytest.mark.usefixtures("lax_conv", "rbg")
@pytest.mark.parametrize("name", VARIANTS)
def test_a_system_trains_and_scores(name, cache, tmp_path):
  if name.endswith("svm"):
    pytest.importorskip("sklearn")
  arguments = [*command(name, cache), f"--workdir={tmp_path}"]
  done = mains.run("main", arguments)
  assert done.status == 0, done.err
  metrics = (tmp_path / "metrics.json").read_bytes()
  assert json.loads(metrics)["images"] == 20
  scores = predictions.load(tmp_path / "scores_test.npz")
  assert scores.scores.shape == (20, 7)
  assert np.isfinite(scores.scores).all()
  rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert all(np.isfinite(json.loads(row).get("loss", 0.0)) for row in rows)
  if name not in ("dbl", "decoupling:lws", "dbl_plus"):
    return
  # Run again, it is finished: nothing is trained, the same comes out.
  before = (tmp_path / "metrics.jsonl").read_bytes()
  assert mains.run("main", arguments).status == 0
  assert (tmp_path / "metrics.json").read_bytes() == metrics
  assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
  "name",
  [
    *CHECKED,
    "cifar_lt:dbl",
    "cifar_lt:ldam_drw",
    "dbl",
    "dbl_plus",
    "pretrained",
    "regions",
  ],
)
def test_the_config_s_own_encoder_fits_its_phases(name, cache):
  file, _, variant = name.partition(":")
  config = cli.load_config(f"{FOLDER / file}.py:{variant}".rstrip(":"))
  config.data.update(num_train=300, num_test=20, cache_dir=cache)
  config.data.update(name="synthetic_faces", long_tail="")
  config = configs.resolve(config)
  dataset = sources.load(config.data)
  shapes = check_phases(config, dataset, distributed.make_mesh(), None)
  assert set(shapes["params"]) == {"encoder", "head"}


def test_a_config_says_in_its_docstring_how_to_run_it():
  for path in FOLDER.glob("*.py"):
    assert re.search(rf"--config=configs/{path.name}", path.read_text())


OPEN_FIELDS = {
  (): {"pretrain.augment.crop_scale": (0.6, 1.0), "model.stem": "imagenet"},
  ("data.name=raf_db",): {
    "data.image_size": 100,
    "pretrain.epochs": 200,
    "pretrain.augment.crop_scale": (0.2, 1.0),
    "pretrain.augment.blur": 0.5,
    "model.stem": "imagenet",
  },
  ("data.name=raf_db", "data.image_size=48"): {
    "pretrain.augment.blur": 0.0,
    "model.stem": "medium",
  },
  ("pretrain.optimizer.name=lars",): {
    "pretrain.optimizer.learning_rate": 0.3,
    "pretrain.optimizer.scaling": "linear",
    "pretrain.optimizer.weight_decay": 1e-6,
    "classify.optimizer.learning_rate": 3e-3,
    "classify.optimizer.scaling": "sqrt",
  },
  ("pretrain.augment.crop_scale=(.4, 1.)", "model.stem=small"): {
    "pretrain.augment.crop_scale": (0.4, 1.0),
    "model.stem": "small",
  },
}


@pytest.mark.parametrize("given", OPEN_FIELDS)
def test_open_fields_depend_on_data_and_optimizer(given):
  config = cli.load_config(str(FOLDER / "dbl.py"))
  for field, value in (flag.split("=") for flag in given):
    value = ast.literal_eval(value) if value[-1] in ")0123456789" else value
    config.update_from_flattened_dict({field: value})
  resolved = configs.resolve(config)
  for field, value in OPEN_FIELDS[given].items():
    section, _, name = field.rpartition(".")
    assert operator.attrgetter(section)(resolved)[name] == value, field


def test_a_config_stored_by_an_earlier_version_keeps_its_meaning():
  config = configs.base()
  config.model = configs.dcnn()
  config.pretrain = configs.simclr()
  stored = configs.resolve(config).to_dict()
  del stored["pretrain"]["optimizer"]["scaling"], stored["skip_nonfinite"]
  del stored["pretrain"]["augment"]["crop_tries"]
  assert not configs.from_dict(stored).model.get("last_pool")
  del stored["model"]["normalisation"]
  restored = configs.resolve(configs.from_dict(stored))
  assert restored.pretrain.optimizer.scaling == "linear"
  assert restored.pretrain.augment.crop_tries == 1
  assert restored.model.last_pool
  assert restored.model.dtype == "float32"  # this device's


@pytest.mark.parametrize("phases", [("finetune",), ("pretrain", "finetune")])
def test_a_run_may_finetune(phases):
  config = configs.base()
  config.finetune = configs.finetune()
  if "pretrain" in phases:
    config.pretrain = configs.simclr()
  resolved = configs.resolve(config)
  assert configs.phases(resolved) == list(phases)
  assert resolved.finetune.epochs == 6
  assert "preset" not in resolved.finetune


MISFITS = {
  r"mixes labels.*balanced_softmax": {"ldam": {}},
  r"cross_entropy\.strength.*weighting": {"cross_entropy": {"strength": 1.0}},
  r"effective, inverse, none": {"cross_entropy": {"weighting": "odd"}},
  r"theirs\.slope=-1\.0 .*at least 0": {"theirs": {"slope": -1.0}},
  r"depth='a' .*whole number": {"theirs": {"slope": 1.0, "depth": "a"}},
  r"losses\.theirs\.slope is missing": {"theirs": {}},
  r"theirs\.slpe. Did you mean .*slope.* depth, slope": {"theirs": {"slpe": 1}},
}


def theirs(
  inputs, *, slope: Annotated[float, options.number(0)], depth: int = 2
):
  """A loss of the user's.

  Args:
    inputs: with logits.
    slope: how steep
      it is.
    depth: how deep.
  """


@pytest.mark.parametrize("message", MISFITS)
def test_options_that_do_not_fit_are_refused(message, monkeypatch):
  monkeypatch.setitem(terms.TERMS, "theirs", terms.Term(theirs))
  config = tiny.get_config()
  config.classify.losses = MISFITS[message]
  config.classify.mixup = 0.2 if "mixes" in message else 0.0
  with pytest.raises(UserError, match=message):
    configs.resolve(config)


def test_a_loss_of_the_user_s_is_a_function_and_an_entry(monkeypatch):
  monkeypatch.setitem(terms.TERMS, "theirs", terms.Term(theirs))
  config = tiny.get_config()
  config.classify.losses = {"theirs": {"slope": 0.5, "weight": 2.0}}
  assert configs.resolve(config).classify.losses.theirs.slope == 0.5
  assert (
    "### theirs\n\nA loss of the user's.\n\n- **slope** (a number of at least"
    " 0; required): How steep it is.\n"
  ) in configs.describe("losses")


def test_options_of_another_encoder_are_refused():
  config = tiny.get_config()
  config.model.name = "dcnn"
  assert "stem" not in configs.resolve(config).model  # it was left open
  config.model.stem = "small"
  with pytest.raises(
    UserError, match=r"config\.model\.stem.* 'dcnn' .*pooling"
  ):
    configs.resolve(config)


@pytest.mark.parametrize("section", configs.SECTIONS)
def test_help_describes_every_option_of_a_section(section, monkeypatch):
  monkeypatch.delitem(model.ENCODERS, "tiny")
  done = mains.run("main", [f"--help={section}"])
  assert done.status == 0
  described = re.findall(
    r"^- \*\*\w+\*\* \(.+\): (.*)$", done.out, re.MULTILINE
  )
  assert described
  assert all(described)


def test_the_page_of_fields_is_up_to_date(monkeypatch):
  monkeypatch.delitem(model.ENCODERS, "tiny")
  page = FOLDER.parent / "docs" / "config.md"
  assert page.read_text() == configs.markdown(), "see its first lines"
