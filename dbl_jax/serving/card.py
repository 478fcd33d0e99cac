"""The model card of a run, as Hugging Face reads it."""

from collections.abc import Sequence
from typing import Any

from dbl_jax.evaluation.metrics import wilson_interval

_CARD = """\
---
library_name: dbl_jax
pipeline_tag: image-classification
tags: [image-classification, long-tailed, jax]
model-index:
- name: {name}
  results:
  - task: {{type: image-classification}}
    dataset: {{name: {dataset}, type: image-folder, split: {split}}}
    metrics:
    - {{type: accuracy, value: {overall:.4f}}}
    - {{type: mean-class accuracy, value: {mean:.4f}}}
---

# {name}

A classifier of {num_classes} classes for images of {image_size} px, trained on\
 class-imbalanced images.

## Intended use

Images like those it was trained on. Its accuracy on others is unknown: measure\
 it before you rely on it. It should not decide about people. A face shows an\
 expression, not what somebody feels.

## Results on the {split} split

{images} images: mean-class accuracy {mean:.1%}, overall accuracy\
 {overall:.1%}. One seed ({seed}).

| class | images | recall (95 % interval) | precision |
|---|--:|--:|--:|
{recalls}

Confusion matrix, rows are the true classes:

| | {columns} |
|---|{alignment}
{confusion}

## Training

- Data: {dataset}, fingerprint `{fingerprint}`
- Last phase: {phase}, losses {losses}, step {step}
{made_by}

All fields of the config are in `model.json` and in the run's `config.json`.
"""


def write(metrics: dict[str, Any], class_names: Sequence[str]) -> str:
  """Writes the card from a run's results.

  Args:
    metrics: the content of `metrics.json`.
    class_names: C names.

  Returns:
    Markdown with a YAML header that has the results as `model-index`.
  """
  config, phase = metrics["config"], metrics["phase"]
  names = [_cell(name) for name in class_names]
  per_class = [metrics["per_class"][name] for name in class_names]
  confusion = zip(names, metrics["confusion_matrix"], strict=True)
  return _CARD.format(
    name=f"{config['model']['name']} on {metrics['dataset']}",
    dataset=metrics["dataset"],
    split=metrics["split"],
    images=metrics["images"],
    overall=metrics["overall_accuracy"],
    mean=metrics["mean_class_accuracy"],
    seed=metrics["seed"],
    num_classes=len(names),
    image_size=config["data"]["image_size"],
    recalls="\n".join(map(_recall, names, per_class)),
    columns=" | ".join(names),
    alignment="--:|" * len(names),
    confusion="\n".join(
      f"| **{name}** | {' | '.join(map(str, row))} |" for name, row in confusion
    ),
    fingerprint=metrics["data_fingerprint"],
    phase=phase,
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
    low, high = wilson_interval([round(row["recall"] * count)], [count])
    recall = f"{row['recall']:.1%} ({low[0]:.1%} to {high[0]:.1%})"
  return f"| {name} | {count} | {recall} | {row['precision']:.1%} |"


def _cell(text: str) -> str:
  return text.replace("|", "\\|").replace("\n", " ")
