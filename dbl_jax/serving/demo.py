"""A page on this computer that shows what a model predicts for a photo.

The server listens on 127.0.0.1 only. Pages of other sites cannot use it: it
checks the headers Host, against DNS rebinding, and Origin. Photos stay in
memory and are neither stored nor logged.
"""

import base64
import contextlib
import hashlib
import io
import json
import logging
import re
import socket
import socketserver
import threading
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dbl_jax.data.formats import stored
from dbl_jax.errors import UserError
from dbl_jax.evaluation import activation_maps
from dbl_jax.serving import predict

logger = logging.getLogger(__name__)

MAX_BYTES = 25_000_000  # of a photo
MAX_FACES, MAX_BARS = 20, 10  # shown, of a photo and of a face
_HOSTS = ("127.0.0.1", "localhost")
_CONNECTIONS = 16  # at a time
# For a request to arrive, for its turn, and for its answer to be sent.
_SECONDS = 20.0
_HEADERS = {
  "Cache-Control": "no-store",
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Permissions-Policy": "camera=(self)",
  "Referrer-Policy": "no-referrer",
  "X-Content-Type-Options": "nosniff",
}


class Server(socketserver.ThreadingTCPServer):
  """Serves the page and predictions.

  One photo is read at a time; others wait. Connections beyond a limit are
  closed.

  Attributes:
    page: HTML, set before the server starts, as is the predictor.
    predictor: the model.
  """

  allow_reuse_address = True
  daemon_threads = True
  page: str
  predictor: predict.Predictor

  def __init__(self, port: int):
    """Listens on a port of 127.0.0.1; 0 chooses a free one.

    Raises:
      UserError: if the port cannot be used.
    """
    self.turn = threading.Lock()
    self._free = threading.Semaphore(_CONNECTIONS)
    try:
      super().__init__((_HOSTS[0], port), _Handler)
    except OSError as error:
      raise UserError(
        f"--port={port} cannot be used ({error.strerror}). Give another, such"
        f" as --port={port + 1}."
      ) from error

  @property
  def url(self) -> str:
    """Address of the page."""
    return f"http://{_HOSTS[0]}:{self.server_address[1]}/"

  def process_request(self, request: Any, client_address: Any) -> None:
    """Starts a thread for a connection, or closes it if there are many."""
    if self._free.acquire(blocking=False):
      super().process_request(request, client_address)
    else:
      self.shutdown_request(request)

  def process_request_thread(self, request: Any, client_address: Any) -> None:
    """Handles a connection."""
    try:
      super().process_request_thread(request, client_address)
    finally:
      self._free.release()

  def handle_error(self, request: Any, client_address: Any) -> None:
    """Ignores errors: a client has left, or was too slow."""


class _Handler(BaseHTTPRequestHandler):
  """Answers one request."""

  server: Server
  server_version, sys_version = "dbl_jax", ""
  timeout = _SECONDS

  def handle(self) -> None:
    """Handles one request; a client that is slow to send it is cut off."""
    self.deadline = threading.Timer(_SECONDS, self._cut_off)
    self.deadline.daemon = True
    self.deadline.start()
    try:
      super().handle()
    finally:
      self.deadline.cancel()

  def _cut_off(self) -> None:
    with contextlib.suppress(OSError):
      self.connection.shutdown(socket.SHUT_RDWR)

  def log_message(self, *arguments: Any) -> None:
    """Disables the log."""

  def do_GET(self) -> None:
    """Sends the page."""
    if not self._is_ours():
      self._refuse(403, f"This page is at {self.server.url} only.")
    elif self.path != "/":
      self._refuse(404, f"This page does not exist. See {self.server.url}.")
    else:
      page = self.server.page
      headers = {"Content-Security-Policy": policy(page) + _NO_FRAME}
      self._send(200, "text/html; charset=utf-8", page.encode(), headers)

  def do_POST(self) -> None:
    """Reads a photo from the body and sends the predictions for it."""
    length = self.headers.get("Content-Length", "")
    origin = f"http://{self.headers.get('Host')}"
    if not self._is_ours() or self.headers.get("Origin", origin) != origin:
      self._refuse(403, f"Only the page at {self.server.url} may ask.")
    elif self.path != "/predict":
      self._refuse(404, f"This page does not exist. See {self.server.url}.")
    elif not re.fullmatch("[0-9]{1,18}", length):
      self._refuse(411, "Send the photo with a Content-Length.")
    elif int(length) > MAX_BYTES:
      limit = MAX_BYTES // 10**6
      self._refuse(413, f"The photo is too large: at most {limit} MB are read.")
    else:
      data = self.rfile.read(int(length))
      self.deadline.cancel()
      if len(data) == int(length):  # else the client has left
        self._predict(data)

  def _predict(self, data: bytes) -> None:
    if not self.server.turn.acquire(timeout=_SECONDS):
      self._refuse(503, "Other photos are being read. Try again in a moment.")
      return
    try:
      faces = answer(self.server.predictor, data)
    except UserError as error:
      self._refuse(422, str(error))
    except Exception:  # one photo must not end the server's thread silently
      logger.exception("A photo could not be read")
      self._refuse(500, "The photo could not be read; the terminal has more.")
    else:
      content = json.dumps({"faces": faces}).encode()
      self._send(200, "application/json", content, {})
    finally:
      self.server.turn.release()

  def _is_ours(self) -> bool:
    """Whether the request names this computer, with any port."""
    return self.headers.get("Host", "").partition(":")[0] in _HOSTS

  def _refuse(self, status: int, message: str) -> None:
    content = json.dumps({"error": message}).encode()
    self._send(status, "application/json", content, {})

  def _send(
    self, status: int, kind: str, content: bytes, headers: Mapping[str, str]
  ) -> None:
    self.send_response(status)
    sizes = {"Content-Type": kind, "Content-Length": str(len(content))}
    for name, value in {**_HEADERS, **headers, **sizes}.items():
      self.send_header(name, value)
    self.end_headers()
    self.wfile.write(content)


