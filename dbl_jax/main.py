"""Trains and evaluates the system a config describes.

python -m dbl_jax.main --config=configs/dbl.py --workdir=runs/dbl

Any field of the config can be set: --config.data.name=raf_db.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from dbl_jax.cli import define, parse_flags, run_main
from dbl_jax.errors import UserError

_CONFIG = define(
  config_flags.DEFINE_config_file,
  "config",
  None,
  "The system to train: a config file, or the name of one in configs/.",
)
_WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "Folder of the run: checkpoints, metrics, report. Run the same command again"
  " to resume. Default: runs/<name of the config file>.",
)
_ACCEPT_CHANGES = flags.DEFINE_bool(
  "accept_changes",
  False,
  "Resume a run although its config or images have changed, and log what has."
  " Without it, that is refused.",
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator",
  "",
  "For several hosts: host:port of process 0, or 'auto' to let JAX ask SLURM,"
  " Open MPI or Kubernetes. Each host runs this command.",
)
_NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes", -1, "For several hosts, unless 'auto': number of processes."
)
_PROCESS_ID = flags.DEFINE_integer(
  "process_id", -1, "For several hosts, unless 'auto': index of this process."
)


def main(argv: Sequence[str]) -> None:
  """Trains and evaluates the system of the flags."""
  parse_flags(argv)
  if _CONFIG.value is None:
    raise UserError("--config is required, such as --config=configs/dbl.py.")
  from dbl_jax import config as configs
  from dbl_jax import train
  from dbl_jax.runtime import distributed
  from dbl_jax.runtime.logs import print_line

  distributed.initialize(
    _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
  )
  config = configs.resolve(_CONFIG.value)
  name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
  workdir = Path(_WORKDIR.value or f"runs/{name}")
  metrics = train.train_and_evaluate(
    config, workdir, accept_changes=_ACCEPT_CHANGES.value
  )
  print_line(
    f"{metrics['split']}: {metrics['images']} images, overall accuracy"
    f" {metrics['overall_accuracy']:.1%}, mean-class accuracy"
    f" {metrics['mean_class_accuracy']:.1%}\n"
    f"Report: {workdir / 'report.html'}"
  )


if __name__ == "__main__":
  run_main(main)
