"""The benchmark: fair turns, honest figures, failures that harm one system."""

import json
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import mains
import numpy as np
import pytest

import cases
import ours
import results
import runner
import serve
import tiny
from dbl_jax.losses import metric_learning
from dbl_jax.models import model
from dbl_jax.runtime import sharding

WORK = """
import os, sys, time
from pathlib import Path

def build(settings):
  print("library chatter")
  print("last words", file=sys.stderr)
  if settings.get("fails") == "build":
    raise ImportError("No module named 'torch'")
  calls = []

  def note(word):
    with Path(settings["diary"]).open("a") as file:
      file.write(f"{settings['name']} {word}\\n")

  def run():
    calls.append(1)
    note("run")
    if settings.get("fails") == "exit" and len(calls) == 3:
      os._exit(3)
    time.sleep(settings.get("sleep", 0))

  return {
    "run": run,
    "begin": lambda: note("begin"),
    "end": lambda: note("end"),
    "units": settings.get("units", 1),
    "facts": {"set": {"threads": 2}},
  }
"""


@pytest.fixture
def setup(tmp_path):
  (tmp_path / "fake_work.py").write_text(WORK)
  (tmp_path / "out.log").touch()
  pythons = {"ours": sys.executable, "peers": sys.executable}
  return runner.Setup(pythons, "cpu", 3, tmp_path / "out.log", 0.0)


def make_case(setup, kind="step", **peer):
  """A case of a system and a peer that takes three times as long."""
  work = f"{setup.log.with_name('fake_work.py')}:build"
  first = {"name": "ours", "sleep": 0.02}
  systems = [
    cases.System("ours", "ours", work, first),
    cases.System("peer", "peers", work, {"name": "peer", "sleep": 0.06} | peer),
  ]
  diary = str(setup.log.with_name("diary"))
  return cases.Case(kind, "a case", {"diary": diary}, systems)


def test_systems_take_turns_and_medians_of_calls_are_compared(setup):
  case = runner.run_case(make_case(setup, units=2), setup)
  lines = setup.log.with_name("diary").read_text().splitlines()
  rounds = [line for line in lines if line.endswith("run")][2:]
  turns = ["ours", "peer", "peer", "ours", "ours", "peer"]  # then reversed
  assert rounds == [f"{name} run" for name in turns]
  # Background work is stopped before the next system's turn.
  assert lines[6:9] == ["ours begin", "ours run", "ours end"]
  ours, peer = case["systems"]
  assert 0.01 <= ours["min"] <= ours["median"] <= ours["max"]
  assert peer["min"] >= 0.03  # a call of 0.06 s is two units
  ratio = peer["median"] / ours["median"]
  assert peer["times_as_fast"] == pytest.approx(ratio)
  assert [len(r) for r in peer["seconds_by_round"]] == [1, 1, 1]
  assert peer["facts"] == {"set": {"threads": 2}}
  assert peer["peak_mib"] > 1


def test_a_rate_is_of_whole_rounds(setup):
  longer = setup._replace(round_seconds=0.13)
  case = runner.run_case(make_case(setup, kind="input", units=6), longer)
  ours, peer = case["systems"]
  seconds = sorted(np.mean(r) for r in peer["seconds_by_round"])
  np.testing.assert_allclose(peer["median"], 6 / seconds[1])
  assert 5 < peer["median"] < 100.1
  assert len(ours["seconds_by_round"][0]) > 1
  assert peer["times_as_fast"] == ours["median"] / peer["median"]


@pytest.mark.parametrize(
  ("options", "peers", "message"),
  [
    ({"fails": "build"}, [sys.executable], "No module named 'torch'"),
    ({"fails": "exit"}, [sys.executable], "ended with status 3: last words"),
    ({"sleep": 60}, [sys.executable], "no answer in 8 s"),
    ({}, ["/no/such/python"], "/no/such/python cannot be started"),
    ({}, [], "no --peers"),
  ],
)
def test_a_peer_that_fails_is_skipped(
  setup, options, peers, message, monkeypatch
):
  if "sleep" in options:
    # Our process, which is to answer, may start slowly on a busy machine.
    monkeypatch.setattr(runner, "PATIENCE", 8.0)
  setup.pythons.pop("peers")
  setup.pythons.update(zip(["peers"], peers, strict=False))
  ours, peer = runner.run_case(make_case(setup, **options), setup)["systems"]
  assert message in peer["skipped"]
  assert "median" not in peer
  assert ours["calls"] == 3
  assert "library chatter" in setup.log.read_text()


