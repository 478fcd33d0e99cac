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
from dbl_jax.runtime.logs import read_rows
from dbl_jax.training import checkpoint, loop


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


# Phase and step in which a signal comes, its number, the exit status, the step
# that is saved: the last one dispatched, of up to four in 'classify'.
STOPS = [
  ("pretrain", 3, signal.SIGTERM, 143, 3),  # between two rows of metrics
  ("pretrain", 9, signal.SIGINT, 130, 9),  # at the end of a phase
  ("classify", 2, signal.SIGTERM, 143, 4),  # before any validation
  ("classify", 5, signal.SIGTERM, 143, 5),  # at a validation
  ("classify", 7, signal.SIGTERM, 143, 8),  # between validations
]


def test_a_stopped_run_ends_as_if_never_stopped(
  finished, tmp_path, monkeypatch
):
  config, whole = finished
  rows = read_rows(whole / "metrics.jsonl")
  scores = (row.get("val_mean_class_accuracy") for row in rows)
  first = next(score for score in scores if score is not None)
  load = train.sources.load

  def stopped(options):
    os.kill(os.getpid(), signal.SIGTERM)
    return load(options)

  with monkeypatch.context() as patch:  # before the first step
    patch.setattr(train.sources, "load", stopped)
    with pytest.raises(signals.Stopped):
      train.train_and_evaluate(config, tmp_path)
  for phase, step, number, status, saved in STOPS:
    with monkeypatch.context() as patch:
      stop_at(patch, phase, step, number)
      with pytest.raises(signals.Stopped, match="same command") as caught:
        train.train_and_evaluate(config, tmp_path)
    assert caught.value.status == status
    directory = checkpoint.phase_dir(tmp_path, phase)
    with checkpoint.open_manager(directory) as manager:
      assert manager.latest_step() == saved
      if phase == "classify":  # a step that is not validated is never the best
        best = checkpoint.best_so_far(manager)
        assert best == (-1 if saved < 5 else first)
  train.train_and_evaluate(config, tmp_path)
  assert soak.differences(whole, tmp_path) == []


def test_the_best_does_not_depend_on_the_clock(tmp_path, monkeypatch):
  """Of equals the last counts, whether or not it was time to save."""
  config = tiny.get_run(tmp_path / "cache").unlock()
  del config.classify
  config.pretrain.update(epochs=4, keep="best")
  monkeypatch.setattr(train.evaluate, "write", lambda *_: {})
  for seconds in (0.0, 1e9):
    scores = iter([0.3, 0.5, 0.5, 0.4])
    fake = lambda *_: {"mean_class_accuracy": next(scores)}  # noqa: B023, E731
    monkeypatch.setattr(loop, "_SAVE_EVERY", seconds)
    monkeypatch.setattr(loop, "validate", fake)
    workdir = tmp_path / str(seconds)
    train.train_and_evaluate(config, workdir)
    directory = checkpoint.phase_dir(workdir, "pretrain")
    assert checkpoint.load_model(directory, "best")[1] == 13


def test_handlers_are_put_back():
  before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
  threads = threading.active_count()
  with signals.listening() as stop:
    assert not stop.requested
    assert signal.getsignal(signal.SIGTERM) != before[1]
  after = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
  assert after == before
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
