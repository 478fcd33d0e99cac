"""The command line: one clear line for each mistake, status 2, nothing lost."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dbl_jax import cli
from dbl_jax import config as configs
from dbl_jax.errors import UserError

ROOT = Path(__file__).parent.parent
CASES = {
  "no config": ([], "Which system?"),
  "no such config": (["--config=configs/dlb.py"], "configs/basic.py, "),
  "unknown flag": (["--wokdir=x"], "Unknown command line flag 'wokdir'"),
  "stray word": (["runs/a"], "Unexpected argument 'runs/a'"),
  "unknown field": (
    ["--config=configs/dbl.py", "--config.data.nam=raf_db"],
    "no field 'data.nam'. Did you mean data.name",
  ),
  "unknown section": (
    ["--config=configs/basic.py", "--config.pretrain.epochs=3"],
    "no field 'pretrain.epochs'",
  ),
  "word for a number": (
    ["--config=configs/dbl.py", "--config.seed=one"],
    "--config.seed=one",
  ),
  "unknown data": (
    ["--config=configs/dbl.py", "--config.data.name=rafdb"],
    "Expected one of expw, fer2013, image_folder, raf_db",
  ),
  "negative epochs": (
    ["--config=configs/dbl.py", "--config.pretrain.epochs=-1"],
    "config.pretrain.epochs=-1 is impossible",
  ),
  "negative rate": (
    ["--config=configs/dbl.py", "--config.classify.optimizer.learning_rate=-1"],
    "learning_rate=-1.0 is impossible",
  ),
  "zero temperature": (
    [
      "--config=configs/dbl.py",
      "--config.pretrain.losses.nt_xent.temperature=0.",
    ],
    "temperature=0.0 is impossible",
  ),
  "crop the wrong way round": (
    ["--config=configs/dbl.py", "--config.pretrain.augment.crop_scale=(1,.2)"],
    "the smaller first",
  ),
  "no data folder": (
    [
      "--config=configs/dbl.py",
      "--config.data.name=raf_db",
      "--config.data.dir=/no/such/folder",
    ],
    "/no/such/folder",
  ),
  "no checkpoint": (
    ["--config=configs/classifier.py", "--config.init_from=/no/such/run"],
    "holds no checkpoint",
  ),
  "no such flag file": (["--flagfile=/no/file"], "/no/file"),
  "workdir of a cloud": (
    ["--config=configs/dbl.py", "--workdir=gs://bucket/run"],
    "--workdir=gs://bucket/run: URLs are not supported",
  ),
  "data of a cloud": (
    ["--config=configs/dbl.py", "--config.data.dir", "s3://bucket/faces"],
    "s3://bucket/faces: URLs are not supported",
  ),
  "unwritable workdir": (
    ["--config=configs/dbl.py", "--workdir=/proc/nowhere"],
    "cannot be written",
  ),
}


def call(arguments, script=("-m", "dbl_jax.main"), cwd=ROOT, env=None):
  return subprocess.run(
    [sys.executable, *script, *arguments],
    cwd=cwd,
    env=os.environ | (env or {}),
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )


@pytest.mark.parametrize("case", CASES)
def test_mistakes_get_one_clear_line(case, tmp_path):
  arguments, message = CASES[case]
  if not any(argument.startswith("--workdir") for argument in arguments):
    arguments = [*arguments, f"--workdir={tmp_path / 'run'}"]
  done = call(arguments, env={"XDG_CACHE_HOME": str(tmp_path)})
  assert done.returncode == 2, done.stderr
  assert message in done.stderr
  assert done.stderr.startswith("error: ")
  assert len(done.stderr.strip().splitlines()) == 1
  assert "Traceback" not in done.stderr
  assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], "Which run?"),
    (["--workdir=/no/such/run"], "is not a folder"),
    (["--workdir=."], "holds no checkpoint"),
  ],
)
def test_evaluate_has_one_line_too(arguments, message):
  done = call(arguments, script=("scripts/evaluate.py",))
  assert done.returncode == 2
  assert message in done.stderr
  assert len(done.stderr.strip().splitlines()) == 1


def test_an_absent_platform_is_one_line(tmp_path):
  for script in (("-m", "dbl_jax.main"), ("scripts/evaluate.py",)):
    done = call(
      [f"--workdir={tmp_path}"]
      + ["--config=configs/dbl.py"] * (script[0] == "-m"),
      script=script,
      env={"JAX_PLATFORMS": "cuda"},
    )
    assert done.returncode == 2
    assert "JAX cannot use a device of JAX_PLATFORMS='cuda'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_config_elsewhere_gets_a_hint(tmp_path):
  done = call(["--config=configs/dbl.py"], cwd=tmp_path)
  assert done.returncode == 2
  assert "run from the project's root" in done.stderr


def test_help_names_the_flags_quickly():
  done = call(["--help"])
  assert "--config" in done.stdout
  assert "--workdir" in done.stdout


def test_a_config_without_a_phase_is_refused():
  with pytest.raises(UserError, match="has no phase"):
    configs.resolve(configs.base())


def test_an_unknown_loss_is_refused():
  config = configs.base()
  config.pretrain = configs.simclr()
  config.pretrain.losses.nt_xnt = {"temperature": 0.1}
  with pytest.raises(UserError, match="'nt_xnt'; there are"):
    configs.resolve(config)


def test_values_left_open_depend_on_the_data():
  config = configs.base()
  config.pretrain = configs.simclr()
  small = configs.resolve(config)
  config.data.name = "raf_db"
  large = configs.resolve(config)
  assert large.data.image_size == 100
  assert large.pretrain.epochs > small.pretrain.epochs
  config.data.image_size = 64
  assert configs.resolve(config).data.image_size == 64


def test_differences_name_each_field():
  old = {"a": {"b": [1, 2], "c": 3}, "d": 1}
  new = {"a": {"b": (1, 2), "c": 4}, "e": 1}
  assert configs.differences(old, new) == [
    "a.c: 3 -> 4",
    "d: 1 -> absent",
    "e: absent -> 1",
  ]


def test_a_missing_config_is_an_error_of_the_user():
  with pytest.raises(UserError, match="no such file"):
    cli.parse_flags(["main", "--config=nowhere.py"])
