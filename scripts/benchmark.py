"""Measures dbl_jax and its peers on the same work, in alternation.

python scripts/benchmark.py [--peers=PYTHON] [--device=cpu|gpu] \
  [--only=step,augment,input,phase2,nt_xent,startup] [--rounds=5] [--quick] \
  [--out=benchmark.json]
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from dbl_jax.cli import parse_flags, run_main

_PEERS = flags.DEFINE_string(
  "peers",
  None,
  "Python of the peers' environment: python3 -m venv .peers;"
  " .peers/bin/pip install -r scripts/peers/peers.txt. Without it dbl_jax is"
  " measured alone.",
)
_DEVICE = flags.DEFINE_string(
  "device", None, "'cpu' or 'gpu'. Default: the GPU, if there is one."
)
_ONLY = flags.DEFINE_list(
  "only",
  None,
  "Parts: step,augment,input,phase2,nt_xent,startup. Default: all.",
)
_ROUNDS = flags.DEFINE_integer(
  "rounds", 5, "How often each system is measured; slow ones less.", 1
)
_QUICK = flags.DEFINE_bool(
  "quick", False, "Small cases, to see that everything runs."
)
_OUT = flags.DEFINE_string(
  "out", "benchmark.json", "File for all results; a .log lies beside it."
)


def main(argv: Sequence[str]) -> None:
  """Measures what the flags ask for."""
  parse_flags(argv)
  from dbl_jax.benchmarks import benchmark

  benchmark.run(
    benchmark.Options(
      command=tuple(argv),
      peers=_PEERS.value,
      peers_work=Path(__file__).parent / "peers",
      device=_DEVICE.value,
      parts=_ONLY.value,
      rounds=_ROUNDS.value,
      quick=_QUICK.value,
      out=Path(_OUT.value).expanduser(),
    )
  )


if __name__ == "__main__":
  run_main(main)
