"""Which values a config may hold."""

import difflib
import inspect
import math
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from dbl_jax.data import pipeline, regions, sources, splits
from dbl_jax.errors import UserError
from dbl_jax.evaluation.predictors import OF_LOGITS, PREDICTORS
from dbl_jax.losses import cross_entropy
from dbl_jax.losses.terms import TERMS
from dbl_jax.models import model
from dbl_jax.training import optim

# A test says whether a value is possible, and what is.
_Test = tuple[Callable[[Any], bool], str]


def _number(low: float, high: float = math.inf) -> _Test:
  def possible(value: Any) -> bool:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return known and low <= value <= high and value != math.inf

  upto = "" if high == math.inf else f" and at most {_shown(high)}"
  return possible, f"a number of at least {_shown(low)}{upto}"


def _shown(number: float) -> str:
  return str(number) if isinstance(number, int) else f"{number:g}"


def _whole(low: int, high: float = math.inf) -> _Test:
  possible, words = _number(low, high)
  return lambda value: isinstance(value, int) and possible(value), (
    words.replace("a number", "a whole number")
  )


def _one_of(names: Collection[str]) -> _Test:
  shown = [name or "''" for name in sorted(names)]
  return lambda value: value in names, f"one of {', '.join(shown)}"


def _range(low: float, high: float) -> _Test:
  def ordered(value: Any) -> bool:
    return value is None or (
      len(value) == 2 and bool(low <= value[0] <= value[1] <= high)
    )

  return ordered, f"two numbers from {low:g} to {high:g}, the smaller first"


def _all(test: _Test, words: str) -> _Test:
  """Every item of a tuple passes the test; it may have none."""
  return (
    lambda value: isinstance(value, tuple | list) and all(map(test[0], value)),
    f"{words}, each {test[1]}",
  )


def _is_pattern(value: Any) -> bool:
  try:
    return bool(value) and re.compile(value) is not None
  except (re.error, TypeError):
    return False


