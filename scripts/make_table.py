"""Reproduces Table 1 of Fan et al. 2020: trains missing runs, compares them.

python scripts/make_table.py --out=runs/table --epochs=60 \
  --data.name=raf_db --data.dir=/data/RAF-DB --seeds=0,1,2

Writes table.md, table.csv, table.html and two plots to --out. The same command
resumes after an interruption; with more systems or seeds it trains only those.
Several processes with the same command and --out share the work.
"""

import ast
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from dbl_jax import config as configs
from dbl_jax.cli import define, load_config, parse_flags, run_main
from dbl_jax.errors import UserError

_TABLE_1 = (
  "basic,reweighting,resampling,decoupling,center_loss,dcnn,dlp_cnn,regions,dbl"
)
_SYSTEMS = flags.DEFINE_list(
  "systems",
  _TABLE_1,
  "Names of configs in configs/, with variants such as decoupling:lws.",
)
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Training seeds of every system.")
_OUT = flags.DEFINE_string(
  "out", "runs/table", "Folder of the table and of the workdirs."
)
_EPOCHS = flags.DEFINE_integer(
  "epochs",
  0,
  "Epochs of encoder training, for every system; 0: as in each config.",
  lower_bound=0,
)
_HEAD_EPOCHS = flags.DEFINE_integer(
  "head_epochs",
  0,
  "Epochs of a second phase; 0: as in each config.",
  lower_bound=0,
)
_BATCH_SIZE = flags.DEFINE_integer(
  "batch_size",
  0,
  "Upper limit of the batch size, for small data sets; 0: as in each config.",
  lower_bound=0,
)
_SET = flags.DEFINE_multi_string(
  "set",
  [],
  "SYSTEM.FIELD=VALUE: a field of one system's config, such as"
  " dbl.pretrain.epochs=400. May be repeated.",
)
_REFERENCE = flags.DEFINE_string(
  "reference", "basic", "System that the others are compared with."
)
_CUTS = flags.DEFINE_list(
  "cuts",
  [],
  "Tiers: classes with more training images than the first are 'many', with"
  " fewer than the second 'few'. Default: 100,20 for more than 30 classes,"
  " else the mean class size and a third of it.",
)
_PAPER_POINTS = flags.DEFINE_bool(
  "paper_points", False, "Draw the paper's accuracies too."
)
_TRAIN = flags.DEFINE_bool(
  "train", True, "--notrain: compare finished runs without training."
)
_DATA = define(
  config_flags.DEFINE_config_dict,
  "data",
  configs.base().data,
  "Fields of the data set, as in any config: --data.name=...",
)


def main(argv: Sequence[str]) -> None:
  """Trains the systems and writes the table."""
  parse_flags(argv)
  seeds, cuts = _check_flags()
  from dbl_jax.compare import sweep
  from dbl_jax.compare.table import write
  from dbl_jax.runtime import files
  from dbl_jax.runtime.logs import print_line

  out = Path(_OUT.value).expanduser()
  default = configs.base().data.to_dict()
  data = {
    name: value
    for name, value in _DATA.value.to_dict().items()
    if value != default[name]
  }
  systems = _systems(data)
  files.make_writable(out, "--out")
  plan = sweep.plan(systems, seeds, out / "stages")
  epochs = sweep.encoder_epochs(plan)
  epochs_text = ", ".join(f"{name} {n:g}" for name, n in epochs.items())
  if len(set(epochs.values())) > 1:
    print_line(
      f"Encoders are trained for different numbers of epochs ({epochs_text})."
      " --epochs makes them equal, except for a second phase that trains the"
      " encoder further."
    )
  failed = sweep.run(plan) if _TRAIN.value else {}
  missing = sweep.missing(plan, failed)
  if failed:
    print_line("\n  ".join(["Not trained:", *missing]))
  failure = f"{len(missing)} of {len(plan)} could not be trained: see above."
  results = sweep.results(plan, _REFERENCE.value)
  if failed and not results:
    raise UserError(failure)
  data_config = next(iter(plan.values()))[0].config.data
  write(
    out,
    results,
    missing,
    reference=_REFERENCE.value,
    cuts=cuts,
    paper_points=_PAPER_POINTS.value,
    dataset=_describe_data(data, data_config.name),
    image_size=data_config.image_size,
    epochs=epochs_text,
    command=shlex.join(["python", *sys.argv]),
  )
  print_line(f"Table: {out / 'table.html'}")
  if failed:
    raise UserError(failure)


def _systems(data: Mapping[str, object]) -> dict[str, ConfigDict]:
  """The configs of --systems with the data and the budget of the flags."""
  from dbl_jax.compare import sweep

  systems = {
    name: sweep.with_budget(
      load_config(name),
      data,
      _EPOCHS.value,
      _HEAD_EPOCHS.value,
      _BATCH_SIZE.value,
    )
    for name in _SYSTEMS.value
  }
  for text in _SET.value:
    _set_field(systems, text)
  return systems


def _set_field(systems: Mapping[str, ConfigDict], text: str) -> None:
  """Applies a --set."""
  name, _, assignment = text.partition(".")
  field, equals, value = assignment.partition("=")
  if name not in systems or not equals:
    raise UserError(
      f"--set={text}: expected SYSTEM.FIELD=VALUE with a system among"
      f" {', '.join(systems)}."
    )
  if field not in configs.field_names(systems[name]):
    raise UserError(f"--set={text}: configs/{name}.py has no field {field!r}.")
  try:
    parsed = ast.literal_eval(value)
  except (SyntaxError, ValueError):
    parsed = value
  try:
    systems[name].update_from_flattened_dict({field: parsed})
  except (TypeError, ValueError) as error:
    raise UserError(f"--set={text}: {error}.") from error


def _describe_data(changed: Mapping[str, object], name: str) -> str:
  """The data set's name, and fields that change its content."""
  places = ("name", "dir", "cache_dir", "image_size", "input")
  shown = [f"{k}={v}" for k, v in changed.items() if k not in places]
  return f"{name} ({', '.join(shown)})" if shown else name


def _check_flags() -> tuple[list[int], list[int] | None]:
  """The values of --seeds and --cuts, checked with the names of systems."""
  names, lists = _SYSTEMS.value, {"seeds": _SEEDS.value, "cuts": _CUTS.value}
  for flag, values in lists.items():
    for value in values:
      if not re.fullmatch("[0-9]+", value.strip()):
        raise UserError(
          f"--{flag}: {value!r} is not a whole number. Give some, with commas."
        )
  seeds, cuts = ([int(value) for value in values] for values in lists.values())
  for flag, given in (("seeds", seeds), ("systems", names)):
    if not given or len(set(given)) < len(given):
      kind = "number" if flag == "seeds" else "name"
      raise UserError(
        f"--{flag}={','.join(map(str, given))}: expected one {kind} or more,"
        " each once."
      )
  if cuts and (len(cuts) != 2 or cuts[0] < cuts[1]):
    raise UserError(
      f"--cuts={','.join(_CUTS.value)}: expected two numbers, the larger first."
    )
  # Without the default reference, a table has no differences.
  if flags.FLAGS["reference"].present and _REFERENCE.value not in names:
    raise UserError(
      f"--reference={_REFERENCE.value} is not among --systems. Add it there, or"
      f" give one of {', '.join(names)}."
    )
  return seeds, cuts or None


if __name__ == "__main__":
  run_main(main)