def test_the_command_shows_and_writes_its_results(tmp_path):
  out = tmp_path / "results.json"
  flags = ["--quick", "--rounds=1", "--only=nt_xent", "--device=cpu"]
  done = mains.run("benchmark", [*flags, f"--out={out}"])
  assert done.status == 0, done.err
  assert "pip install -r scripts/benchmark/peers/peers.txt" in done.out
  assert "lightly" in done.out
  assert "skipped: no --peers" in done.out
  record = json.loads(out.read_text())
  assert "--quick --rounds=1" in record["command"]
  assert record["hardware"]["cores"] >= 1
  assert record["versions"]["ours"]["python"] == sys.version.split()[0]
  assert record["versions"]["ours"]["jax"] == jax.__version__
  assert record["date"].endswith("+00:00")
  ((fast, peer, plain),) = (case["systems"] for case in record["cases"])
  assert peer["skipped"] == "no --peers"
  assert plain["times_as_fast"] > 0
  losses = [row["facts"]["loss"] for row in (fast, plain)]
  np.testing.assert_allclose(*losses, rtol=1e-5)


def our_work():
  """Each work of ours with its quick settings, once."""
  for case in cases.make_cases("cpu", quick=True):
    for system in case.systems:
      if system.side == "ours" and case.kind not in ("nt_xent", "startup"):
        name = f"{case.name}: {system.name}"
        yield pytest.param(system.work, case.settings | system.options, id=name)


@pytest.fixture
def small(monkeypatch):
  """Networks that compile at once."""
  monkeypatch.setitem(model.ENCODERS, "resnet18", tiny.TinyEncoder)
  monkeypatch.setattr(ours, "tune_malloc", lambda: None)
  monkeypatch.setattr(plain_jax(), "PlainSimCLR", SmallSimCLR)
  # The work sets a mesh for its process; other tests must not inherit it.
  with jax.set_mesh(sharding.make_mesh(jax.devices()[:1])):
    yield


def plain_jax():
  serve.load(f"{cases.FOLDER / 'peers' / 'plain_jax.py'}:step")
  return sys.modules["plain_jax"]


class SmallSimCLR(nn.Module):
  stem: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, images, train):
    return nn.Dense(8)(tiny.TinyEncoder()(images, train))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("work", "settings"), [*our_work()])
def test_each_of_our_works_can_be_timed(work, settings):
  worker = serve.Worker(serve.load(work))
  prepared = worker.answer({"do": "prepare", "settings": settings})
  assert "error" not in prepared
  assert prepared["units"] > 0
  assert prepared["facts"]["set"]["platform"] == "cpu"
  for calls in (1, 2):  # rounds may follow one another
    answer = worker.answer({"do": "round", "calls": calls})
    assert len(answer["seconds"]) == calls
    assert min(answer["seconds"]) > 0


def test_the_plain_loss_is_the_loss():
  z = jax.random.normal(jax.random.key(0), (16, 2, 8))
  np.testing.assert_allclose(
    plain_jax().plain_nt_xent(z, 0.5),
    metric_learning.nt_xent(z, 0.5),
    rtol=1e-5,
  )


@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_plain_flax_is_the_same_network(stem):
  def shapes(network):
    images = jnp.zeros((4, 32, 32, 3))
    init = lambda key: network.init(key, images, train=True)  # noqa: E731
    params = jax.eval_shape(init, jax.random.key(0))["params"]
    return sorted(leaf.shape for leaf in jax.tree.leaves(params))

  network = ours.make_simclr({"stem": stem, "dtype": "float32"})
  plain = plain_jax().PlainSimCLR(stem, jnp.float32)
  assert shapes(network) == shapes(plain)


@pytest.mark.parametrize("device", ["cpu", "gpu"])
@pytest.mark.parametrize("quick", [False, True])
def test_all_systems_have_their_work(device, quick):
  made = cases.make_cases(device, quick)
  assert {case.kind for case in made} == set(cases.UNITS)
  assert len({(case.kind, case.name) for case in made}) == len(made)
  for case in made:
    assert case.systems[0].side == "ours"
    for system in case.systems:
      file, _, function = system.work.rpartition(":")
      assert f"def {function}(settings" in Path(file).read_text().replace(
        "\n  ", ""
      )


def test_cases_and_systems_are_selected_by_name():
  names = ["small stem, 48 px, N=1024", "imagenet*N=256"]
  found = cases.make_cases("gpu", False, ["step"], names, ["dbl*", "PyTorch"])
  assert [case.name for case in found] == [
    "small stem, 48 px, N=1024",
    "imagenet stem, 48 px, N=256",
    "imagenet stem, 100 px, N=256",
  ]
  for case in found:
    assert [system.name for system in case.systems] == ["dbl_jax", "PyTorch"]
    assert case.settings["dtype"] == "bfloat16"


def test_roofline_takes_the_nearer_limit():
  facts = {
    "device_kind": "NVIDIA H100 80GB HBM3",
    "flops": 989e12 * 0.01,
    "compiled_bytes": 3350e9 * 0.02,
  }
  shares = results.roofline(facts, seconds=0.05)
  assert shares["share_of_peak_flops"] == pytest.approx(0.2)
  assert shares["share_of_roofline"] == pytest.approx(0.4)
  assert results.roofline(facts | {"device_kind": "cpu"}, 0.05) == {}