_EPSILON = 1e-6
_MOST = 2**31 - 1  # of seeds and counts
_PATTERN = (
  _is_pattern,
  "a regular expression for the start of a parameter's path, such as 'head'",
)
_BOOL: _Test = (lambda value: isinstance(value, bool), "True or False")
_TEXT: _Test = (lambda value: isinstance(value, str), "text, or '' for none")
_COMMON: dict[str, _Test] = {
  "seed": _whole(0, _MOST),
  "init_from": _TEXT,
  "skip_nonfinite": _BOOL,
  "data.dir": _TEXT,
  "data.cache_dir": _TEXT,
  "data.image_size": _whole(16, 1024),
  "data.validation_fraction": _number(0.01, 0.9),
  "data.test_fraction": _number(0.01, 0.9),
  "data.split_seed": _whole(0, _MOST),
  "data.long_tail": _one_of(("", *splits.KINDS)),
  "data.imbalance": _number(1, 1e6),
  "data.image_seed": _whole(0, _MOST),
  "data.num_train": _whole(14, 10_000_000),
  "data.num_test": _whole(7, 10_000_000),
  "data.input": _one_of(pipeline.FORMS),
  "model.name": _one_of(model.ENCODERS),
  "model.dtype": _one_of(("auto", "bfloat16", "float32")),
  "data.region": _one_of(regions.REGIONS),
  "log_every": _whole(1),
  "steps_per_dispatch": _whole(0, 10_000),
  "tensorboard": _BOOL,
}
# Of encoders that have them.
_ENCODER: dict[str, _Test] = {
  "pooling": _one_of(("average", "flatten")),
  "stem": _one_of(("imagenet", "small")),
  "width": _whole(1, 1_000_000),
  "zero_init_residual": _BOOL,
}
_PHASE: dict[str, _Test] = {
  "epochs": _number(0, 1e6),
  "batch_size": _whole(2, 10_000_000),
  "views": _whole(1, 8),
  "cached_views": _whole(0, 64),
  "q": _number(0, 1),
  "mixup": _number(0, 10),
  "head.name": _one_of(model.HEADS),
  "inherit": _all(_PATTERN, "a tuple"),
  "trained": _all(_PATTERN, "a tuple"),
  "optimizer.name": _one_of(optim.NAMES),
  "optimizer.learning_rate": _number(_EPSILON),
  "optimizer.momentum": _number(0, 0.9999),
  "optimizer.weight_decay": _number(0),
  "optimizer.warmup": _number(0, 0.9),
  "optimizer.clip_norm": _number(0),
  "augment.crop_scale": _range(0.01, 1),
  "augment.crop_ratio": _range(0.1, 10),
  "augment.flip": _number(0, 1),
  "augment.jitter_prob": _number(0, 1),
  "augment.jitter_strength": _number(0, 1),
  "augment.grey": _number(0, 1),
  "augment.blur": _number(0, 1),
  "augment.rotation": _number(0, 180),
  "predictor": _one_of(PREDICTORS),
  "keep": _one_of(("best", "latest")),
  "evaluate_every": _number(0.01),
}
# What a phase may have and need not.
_OPTIONAL: dict[str, _Test] = {"augment.blur_sigma": _range(0.01, 112)}
_WIDTH = _whole(1, 1_000_000)
# Of heads that have them; widths are one number or, for some heads, a tuple.
_HEAD: dict[str, _Test] = {
  "cosine": _number(0, 10_000),
  "dropout": _number(0, 0.99),
  "hidden": _WIDTH,
  "layers": _whole(1, 100),
  "out": _WIDTH,
  "prototypes": _BOOL,
  "scaled": _BOOL,
}
_WIDTHS = _all(_WIDTH, "a tuple of widths")
_TERM: dict[str, _Test] = {
  "after": _number(0, 1),
  "beta": _number(0, 1 - 1e-7),
  "head": _number(0, 0.99),
  "margin": _number(0, 10),
  "neighbours": _whole(1),
  "rate": _number(0, 1),
  "scale": _number(_EPSILON),
  "strength": _number(0, 10),
  "tail": _number(0, 0.99),
  "temperature": _number(1e-3),
  "weight": _number(0),
  "weighting": _one_of(cross_entropy.WEIGHTINGS),
}


def check_fields(config: ConfigDict, phases: Sequence[str]) -> None:
  """Raises UserError for a field there is not, or a section that is none.

  What the options of models, heads and losses may be depends on their names;
  `check` sees to them.

  Args:
    config: as a config file, a stranger's checkpoint or a flag left it.
    phases: names of its phases.
  """
  sections = ["data", "model", *phases]
  for phase in phases:
    sections += [f"{phase}.{name}" for name in ("augment", "head", "optimizer")]
  for path in sections:
    section = _get(config, path)
    if section is not _ABSENT and not isinstance(section, ConfigDict):
      raise UserError(
        f"config.{path}={section!r} is impossible. Expected fields by name, as"
        " in dbl_jax/config.py."
      )
  known = {"data.name", *_COMMON}
  for phase in phases:
    known |= {f"{phase}.{path}" for path in (*_PHASE, *_OPTIONAL)}
  own = [f"{phase}.{name}" for phase in phases for name in _OF_OTHERS]
  for path in _paths(config):
    checked = any(f"{path}.".startswith(f"{one}.") for one in ("model", *own))
    if path not in known and not checked:
      near = difflib.get_close_matches(path, known, n=3, cutoff=0.5)
      hint = f"Did you mean {' or '.join(near)}?" if near else ""
      raise UserError(
        f"The config has a field {path!r}, which nothing reads. {hint} All"
        " fields are in dbl_jax/config.py."
      )


_ABSENT = object()
# Of a phase; see `_head_tests`, `_term_tests` and `check_by_data`.
_OF_OTHERS = ("head", "losses", "by_data")


def _get(config: ConfigDict, path: str) -> Any:
  """A field or section, `_ABSENT` where there is none."""
  value: Any = config
  for part in path.split("."):
    if not isinstance(value, ConfigDict) or part not in value:
      return _ABSENT
    value = value[part]
  return value


