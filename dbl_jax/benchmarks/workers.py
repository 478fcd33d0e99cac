"""A worker as the benchmark sees it: a process that is asked and answers."""

import contextlib
import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

SERVE = Path(__file__).with_name("serve.py")
# A step of the slowest peer takes seconds, compiling it a few minutes.
PATIENCE = 600.0


class WorkerError(Exception):
  """A worker that cannot go on; the message says why."""


class Worker:
  """A process that does one piece of work when asked.

  Attributes:
    command: its command line.
  """

  def __init__(
    self,
    command: Sequence[str],
    env: Mapping[str, str],
    log: Path,
    patience: float = PATIENCE,
  ):
    """Starts it.

    Args:
      command: what answers as `serve` does.
      env: its whole environment.
      log: file to which its stderr is added when it ends.
      patience: seconds to wait for an answer.
    """
    self.command = list(command)
    self._log, self._patience = log, patience
    self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed in close)
    self._pending = b""
    self._process: subprocess.Popen[bytes] | None = None
    try:
      self._process = subprocess.Popen(
        self.command,
        env=dict(env),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=self._errors,
      )
    except OSError as error:
      self._said = f"{self.command[0]} cannot be started: {error.strerror}"

  def __enter__(self) -> Self:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    self.close()

  def send(self, request: Mapping[str, Any]) -> None:
    """Asks; the answer is fetched by `receive`.

    Raises:
      WorkerError: the process has ended.
    """
    _, requests, _ = self._started()
    try:
      requests.write(json.dumps(request).encode() + b"\n")
      requests.flush()
    except OSError as error:
      raise WorkerError(self._last_words()) from error

  def receive(self) -> dict[str, Any]:
    """The answer to the last request.

    Raises:
      WorkerError: the work failed, or the process ended or is silent.
    """
    answer = json.loads(self._line())
    if "error" in answer:
      raise WorkerError(answer["error"])
    return answer

  def close(self) -> None:
    """Ends the process and keeps what it said on stderr."""
    if self._process is not None:
      process, requests, answers = self._started()
      with contextlib.suppress(OSError):  # it has ended already
        requests.close()
      try:
        process.wait(timeout=10)
      except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
      answers.close()
    self._errors.seek(0)
    with self._log.open("ab") as log:
      log.write(f"$ {' '.join(self.command)}\n".encode())
      log.write(self._errors.read())
    self._errors.close()

  def _started(self) -> tuple[subprocess.Popen[bytes], IO[bytes], IO[bytes]]:
    """The process, where it is asked and where it answers."""
    if self._process is None:
      raise WorkerError(self._said)
    requests, answers = self._process.stdin, self._process.stdout
    assert requests is not None  # they are pipes
    assert answers is not None
    return self._process, requests, answers

  def _line(self) -> bytes:
    process, _, answers = self._started()
    descriptor = answers.fileno()
    deadline = time.monotonic() + self._patience
    while b"\n" not in self._pending:
      left = max(0.0, deadline - time.monotonic())
      if not select.select([descriptor], [], [], left)[0]:
        process.kill()
        raise WorkerError(f"no answer in {self._patience:.0f} s")
      chunk = os.read(descriptor, 1 << 16)
      if not chunk:
        raise WorkerError(self._last_words())
      self._pending += chunk
    line, _, self._pending = self._pending.partition(b"\n")
    return line

  def _last_words(self) -> str:
    """How the process ended, with the last it said."""
    process, _, _ = self._started()
    status = process.wait()
    self._errors.seek(0)
    lines = self._errors.read().decode(errors="replace").strip().splitlines()
    return f"ended with status {status}" + (f": {lines[-1]}" if lines else "")
