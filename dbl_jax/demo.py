"""Serves a page on this computer to try a trained model on photos.

python -m dbl_jax.demo --workdir=runs/dbl [--port=8000] \
  [--predictor=logit_adjusted] [--align=none]
"""

import os
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from dbl_jax.cli import parse_flags, run_main
from dbl_jax.errors import UserError

_WORKDIR = flags.DEFINE_string("workdir", None, "Workdir of the run.")
_PORT = flags.DEFINE_integer(
  "port", 8000, "Port on 127.0.0.1; 0 chooses a free one.", 0, 65_535
)
_PREDICTOR = flags.DEFINE_string(
  "predictor", None, "Another predictor, as in evaluate.py. Needs the data."
)
_ALIGN = flags.DEFINE_enum(
  "align", "auto", ("auto", "face", "none"), "As in predict.py."
)


def main(argv: Sequence[str]) -> None:
  """Loads a model and serves the page until Ctrl-C."""
  parse_flags(argv)
  if _WORKDIR.value is None:
    raise UserError("--workdir is required, such as --workdir=runs/dbl.")
  # Threads of NumPy's products would disturb those of JAX.
  os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
  from dbl_jax.serving import demo, predict

  with demo.Server(_PORT.value) as server:
    predictor = predict.load(_WORKDIR.value, _PREDICTOR.value, _ALIGN.value)
    name = Path(_WORKDIR.value).expanduser().resolve().name
    demo.serve(server, predictor, name)


if __name__ == "__main__":
  run_main(main)
