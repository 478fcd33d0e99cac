"""Ctrl-C and SIGTERM: a run finishes its step, saves and ends."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType

_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Stopped(KeyboardInterrupt):
  """A signal ended the run after its state was saved.

  Attributes:
    status: exit status of the program, 128 plus the signal's number.
  """

  def __init__(self, number: int):
    name = _NAMES[signal.Signals(number)]
    super().__init__(f"Stopped by {name}. Run the same command to resume.")
    self.status = 128 + number


class Stop:
  """Whether a stop is requested. Made by `listening`.

  A signal raises `Stopped` at once, except in a block under `in_order`, which
  checks `requested` and ends by itself.
  """

  def __init__(self) -> None:
    self._number: int | None = None
    self._in_order = False
    self._interrupts = 0

  @property
  def requested(self) -> bool:
    """Whether a signal has come."""
    return self._number is not None

  @contextlib.contextmanager
  def in_order(self) -> Iterator[None]:
    """Runs a block without interrupting it; raises `Stopped` at its end."""
    self._in_order = True
    try:
      yield
    finally:  # stays True for the thread that reports the signal
      self._in_order = self.requested
    if self._number is not None:
      raise Stopped(self._number)

  def handle(self, number: int, frame: FrameType | None) -> None:
    """Python's handler: runs in the main thread, between two bytecodes."""
    self._number = number
    if not self._in_order:
      raise Stopped(number)

  def watch(self, signals: socket.socket) -> None:
    """Reports signals at once, even while the main thread compiles.

    Args:
      signals: receives a byte from Python for each signal.
    """
    while data := signals.recv(1):
      number = data[0]
      self._interrupts += number == signal.SIGINT
      if self._interrupts > 1:
        os.write(2, b"\nExits at once. The last checkpoint is complete.\n")
        os._exit(128 + signal.SIGINT)
      if self._in_order and number in _NAMES:
        self._interrupts = max(self._interrupts, 1)
        line = (
          f"{_NAMES[signal.Signals(number)]}: the step in flight is finished"
          " and saved. Ctrl-C now exits at once."
        )
        os.write(2, f"\n{line}\n".encode())


@contextlib.contextmanager
def listening() -> Iterator[Stop]:
  """Handles signals in a block, if it runs in the main thread."""
  stop = Stop()
  if threading.current_thread() is not threading.main_thread():
    yield stop
    return
  ours, pythons = socket.socketpair()
  pythons.setblocking(False)
  thread = threading.Thread(target=stop.watch, args=(ours,), daemon=True)
  thread.start()
  wakeup = signal.set_wakeup_fd(pythons.fileno(), warn_on_full_buffer=False)
  before = {one: signal.signal(one, stop.handle) for one in _NAMES}
  try:
    yield stop
  finally:
    for one, handler in before.items():
      signal.signal(one, handler or signal.SIG_DFL)
    signal.set_wakeup_fd(wakeup)
    pythons.close()
    thread.join()
    ours.close()
