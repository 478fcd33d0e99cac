"""Results say which versions and which source made them."""

import json
import subprocess
from pathlib import Path

import pytest

import tiny
from dbl_jax import train
from dbl_jax.runtime import provenance


def git(folder, *arguments):
  subprocess.run(
    ["git", "-c", "user.name=a", "-c", "user.email=b", *arguments],
    cwd=folder,
    check=True,
    capture_output=True,
  )


@pytest.fixture
def checkout(tmp_path):
  package = tmp_path / "dbl_jax"
  package.mkdir()
  (package / "__init__.py").write_text("")
  git(tmp_path, "init")
  git(tmp_path, "add", ".")
  git(tmp_path, "commit", "-m", "a")
  return package


def test_a_checkout_has_a_revision(checkout):
  clean = provenance.revision(checkout)
  assert len(clean["revision"]) == 40
  assert clean["modified"] is False
  (checkout.parent / "runs").mkdir()  # beside the package: no matter
  (checkout.parent / "runs" / "a").write_text("")
  assert provenance.revision(checkout) == clean
  (checkout / "__init__.py").write_text("x = 1\n")
  assert provenance.revision(checkout) == clean | {"modified": True}


def test_another_project_s_checkout_is_not_ours(checkout):
  installed = checkout.parent / "site-packages" / "dbl_jax"
  installed.mkdir(parents=True)
  (installed / "__init__.py").write_text("")
  assert provenance.revision(installed) == {}


def test_without_git_there_is_none(checkout, monkeypatch):
  monkeypatch.setenv("PATH", "")
  assert provenance.revision(checkout) == {}


def test_results_and_page_carry_it(tmp_path):
  config = tiny.get_resolved(cache_dir=str(tmp_path / "cache"))
  config.seed = 3
  metrics = train.train_and_evaluate(config, tmp_path / "run")
  stored = json.loads((tmp_path / "run" / "metrics.json").read_text())
  assert stored["made_by"] == metrics["made_by"] == provenance.provenance()
  for name in ("python", "dbl_jax", "jax", "flax", "optax", "numpy"):
    assert stored["made_by"][name]
  assert stored["made_by"]["orbax-checkpoint"]
  source = provenance.revision(Path(provenance.__file__).parent)
  assert stored["made_by"].items() >= source.items()
  assert stored["seed"] == 3
  assert stored["data_fingerprint"]
  page = (tmp_path / "run" / "report.html").read_text()
  card = page.split("<summary>Config")[1]
  for what in (stored["made_by"]["jax"], stored["data_fingerprint"]):
    assert what in card
