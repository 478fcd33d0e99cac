"""Logs of a run: printed lines, metrics.jsonl and TensorBoard."""

import json
import logging
import math
import platform
import sys
import time
from pathlib import Path
from typing import Any, Self

from dbl_jax.runtime import distributed, files

logger = logging.getLogger(__name__)


def say(line: str) -> None:
  """Prints a line, once for all processes of a run."""
  if distributed.is_main():
    print(line, flush=True)


class MetricWriter:
  """Writes metrics to `metrics.jsonl` and TensorBoard, on the main process."""

  def __init__(self, workdir: Path, tensorboard: bool):
    self._path = workdir / "metrics.jsonl"
    wanted = tensorboard and distributed.is_main()
    self._events = _open_events(workdir) if wanted else None

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: object) -> None:
    if self._events is not None:
      self._events.close()

  def rows(self) -> list[dict[str, Any]]:
    """Returns all rows so far."""
    return read_rows(self._path)

  def rewind(self, phase: str, step: int) -> None:
    """Removes rows after `step`, which the resumed phase will write again."""
    if not distributed.is_main():
      return
    lines = [
      json.dumps(row) + "\n"
      for row in self.rows()
      if row["phase"] != phase or row["step"] <= step
    ]
    files.write(self._path, "".join(lines).encode())

  def write(
    self, phase: str, step: int, epoch: float, metrics: dict[str, float]
  ) -> None:
    """Appends a row.

    Args:
      phase: name of the phase.
      step: number of steps of the phase done.
      epoch: the same in epochs.
      metrics: name -> value; values that are not finite are omitted.
    """
    if not distributed.is_main():
      return
    metrics = {k: v for k, v in metrics.items() if math.isfinite(v)}
    row = {"phase": phase, "step": step, "epoch": round(epoch, 4)} | metrics
    with self._path.open("a") as file:
      file.write(json.dumps(row) + "\n")
    if self._events is not None:
      named = {f"{phase}/{name}": value for name, value in metrics.items()}
      self._events.write(step, named)


def read_rows(path: Path) -> list[dict[str, Any]]:
  """Reads a metrics.jsonl, omitting damaged lines.

  Args:
    path: the file; if there is none, there are no rows.

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
      logger.warning("%s: a line is damaged and omitted.", path)
    else:
      rows.append(row)
  return rows


class _Events:
  """Writes TensorBoard's event file, readable while it grows.

  clu, tf.summary and tensorboard.summary would import TensorFlow, which takes
  longer than JAX and half a GB.
  """

  def __init__(self, directory: Path):
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.summary.writer import record_writer

    self._event, self._summary = event_pb2.Event, summary_pb2.Summary
    directory.mkdir(parents=True, exist_ok=True)
    name = f"events.out.tfevents.{time.time_ns()}.{platform.node()}"
    self._file = record_writer.RecordWriter((directory / name).open("wb"))
    self.close = self._file.close
    self._add(file_version="brain.Event:2")

  def write(self, step: int, metrics: dict[str, float]) -> None:
    values = [
      self._summary.Value(tag=name, simple_value=value)
      for name, value in metrics.items()
    ]
    self._add(step=step, summary=self._summary(value=values))

  def _add(self, **fields: Any) -> None:
    event = self._event(wall_time=time.time(), **fields)
    self._file.write(event.SerializeToString())
    self._file.flush()


def _open_events(workdir: Path) -> _Events | None:
  try:
    return _Events(workdir / "tensorboard")
  except ImportError as error:
    logger.warning(
      "No TensorBoard files: %s is not installed. Metrics are in %s.",
      error.name,
      workdir / "metrics.jsonl",
    )
    return None


class Progress:
  """A line with the state, rate and remaining time of long work."""

  def __init__(self, name: str, total: int, images: int = 1):
    """Starts.

    Args:
      name: name of the work.
      total: number of steps.
      images: images per step.
    """
    self._name, self._total, self._images = name, total, images
    self._terminal = sys.stdout.isatty()
    self._interval = 0.5 if self._terminal else 10.0  # seconds
    self._started: tuple[int, float] | None = None
    self._shown = 0.0

  def show(self, step: int, *words: str, last: bool = False) -> None:
    """Prints the line if the last one is old enough.

    Args:
      step: number of steps done.
      words: printed before the rate.
      last: print in any case, and end the line.
    """
    now = time.perf_counter()
    if self._started is None:  # compilation is not part of the rate
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
  """Formats seconds as h:mm:ss or m:ss."""
  minutes, second = divmod(round(seconds), 60)
  hours, minute = divmod(minutes, 60)
  return (
    f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
  )
