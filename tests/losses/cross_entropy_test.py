"""Cross-entropy and its forms against their papers' formulas."""

import numpy as np
import pytest
from batches import assert_gradient, make_inputs, rows, run, slopes

from dbl_jax.losses import cross_entropy as losses

pytestmark = pytest.mark.usefixtures("debug_nans")

COUNTS = np.array([500.0, 60, 9, 1])  # and no class is as frequent as another
LABELS = np.array([0, 1, 3, 3, 2, 0])
RNG = np.random.default_rng(0)
OUTPUTS = 3 * RNG.normal(size=(6, 2, 4))
TARGETS = np.eye(4)[LABELS]
MIXED = 0.7 * TARGETS + 0.3 * np.roll(TARGETS, 1, axis=0)


def softmax(z):
  return np.exp(z) / np.exp(z).sum()


def literal_weights(counts, weighting, beta):
  if weighting == "none":
    return np.ones(len(counts))
  if weighting == "inverse":
    raw = [1 / n for n in counts]
  else:  # Cui et al. 2019, eq. (2)
    raw = [1 / ((1 - beta**n) / (1 - beta)) for n in counts]
  total = sum(w * n for w, n in zip(raw, counts, strict=True))
  return np.array(raw) * sum(counts) / total


def literal_cross_entropy(
  outputs, targets, counts, weighting="none", beta=0.9999
):
  weights = literal_weights(counts, weighting, beta)
  return np.mean(
    [-sum(weights * t * np.log(softmax(z))) for z, t in rows(outputs, targets)]
  )


def literal_balanced_softmax(outputs, targets, counts, strength=1.0):
  values = []
  for z, target in rows(outputs, targets):  # Ren et al. 2020, eq. (4)
    shares = counts**strength * np.exp(z)
    values.append(-sum(target * np.log(shares / shares.sum())))
  return np.mean(values)


def literal_ldam(
  outputs, labels, counts, margin=0.5, scale=30.0, weighting="none", beta=0.9999
):
  weights = literal_weights(counts, weighting, beta)
  largest = max(n**-0.25 for n in counts)
  values = []
  for z, y in rows(outputs, labels):  # Cao et al. 2019, eq. (10) and (13)
    gap = scale * margin * counts[y] ** -0.25 / largest
    own = np.exp(z[y] - gap)
    others = sum(np.exp(z[j]) for j in range(len(z)) if j != y)
    values.append(-weights[y] * np.log(own / (own + others)))
  return np.mean(values)


def literal_smoothing(outputs, targets, counts, head=0.3, tail=0.0):
  classes, most, least = len(counts), max(counts), min(counts)
  values = []
  for z, target in rows(outputs, targets):
    log_p = np.log(softmax(z))
    for y in range(classes):  # Zhong et al. 2021, eq. (4) and (6)
      angle = np.pi * (counts[y] - least) / (2 * (most - least))
      e = tail + (head - tail) * np.sin(angle)
      others = sum(log_p[j] for j in range(classes) if j != y)
      own = -(1 - e) * log_p[y] - e / (classes - 1) * others
      values.append(target[y] * own)
  return np.sum(values) / outputs[..., 0].size


PLAIN = (losses.cross_entropy, literal_cross_entropy)
BALANCED = (losses.balanced_softmax, literal_balanced_softmax)
LDAM = (losses.ldam, literal_ldam)
SMOOTHING = (losses.label_aware_smoothing, literal_smoothing)
EFFECTIVE = {"weighting": "effective"}
CASES = {
  "plain": (*PLAIN, {}),
  "inverse": (*PLAIN, {"weighting": "inverse"}),
  "effective": (*PLAIN, EFFECTIVE | {"beta": 0.99}),
  "effective, beta almost 1": (*PLAIN, EFFECTIVE | {"beta": 0.9999}),
  "balanced": (*BALANCED, {}),
  "balanced, stronger": (*BALANCED, {"strength": 1.5}),
  "ldam": (*LDAM, {"weighting": "none", "margin": 0.4, "scale": 4.0}),
  "ldam, weighted": (*LDAM, EFFECTIVE),
  "smoothing": (*SMOOTHING, {}),
  "smoothing of the tail too": (*SMOOTHING, {"head": 0.4, "tail": 0.1}),
}
MIXING = [name for name in CASES if "ldam" not in name]


def batch(**changes):
  given = {"outputs": OUTPUTS, "labels": LABELS, "counts": COUNTS} | changes
  return make_inputs(**given)


def value(loss, given=None, **options):
  return run(loss, given or batch(), **options)[0]


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_equal_the_formula(name):
  loss, literal, options = CASES[name]
  goals = LABELS if literal is literal_ldam else TARGETS

  def expected(outputs):
    return literal(outputs, goals, COUNTS, **options)

  found, _, gradients = run(loss, batch(), **options)
  np.testing.assert_allclose(found, expected(OUTPUTS), rtol=1e-5)
  assert_gradient(gradients["outputs"], slopes(expected, OUTPUTS))


@pytest.mark.parametrize("name", MIXING)
def test_mixed_targets_give_the_mixture_of_losses(name):
  loss, literal, options = CASES[name]
  mixed = value(loss, batch(targets=MIXED), **options)
  np.testing.assert_allclose(
    mixed, literal(OUTPUTS, MIXED, COUNTS, **options), rtol=1e-5
  )
  own = value(loss, **options)
  swapped = batch(targets=np.roll(TARGETS, 1, axis=0))
  neighbour = value(loss, swapped, **options)
  np.testing.assert_allclose(mixed, 0.7 * own + 0.3 * neighbour, rtol=1e-5)


@pytest.mark.parametrize("weighting", losses.WEIGHTINGS)
@pytest.mark.parametrize("beta", [0.0, 0.9, 0.9999])
def test_class_weights_are_the_papers_with_mean_1(weighting, beta):
  weights = losses.class_weights(COUNTS, weighting, beta)
  expected = literal_weights(COUNTS, weighting, beta)
  np.testing.assert_allclose(weights, expected, rtol=1e-4)
  mean = np.average(weights, weights=COUNTS)  # over the training images
  np.testing.assert_allclose(mean, 1, rtol=1e-6)


@pytest.mark.parametrize(
  ("loss", "after"),
  [
    (losses.cross_entropy, 0.6),
    (losses.cross_entropy, None),
    (losses.ldam, 0.6),
  ],
)
@pytest.mark.parametrize("progress", [0, 0.59, 0.6, 1])
def test_weights_hold_from_their_share_of_the_phase_on(loss, after, progress):
  given = batch(progress=progress)
  deferred = {} if after is None else {"after": after}
  found = value(loss, given, weighting="inverse", **deferred)
  other = "inverse" if progress >= (after or 0) else "none"
  expected = value(loss, weighting=other)
  np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_accuracy_is_of_the_logits_as_they_are_at_test_time(name):
  # Every true class leads by less than any prior or margin would shift.
  outputs = np.tile(0.01 * TARGETS[:, None], (1, 2, 1))
  outputs[0, 1] *= -1
  loss, _, options = CASES[name]
  _, metrics, _ = run(loss, batch(outputs=outputs), **options)
  np.testing.assert_allclose(metrics["accuracy"], 11 / 12, rtol=1e-6)
