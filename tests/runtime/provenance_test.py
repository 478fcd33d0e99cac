"""Results carry versions, revision and hardware."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from dbl_jax.runtime import environment


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
  clean = environment.revision(checkout)
  assert len(clean["revision"]) == 40
  assert clean["modified"] is False
  (checkout.parent / "runs").mkdir()  # beside the package: no matter
  (checkout.parent / "runs" / "a").write_text("")
  assert environment.revision(checkout) == clean
  (checkout / "__init__.py").write_text("x = 1\n")
  assert environment.revision(checkout) == clean | {"modified": True}


def test_another_project_s_checkout_is_not_ours(checkout):
  installed = checkout.parent / "site-packages" / "dbl_jax"
  installed.mkdir(parents=True)
  (installed / "__init__.py").write_text("")
  assert environment.revision(installed) == {}


def test_without_git_there_is_none(checkout, monkeypatch):
  monkeypatch.setenv("PATH", "")
  assert environment.revision(checkout) == {}


def test_results_and_page_carry_it(finished):
  config, workdir = finished
  stored = json.loads((workdir / "metrics.json").read_text())
  assert stored["made_by"] == environment.provenance()
  for name in ("python", "jax", "jaxlib", "flax", "orbax-checkpoint", "numpy"):
    assert stored["made_by"][name]
  source = environment.revision(Path(environment.__file__).parent)
  assert stored["made_by"].items() >= source.items()
  assert stored["seed"] == config.seed == 3
  card = (workdir / "report.html").read_text().split("<summary>Config")[1]
  assert stored["made_by"]["jax"] in card
  assert stored["data_fingerprint"]
  assert stored["data_fingerprint"] in card


TOOL = """#!/bin/sh
echo 'NVIDIA H100 80GB HBM3, 81559 MiB'
echo 'NVIDIA T4, 15360 MiB'
exit {status}
"""


GPUS = ["NVIDIA H100 80GB HBM3, 81559 MiB", "NVIDIA T4, 15360 MiB"]


@pytest.mark.parametrize(
  ("status", "names"),
  [(0, GPUS), (9, []), (None, [])],
  ids=["two", "no driver", "no tool"],
)
def test_each_gpu_is_named_with_its_memory(
  status, names, tmp_path, monkeypatch
):
  monkeypatch.setenv("PATH", str(tmp_path))
  if status is not None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(TOOL.format(status=status))
    tool.chmod(0o755)
  assert environment.gpus() == names
  assert environment.describe()["gpus"] == names
  shown = ", ".join(names) or "no GPU"
  assert environment.words().endswith(f"GiB; {shown}")


def test_processor_cores_and_memory_are_the_systems():
  found = environment.describe()
  assert 1 <= found["cores"] <= os.cpu_count()
  assert found["memory_gib"] > 0.1
  assert f" {found['cores']} core" in environment.words()
  assert f"{found['memory_gib']} GiB" in environment.words()
