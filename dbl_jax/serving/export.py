"""Exports the model of a run to files that other software loads."""

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import safetensors.numpy
from jax import export as jax_export
from scipy import sparse

from dbl_jax import config as configs
from dbl_jax import evaluate
from dbl_jax.errors import UserError
from dbl_jax.evaluate import LoadedModel
from dbl_jax.evaluation import predictions
from dbl_jax.evaluation.metrics import (
  confusion_of,
  expected_calibration_error,
  mean_class_interval,
  wilson_interval,
)
from dbl_jax.evaluation.plots import MAX_CLASSES
from dbl_jax.models import torch_weights
from dbl_jax.models.model import NORMALISATIONS, make_model
from dbl_jax.runtime import files
from dbl_jax.serving import onnx_graph, predict

# For probabilities, and for features over their largest value.
_TOLERANCE = 1e-5
_PLATFORMS = ("cpu", "cuda", "tpu")


def export(workdir: Path, out: Path) -> dict[str, float]:
  """Writes the model of a run as ONNX, StableHLO and safetensors.

  The files are `model.onnx`, `model.jaxexp` (of `jax.export`),
  `model.safetensors` (torchvision's names for ResNets), `model.json` and the
  model card `README.md`. Each is loaded again and compared with JAX.

  Args:
    workdir: of a finished run with a classifier.
    out: folder; created if missing.

  Returns:
    File -> largest difference to the model in JAX.

  Raises:
    UserError: if the run lacks a classifier or uses a predictor that is fitted
      on data, or the outputs of a file differ from the model's.
  """
  loaded = evaluate.load(workdir)
  _check(loaded, workdir)
  # Arrays of the host, so that the weights are constants of the program.
  variables = jax.tree.map(np.asarray, loaded.variables)
  classify = _classifier(loaded)
  proto = onnx_graph.build(
    loaded.config,
    loaded.phase,
    variables,
    loaded.class_names,
    loaded.temperature,
  )
  out.mkdir(parents=True, exist_ok=True)
  (out / "model.onnx").write_bytes(proto.SerializeToString())
  (out / "model.jaxexp").write_bytes(
    _stablehlo(partial(classify, variables), loaded)
  )
  arrays = torch_weights.to_torch(variables)
  # `save_file` would create a file that only its owner can read.
  files.write(out / "model.safetensors", safetensors.numpy.save(arrays))
  facts = _facts(loaded, *predict.find_template(workdir, loaded))
  (out / "model.json").write_text(json.dumps(facts, indent=2) + "\n")
  _write_card(workdir, out, loaded)
  return _differences(out, loaded, classify, arrays)


def _write_card(workdir: Path, out: Path, loaded: LoadedModel) -> None:
  """Writes the model card of a finished run, with `model-index` in YAML."""
  path = workdir / "metrics.json"
  if not path.is_file():
    return
  metrics = json.loads(path.read_text())
  config, phase = metrics["config"], metrics["phase"]
  names = [x.replace("|", "\\|").replace("\n", " ") for x in loaded.class_names]
  rows = [metrics["per_class"][name] for name in loaded.class_names]
  confusion, images = confusion_of(metrics), metrics["images"]
  overall = wilson_interval(int(confusion.trace()), images)
  made_by = sorted(metrics["made_by"].items())
  template = Path(__file__).with_name("card.md").read_text("utf-8")
  card = template.format(
    name=f"{config['model']['name']} on {metrics['dataset']}",
    dataset=metrics["dataset"],
    split=metrics["split"],
    images=images,
    overall=metrics["overall_accuracy"],
    overall_range=_range(*overall),
    mean=metrics["mean_class_accuracy"],
    mean_range=_range(*(mean_class_interval(confusion) or (0, 1))),
    seed=metrics["seed"],
    num_classes=len(names),
    image_size=config["data"]["image_size"],
    recalls="\n".join(map(_recall, names, rows)),
    confusion=_confusion(names, confusion),
    calibration=_calibration(metrics, workdir),
    fingerprint=metrics["data_fingerprint"],
    phases=", ".join(configs.phases(loaded.config)),
    losses=", ".join(config[phase]["losses"]),
    step=metrics["checkpoint_step"],
    made_by="\n".join(f"- {key}: {value}" for key, value in made_by),
    trained_by=loaded.meta.get("command", "# not stored by that version"),
    exported_by=shlex.join(sys.orig_argv),
  )
  (out / "README.md").write_bytes(card.encode("utf-8", "replace"))


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
  if len(names) > MAX_CLASSES:
    return f"`metrics.json` has it, for more than {MAX_CLASSES} classes."
  rows = [
    f"| **{name}** | {' | '.join(map(str, row))} |"
    for name, row in zip(names, confusion.toarray(), strict=True)
  ]
  head = f"| | {' | '.join(names)} |", f"|---|{'--:|' * len(names)}"
  return "\n".join([*head, *rows])


