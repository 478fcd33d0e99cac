"""The demo: its server over HTTP, and its page in a browser."""

import http.client
import io
import json
import re
import socket
import threading

import browser
import mains
import pytest
from PIL import Image

from dbl_jax.errors import UserError
from dbl_jax.serving import demo, predict


@pytest.fixture(scope="module")
def server(predictor):
  with demo.Server(0) as made:
    thread = threading.Thread(target=demo.serve, args=(made, predictor, "run"))
    thread.start()
    yield made
    made.shutdown()
    thread.join()


def encoded(image, form="PNG", **options):
  buffer = io.BytesIO()
  image.save(buffer, form, **options)
  return buffer.getvalue()


def exif():
  tags = Image.Exif()
  tags[0x0112] = 6  # to be turned clockwise
  return tags


def ask(server, body=b"", headers=(), method="POST", path="/predict"):
  """Status, headers and content of an answer."""
  port = server.server_address[1]
  client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
  client.request(method, path, body, dict(headers))
  answer = client.getresponse()
  return answer.status, answer.headers, answer.read()


def test_a_photo_that_is_turned_by_its_exif(server, photo, predictor):
  turned = photo.rotate(90, expand=True)
  body = encoded(turned, "JPEG", exif=exif(), quality=95)
  status, _, content = ask(server, body)
  assert status == 200
  (found,) = json.loads(content)["faces"]
  left, top, right, bottom = found["box"]
  assert 40 < (left + right) / 2 < 200
  assert 70 < (top + bottom) / 2 < 230
  shares = [bar["share"] for bar in found["bars"]]
  assert sum(shares) == pytest.approx(1)
  assert shares == sorted(shares, reverse=True)
  name = predictor.class_names[1]
  assert found["bars"][0] == {"name": name, "share": 0.5, "text": "50%"}
  for key in ("crop", "map"):
    assert found[key].startswith("data:image/png;base64,")


def test_crops_and_photos_without_a_face(server, faces):
  content = ask(server, encoded(Image.fromarray(faces[1])))[2]
  assert json.loads(content)["faces"][0]["box"] is None
  content = ask(server, encoded(Image.new("RGB", (300, 200))))[2]
  assert json.loads(content)["faces"] == []


def bomb():
  """A small file of 100 million pixels."""
  return encoded(Image.new("1", (10_000, 10_000)))


@pytest.mark.parametrize(
  ("body", "headers", "status", "message"),
  [
    (lambda photo: b"", {}, 422, "The photo is empty"),
    (lambda photo: b"GIF89", {}, 422, "damaged or cut off|not an image"),
    (lambda photo: encoded(photo)[:900], {}, 422, "damaged or cut off"),
    (lambda photo: bomb(), {}, 422, "at most 64 million are read"),
    (lambda photo: b"", {"Content-Length": "25000001"}, 413, "at most 25 MB"),
    (lambda photo: b"", {"Content-Length": "-1"}, 411, "Content-Length"),
    (lambda photo: b"", {"Content-Length": "9" * 99}, 411, "Content-Length"),
    # Pages of other sites, by name and by DNS rebinding.
    (encoded, {"Origin": "http://evil.example"}, 403, "Only the page"),
    (encoded, {"Origin": "null"}, 403, "Only the page"),
    (encoded, {"Origin": "http://localhost:1"}, 403, "Only the page"),
    (encoded, {"Host": "evil.example:8000"}, 403, "Only the page"),
    (encoded, {"Host": ""}, 403, "Only the page"),
  ],
)
def test_what_is_refused(server, photo, body, headers, status, message):
  found, _, content = ask(server, body(photo), headers)
  assert found == status
  assert re.search(message, json.loads(content)["error"])


def test_the_page_is_served_with_a_strict_policy(server):
  status, headers, content = ask(server, method="GET", path="/")
  assert status == 200
  policy = headers["Content-Security-Policy"]
  assert policy.startswith("default-src 'none'; script-src 'sha256-")
  assert "unsafe" not in policy
  assert "http" not in policy
  assert "frame-ancestors 'none'" in policy
  assert b"</script><b>" not in content
  assert b"http" not in content.replace(b"http-equiv", b"")
  for headers, path, expected in (
    ({"Host": "evil.example"}, "/", 403),
    ({"Host": "localhost:99"}, "/", 200),  # a forwarded port
    ({}, "/../demo.py", 404),
  ):
    assert ask(server, b"", headers, "GET", path)[0] == expected
  assert ask(server, method="PUT")[0] == 501