_NO_FRAME = "; frame-ancestors 'none'"


def fill(facts: Mapping[str, Any]) -> str:
  """The page `demo.html` with the facts that its script reads."""
  page = Path(__file__).with_name("demo.html").read_text("utf-8")
  # A class named '</script>' must not end the script.
  found = json.dumps(facts).replace("<", "\\u003c")
  return page.replace('id="model">{}<', f'id="model">{found}<')


def policy(page: str, scripts: str = "") -> str:
  """Content security policy of a page: inline code of its own, no other host.

  `scripts` are further sources of scripts.
  """
  allowed = {}
  for tag in ("script", "style"):
    inline = re.findall(
      rf"<{tag}(?: type=\"module\")?>(.*?)</{tag}>", page, re.S
    )
    digests = (hashlib.sha256(text.encode()).digest() for text in inline)
    hashes = (base64.b64encode(digest).decode() for digest in digests)
    allowed[tag] = " ".join(f"'sha256-{one}'" for one in hashes)
  return (
    f"default-src 'none'; script-src {allowed['script']}{scripts}; style-src"
    f" {allowed['style']}; img-src blob: data:; connect-src 'self'; base-uri"
    " 'none'; form-action 'none'"
  )


def describe(name: str, class_names: Sequence[str]) -> str:
  """A sentence about a model."""
  listed = stored.few(class_names, MAX_BARS)
  return f"Model: {name}. {len(class_names)} classes: {listed}."


def answer(predictor: predict.Predictor, data: bytes) -> list[dict[str, Any]]:
  """Predicts a photo, the content of an image file.

  Returns:
    For each face, the largest first: 'box' (left, top, right, bottom in pixels
    of the upright photo, or None), 'bars' ('name', 'share' and 'text' of a
    class, by descending score), 'crop' and 'map', PNGs as data URLs, the latter
    None for models without class activation maps.

  Raises:
    UserError: if it is damaged, too large or not an image.
  """
  photo = stored.StoredFile("The photo", len(data), 0, lambda: data)
  found = predictor.read(photo)[:MAX_FACES]
  if found[0][1] is None:
    if found[0][0].note == predict.NO_FACE:
      return []
    raise UserError(found[0][0].note)
  crops = np.stack([crop for _, crop in found if crop is not None])
  scores = predictor.classify(crops)
  faces = []
  for (one, _), crop, row in zip(found, crops, scores, strict=True):
    heat = predictor.activation and predictor.activation(
      crop[None], row.argmax()[None]
    )
    faces.append(
      {
        "box": one.box,
        "bars": _bars(predictor, row),
        "crop": _data_url(crop),
        "map": None
        if heat is None
        else _data_url(activation_maps.overlay(crop, np.asarray(heat[0]))),
      }
    )
  return faces


def _bars(
  predictor: predict.Predictor, scores: np.ndarray
) -> list[dict[str, Any]]:
  """Scores that are not probabilities have lengths, but no unit."""
  shares = predict.relative(scores, predictor.calibrated)
  return [
    {
      "name": predictor.class_names[c],
      "share": float(shares[c]),
      "text": _percent(shares[c]) if predictor.calibrated else "",
    }
    for c in np.argsort(-scores)[:MAX_BARS]
  ]


def _percent(share: float) -> str:
  if 0.995 <= share < 1:
    return ">99%"
  return f"{share:.0%}" if share >= 0.005 else "<1%"


def _data_url(pixels: np.ndarray) -> str:
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, "PNG")
  return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def serve(server: Server, predictor: predict.Predictor, name: str) -> None:
  """Serves the page of a model of that name until Ctrl-C."""
  server.predictor = predictor
  server.page = fill(
    {
      "about": describe(name, predictor.class_names),
      "max_bytes": MAX_BYTES,
      "privacy": "It goes to the program that serves this page only, and is not"
      " stored.",
    }
  )
  blank = np.zeros((1, predictor.image_size, predictor.image_size, 3), np.uint8)
  predictor.classify(blank)  # compiles
  if predictor.activation:
    predictor.activation(blank, np.zeros(1, np.int64))
  print(f"Open {server.url} in a browser. Ctrl-C ends the demo.", flush=True)
  with contextlib.suppress(KeyboardInterrupt):
    server.serve_forever()
