"""Loss that is not finite: told, or skipped and counted; and hard data."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soak

import tiny
from dbl_jax import config as configs
from dbl_jax import train, workdirs
from dbl_jax.data import sampling
from dbl_jax.data.datasets import Split
from dbl_jax.errors import UserError
from dbl_jax.losses import terms
from dbl_jax.runtime import distributed


def short(cache):
  """A short first phase, enough here."""
  config = tiny.get_resolved(cache_dir=cache)
  config.pretrain.epochs = 1
  return config


BAD = (3, 6)  # steps of phase 2, from 1


def break_steps(monkeypatch, only="loss"):
  """Cross-entropy is NaN at two steps, or its gradient alone."""
  term = terms.TERMS["cross_entropy"]

  def broken(seen, **options):
    loss, figures = term.loss(seen, **options)
    step = jnp.round(seen.progress * 9) + 1
    bad = jnp.isin(step, jnp.asarray(BAD, jnp.float32))
    if only == "loss":
      return jnp.where(bad, jnp.nan, loss), figures
    still = seen.outputs - jax.lax.stop_gradient(seen.outputs)
    hollow = jnp.sqrt(jnp.where(bad, jnp.sum(still), 1.0))
    return loss + jnp.where(bad, hollow, 0.0), figures

  monkeypatch.setitem(terms.TERMS, "cross_entropy", term._replace(loss=broken))


@pytest.mark.parametrize("only", ["loss", "grad_norm"])
def test_the_message_names_step_images_and_checkpoint(
  cache, tmp_path, monkeypatch, only
):
  break_steps(monkeypatch, only)
  config = short(cache)
  dataset = train.sources.load(config.data)
  numbers = range(len(dataset.splits["train"].labels))
  if only == "loss":  # as if they came from files
    names = {"train": [f"happy/{i}.jpg" for i in numbers]}
    dataset = dataset._replace(names=names)
    monkeypatch.setattr(train.sources, "load", lambda _: dataset)
  with pytest.raises(UserError) as caught:
    train.train_and_evaluate(config, tmp_path)
  said = str(caught.value)
  assert f"classify: {only} is nan at step 3." in said
  assert "Last good checkpoint: none yet" in said
  start, _ = train.checkpoint.load_model(
    train.checkpoint.phase_dir(tmp_path, "pretrain"), "latest"
  )
  phase = train.make_phase(config, "classify", dataset, start)
  images = np.unique(sampling.batch_indices(phase.sampler, 2))
  shown = [dataset.names["train"][i] if dataset.names else i for i in images]
  assert f"images {', '.join(map(str, shown))}." in said


def test_skipped_steps_are_counted_also_over_a_restart(
  cache, tmp_path, monkeypatch, capsys
):
  break_steps(monkeypatch)
  config = short(cache)
  config.skip_nonfinite = True
  metrics = train.train_and_evaluate(config, tmp_path / "one")
  assert metrics["skipped_steps"] == {"pretrain": 0, "classify": 2}
  said = capsys.readouterr().out
  assert "classify: skipped 2 steps because loss or gradient was not" in said
  assert "pretrain: 0 steps" not in said
  text = (tmp_path / "one" / "metrics.jsonl").read_text()
  assert "NaN" not in text
  stored = json.loads((tmp_path / "one" / "metrics.json").read_text())
  assert stored["skipped_steps"] == metrics["skipped_steps"]

  save = train.checkpoint.save

  def save_and_die(manager, state, scores, meta):
    save(manager, state, scores, meta)
    manager.wait_until_finished()
    if meta["phase"] == "classify":
      raise ConnectionError

  with monkeypatch.context() as patch:
    patch.setattr(train.checkpoint, "save", save_and_die)
    with pytest.raises(ConnectionError):
      train.train_and_evaluate(config, tmp_path / "two")
  assert train.train_and_evaluate(config, tmp_path / "two") == metrics
  assert soak.differences(tmp_path / "one", tmp_path / "two") == []


def test_a_skipped_step_changes_nothing(cache, monkeypatch):
  break_steps(monkeypatch)
  config = short(cache)
  config.skip_nonfinite = True
  dataset = train.sources.load(config.data)
  mesh = distributed.make_mesh()
  start = train.make_phase(config, "pretrain", dataset, None)
  variables = jax.device_get(start.state.model())
  phase = train.make_phase(config, "classify", dataset, variables)
  compiled = train.loop.compile_phase(phase, dataset.splits, mesh, config)
  seen = [state for state, _ in tiny.steps_of(compiled, 4, most=1)]
  assert [int(one.step) for one in seen] == [1, 2, 3, 4]

  def same(a, b):
    a, b = (jax.tree.leaves((x.params, x.opt_state)) for x in (a, b))
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))

  assert same(seen[1], seen[2])
  assert not same(seen[2], seen[3])


def test_only_rounding_changes_where_all_is_finite(cache):
  config = short(cache)
  dataset = train.sources.load(config.data)
  states = []
  for skip in (False, True):
    config.skip_nonfinite = skip
    phase = train.make_phase(config, "pretrain", dataset, None)
    compiled = train.loop.compile_phase(
      phase, dataset.splits, distributed.make_mesh(), config
    )
    *_, (state, _) = tiny.steps_of(compiled, 4)
    states.append(state)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    *(state.model() for state in states),
  )


def constant(part, few):
  """Grey images; of the training part one class keeps a single image."""
  images, labels = part
  keep = np.ones(len(labels), bool)
  if few:
    keep = (labels != 2) | (np.cumsum(labels == 2) == 1)
  images = np.full_like(images[keep], 128)
  return Split(images, labels[keep])


@pytest.mark.usefixtures("debug_nans")
def test_hard_data_stay_finite(cache, tmp_path, monkeypatch):
  """Constant images, batches of two, a class with one image, a cold loss."""
  load = train.sources.load

  def hard(options):
    dataset = load(options)
    parts = {k: constant(p, k == "train") for k, p in dataset.splits.items()}
    assert (parts["train"].labels == 2).sum() == 1
    return dataset._replace(splits=parts)

  monkeypatch.setattr(train.sources, "load", hard)
  config = tiny.get_resolved(cache_dir=cache, num_train=60)
  config.pretrain.losses.nt_xent.temperature = 0.01
  for name in configs.phases(config):
    config[name].batch_size = 2
    config[name].epochs = 1
  metrics = train.train_and_evaluate(config, tmp_path)
  assert np.isfinite(metrics["overall_accuracy"])


def test_an_old_workdir_goes_on(cache, tmp_path):
  """Fields that came later do not make its config another."""
  config = configs.with_dtype(tiny.get_resolved(cache_dir=cache))
  fields = config.to_dict()
  fields["model"]["dtype"] = "auto"
  del fields["skip_nonfinite"]
  fields["pretrain"]["by_data"] = {"other": {"epochs": 200}}
  tmp_path.joinpath("checkpoints").mkdir()
  tmp_path.joinpath("config.json").write_text(json.dumps(fields))
  workdirs.remember(config, tmp_path)
  assert configs.from_dict(fields).skip_nonfinite is False
  tmp_path.joinpath("config.json").write_text(json.dumps(fields))
  config.skip_nonfinite = True
  with pytest.raises(UserError, match="skip_nonfinite: False -> True"):
    workdirs.remember(config, tmp_path)
