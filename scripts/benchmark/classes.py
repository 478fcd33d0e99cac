"""Time and memory of each part that depends on the number of classes.

python scripts/benchmark/classes.py [PART ...]

Sizes are those of iNaturalist 2018, with fewer training images: 8,142 classes,
100,000 training images by a power law, three test images of each class. Each
part runs in a process of its own on one core.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

CLASSES, TRAIN, TEST, HASHES = 8142, 100_000, 3 * 8142, 1_000_000
NAMES = tuple(f"class {i}" for i in range(CLASSES))
RNG = np.random.default_rng(0)
SHARES = np.arange(1, CLASSES + 1) ** -0.8
COUNTS = np.maximum(TRAIN * SHARES / SHARES.sum(), 2).astype(int)
LABELS = np.arange(TEST, dtype=np.int32) % CLASSES


def _guesses() -> np.ndarray:
  wrong = RNG.integers(0, CLASSES, TEST)
  return np.where(RNG.random(TEST) < 0.5, LABELS, wrong)


def _scores() -> np.ndarray:
  scores = RNG.standard_normal((TEST, CLASSES), np.float32)
  scores[np.arange(TEST), _guesses()] += 9
  return scores


def _train_labels() -> np.ndarray:
  return RNG.permutation(np.repeat(np.arange(CLASSES), COUNTS))


def sampler() -> Callable[[], object]:
  """Makes a sampler and draws 1,000 batches of 256."""
  from dbl_jax.data import sampling

  labels = _train_labels()

  def run() -> None:
    made = sampling.make_sampler(labels, CLASSES, 0.0, 256, 0)
    for step in range(1000):
      sampling.batch_indices(made, step)

  return run


def splits() -> Callable[[], object]:
  """Splits off a test and a validation part."""
  from dbl_jax.data import splits as parts

  labels = _train_labels()
  return lambda: (
    parts.split_off(labels, 0.1, 0, parts.TEST),
    parts.stratified_split(labels, 0.1, 0),
  )


def losses() -> Callable[[], object]:
  """Computes five losses and their gradients for a batch of 256."""
  import jax
  from jax import numpy as jnp

  from dbl_jax.losses import cross_entropy, loss_inputs, metric_learning

  outputs = RNG.standard_normal((256, CLASSES), np.float32)
  features = RNG.standard_normal((256, 512), np.float32)
  centers = jnp.ones((CLASSES, 512))
  labels, counts = jnp.asarray(LABELS[:256]), jnp.asarray(COUNTS)

  def total(outputs: jax.Array, features: jax.Array) -> jax.Array:
    inputs = loss_inputs(outputs, labels, counts, features=features)
    names = ("cross_entropy", "balanced_softmax", "ldam")
    terms = [getattr(cross_entropy, name)(inputs)[0] for name in names]
    terms.append(cross_entropy.label_aware_smoothing(inputs)[0])
    terms.append(metric_learning.center(inputs, centers)[0])
    return sum(terms) + metric_learning.move_centers(inputs, centers).sum()

  compiled = jax.jit(jax.grad(total, (0, 1))).lower(outputs, features).compile()
  return lambda: jax.block_until_ready(compiled(outputs, features))


def report() -> Callable[[], object]:
  """Computes metrics; writes metrics.json and the report of predictions."""
  from dbl_jax.evaluation import metrics
  from dbl_jax.evaluation import report as reports

  guesses, views = _guesses(), np.zeros((8, 32, 32, 3), np.float32)

  def run() -> None:
    confusion = metrics.confusion_matrix(LABELS, guesses, CLASSES)
    made = {"dataset": "x", "split": "test", "checkpoint_step": 1}
    made |= {"predictor": "head", "config": {}, "top5_accuracy": 0.5}
    made |= metrics.summarise(confusion, NAMES)
    made["tiers"] = metrics.by_tier(confusion, COUNTS)
    reports.write(
      Path(tempfile.mkdtemp()),
      made,
      train_counts=COUNTS.tolist(),
      history=[],
      view_pairs=(views, views, views),
      title="x",
    )

  return run


def scores() -> Callable[[], object]:
  """Makes the scores for the next four parts, to measure their memory."""
  made = _scores()
  return lambda: made


def pictures() -> Callable[[], object]:
  """Top-5, calibration, embedding and mistakes from scores."""
  from dbl_jax.data.datasets import Split
  from dbl_jax.evaluation import metrics
  from dbl_jax.evaluation import pictures as drawn

  made, images = _scores(), np.zeros((TEST, 8, 8, 3), np.uint8)
  features = RNG.standard_normal((TEST, 64), np.float32)
  return lambda: (
    metrics.top_k_accuracy(made, LABELS),
    drawn.sections(
      Split(images, LABELS), features, made, 1.5, NAMES, True, True
    ),
  )


def temperature() -> Callable[[], object]:
  """Fits the temperature."""
  from dbl_jax.evaluation import predictors

  made = _scores()
  return lambda: predictors.fit_temperature(made, LABELS)


def stored() -> Callable[[], object]:
  """Writes the file of scores."""
  from dbl_jax.evaluation import predictions

  made, none = _scores(), np.zeros(0, np.int32)
  run = predictions.Predictions(
    NAMES, COUNTS, LABELS, made, none, made[:0], True
  )

  def write() -> None:
    with tempfile.TemporaryDirectory() as folder:
      predictions.save(Path(folder) / "scores.npz", run)

  return write


def compared() -> Callable[[], object]:
  """Reduces a run for a table: calibration error, top-5, adjusted logits."""
  from dbl_jax.compare.statistics import run_result
  from dbl_jax.evaluation.predictions import Predictions

  made, none = _scores(), np.zeros(0, np.int32)
  run = Predictions(NAMES, COUNTS, LABELS, made, none, made[:0], True)
  return lambda: run_result("basic", 0, run)


def table() -> Callable[[], object]:
  """Writes a table of two systems with three seeds each, with a bootstrap."""
  from dbl_jax.compare import table as tables
  from dbl_jax.compare.statistics import RunResult

  frontier = np.tile(np.linspace(0.4, 0.5, 31), (2, 1))
  runs = [
    RunResult(
      system, seed, NAMES, COUNTS, LABELS, _guesses(), 0.5, 0.1, frontier
    )
    for system in ("basic", "dbl")
    for seed in range(3)
  ]
  return lambda: tables.write(
    Path(tempfile.mkdtemp()), runs, [], dataset="", image_size=32, command=""
  )


def hashes() -> Callable[[], object]:
  """Finds near-duplicates among a million hashes, half of them in pairs."""
  from dbl_jax.data import inspection

  bits = RNG.integers(0, 2**64, (HASHES, 2), np.uint64)
  half = HASHES // 2
  flips = RNG.integers(0, 64, half, np.uint64)
  bits[half:] = bits[:half]
  bits[half:, 0] ^= np.uint64(1) << flips
  return lambda: inspection._near(bits, inspection.NEAR)


PARTS = (
  *(sampler, splits, losses, report, scores, pictures, temperature, stored),
  *(compared, table, hashes),
)


def main() -> None:
  """Runs each part in a process, which prints its row of a table."""
  names = sys.argv[1:] or [part.__name__ for part in PARTS]
  if "--here" not in names:
    print("| part | CPU s | peak MB |\n|---|--:|--:|", flush=True)
    for name in names:
      subprocess.run([sys.executable, __file__, "--here", name], check=True)
    return
  os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
  part = next(part for part in PARTS if part.__name__ == names[-1])
  run = part()
  started = time.process_time()
  run()
  seconds = time.process_time() - started
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  what = (part.__doc__ or "").strip(".")
  print(f"| {what} | {seconds:.1f} | {peak:.0f} |")


if __name__ == "__main__":
  main()