def _paths(section: ConfigDict, prefix: str = "") -> Iterator[str]:
  for name, value in section.items():
    if isinstance(value, ConfigDict):
      yield from _paths(value, f"{prefix}{name}.")
    else:
      yield f"{prefix}{name}"


def check_data_name(config: ConfigDict) -> None:
  """Raises UserError unless the config names a data set there is."""
  _check(config, "data.name", _one_of(sources.SOURCES))


def check_by_data(config: ConfigDict, phase: str) -> None:
  """Raises UserError unless a phase says what depends on the data set."""
  by_data = config[phase].get("by_data", None) or {}
  if not isinstance(by_data, ConfigDict) or "other" not in by_data:
    raise UserError(
      f"config.{phase}.by_data has no 'other', what holds for any data set."
      " Start from a phase in dbl_jax/config.py, or give it empty."
    )
  for name, fields in by_data.items():
    paths = (
      [*_paths(fields)] if isinstance(fields, ConfigDict) else ["no field"]
    )
    for path in paths:
      if path not in _PHASE:
        raise UserError(
          f"config.{phase}.by_data.{name} has {path!r}; expected fields of the"
          " phase by name, such as epochs or augment.blur."
        )


def check(config: ConfigDict, phases: Sequence[str]) -> None:
  """Raises UserError for the first field with an impossible value.

  Args:
    config: with every field filled in.
    phases: names of its phases.
  """
  for path, test in _tests(config, phases):
    _check(config, path, test)


def _tests(
  config: ConfigDict, phases: Sequence[str]
) -> Iterator[tuple[str, _Test]]:
  yield from _COMMON.items()
  fields = model.ENCODERS[config.model.name].__dataclass_fields__
  for option in config.model:
    if option not in {"name", *fields}:
      raise UserError(
        f"config.model.{option} is not for the encoder {config.model.name!r}."
        f" It has {', '.join(sorted(fields.keys() & _ENCODER.keys()))}."
      )
    if option in _ENCODER:
      yield f"model.{option}", _ENCODER[option]
  for phase in phases:
    for path, test in _PHASE.items():
      yield f"{phase}.{path}", test
    for path, test in _OPTIONAL.items():
      if _get(config, f"{phase}.{path}") is not _ABSENT:
        yield f"{phase}.{path}", test
    yield from _head_tests(config, phase)
    yield from _term_tests(config, phase)
    _check_whole(config[phase], phase)


def _head_tests(config: ConfigDict, phase: str) -> Iterator[tuple[str, _Test]]:
  """Tests of the options of a phase's head; its name has been checked."""
  fields = model.HEADS[config[phase].head.name].__dataclass_fields__
  for option in config[phase].head:
    if option not in {"name", *fields}:
      possible = sorted(fields.keys() & _HEAD.keys())
      raise UserError(
        f"config.{phase}.head.{option} is not for the head"
        f" {config[phase].head.name!r}. It has {', '.join(possible)}."
      )
    if option == "hidden" and isinstance(fields[option].default, tuple):
      yield f"{phase}.head.{option}", _WIDTHS
    elif option in _HEAD:
      yield f"{phase}.head.{option}", _HEAD[option]


