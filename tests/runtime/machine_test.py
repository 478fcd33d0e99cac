"""The machine as results describe it, with and without NVIDIA's tool."""

import os

import pytest

from dbl_jax.runtime import provenance

TOOL = """#!/bin/sh
echo 'NVIDIA H100 80GB HBM3, 81559 MiB'
echo 'NVIDIA T4, 15360 MiB'
exit {status}
"""


@pytest.fixture
def nvidia(tmp_path, monkeypatch):
  """Puts an nvidia-smi that ends with a status first, or leaves none."""

  def put(status):
    monkeypatch.setenv("PATH", str(tmp_path))
    if status is not None:
      tool = tmp_path / "nvidia-smi"
      tool.write_text(TOOL.format(status=status))
      tool.chmod(0o755)

  return put


def test_each_gpu_is_named_with_its_memory(nvidia):
  nvidia(0)
  names = ["NVIDIA H100 80GB HBM3, 81559 MiB", "NVIDIA T4, 15360 MiB"]
  assert provenance.gpus() == names
  assert provenance.describe()["gpus"] == names
  assert provenance.words().endswith("GiB; " + ", ".join(names))


@pytest.mark.parametrize("status", [None, 9], ids=["no tool", "no driver"])
def test_without_a_driver_there_is_no_gpu(nvidia, status):
  nvidia(status)
  assert provenance.gpus() == []
  assert provenance.words().endswith("GiB; no GPU")


def test_processor_cores_and_memory_are_the_systems():
  found = provenance.describe()
  assert 1 <= found["cores"] <= os.cpu_count()
  assert found["memory_gib"] > 0.1
  assert f" {found['cores']} core" in provenance.words()
  assert f"{found['memory_gib']} GiB" in provenance.words()


@pytest.mark.parametrize(
  ("load", "busy"), [(None, False), (0.4, False), (0.6, True)]
)
def test_a_machine_is_busy_from_a_quarter_of_its_cores(load, busy):
  assert provenance.is_busy({"load_average": load, "cores": 2}) is busy
