"""Leaving in order: what Ctrl-C and SIGTERM do to a run."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
# Seconds at most until the watching thread has said that a signal came.
_TELLING = 1.0


class Stopped(KeyboardInterrupt):
  """A signal ended the run; what it had done is saved.

  Attributes:
    status: exit status of the program, 128 and the signal's number.
  """

  def __init__(self, number: int):
    name = _NAMES[signal.Signals(number)]
    super().__init__(f"Stopped by {name}. Run the same command to go on.")
    self.status = 128 + number


class Stop:
  """Whether to stop. Made by `listening`.

  A signal raises `Stopped` where it comes, but for blocks under `in_order`,
  which look at `requested` and end by themselves.
  """

  def __init__(self) -> None:
    self._number: int | None = None
    self._in_order = False
    self._interrupts = 0
    self._told = threading.Event()

  @property
  def requested(self) -> bool:
    """Whether a signal has come."""
    return self._number is not None

  @contextlib.contextmanager
  def in_order(self) -> Iterator[None]:
    """A block that is not interrupted; `Stopped` is raised at its end."""
    self._in_order = True
    try:
      yield
    finally:
      if self._number is not None:
        self._told.wait(_TELLING)
      self._in_order = False
    if self._number is not None:
      raise Stopped(self._number)

  def handle(self, number: int, frame: FrameType | None) -> None:
    """Python's handler: runs in the main thread, between two bytecodes."""
    self._number = number
    if not self._in_order:
      raise Stopped(number)

  def watch(self, signals: socket.socket) -> None:
    """Hears signals at once, also while the main thread compiles.

    Args:
      signals: where Python writes a byte for each.
    """
    while data := signals.recv(1):
      number = data[0]
      self._interrupts += number == signal.SIGINT
      if self._interrupts > 1:
        _tell("Left at once. The last checkpoint is whole.")
        os._exit(128 + signal.SIGINT)
      if self._in_order and number in _SIGNALS:
        self._interrupts = max(self._interrupts, 1)
        _tell(
          f"{_NAMES[signal.Signals(number)]}: the step in flight is finished"
          " and saved. Ctrl-C now leaves at once."
        )
      self._told.set()


def _tell(line: str) -> None:
  os.write(2, f"\n{line}\n".encode())


@contextlib.contextmanager
def listening() -> Iterator[Stop]:
  """Handles signals in a block, where it runs in the main thread.

  Yields:
    What to ask whether to stop.
  """
  stop = Stop()
  if threading.current_thread() is not threading.main_thread():
    yield stop
    return
  ours, pythons = socket.socketpair()
  pythons.setblocking(False)
  thread = threading.Thread(target=stop.watch, args=(ours,), daemon=True)
  thread.start()
  wakeup = signal.set_wakeup_fd(pythons.fileno(), warn_on_full_buffer=False)
  before = {one: signal.signal(one, stop.handle) for one in _SIGNALS}
  try:
    yield stop
  finally:
    for one, handler in before.items():
      signal.signal(one, handler or signal.SIG_DFL)
    signal.set_wakeup_fd(wakeup)
    pythons.close()
    thread.join()
    ours.close()
