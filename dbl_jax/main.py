"""Trains and evaluates the system a config describes.

python -m dbl_jax.main --config=configs/dbl.py --workdir=runs/dbl

Any field of the config can be set: --config.data.name=raf_db.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from dbl_jax.cli import parse_flags, run_main
from dbl_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "The system to train: a file in configs/."
)
_WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "Folder of the run: checkpoints, figures, report. Run again with the same"
  " one to go on where it stopped. Default: runs/<name of the config file>.",
)
_ACCEPT_CHANGES = flags.DEFINE_bool(
  "accept_changes",
  False,
  "Go on with a run whose config or images were others; what changed is said."
  " Without it, that is refused.",
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator",
  "",
  "On several hosts: host:port of process 0, or 'auto' to let JAX ask SLURM,"
  " Open MPI or Kubernetes. Each host runs this command.",
)
_NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes", -1, "On several hosts, unless 'auto': how many."
)
_PROCESS_ID = flags.DEFINE_integer(
  "process_id", -1, "On several hosts, unless 'auto': this one's, from 0."
)


def main(argv: Sequence[str]) -> None:
  """Trains and evaluates what the flags describe."""
  parse_flags(argv)
  if _CONFIG.value is None:
    raise UserError("Which system? Give --config=configs/dbl.py or another.")
  from dbl_jax import config as configs
  from dbl_jax import train
  from dbl_jax.runtime import distributed
  from dbl_jax.runtime.logs import say

  distributed.initialize(
    _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
  )
  config = configs.resolve(_CONFIG.value)
  name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
  workdir = Path(_WORKDIR.value or f"runs/{name}")
  metrics = train.train_and_evaluate(
    config, workdir, accept_changes=_ACCEPT_CHANGES.value
  )
  say(
    f"{metrics['split']}: {metrics['images']} images, overall accuracy"
    f" {metrics['overall_accuracy']:.1%}, mean-class accuracy"
    f" {metrics['mean_class_accuracy']:.1%}\n"
    f"Report: {workdir / 'report.html'}"
  )


def run() -> None:
  """Entry point of the command `dbl-jax`."""
  run_main(main)


if __name__ == "__main__":
  run()
