"""The page of `demo` as static files, which run the model in the browser."""

import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from dbl_jax.data import face_crops, faces
from dbl_jax.errors import UserError
from dbl_jax.serving import demo, onnx_graph, predict

# Runs ONNX in browsers; https://www.npmjs.com/package/onnxruntime-web
_RUNTIME = "onnxruntime-web@1.30.0"
_RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
_DETECTORS = ("pnet", "rnet", "onet")
_SECONDS = 600  # for npm, which fetches 33 MB
_SCRIPT = '<script type="module" src="web.js"></script>\n'
# Constants of Python that web.js uses.
_CONSTANTS = {
  faces: (
    "SIZES",
    "THRESHOLDS",
    "FINAL_THRESHOLD",
    "MIN_FACE",
    "CELL",
    "STRIDE",
    "PYRAMID_FACTOR",
    "SHORTEST",
    "LONGEST",
    "BORDER",
    "TURNS",
    "UPRIGHT",
  ),
  predict: ("NEAR", "SQUARE", "SMALL"),
  demo: ("MAX_FACES", "MAX_BARS"),
}


def build(workdir: Path, out: Path) -> Path:
  """Writes the page of an exported run.

  Args:
    workdir: workdir of the run.
    out: folder with its `model.onnx`, see `export.export`.

  Returns:
    The folder `web` in `out`. Its files are replaced once all are complete.

  Raises:
    UserError: if npm is missing or fails.
  """
  predictor = predict.load(workdir)
  web, here = out / "web", Path(__file__).parent
  with tempfile.TemporaryDirectory(prefix=".web-", dir=out) as partial:
    folder = Path(partial)
    _fetch_runtime(folder)
    shutil.copy(out / "model.onnx", folder)
    shutil.copy(here / "web.js", folder)
    shutil.copy(Path(faces.__file__).with_name("mtcnn.LICENSE"), folder)
    for name in _DETECTORS:
      detector = onnx_graph.build_detector(name).SerializeToString()
      (folder / f"{name}.onnx").write_bytes(detector)
    name = workdir.resolve().name
    (folder / "index.html").write_text(_page(predictor, name), "utf-8")
    web.mkdir(exist_ok=True)
    for file in folder.iterdir():
      os.replace(file, web / file.name)
  return web


def _page(predictor: predict.Predictor, name: str) -> str:
  """The HTML of the page for a model of that name."""
  template = predictor.template
  page = demo.fill(
    {
      "about": demo.describe(name, predictor.class_names),
      "privacy": "It does not leave this browser.",
      "classes": predictor.class_names,
      "image_size": predictor.image_size,
      "region": face_crops.REGIONS[predictor.region],
      "template": None if template is None else template.tolist(),
      "grey": predictor.grey,
      "searches": predictor.searches,
      "constants": {
        name: getattr(module, name)
        for module, names in _CONSTANTS.items()
        for name in names
      },
    }
  )
  policy = demo.policy(page, " 'self' 'wasm-unsafe-eval'")
  meta = f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
  page = page.replace("<meta name", f"{meta}<meta name", 1)
  return page.replace("<script", f"{_SCRIPT}<script", 1)


def _fetch_runtime(folder: Path) -> None:
  """Copies the files of onnxruntime-web to a folder."""
  npm = shutil.which("npm")
  if npm is None:
    raise UserError(
      f"--web: npm, which fetches {_RUNTIME}, is not installed. Install"
      " Node.js, or export on a machine that has it. The other files are"
      " complete."
    )
  with tempfile.TemporaryDirectory() as packed:
    command = [npm, "pack", _RUNTIME, "--prefer-offline", "--fetch-retries=1"]
    try:
      done = subprocess.run(
        command, cwd=packed, capture_output=True, text=True, timeout=_SECONDS
      )
      why = "" if done.returncode == 0 else done.stderr
    except subprocess.TimeoutExpired:
      why = f"no answer in {_SECONDS} s"
    found = list(Path(packed).glob("*.tgz"))
    if why or not found:
      raise UserError(
        f"--web: npm could not fetch {_RUNTIME} ({why.strip()[:500]}). Check"
        " the connection to npm's registry. The other files are complete."
      )
    with tarfile.open(found[0]) as archive:
      for name in _RUNTIME_FILES:
        file = archive.extractfile(f"package/dist/{name}")
        assert file is not None
        (folder / name).write_bytes(file.read())
