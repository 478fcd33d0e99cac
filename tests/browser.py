"""Drives headless Chromium by its DevTools protocol, over a pipe."""

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import time

BINARY = next(
  filter(None, map(shutil.which, ("chromium", "google-chrome"))), None
)
_FLAGS = (
  "--headless=new",
  "--no-sandbox",
  "--disable-gpu",
  "--no-first-run",
  "--disable-background-networking",
  "--use-fake-device-for-media-stream",
  "--use-fake-ui-for-media-stream",
  "--remote-debugging-pipe",
)


class Browser:
  """One tab. `errors` has what its pages logged as errors."""

  def __init__(self, reader, writer):
    self._reader, self._writer, self._read = reader, writer, b""
    self._count, self._session, self.errors = 0, {}, []
    target = self("Target.createTarget", url="about:blank")["targetId"]
    attached = self("Target.attachToTarget", targetId=target, flatten=True)
    self._session = {"sessionId": attached["sessionId"]}
    for domain in ("Page", "Runtime", "Log", "DOM"):
      self(f"{domain}.enable")

  def __call__(self, method, **params):
    """Calls a method of the protocol; see the DevTools documentation."""
    self._count += 1
    call = {"id": self._count, "method": method, "params": params}
    self._writer.write(json.dumps(call | self._session).encode() + b"\0")
    self._writer.flush()
    while True:
      answer = self._receive()
      if answer.get("id") == self._count:
        assert "error" not in answer, answer
        return answer["result"]
      if answer.get("method") == "Runtime.exceptionThrown":
        self.errors.append(answer["params"]["exceptionDetails"])
      entry = answer.get("params", {}).get("entry", {})
      if entry.get("level") == "error":
        self.errors.append(entry)

  def _receive(self):
    while b"\0" not in self._read:
      read = self._reader.read1()
      assert read, "Chromium has ended"
      self._read += read
    message, _, self._read = self._read.partition(b"\0")
    return json.loads(message)

  def run(self, script):
    """The value of an expression in the page."""
    found = self(
      "Runtime.evaluate",
      expression=script,
      awaitPromise=True,
      returnByValue=True,
    )
    assert "exceptionDetails" not in found, found
    return found["result"].get("value")

  def wait_for(self, script, seconds=60):
    """Waits until an expression is true, and returns it."""
    end = time.monotonic() + seconds
    while not (value := self.run(script)):
      assert time.monotonic() < end, f"not within {seconds} s: {script}"
      time.sleep(0.05)
    return value

  def open(self, url):
    self("Page.navigate", url=url)
    self.wait_for(
      f"location.href == {url!r} && document.readyState == 'complete'"
    )

  def choose_file(self, selector, path):
    """Chooses a file in an input, as a user does."""
    root = self("DOM.getDocument")["root"]["nodeId"]
    node = self("DOM.querySelector", nodeId=root, selector=selector)
    self("DOM.setFileInputFiles", files=[str(path)], nodeId=node["nodeId"])


@contextlib.contextmanager
def opened(profile):
  """A browser with its profile in a folder."""
  ours, theirs = os.pipe(), os.pipe()  # we write to the first
  # Beyond 3 and 4, which Chromium reads from and writes to.
  ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (ours[0], theirs[1])]
  command = f'exec "$0" "$@" 3<&{ends[0]} 4>&{ends[1]}'
  process = subprocess.Popen(
    ["bash", "-c", command, BINARY, f"--user-data-dir={profile}", *_FLAGS],
    pass_fds=ends,
    stderr=subprocess.DEVNULL,
  )
  for end in (ours[0], theirs[1], *ends):
    os.close(end)
  try:
    with open(theirs[0], "rb") as reader, open(ours[1], "wb") as writer:
      yield Browser(reader, writer)
  finally:
    process.terminate()
    process.wait()