def test_photos_are_read_one_at_a_time(server, photo, predictor, monkeypatch):
  inside, most, lock = [], [], threading.Lock()

  def read(self, file):
    with lock:
      inside.append(file)
      most.append(len(inside))
    threading.Event().wait(0.05)
    inside.pop()
    raise UserError("done")

  monkeypatch.setattr(predict.Predictor, "read", read)
  threads = [
    threading.Thread(target=ask, args=(server, b"x")) for _ in range(4)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert most == [1] * 4
  monkeypatch.setattr(demo, "_SECONDS", 0.05)
  with server.turn:
    status, _, content = ask(server, b"x")
  assert status == 503
  assert b"Try again" in content


def test_clients_that_are_slow_or_many_are_cut_off(server, monkeypatch, capfd):
  monkeypatch.setattr(demo, "_SECONDS", 0.3)
  address = server.server_address
  with socket.create_connection(address, timeout=30) as slow:
    slow.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\n")
    slow.sendall(b"Content-Length: 9\r\n\r\nx")
    assert slow.recv(100) == b""
  monkeypatch.setattr(server, "_free", threading.Semaphore(0))
  with socket.create_connection(address, timeout=30) as extra:
    assert extra.recv(100) == b""
  assert capfd.readouterr() == ("", "")


def test_an_unexpected_error_is_answered(server, monkeypatch, caplog):
  def fail(self, file):
    raise RuntimeError("of the test")

  monkeypatch.setattr(predict.Predictor, "read", fail)
  status, _, content = ask(server, b"secret")
  assert status == 500
  assert "terminal" in json.loads(content)["error"]
  assert "of the test" in caplog.text
  assert "secret" not in caplog.text


def test_the_command(predictor, monkeypatch):
  monkeypatch.setattr(predict, "load", lambda *arguments: predictor)

  def interrupted(self):
    raise KeyboardInterrupt

  monkeypatch.setattr(demo.Server, "serve_forever", interrupted)
  done = mains.run("demo", ["--workdir=run", "--port=0"])
  assert (done.status, done.err) == (0, "")
  assert done.out.startswith("Open http://127.0.0.1:")
  assert done.out.count("\n") == 1
  with demo.Server(0) as other:
    port = other.server_address[1]
    done = mains.run("demo", ["--workdir=run", f"--port={port}"])
  assert done.status == 2
  assert f"--port={port} cannot be used" in done.err
  for flags, message in (
    ([], "--workdir is required"),
    (["--port=x", "--workdir=r"], "x"),
  ):
    done = mains.run("demo", flags)
    assert done.status == 2
    assert message in done.err


@pytest.mark.skipif(not browser.BINARY, reason="needs Chromium")
def test_the_page_in_a_browser(server, photo, predictor, tmp_path):
  """Uploads, the webcam, errors, a phone's width; no foreign requests."""
  (tmp_path / "photo.jpg").write_bytes(encoded(photo, "JPEG", quality=95))
  (tmp_path / "damaged.png").write_bytes(encoded(photo)[:900])
  (tmp_path / "large.png").write_bytes(bytes(demo.MAX_BYTES + 1))
  status = "document.querySelector('#status').textContent"
  with browser.opened(tmp_path / "profile") as page:
    page.open(server.url)
    page.choose_file("#file", tmp_path / "photo.jpg")
    page.wait_for(f"{status} == '1 face found.'")
    assert page.run("document.querySelector('h2').textContent") == (
      f"Face 1: {predictor.class_names[1]}"
    )
    assert page.run("document.querySelectorAll('.bars li').length") == 3
    assert page.run("document.querySelectorAll('.pictures img').length") == 2
    assert page.run("document.documentElement.scrollWidth") == 390
    box = page.run(
      "document.querySelector('.photo span').getBoundingClientRect().toJSON()"
    )
    shown = page.run(
      "document.querySelector('.photo img').getBoundingClientRect().toJSON()"
    )
    assert shown["x"] < box["x"] < box["right"] < shown["right"]
    assert page.errors == []
    for name, message in (
      ("damaged.png", "damaged or cut off"),
      ("large.png", "at most 25 MB"),
    ):
      page.choose_file("#file", tmp_path / name)
      page.wait_for(f"{status}.includes('{message}')")
      assert page.run("document.querySelectorAll('#faces li').length") == 0
    # By keyboard alone: the webcam's button is the second stop.
    for key in ("Tab", "Tab", "Enter"):
      text = {"text": "\r"} if key == "Enter" else {}
      for kind in ("keyDown", "keyUp"):
        page("Input.dispatchKeyEvent", type=kind, key=key, code=key, **text)
    page.wait_for("document.activeElement.id == 'shoot'")
    page.run("document.activeElement.click()")
    page.wait_for(f"{status}.startsWith('No face was found')")
    page.run("document.querySelector('#stop').click()")
    assert page.run("document.querySelector('video').srcObject") is None