def _calibration(metrics: dict[str, Any], workdir: Path) -> str:
  """The calibration error with and without the temperature."""
  temperature, split = metrics.get("temperature"), metrics["split"]
  if temperature is None:
    return "Not measured."
  try:
    scores = predictions.load(workdir / f"scores_{split}.npz")
  except UserError:  # missing or damaged
    return "Not measured."
  rows = []
  for name, labels, logits in (
    ("validation", scores.validation_labels, scores.validation_scores),
    (split, scores.labels, scores.scores),
  ):
    before, after = (
      expected_calibration_error(labels, logits / by) for by in (1, temperature)
    )
    rows.append(f"| {name} | {before:.1%} | {after:.1%} |")
  return "\n".join(
    [
      "Probabilities are the softmax of the logits divided by a temperature of"
      f" {temperature:g}, which was fitted on the validation split. Expected"
      " calibration error in 15 bins (Guo et al. 2017):\n",
      "| split | before | with the temperature |\n|---|--:|--:|",
      *rows,
    ]
  )


def _check(loaded: LoadedModel, workdir: Path) -> None:
  phase = loaded.config[loaded.phase]
  loaded.require_classifier()
  if phase.predictor != "head":
    raise UserError(
      f"The run in {workdir} classifies by predictor={phase.predictor!r},"
      " which is fitted on its data. Only predictor='head' can be exported."
    )


def _classifier(
  loaded: LoadedModel,
) -> Callable[..., tuple[jax.Array, jax.Array]]:
  """Variables, uint8[N, S, S, 3] -> probabilities f32[N, C], f32[N, F]."""
  config, count = loaded.config, len(loaded.class_names)
  encoder = config.model.to_dict() | {"dtype": "float32"}
  model = make_model(encoder, config[loaded.phase].head, count)

  def classify(
    variables: dict[str, Any], images: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    outputs: Any = model.apply(
      variables, images.astype(jnp.float32) / 255, train=False
    )
    features, outputs = outputs
    return jax.nn.softmax(outputs[:, -count:] / loaded.temperature), features

  return classify


def _stablehlo(classify: Callable[..., Any], loaded: LoadedModel) -> bytes:
  size = loaded.config.data.image_size
  shape = jax_export.symbolic_shape(f"n, {size}, {size}, 3")
  images = jax.ShapeDtypeStruct(shape, jnp.uint8)
  exported = jax_export.export(jax.jit(classify), platforms=_PLATFORMS)(images)
  return bytes(exported.serialize())


def _facts(
  loaded: LoadedModel, template: np.ndarray | None, grey: bool
) -> dict[str, Any]:
  config = loaded.config
  mean, deviation = NORMALISATIONS[config.model.normalisation]
  return {
    "classes": list(loaded.class_names),
    "image_size": config.data.image_size,
    "region": config.data.region,
    "template": None if template is None else template.tolist(),
    "grey": grey,
    "temperature": loaded.temperature,
    "input": "uint8, RGB, [N, height, width, 3]; normalised in the model",
    "mean": mean,
    "deviation": deviation,
    "encoder": config.model.to_dict(),
    "head": config[loaded.phase].head.to_dict(),
    "config": config.to_dict(),
    "data_fingerprint": loaded.meta["fingerprint"],
    "step": loaded.step,
  }


def _differences(
  out: Path,
  loaded: LoadedModel,
  classify: Callable[..., Any],
  arrays: dict[str, np.ndarray],
) -> dict[str, float]:
  """Loads the files and compares them with the model."""
  size = loaded.config.data.image_size
  stored = safetensors.numpy.load_file(out / "model.safetensors")
  found = {
    "model.safetensors": float(
      max(np.abs(stored[k] - arrays[k]).max() for k in arrays)
    )
  }
  session = onnxruntime.InferenceSession(str(out / "model.onnx"))
  exported = jax_export.deserialize(
    bytearray((out / "model.jaxexp").read_bytes())
  )
  others: dict[str, Callable[[np.ndarray], Any]] = {
    "model.onnx": lambda x: session.run(
      ["probabilities", "features"], {"images": x}
    ),
    "model.jaxexp": exported.call,
  }
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (3, size, size, 3), np.uint8)
  expected = jax.device_get(jax.jit(classify)(loaded.variables, images))
  for name, run in others.items():
    found[name] = max(
      float(np.abs(ours - theirs).max() / max(np.abs(ours).max(), 1))
      for ours, theirs in zip(expected, run(images), strict=True)
    )
  for name, differs in found.items():
    if not differs <= _TOLERANCE:
      raise UserError(
        f"{out / name} differs from the model by {differs:.1e}, more than"
        f" {_TOLERANCE}. Do not use it, and report this as a bug."
      )
  return found