def _term_tests(config: ConfigDict, phase: str) -> Iterator[tuple[str, _Test]]:
  """Tests of the options of a phase's losses; their names are checked here."""
  losses = config[phase].get("losses")
  if not isinstance(losses, ConfigDict) or not all(
    isinstance(options, ConfigDict) for options in losses.values()
  ):
    raise UserError(
      f"config.{phase}.losses={_plain(losses)!r} is"
      " impossible. Expected options by name, such as {'cross_entropy': {}}."
    )
  for name, options in losses.items():
    if name not in TERMS:
      raise UserError(
        f"config.{phase}.losses names {name!r}; there are"
        f" {', '.join(sorted(TERMS))}."
      )
    if config[phase].mixup and not TERMS[name].mixes:
      possible = sorted(key for key, term in TERMS.items() if term.mixes)
      raise UserError(
        f"config.{phase}.mixup={config[phase].mixup} mixes labels, which the"
        f" loss {name!r} cannot read. Set mixup=0, or use"
        f" {', '.join(possible)}."
      )
    if name == "nt_xent" and config[phase].views != 2:
      raise UserError(
        f"config.{phase}.views={config[phase].views}: the loss 'nt_xent'"
        " compares two views of each image. Set views=2, or another loss."
      )
    parameters = inspect.signature(TERMS[name].loss).parameters
    for option, parameter in parameters.items():
      needed = parameter.kind is parameter.KEYWORD_ONLY
      if needed and parameter.default is parameter.empty:
        yield f"{phase}.losses.{name}.{option}", _TERM[option]
    allowed = {"weight", *parameters}
    for option in options:
      if option not in allowed or option not in _TERM:
        possible = sorted(allowed & _TERM.keys())
        raise UserError(
          f"config.{phase}.losses.{name} has no option {option!r}; there are"
          f" {', '.join(possible)}."
        )
      yield f"{phase}.losses.{name}.{option}", _TERM[option]


def _check_whole(phase: ConfigDict, name: str) -> None:
  """Raises UserError where fields, each possible, do not fit together."""
  head = phase.head.name
  # A head of the user's own that does not say what it gives, gives all.
  gives = getattr(model.HEADS[head], "gives", ("embeddings", "logits"))
  readers = {f"losses.{term}": TERMS[term].reads for term in phase.losses}
  if phase.predictor in OF_LOGITS:
    readers[f"predictor={phase.predictor!r}"] = "logits"
  for reader, what in readers.items():
    if what not in ("features", *gives):
      others = [
        other
        for other in sorted(model.HEADS)
        if what in getattr(model.HEADS[other], "gives", ())
      ]
      raise UserError(
        f"config.{name}.{reader} reads {what}, but head.name={head!r} gives"
        f" {' and '.join(gives)}. Set head.name to {' or '.join(others)}, or"
        " another of the two."
      )
  if "balanced_contrastive" in phase.losses and not phase.head.get(
    "prototypes", False
  ):
    raise UserError(
      f"config.{name}.losses.balanced_contrastive compares with prototypes,"
      " which the head has not. Set head.prototypes=True."
    )
  _check_cosine(phase, name)
  weights = [options.get("weight", 1.0) for options in phase.losses.values()]
  if phase.epochs and not any(weights):
    raise UserError(
      f"config.{name} has no loss, or none of weight above 0, so nothing"
      f" could be learned. Give it one of {', '.join(sorted(TERMS))}, or"
      " epochs=0."
    )
  if phase.epochs and not phase.trained:
    raise UserError(
      f"config.{name}.trained=() trains nothing. Name what to train, such as"
      " ('head',), or set epochs=0."
    )


def _check_cosine(phase: ConfigDict, name: str) -> None:
  """LDAM's margins are those of a head of cosines, times its scale."""
  if "ldam" not in phase.losses:
    return
  scale, cosine = phase.losses.ldam.get("scale", 30.0), phase.head.get("cosine")
  if phase.head.name == "mlp" and scale != cosine:
    raise UserError(
      f"config.{name}.losses.ldam has scale={scale}, but its logits are"
      f" head.cosine={cosine or 0.0} times cosines. Set both alike, such as to"
      " 30.0."
    )


def _check(config: ConfigDict, path: str, test: _Test) -> None:
  value = _get(config, path)
  if value is _ABSENT:
    raise UserError(f"config.{path} is missing. Expected {test[1]}.")
  possible, expected = test
  try:
    fine = possible(value)
  except TypeError:
    fine = False
  if not fine:
    raise UserError(
      f"config.{path}={value!r} is impossible. Expected {expected}."
    )


def _plain(value: Any) -> Any:
  return value.to_dict() if isinstance(value, ConfigDict) else value
