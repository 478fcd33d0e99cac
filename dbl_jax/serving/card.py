"""The model card of a run, as Hugging Face reads it."""

from collections.abc import Sequence
from typing import Any

from scipy import sparse

from dbl_jax.evaluation.metrics import (
  confusion_of,
  expected_calibration_error,
  mean_class_interval,
  wilson_interval,
)
from dbl_jax.evaluation.predictions import Predictions

_MAX_COLUMNS = 30  # classes of a legible confusion matrix
# Metrics by their names at https://huggingface.co/metrics.
_CARD = """\
---
library_name: dbl_jax
pipeline_tag: image-classification
tags: [image-classification, long-tailed, jax]
model-index:
- name: {name}
  results:
  - task: {{type: image-classification}}
    dataset: {{name: {dataset}, type: {dataset}, split: {split}}}
    metrics:
    - {{type: accuracy, name: overall accuracy, value: {overall:.4f}}}
    - {{type: recall, name: mean-class accuracy, value: {mean:.4f}}}
---

# {name}

A classifier of {num_classes} classes for images of {image_size} px, trained on\
 class-imbalanced images.

## Intended use

Images like those it was trained on, in camera, light and content. If\
 `model.json` has a template, faces must be aligned to it.

Not for:

- Images of another kind, before its accuracy on them has been measured.
- Decisions about people. A face shows an expression, not what somebody feels.
- Comparing groups of people: recall has not been measured by age, gender or\
 skin colour.

## Results on the {split} split

{images} images, one seed ({seed}), 95 % intervals:

- Mean-class accuracy: {mean:.1%} ({mean_range})
- Overall accuracy: {overall:.1%} ({overall_range})

The intervals cover the choice of images, not how much runs with other seeds\
 differ.

| class | images | recall (95 % interval) | precision |
|---|--:|--:|--:|
{recalls}

Confusion matrix, rows are the true classes:

{confusion}

## Calibration

{calibration}

## Training

- Data: {dataset}, fingerprint `{fingerprint}`
- Phases: {phases}; the last with the losses {losses}, to step {step}
- Seed: {seed}
{made_by}

`model.json` has all fields of the config, which `python -m dbl_jax.main` takes\
 as flags.
"""


def write(
  metrics: dict[str, Any],
  class_names: Sequence[str],
  phases: Sequence[str],
  scores: Predictions | None = None,
) -> str:
  """Writes the card from a run's results.

  Args:
    metrics: the content of `metrics.json`.
    class_names: C names.
    phases: names of the run's phases.
    scores: the scores that the results come from, for the calibration.

  Returns:
    Markdown with a YAML header that has the results as `model-index`.
  """
  config, phase = metrics["config"], metrics["phase"]
  names = [_cell(name) for name in class_names]
  per_class = [metrics["per_class"][name] for name in class_names]
  confusion = confusion_of(metrics)
  hits, images = int(confusion.trace()), metrics["images"]
  return _CARD.format(
    name=f"{config['model']['name']} on {metrics['dataset']}",
    dataset=metrics["dataset"],
    split=metrics["split"],
    images=images,
    overall=metrics["overall_accuracy"],
    overall_range=_range(*wilson_interval(hits, images)),
    mean=metrics["mean_class_accuracy"],
    mean_range=_range(*(mean_class_interval(confusion) or (0, 1))),
    seed=metrics["seed"],
    num_classes=len(names),
    image_size=config["data"]["image_size"],
    recalls="\n".join(map(_recall, names, per_class)),
    confusion=_confusion(names, confusion),
    calibration=_calibration(metrics, scores),
    fingerprint=metrics["data_fingerprint"],
    phases=", ".join(phases),
    losses=", ".join(config[phase]["losses"]),
    step=metrics["checkpoint_step"],
    made_by="\n".join(
      f"- {key}: {value}" for key, value in sorted(metrics["made_by"].items())
    ),
  )


def _recall(name: str, row: dict[str, Any]) -> str:
  """A class's row of the table."""
  recall, count = "no images", row["count"]
  if count:
    limits = wilson_interval(round(row["recall"] * count), count)
    recall = f"{row['recall']:.1%} ({_range(*limits)})"
  return f"| {name} | {count} | {recall} | {row['precision']:.1%} |"


def _range(low: Any, high: Any) -> str:
  return f"{float(low):.1%} to {float(high):.1%}"


def _confusion(names: Sequence[str], confusion: sparse.csr_array) -> str:
  if len(names) > _MAX_COLUMNS:
    return f"`metrics.json` has it, for more than {_MAX_COLUMNS} classes."
  rows = [
    f"| **{name}** | {' | '.join(map(str, row))} |"
    for name, row in zip(names, confusion.toarray(), strict=True)
  ]
  head = f"| | {' | '.join(names)} |", f"|---|{'--:|' * len(names)}"
  return "\n".join([*head, *rows])


def _calibration(metrics: dict[str, Any], scores: Predictions | None) -> str:
  """The calibration error with and without the temperature."""
  temperature = metrics.get("temperature")
  if temperature is None or scores is None:
    return "Not measured."
  rows = [
    f"| {split} | "
    + " | ".join(
      f"{expected_calibration_error(labels, logits / by):.1%}"
      for by in (1, temperature)
    )
    + " |"
    for split, labels, logits in (
      ("validation", scores.validation_labels, scores.validation_scores),
      (metrics["split"], scores.labels, scores.scores),
    )
  ]
  return "\n".join(
    [
      "Probabilities are the softmax of the logits divided by a temperature of"
      f" {temperature:g}, which was fitted on the validation split. Expected"
      " calibration error in 15 bins (Guo et al. 2017):\n",
      "| split | before | with the temperature |\n|---|--:|--:|",
      *rows,
    ]
  )


def _cell(text: str) -> str:
  return text.replace("|", "\\|").replace("\n", " ")
