"""The public API: every name resolves, and every example of the docs runs."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import dbl_jax
from dbl_jax import config as configs
from dbl_jax import train

PAGE = (Path(__file__).parents[1] / "docs" / "api.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_every_name_is_there_and_in_the_docs():
  for name in dbl_jax.__all__:
    assert callable(getattr(dbl_jax, name))
    assert f"`{name}`" in PAGE or f"dbl_jax.{name}" in PAGE
  with pytest.raises(AttributeError, match="no attribute 'nt_xnet'"):
    dbl_jax.nt_xnet  # noqa: B018


@pytest.mark.parametrize("example", range(len(EXAMPLES)))
def test_an_example_runs(example, monkeypatch):
  small = configs.dcnn()
  small.pooling = "average"  # no layer of 2000 units
  monkeypatch.setattr(configs, "dcnn", lambda: small)
  exec(compile(EXAMPLES[example], f"example {example}", "exec"), {})


def test_a_loaded_model_predicts_what_was_evaluated(finished):
  config, workdir = finished
  metrics = json.loads((workdir / "metrics.json").read_text())
  model = dbl_jax.load(workdir)
  test = train.sources.load(config.data).splits["test"]
  probabilities = model.predict(test.images)
  np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
  hits = probabilities.argmax(axis=1) == test.labels
  assert hits.mean() == pytest.approx(metrics["overall_accuracy"])
  with pytest.raises(ValueError, match=r"expected uint8\[n, 16, 16, 3\]"):
    model.predict(test.images[:, :8])
