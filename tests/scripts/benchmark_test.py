"""The benchmark: who is measured when, what is told, what goes wrong."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from dbl_jax.benchmarks import benchmark, cases, roofline, runner, serve, tables
from dbl_jax.benchmarks.ours import devices, nt_xent, step
from dbl_jax.losses import contrastive
from dbl_jax.models import model
from dbl_jax.runtime import sharding

ROOT = Path(__file__).parents[2]
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
  for side in ("ours", "peers"):
    (tmp_path / side).mkdir()
    (tmp_path / side / "work.py").write_text(WORK)
  return runner.Setup(
    pythons={"ours": sys.executable, "peers": sys.executable},
    work={side: str(tmp_path / side) for side in ("ours", "peers")},
    absent="no --peers",
    device="cpu",
    rounds=3,
    round_seconds=0.0,
    log=tmp_path / "out.log",
  )


@pytest.fixture
def diary(tmp_path):
  return tmp_path / "diary"


def make_case(diary, part="step", **peer):
  ours = cases.System("ours", "ours", "work", {"name": "ours", "sleep": 0.02})
  options = {"name": "peer", "sleep": 0.06} | peer
  theirs = cases.System("peer", "peers", "work", options)
  settings = {"diary": str(diary)}
  return cases.Case(part, "a case", settings, (ours, theirs), 1.0)


def run_case(case, setup):
  return runner.run_case(case, setup, lambda doing: None)


def options(tmp_path, **changed):
  fields = {
    "command": ("benchmark.py", "--quick"),
    "peers": None,
    "peers_work": tmp_path,
    "device": "cpu",
    "parts": None,
    "rounds": 3,
    "quick": True,
    "out": tmp_path / "out.json",
  }
  return benchmark.Options(**(fields | changed))


def test_systems_take_turns_and_the_order_is_reversed(setup, diary):
  run_case(make_case(diary), setup)
  lines = diary.read_text().splitlines()
  rounds = [line for line in lines if line.endswith("run")][2:]
  turns = ["ours", "peer", "peer", "ours", "ours", "peer"]
  assert rounds == [f"{name} run" for name in turns]
  # What runs in the background is stopped before the next one's turn.
  assert lines[6:9] == ["ours begin", "ours run", "ours end"]


def test_figures_and_ratio_are_of_medians(setup, diary):
  case = run_case(make_case(diary, units=2), setup)
  ours, peer = case["systems"]
  assert 0.02 <= ours["min"] <= ours["median"] <= ours["max"]
  assert peer["min"] >= 0.03  # a call of 0.06 s is two units
  ratio = peer["median"] / ours["median"]
  assert peer["times_as_fast"] == pytest.approx(ratio)
  assert [len(r) for r in peer["seconds_by_round"]] == [1, 1, 1]
  assert peer["facts"] == {"set": {"threads": 2}}
  assert peer["peak_mib"] > 1


def test_a_rate_is_of_whole_rounds(setup, diary):
  longer = setup._replace(round_seconds=0.13)
  case = run_case(make_case(diary, part="input", units=6), longer)
  ours, peer = case["systems"]
  seconds = sorted(np.mean(r) for r in peer["seconds_by_round"])
  np.testing.assert_allclose(peer["median"], 6 / seconds[1])
  assert 5 < peer["median"] < 100.1
  assert len(ours["seconds_by_round"][0]) > 1
  ratio = ours["median"] / peer["median"]
  assert peer["times_as_fast"] == pytest.approx(ratio)


def test_slow_work_gets_fewer_rounds(setup, diary, monkeypatch):
  monkeypatch.setattr(runner, "_SLOW", ((0.05, 2), (0.01, 2)))
  case = run_case(make_case(diary), setup)
  assert [row["calls"] for row in case["systems"]] == [2, 2]


def test_a_peer_that_cannot_be_imported_is_skipped(setup, diary):
  case = run_case(make_case(diary, fails="build"), setup)
  ours, peer = case["systems"]
  assert peer["skipped"] == "ImportError: No module named 'torch'"
  assert ours["calls"] == 3
  assert "Traceback" in setup.log.read_text()
  assert "library chatter" in setup.log.read_text()


def test_a_peer_that_dies_is_skipped_and_says_how(setup, diary):
  case = run_case(make_case(diary, fails="exit"), setup)
  ours, peer = case["systems"]
  assert peer["skipped"] == "ended with status 3: last words"
  assert "median" not in peer
  assert ours["calls"] == 3


def test_a_peer_that_is_silent_is_skipped(setup, diary, monkeypatch):
  class Impatient(runner.Worker):
    def __init__(self, command, env, log):
      super().__init__(command, env, log, patience=0.7)

  monkeypatch.setattr(runner, "Worker", Impatient)
  case = run_case(make_case(diary, sleep=30), setup)
  assert case["systems"][1]["skipped"] == "no answer in 1 s"


def test_a_python_that_does_not_start_is_skipped(setup, diary):
  pythons = setup.pythons | {"peers": "/no/such/python"}
  case = run_case(make_case(diary), setup._replace(pythons=pythons))
  assert "/no/such/python cannot be started" in case["systems"][1]["skipped"]


def test_results_are_shown_and_written(setup, diary, tmp_path, capsys):
  both = [make_case(diary), make_case(diary, part="input", fails="exit")]
  benchmark.measure(both, setup, options(tmp_path))
  shown = capsys.readouterr().out
  assert "x as fast" in shown
  assert "peer: skipped: ended with status 3" in shown
  assert "case 2 of 2" in shown
  assert "--peers" not in shown
  record = json.loads((tmp_path / "out.json").read_text())
  assert record["command"] == "benchmark.py --quick"
  assert record["hardware"]["cores"] >= 1
  for side in ("ours", "peers"):
    assert record["versions"][side]["python"] == sys.version.split()[0]
  assert record["date"].endswith("+00:00")
  first, second = record["cases"]
  assert first["systems"][0]["seconds_by_round"][2][0] >= 0.02
  assert first["settings"] == {"diary": str(diary)}
  assert "skipped" in second["systems"][1]


def test_without_peers_it_says_how_to_get_them(setup, diary, tmp_path, capsys):
  alone = setup._replace(pythons={"ours": sys.executable})
  benchmark.measure([make_case(diary)], alone, options(tmp_path))
  shown = capsys.readouterr().out
  assert "pip install -r scripts/peers/peers.txt" in shown
  assert "peer: skipped: no --peers" in shown


def test_start_up_is_timed_from_a_cold_or_a_warm_cache(setup, diary, tmp_path):
  count = (
    "import os, pathlib, sys;"
    "folder = pathlib.Path(os.environ['JAX_COMPILATION_CACHE_DIR']);"
    "found = len(list(folder.glob('*'))) if folder.exists() else 0;"
    "folder.mkdir(exist_ok=True); (folder / 'program').touch();"
    "open(sys.argv[1], 'a').write(f'{found} ')"
  )
  for cache in ("cold", "warm"):
    arguments = ("-c", count, str(diary))
    system = cases.System("ours", "ours", "startup", {"arguments": arguments})
    case = cases.Case("startup", cache, {"cache": cache}, (system,), 1.0)
    (row,) = run_case(case, setup)["systems"]
    assert row["calls"] == 3
  assert diary.read_text().split() == 4 * ["0"] + ["0"] + 4 * ["1"]


MISTAKES = {
  "unknown part": (["--only=step,stpe"], "no part 'stpe'. There are step,"),
  "no part": (["--only="], "There are step,"),
  "no such peers": (["--peers=/no/such/python"], "pip install"),
  "unknown device": (["--device=tpu"], "give 'cpu' or 'gpu'"),
  "no rounds": (["--rounds=0"], "rounds"),
  "unwritable": (["--out=/proc/no/benchmark.json"], "cannot be written"),
  "stray word": (["step"], "Unexpected argument 'step'"),
}


def call(*arguments):
  return subprocess.run(
    [sys.executable, "scripts/benchmark.py", *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_get_one_clear_line(mistake):
  arguments, message = MISTAKES[mistake]
  done = call(*arguments)
  assert done.returncode == 2, done.stderr
  assert message in done.stderr
  assert done.stderr.startswith("error: ")
  assert len(done.stderr.strip().splitlines()) == 1


def test_a_real_case_runs(tmp_path):
  out = tmp_path / "results.json"
  done = call("--quick", "--rounds=1", "--only=nt_xent", f"--out={out}")
  assert done.returncode == 0, done.stderr
  (case,) = json.loads(out.read_text())["cases"]
  ours, peer, plain = case["systems"]
  assert peer["skipped"] == "no --peers"
  assert plain["times_as_fast"] > 0
  np.testing.assert_allclose(
    ours["facts"]["loss"], plain["facts"]["loss"], rtol=1e-5
  )


def ours():
  """Each work of ours with its quick settings, once."""
  for case in cases.make_cases("cpu", True, list(cases.PARTS)):
    for system in case.systems:
      if system.side == "ours" and case.part not in ("nt_xent", "startup"):
        settings = case.settings | system.options
        yield pytest.param(
          system.work, settings, id=f"{case.name}: {system.name}"
        )


@pytest.fixture
def small_worker(monkeypatch):
  """A worker in this process, with a network that is compiled at once."""
  monkeypatch.setitem(model.ENCODERS, "resnet18", tiny.TinyEncoder)
  monkeypatch.setattr(step, "PlainSimCLR", SmallSimCLR)
  monkeypatch.setattr(devices.startup, "keep_memory", lambda: None)
  with jax.set_mesh(sharding.make_mesh(jax.devices()[:1])):
    yield lambda work: serve._Worker(f"dbl_jax.benchmarks.ours.{work}")


class SmallSimCLR(nn.Module):
  stem: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, images, train):
    return nn.Dense(8)(tiny.TinyEncoder()(images, train))


@pytest.mark.parametrize(("work", "settings"), [*ours()])
def test_each_of_our_works_can_be_timed(small_worker, work, settings):
  worker = small_worker(work)
  prepared = worker.answer({"do": "prepare", "settings": settings})
  assert "error" not in prepared
  assert prepared["units"] > 0
  assert prepared["facts"]["set"]["platform"] == "cpu"
  for calls in (1, 2):  # rounds may follow one another
    answer = worker.answer({"do": "round", "calls": calls})
    assert len(answer["seconds"]) == calls
    assert min(answer["seconds"]) > 0


def test_work_for_a_gpu_is_refused_without_one(small_worker):
  (case,) = cases.make_cases("gpu", True, ["augment"])
  asked = {"do": "prepare", "settings": case.settings}
  assert small_worker("augment").answer(asked) == {
    "error": "RuntimeError: JAX runs on cpu here, not on gpu"
  }


def test_the_plain_loss_is_the_loss():
  z = jax.random.normal(jax.random.key(0), (16, 2, 8))
  np.testing.assert_allclose(
    nt_xent.plain(z, 0.5), contrastive.nt_xent(z, 0.5), rtol=1e-5
  )


@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_plain_flax_is_the_same_network(stem):
  settings = {
    "stem": stem,
    "dtype": "float32",
    "size": 32,
    "batch": 2,
    "learning_rate": 0.1,
    "momentum": 0.9,
    "weight_decay": 0.0,
    "temperature": 0.5,
  }
  shapes = []
  for implementation in ("dbl_jax", "flax"):
    _, start = step.make_program(settings | {"implementation": implementation})
    (variables, _), _ = jax.eval_shape(start)
    leaves = jax.tree.leaves(variables["params"])
    shapes.append(sorted(leaf.shape for leaf in leaves))
  assert shapes[0] == shapes[1]


@pytest.mark.parametrize("device", ["cpu", "gpu"])
@pytest.mark.parametrize("quick", [False, True])
def test_all_systems_have_their_work(device, quick):
  made = cases.make_cases(device, quick, list(cases.PARTS))
  assert {case.part for case in made} == set(cases.PARTS)
  assert len({(case.part, case.name) for case in made}) == len(made)
  for case in made:
    assert case.systems[0].side == "ours"
    for system in case.systems:
      if system.work == "startup":
        assert runner.SERVE.with_name("startup.py").exists()
      elif system.side == "peers":
        assert (ROOT / "scripts" / "peers" / f"{system.work}.py").exists()
      else:
        name = f"dbl_jax.benchmarks.ours.{system.work}"
        assert importlib.util.find_spec(name)


def test_the_whole_run_is_short_enough():
  made = cases.make_cases("cpu", False, list(cases.PARTS))
  assert sum(case.seconds for case in made) <= 25 * 60


def test_roofline_takes_the_nearer_limit():
  facts = {
    "device_kind": "NVIDIA H100 80GB HBM3",
    "flops": 989e12 * 0.01,
    "compiled_bytes": 3350e9 * 0.02,
  }
  shares = roofline.shares(facts, seconds=0.05)
  assert shares["share_of_peak_flops"] == pytest.approx(0.2)
  assert shares["share_of_roofline"] == pytest.approx(0.4)
  assert roofline.shares(facts | {"device_kind": "cpu"}, 0.05) == {}


def test_numbers_are_shown_without_powers_of_ten():
  shown = [tables.number(x) for x in (12345.6, 12.345, 0.01234, 0.0)]
  assert shown == ["12,346", "12.35", "0.0123", "0.00"]
