"""Options: what a config may set, declared where it is defined.

A component is a function, a dataclass or a flax module. Its options are its
keyword-only parameters or its fields, of type bool, int, float or str, or
annotated with one of the checks below:

  def sup_con(inputs, *, temperature: Annotated[float, number(1e-3)]): ...

Defaults are those of the signature, meanings those of the docstring.
"""

import dataclasses
import functools
import inspect
import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from dbl_jax.errors import UserError

REQUIRED = inspect.Parameter.empty


class _Absent:
  def __repr__(self) -> str:
    return "absent"


ABSENT = _Absent()
# Parameters that the data set determines.
_GIVEN = ("num_classes", "out_size")
# An entry of "Args:" or "Attributes:" in a docstring.
_ENTRY = re.compile(r"^  (\w+): (.+(?:\n    .+)*)", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Option:
  """An option and its possible values.

  Attributes:
    accepts: whether a value is possible; a TypeError counts as False.
    expected: the possible values in words, such as 'a number from 0 to 1'.
    default: value if the config does not set it, or `REQUIRED`.
    meaning: a sentence or two.
  """

  accepts: Callable[[Any], bool]
  expected: Callable[[], str]
  default: Any = REQUIRED
  meaning: str = ""


def number(
  low: float = -math.inf,
  high: float = math.inf,
  kind: Any = int | float,
  what: str = "number",
) -> Option:
  """Finite numbers from low to high, of a type."""

  def accepts(value: Any) -> bool:
    numeric = isinstance(value, kind) and not isinstance(value, bool)
    return numeric and low <= value <= high and math.isfinite(value)

  bounds = "" if low == -math.inf else f" of at least {low}"
  bounds = bounds if high == math.inf else f" from {low} to {high}"
  return Option(accepts, lambda: f"a {what}{bounds}")


integer = functools.partial(number, kind=int, what="whole number")


def one_of(names: Collection[str]) -> Option:
  """The names in a collection, also those added to it later."""
  return Option(
    lambda value: value in names,
    lambda: f"one of {', '.join(name or repr('') for name in sorted(names))}",
  )


def interval(low: float, high: float, optional: bool = False) -> Option:
  """Pairs (a, b) with low <= a <= b <= high, and None if optional."""

  def accepts(value: Any) -> bool:
    if value is None:
      return optional
    return len(value) == 2 and bool(low <= value[0] <= value[1] <= high)

  words = f"two numbers from {low} to {high}, the smaller first"
  return Option(accepts, lambda: words + (", or None" if optional else ""))


def each(item: Option, words: str = "a tuple") -> Option:
  """Tuples of possible values of another option, the empty one included."""
  return Option(
    lambda value: (
      isinstance(value, tuple | list) and all(map(item.accepts, value))
    ),
    lambda: f"{words}, each {item.expected()}",
  )


def patterns() -> Option:
  """Tuples of regular expressions for the start of a parameter's path."""

  def accepts(value: Any) -> bool:
    try:
      return bool(value) and bool(re.compile(value))
    except re.error:
      return False

  words = "a regular expression for the start of a path, such as 'head'"
  return each(Option(accepts, lambda: words))


_BY_TYPE = {
  bool: Option(lambda value: isinstance(value, bool), lambda: "True or False"),
  int: integer(),
  float: number(),
  str: Option(lambda value: isinstance(value, str), lambda: "a string"),
}


def of(component: Callable[..., Any]) -> dict[str, Option]:
  """Options of a component, by name.

  They are a function's keyword-only parameters or a class's fields, except
  those that the data set determines and those of other types.
  """
  meanings: dict[str, str] = {}
  for described in reversed(getattr(component, "__mro__", (component,))):
    meanings |= dict(_ENTRY.findall(inspect.getdoc(described) or ""))
  found = {}
  for name, parameter in inspect.signature(component).parameters.items():
    annotation = parameter.annotation
    annotated = getattr(annotation, "__metadata__", (_BY_TYPE.get(annotation),))
    declared = inspect.isclass(component) or parameter.kind is (
      parameter.KEYWORD_ONLY
    )
    if declared and isinstance(annotated[0], Option) and name not in _GIVEN:
      meaning = " ".join(meanings.get(name, "").split())
      found[name] = dataclasses.replace(
        annotated[0],
        default=parameter.default,
        meaning=meaning[:1].upper() + meaning[1:],
      )
  return found


def defaults(component: Callable[..., Any]) -> dict[str, Any]:
  """The default of each option of a component."""
  return {name: option.default for name, option in of(component).items()}


def validate(path: str, value: Any, option: Option) -> None:
  """Raises UserError if a field's value is invalid, or absent and required.

  The path is that in the config, such as 'classify.q'; a missing value is
  `ABSENT`.
  """
  if value is ABSENT and option.default is not REQUIRED:
    return
  try:
    accepted = option.accepts(value)
  except TypeError:
    accepted = False
  if not accepted:
    found = " is missing" if value is ABSENT else f"={value!r} is invalid"
    raise UserError(f"config.{path}{found}. Expected {option.expected()}.")


def describe(components: Mapping[str, Callable[..., Any]]) -> str:
  """Describes components, by heading, and their options in Markdown."""
  text = ""
  for heading, component in components.items():
    summary = (inspect.getdoc(component) or "").partition("\n")[0]
    text += f"\n### {heading}\n\n{summary}\n\n"
    for name, option in of(component).items():
      required = option.default is REQUIRED
      default = "required" if required else f"default `{option.default!r}`"
      text += f"- **{name}** ({option.expected()}; {default}): "
      text += f"{option.meaning}\n"
  return text
