"""The table by one command, as a user gives it, and after it was killed."""

import csv
import json
import signal
import subprocess
import sys
import time

import mains

# With the tests' encoder, and blank pictures.
PROGRAM = """
import runpy, sys
sys.path.insert(0, "tests")
import conftest, tiny
sys.argv[0] = "scripts/make_table.py"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_killed_table_goes_on_to_its_end(tmp_path):
  out = tmp_path / "table"
  command = [
    sys.executable,
    "-c",
    PROGRAM,
    "--systems=dcnn,dbl_plus",
    "--set=dcnn.model.name=tiny",
    "--set=dbl_plus.model.name=tiny",
    "--reference=dcnn",
    "--epochs=1",
    "--head_epochs=1",
    "--set=dbl_plus.classify.batch_size=8",
    "--batch_size=16",
    "--data.num_train=60",
    "--data.num_test=20",
    "--data.image_size=16",
    f"--data.cache_dir={tmp_path / 'cache'}",
    f"--out={out}",
  ]
  with subprocess.Popen(
    command, cwd=mains.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
  ) as process:
    while not list(out.glob("stages/*/cost.json")):
      assert process.poll() is None
      time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
  kept = {path: path.stat().st_mtime_ns for path in out.glob("stages/*/*.html")}
  assert not (out / "table.md").exists()

  done = subprocess.run(
    command, cwd=mains.ROOT, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  for path, when in kept.items():
    assert path.stat().st_mtime_ns == when
  rows = list(csv.DictReader((out / "table.csv").read_text().splitlines()))
  assert [row["system"] for row in rows] == ["dcnn", "dbl_plus"]
  # What they share was trained once, and counts for both.
  seconds = [float(row["training_seconds"]) for row in rows]
  assert 0 < seconds[0] < seconds[1]
  phases = [json.loads(p.read_text()) for p in out.glob("stages/*/config.json")]
  sizes = [(p.get("pretrain") or p["classify"])["batch_size"] for p in phases]
  assert sorted(sizes) == [8, 16]  # --set, --batch_size
  text = (out / "table.md").read_text()
  assert "Missing" not in text
  assert "Encoder epochs: dcnn 1, dbl" in text
  for name in ("table.html", "accuracies.png", "confusion_matrices.png"):
    assert (out / name).stat().st_size
