"""Ctrl-C and SIGTERM: the step is finished, saved, and nothing changes."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import soak

import tiny
from dbl_jax import train
from dbl_jax.runtime import signals
from dbl_jax.training import checkpoint, loop


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return str(tmp_path_factory.mktemp("cache"))


def resolved(cache):
  config = tiny.get_resolved(cache_dir=cache)
  config.log_every = 4
  config.classify.epochs = 4
  return config


@pytest.fixture(scope="module")
def whole(cache, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("whole")
  train.train_and_evaluate(resolved(cache), workdir)
  return workdir


def stop_at(monkeypatch, phase, step, number=signal.SIGTERM):
  """Sends a signal while that step, from 1, of a phase is being dispatched."""
  compile_phase = loop.compile_phase

  def watched(one, *rest):
    compiled = compile_phase(one, *rest)
    inner, sent = compiled.train_steps, []

    def train_steps(state, resident, batches, key, count):
      first = int(state.step) + 1
      if one.name == phase and first <= step < first + count and not sent:
        sent.append(os.kill(os.getpid(), number))
      return inner(state, resident, batches, key, count)

    return dataclasses.replace(compiled, train_steps=train_steps)

  monkeypatch.setattr(loop, "compile_phase", watched)


@pytest.mark.parametrize(
  ("phase", "step", "number", "status"),
  [
    ("pretrain", 3, signal.SIGTERM, 143),  # between two looks
    ("pretrain", 9, signal.SIGINT, 130),  # at the end of a phase
    ("classify", 5, signal.SIGTERM, 143),  # at a validation
  ],
)
def test_a_stopped_run_ends_as_if_never_stopped(
  whole, cache, tmp_path, monkeypatch, phase, step, number, status
):
  workdir = tmp_path / "stopped"
  with monkeypatch.context() as patch:
    stop_at(patch, phase, step, number)
    with pytest.raises(signals.Stopped, match="same command") as caught:
      train.train_and_evaluate(resolved(cache), workdir)
  assert caught.value.status == status
  with checkpoint.open_manager(checkpoint.phase_dir(workdir, phase)) as manager:
    if phase == "pretrain":  # one step a dispatch
      assert manager.latest_step() == step
    assert manager.latest_step() >= step
  train.train_and_evaluate(resolved(cache), workdir)
  assert soak.differences(whole, workdir) == []


def test_a_step_saved_between_validations_is_never_the_best(
  whole, cache, tmp_path, monkeypatch
):
  workdir = tmp_path / "stopped"
  config = resolved(cache)
  config.steps_per_dispatch = 1
  for step in (2, 7, 8):
    with monkeypatch.context() as patch:
      stop_at(patch, "classify", step)
      with pytest.raises(signals.Stopped):
        train.train_and_evaluate(config, workdir)
    directory = checkpoint.phase_dir(workdir, "classify")
    with checkpoint.open_manager(directory) as manager:
      assert manager.latest_step() == step
      assert checkpoint.best_so_far(manager) == (
        -1 if step < 5 else best(whole)
      )
  train.train_and_evaluate(config, workdir)
  directory = checkpoint.phase_dir(workdir, "classify")
  with checkpoint.open_manager(directory) as manager:
    assert manager.metrics(manager.best_step())[checkpoint.METRIC] >= 0


def best(workdir):
  rows = train.MetricWriter(workdir, False).rows()
  scores = (row.get("val_mean_class_accuracy") for row in rows)
  return next(score for score in scores if score is not None)


def test_the_best_does_not_depend_on_the_clock(cache, tmp_path, monkeypatch):
  """Of equals the last counts, whether or not it was time to save."""
  found = []
  for seconds in (0.0, 1e9):
    scores = iter([0.3, 0.5, 0.5, 0.4])
    fake = lambda *_: {"val_mean_class_accuracy": next(scores)}  # noqa: B023, E731
    monkeypatch.setattr(loop, "_SAVE_EVERY", seconds)
    with monkeypatch.context() as patch:
      patch.setattr(loop, "validate", fake)
      config = tiny.get_resolved(cache_dir=cache).unlock()
      del config.classify
      config.pretrain.update(epochs=4, evaluate_every=1.0, keep="best")
      workdir = tmp_path / str(seconds)
      train.train_and_evaluate(config, workdir)
    directory = checkpoint.phase_dir(workdir, "pretrain")
    found.append(checkpoint.load_model(directory, "best")[1])
  assert found[0] == found[1] == 13


def test_stopping_before_the_first_step_leaves_the_phase_to_start(
  whole, cache, tmp_path, monkeypatch
):
  load = train.sources.load

  def stopped(options):
    os.kill(os.getpid(), signal.SIGTERM)
    return load(options)

  with monkeypatch.context() as patch:
    patch.setattr(train.sources, "load", stopped)
    with pytest.raises(signals.Stopped):
      train.train_and_evaluate(resolved(cache), tmp_path)
  train.train_and_evaluate(resolved(cache), tmp_path)
  assert soak.differences(whole, tmp_path) == []


def test_handlers_are_put_back():
  before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
  threads = threading.active_count()
  with signals.listening() as stop:
    assert not stop.requested
    assert signal.getsignal(signal.SIGTERM) != before[1]
  assert [
    signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)
  ] == before
  assert threading.active_count() == threads


def test_in_another_thread_signals_are_left_alone():
  found = []

  def listen():
    with signals.listening() as stop:
      found.append(stop.requested)

  thread = threading.Thread(target=listen)
  thread.start()
  thread.join()
  assert found == [False]


HANGING = """
import hashlib, sys, time
from dbl_jax import cli
from dbl_jax.runtime import signals
def main(argv):
  with signals.listening() as stop, stop.in_order():
    print("ready", flush=True)
    if argv[1] == "hang":
      hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # like compiling
    while not stop.requested:
      time.sleep(0.01)
cli.run_main(main)
"""


def start(*words):
  process = subprocess.Popen(
    [sys.executable, "-c", HANGING, *words],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "ready\n"
  return process


@pytest.mark.parametrize(
  ("number", "status", "name"),
  [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")],
)
def test_the_program_says_how_to_resume(number, status, name):
  process = start("wait")
  process.send_signal(number)
  _, said = process.communicate(timeout=20)
  assert process.returncode == status
  assert f"{name}: the step in flight is finished" in said
  assert f"Stopped by {name}. Run the same command to resume." in said
  assert "Traceback" not in said


def test_a_second_ctrl_c_leaves_at_once():
  process = start("hang")
  process.send_signal(signal.SIGINT)
  time.sleep(0.3)
  assert process.poll() is None
  process.send_signal(signal.SIGINT)
  _, said = process.communicate(timeout=20)
  assert process.returncode == 130
  assert "Exits at once" in said
