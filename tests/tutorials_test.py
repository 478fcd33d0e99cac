"""The tutorials of docs/, block by block, on a few drawn faces."""

import re
import shlex
import shutil
from unittest import mock

import mains
import pytest
from PIL import Image

import tiny  # noqa: F401, adds the encoder
from dbl_jax import cli
from dbl_jax import config as configs
from dbl_jax.data import synthetic
from dbl_jax.losses.terms import TERMS

_BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Flags that are added to a page's training commands: quick to compile.
_FLAGS = {
  "photos.md": "--config.classify.epochs=0 --config.data.image_size=16"
  " --config.model.name=dcnn",
  "adding_a_method.md": "--config.classify.epochs=1 --config.model.name=tiny"
  " --config.data.num_train=70 --config.data.num_test=14"
  " --config.data.image_size=16 --config.classify.batch_size=16",
}


def run_page(page, monkeypatch):
  """Runs the blocks of a page in order, in the current folder."""
  monkeypatch.setenv("XDG_CACHE_HOME", "cache")
  text = (mains.ROOT / "docs" / page).read_text()
  for language, block in _BLOCK.findall(text):
    if file := re.match(r"# (configs/\w+\.py)\n", block):
      with open(file[1], "w") as config:
        config.write(block)
      assert configs.resolve(cli.load_config(file[1]))
    elif language == "python":
      exec(compile(block, page, "exec"), {})
    else:
      for command in block.replace("\\\n", "").splitlines():
        run_command(shlex.split(command), _FLAGS.get(page, "").split())


def run_command(words, training_flags):
  if words[0] == "pip":
    return
  assert words[0] == "python"
  if words[1] == "-m":
    assert words[2] == "dbl_jax.main"
    done = mains.run("main", [*words[3:], *training_flags])
  else:
    done = mains.run(words[1][len("scripts/") : -len(".py")], words[2:])
  assert done.status == 0, f"{words}: {done.err}"


@pytest.fixture
def clone(tmp_path, monkeypatch):
  """A folder with configs and photos, as a reader of the tutorials has it."""
  shutil.copytree(mains.ROOT / "configs", tmp_path / "configs")
  images, labels = synthetic.make_split("train", 90, 48, 1)
  names = ("happy", "neutral", "sad")
  for image, label in zip(images, labels, strict=True):
    folder = tmp_path / "photos" / names[label % 3]
    folder.mkdir(parents=True, exist_ok=True)
    number = len(list(folder.iterdir())) + 1
    Image.fromarray(image).save(folder / f"{number:03}.jpg")
  photo = Image.new("RGB", (320, 240), (120, 120, 120))
  photo.paste(Image.fromarray(images[0]).resize((120, 120)), (90, 60))
  photo.save(tmp_path / "new.jpg")
  monkeypatch.chdir(tmp_path)
  return tmp_path


def test_from_class_folders_to_predictions_and_onnx(clone, monkeypatch, capsys):
  run_page("photos.md", monkeypatch)
  assert capsys.readouterr().out.strip() in ("happy", "neutral", "sad")
  assert (clone / "new.csv").is_file()
  assert (clone / "drawn").is_dir()
  run_page("service.md", monkeypatch)


def test_a_method_is_added(clone, monkeypatch):
  with mock.patch.dict(TERMS):  # other tests list the losses
    run_page("adding_a_method.md", monkeypatch)
  assert (clone / "runs/focal/report.html").is_file()
