"""`export --web`: the page runs the model in the browser as JAX does."""

import base64
import functools
import http.server
import io
import threading

import browser
import jax
import numpy as np
import pytest
from PIL import Image

from dbl_jax import config as configs
from dbl_jax.data import face_crops
from dbl_jax.data.formats import stored
from dbl_jax.errors import UserError
from dbl_jax.models import layers
from dbl_jax.models.model import make_model
from dbl_jax.serving import onnx_graph, predict, web
from dbl_jax.training import steps

NAMES, SIZE = ("a", "b", "c"), 48


@pytest.fixture(scope="module")
def exported(faces, tmp_path_factory):
  """A predictor with an untrained model, and the folder with its ONNX."""
  config = configs.base()
  config.data.image_size = SIZE
  config.model = configs.dcnn()
  config.model.update(pooling="average", dtype="float32")
  config.classify = configs.supervised()
  config = configs.resolve(config)
  model = make_model(config.model, config.classify.head, len(NAMES))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(layers, "conv2d", layers._lax_conv)  # compiles sooner
    variables = steps.init_variables(model, jax.random.key(0), SIZE)
    kernel = variables["params"]["head"]["logits"]["kernel"]
    kernel = 1000 * jax.random.normal(jax.random.key(1), kernel.shape)
    variables["params"]["head"]["logits"]["kernel"] = kernel
    run = jax.jit(lambda x: model.apply(variables, x / 255, train=False)[1])

    def classify(crops):
      return np.asarray(jax.nn.softmax(run(crops.astype(np.float32))))

    classify(np.zeros((1, SIZE, SIZE, 3), np.uint8))
  out = tmp_path_factory.mktemp("export")
  proto = onnx_graph.build(config, "classify", variables, NAMES)
  (out / "model.onnx").write_bytes(proto.SerializeToString())
  template = face_crops.template_of(faces)
  return predict.Predictor(
    NAMES, SIZE, "face", template, False, True, classify
  ), out


@pytest.fixture(scope="module")
def page(exported):
  """The folder of the page."""
  predictor, out = exported
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(predict, "load", lambda workdir: predictor)
    try:
      return web.build(out / "run", out)
    except UserError as error:
      pytest.skip(str(error))


@pytest.fixture(scope="module")
def url(page):
  """Address of a server of the page, as any static one."""

  class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
      pass

  handler = functools.partial(Handler, directory=page)
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    thread.join()


def photos(faces):
  """A crop as in training, and a photo with a tilted face."""
  face = Image.fromarray(faces[1])
  photo = Image.new("RGB", (400, 300), (120, 120, 120))
  turned = face.resize((160, 160)).rotate(15, Image.Resampling.BICUBIC, True)
  mask = Image.new("L", (160, 160), 255).rotate(15, expand=True)
  photo.paste(turned, (40, 50), mask)
  return {"crop.png": face.resize((SIZE, SIZE)), "photo.png": photo}


@pytest.mark.skipif(not browser.BINARY, reason="needs Chromium")
def test_the_page_gives_the_probabilities_of_jax(
  exported, page, url, faces, tmp_path
):
  predictor, _ = exported
  for name, photo in photos(faces).items():
    photo.save(page / name)
  with browser.opened(tmp_path / "profile") as tab:
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    tab("Emulation.setEmulatedMedia", features=dark)
    tab.open(url)
    for name, box_differs in (("crop.png", None), ("photo.png", 8)):
      found = tab.run(f"fetch({name!r}).then(r => r.blob()).then(predictPhoto)")
      ((expected, crop),) = predictor.read(stored.of_path(page / name))
      assert len(found) == 1
      png = base64.b64decode(found[0]["crop"].partition(",")[2])
      shown = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
      if box_differs is None:  # nothing is resampled
        assert found[0]["box"] is expected.box is None
        np.testing.assert_array_equal(shown, crop)
      else:
        np.testing.assert_allclose(
          found[0]["box"], expected.box, atol=box_differs
        )
        assert np.abs(shown.astype(int) - crop).mean() < 6
      shares = {bar["name"]: bar["share"] for bar in found[0]["bars"]}
      np.testing.assert_allclose(
        [shares[name] for name in NAMES],
        predictor.classify(shown[None])[0],
        atol=1e-4,
      )
    tab.choose_file("#file", page / "photo.png")
    tab.wait_for("document.querySelector('#status').textContent != ''")
    tab.wait_for("document.querySelectorAll('.bars li').length == 3")
    assert tab.run("document.documentElement.scrollWidth") == 390
    background = "getComputedStyle(document.body).backgroundColor"
    assert tab.run(background) == "rgb(20, 23, 26)"
    loaded = "performance.getEntriesByType('resource').map((e) => e.name)"
    loaded = tab.run(loaded)
    assert f"{url}onet.onnx" in loaded
    assert all(name.startswith((url, "blob:", "data:")) for name in loaded)
    assert tab.errors == []


@pytest.mark.parametrize(
  ("npm", "message"),
  [
    (None, "npm, which fetches onnxruntime-web.* is not installed"),
    ("echo offline >&2; exit 1", r"could not fetch .* \(offline\)"),
  ],
)
def test_without_npm_or_network_nothing_is_left_behind(
  npm, message, tmp_path, monkeypatch
):
  bin_, out = tmp_path / "bin", tmp_path / "out"
  bin_.mkdir()
  out.mkdir()
  if npm:
    (bin_ / "npm").write_text(f"#!/bin/sh\n{npm}\n")
    (bin_ / "npm").chmod(0o755)
  monkeypatch.setenv("PATH", str(bin_))
  monkeypatch.setattr(predict, "load", lambda workdir: None)
  with pytest.raises(UserError, match=message):
    web.build(tmp_path, out)
  assert list(out.iterdir()) == []
