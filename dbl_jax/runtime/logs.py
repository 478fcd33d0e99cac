"""Logs of a run: printed lines, metrics.jsonl and TensorBoard."""

import datetime
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


def print_line(line: str) -> None:
  """Prints a line, once for all processes of a run."""
  if distributed.is_main():
    print(line, flush=True)


class MetricWriter:
  """Writes metrics to `metrics.jsonl` and TensorBoard, on the main process."""

  def __init__(self, workdir: Path, tensorboard: bool):
    self._path = workdir / "metrics.jsonl"
    self._events: _EventFile | None = None
    if tensorboard and distributed.is_main():
      try:
        self._events = _EventFile(workdir / "tensorboard")
      except ImportError as error:
        logger.warning(
          "No TensorBoard files: %s is not installed. Metrics are in %s.",
          error.name,
          self._path,
        )

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
    if distributed.is_main():
      rows = self.rows()
      retained = (r for r in rows if r["phase"] != phase or r["step"] <= step)
      text = "".join(json.dumps(row) + "\n" for row in retained)
      files.write(self._path, text.encode())

  def write(
    self, phase: str, step: int, epoch: float, metrics: dict[str, float]
  ) -> None:
    """Appends a row of finite metrics: `step` steps of the phase are done."""
    if not distributed.is_main():
      return
    metrics = {k: v for k, v in metrics.items() if math.isfinite(v)}
    row = {"phase": phase, "step": step, "epoch": round(epoch, 4)} | metrics
    with self._path.open("a") as file:
      file.write(json.dumps(row) + "\n")
    if self._events is not None:
      values = [
        {"tag": f"{phase}/{k}", "simple_value": v} for k, v in metrics.items()
      ]
      self._events.add(step=step, summary={"value": values})


def read_rows(path: Path) -> list[dict[str, Any]]:
  """Reads a metrics.jsonl in order, omitting damaged lines; [] without one."""
  rows = []
  text = path.read_text(errors="replace") if path.exists() else ""
  for line in text.splitlines():
    try:
      row = json.loads(line)
      if not isinstance(row["phase"], str) or not isinstance(row["step"], int):
        raise TypeError
    except (ValueError, KeyError, TypeError):
      logger.warning("%s: a line is damaged and omitted.", path)
    else:
      rows.append(row)
  return rows


class _EventFile:
  """TensorBoard's event file, readable while it grows.

  clu, tf.summary and tensorboard.summary would import TensorFlow, which takes
  longer than JAX and half a GB.
  """

  def __init__(self, directory: Path):
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    directory.mkdir(parents=True, exist_ok=True)
    name = f"events.out.tfevents.{time.time_ns()}.{platform.node()}"
    self._event = Event
    self._file = RecordWriter((directory / name).open("wb"))
    self.close = self._file.close
    self.add(file_version="brain.Event:2")

  def add(self, **fields: Any) -> None:
    """Appends an event with the fields of TensorBoard's event.proto."""
    event = self._event(wall_time=time.time(), **fields)
    self._file.write(event.SerializeToString())
    self._file.flush()


class Progress:
  """A line with the state, rate and remaining time of long work."""

  def __init__(self, name: str, total: int = 0, images: int = 1):
    """Starts work of `total` steps with `images` images each."""
    self._name, self._total, self._images = name, total, images
    self._terminal = sys.stdout.isatty()
    self._interval = 0.5 if self._terminal else 10.0  # seconds
    self._started: tuple[int, float] | None = None
    self._shown = 0.0

  def count(self, done: int, total: int) -> None:
    """Prints the line for work that is counted, of a total known by now."""
    self._total = total
    self.show(done, f"{done}/{total}", last=done == total)

  def show(self, step: int, *words: str, last: bool = False) -> None:
    """Prints the line, if the last one is old enough or this one is the last.

    It shows `words` before the rate; `step` steps are done.
    """
    now = time.perf_counter()
    if self._started is None:  # compilation is not part of the rate
      self._started = (step, now)
    too_early = not last and now - self._shown < self._interval
    if too_early or not distributed.is_main():
      return
    self._shown = now
    parts = [self._name, *words]
    steps, seconds = step - self._started[0], now - self._started[1]
    if steps and seconds:
      left = clock((self._total - step) * seconds / steps)
      rate = steps / seconds * self._images
      parts += [f"{rate:.0f} images/s", f"{left} left"]
    line = "  ".join(parts)
    if self._terminal:
      print(f"\r\033[K{line}", end="\n" if last else "", flush=True)
    else:
      print(line, flush=True)


def clock(seconds: float) -> str:
  """Formats seconds as h:mm:ss."""
  return str(datetime.timedelta(seconds=round(seconds)))
