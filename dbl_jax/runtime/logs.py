"""What a run says while it works: a line, a file, TensorBoard."""

import json
import logging
import math
import platform
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dbl_jax.runtime import distributed, files

log = logging.getLogger(__name__)


def say(line: str) -> None:
  """Prints a line, once for all processes of a run."""
  if distributed.is_main():
    print(line, flush=True)


class MetricWriter:
  """Figures of a run: `metrics.jsonl` always, TensorBoard where possible."""

  def __init__(self, workdir: Path, tensorboard: bool):
    self._path = workdir / "metrics.jsonl"
    wanted = tensorboard and distributed.is_main()
    self._writer = _open_events(workdir) if wanted else None

  def __enter__(self) -> Self:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    if self._writer is not None:
      self._writer.close()

  def rows(self) -> list[dict[str, Any]]:
    """All rows so far."""
    return read_rows(self._path)

  def rewind(self, phase: str, step: int) -> None:
    """Forgets what a resumed phase will do again: rows after `step`."""
    if not distributed.is_main():
      return
    kept = [
      row for row in self.rows() if row["phase"] != phase or row["step"] <= step
    ]
    lines = "".join(json.dumps(row) + "\n" for row in kept)
    files.write(self._path, lines.encode())

  def write(
    self, phase: str, step: int, epoch: float, figures: dict[str, float]
  ) -> None:
    """Adds a row.

    Args:
      phase: name of the phase.
      step: steps of the phase done.
      epoch: the same in epochs.
      figures: name -> value; those that are not finite are left out.
    """
    if not distributed.is_main():
      return
    figures = {k: v for k, v in figures.items() if math.isfinite(v)}
    row = {"phase": phase, "step": step, "epoch": round(epoch, 4)} | figures
    with self._path.open("a") as file:
      file.write(json.dumps(row) + "\n")
    if self._writer is not None:
      named = {f"{phase}/{name}": value for name, value in figures.items()}
      self._writer.write(step, named)


def read_rows(path: Path) -> list[dict[str, Any]]:
  """Rows of a metrics.jsonl; a half-written line is left out.

  Args:
    path: the file; no file has no rows.

  Returns:
    The rows, in order.
  """
  if not path.exists():
    return []
  rows = []
  for line in path.read_text(errors="replace").splitlines():
    try:
      row = json.loads(line)
      if not isinstance(row["phase"], str) or not isinstance(row["step"], int):
        raise TypeError
    except (ValueError, KeyError, TypeError):
      log.warning("%s: a line is damaged and left out.", path)
    else:
      rows.append(row)
  return rows


class _Events:
  """TensorBoard's file of figures, readable while it grows.

  Written with the tensorboard package alone: clu and tf.summary would import
  TensorFlow for it, which takes longer than JAX and half a GB.
  """

  def __init__(self, directory: Path):
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.summary.writer import record_writer

    self._event, self._summary = event_pb2.Event, summary_pb2.Summary
    directory.mkdir(parents=True, exist_ok=True)
    name = f"events.out.tfevents.{time.time_ns()}.{platform.node()}"
    self._file = record_writer.RecordWriter((directory / name).open("wb"))
    self._add(file_version="brain.Event:2")

  def write(self, step: int, figures: dict[str, float]) -> None:
    """Adds figures of a step."""
    values = [
      self._summary.Value(tag=name, simple_value=value)
      for name, value in figures.items()
    ]
    self._add(step=step, summary=self._summary(value=values))

  def _add(self, **fields: Any) -> None:
    event = self._event(wall_time=time.time(), **fields)
    self._file.write(event.SerializeToString())
    self._file.flush()

  def close(self) -> None:
    self._file.close()


def _open_events(workdir: Path) -> _Events | None:
  try:
    return _Events(workdir / "tensorboard")
  except ImportError as error:
    log.warning(
      "No TensorBoard files: %s is not installed. Figures go to %s.",
      error.name,
      workdir / "metrics.jsonl",
    )
    return None


class Progress:
  """One line about how far long work is, how fast, and how long it takes."""

  def __init__(self, name: str, total: int, images: int = 1):
    """Begins.

    Args:
      name: of the work.
      total: how many steps it has.
      images: how many of them a step handles.
    """
    self._name, self._total, self._images = name, total, images
    self._terminal = sys.stdout.isatty()
    self._interval = 0.5 if self._terminal else 10.0
    self._started: tuple[int, float] | None = None
    self._shown = 0.0

  def show(self, step: int, *words: str, last: bool = False) -> None:
    """Shows the line, if the last one is old enough.

    Args:
      step: steps done.
      words: more to say, before the rate.
      last: show it whatever the time, and end the line.
    """
    now = time.perf_counter()
    if self._started is None:  # the first steps hold compilation
      self._started = (step, now)
    too_early = not last and now - self._shown < self._interval
    if too_early or not distributed.is_main():
      return
    self._shown = now
    steps, seconds = step - self._started[0], now - self._started[1]
    parts = [self._name, *words]
    if steps and seconds:
      left = (self._total - step) * seconds / steps
      rate = steps / seconds * self._images
      parts += [f"{rate:.0f} images/s", f"{clock(left)} left"]
    line = "  ".join(parts)
    if self._terminal:
      print(f"\r\033[K{line}", end="\n" if last else "", flush=True)
    else:
      print(line, flush=True)


def clock(seconds: float) -> str:
  """Seconds as h:mm:ss or m:ss."""
  minutes, second = divmod(round(seconds), 60)
  hours, minute = divmod(minutes, 60)
  return (
    f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
  )
