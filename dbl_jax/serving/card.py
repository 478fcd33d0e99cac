"""The model card of a run, as Hugging Face reads it."""

from collections.abc import Sequence
from typing import Any

from dbl_jax.evaluation.metrics import wilson_interval


def write(metrics: dict[str, Any], class_names: Sequence[str]) -> str:
  """Writes the card from a run's results.

  Args:
    metrics: the content of `metrics.json`.
    class_names: C names.

  Returns:
    Markdown with a YAML header that has the results as `model-index`.
  """
  overall, mean = (
    metrics["overall_accuracy"],
    metrics["mean_class_accuracy"],
  )
  config, phase = metrics["config"], metrics["phase"]
  name = f"{config['model']['name']} on {metrics['dataset']}"
  made_by = metrics["made_by"]
  rows, names = [], []
  for class_name in class_names:
    row = metrics["per_class"][class_name]
    hits = round((row["recall"] or 0.0) * row["count"])
    low, high = wilson_interval([hits], [row["count"]])
    recall = "no images"
    if row["count"]:
      recall = f"{row['recall']:.1%} ({low[0]:.1%} to {high[0]:.1%})"
    rows.append(
      f"| {_cell(class_name)} | {row['count']} | {recall} |"
      f" {row['precision']:.1%} |"
    )
    names.append(_cell(class_name))
  confusion = [
    f"| **{one}** | " + " | ".join(map(str, line)) + " |"
    for one, line in zip(names, metrics["confusion_matrix"], strict=True)
  ]
  losses = ", ".join(config[phase]["losses"])
  return "\n".join(
    [
      "---",
      "library_name: dbl_jax",
      "pipeline_tag: image-classification",
      "tags: [image-classification, long-tailed, jax]",
      "model-index:",
      f"- name: {name}",
      "  results:",
      "  - task: {type: image-classification}",
      f"    dataset: {{name: {metrics['dataset']}, type: image-folder,"
      f" split: {metrics['split']}}}",
      "    metrics:",
      f"    - {{type: accuracy, value: {overall:.4f}}}",
      f"    - {{type: mean-class accuracy, value: {mean:.4f}}}",
      "---",
      "",
      f"# {name}",
      "",
      f"A classifier of {len(names)} classes for images of"
      f" {config['data']['image_size']} px, trained on images whose classes"
      " differ in size.",
      "",
      "## Intended use",
      "",
      "Images like those it was trained on. Its accuracy on others is unknown:"
      " measure it before you rely on it. It should not decide about people. A"
      " face shows an expression, not what somebody feels.",
      "",
      f"## Results on the {metrics['split']} split",
      "",
      f"{metrics['images']} images: mean-class accuracy {mean:.1%}, overall"
      f" accuracy {overall:.1%}. One seed ({metrics['seed']}).",
      "",
      "| class | images | recall (95 % interval) | precision |",
      "|---|--:|--:|--:|",
      *rows,
      "",
      "Confusion matrix, rows are the true classes:",
      "",
      f"| | {' | '.join(names)} |",
      f"|---|{'--:|' * len(names)}",
      *confusion,
      "",
      "## Training",
      "",
      f"- Data: {metrics['dataset']}, fingerprint"
      f" `{metrics['data_fingerprint']}`",
      f"- Last phase: {phase}, losses {losses}, step"
      f" {metrics['checkpoint_step']}",
      *(f"- {key}: {value}" for key, value in sorted(made_by.items())),
      "",
      "All fields of the config are in `model.json` and in the run's"
      " `config.json`.",
      "",
    ]
  )


def _cell(text: str) -> str:
  return text.replace("|", "\\|").replace("\n", " ")
