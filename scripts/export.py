"""Exports the model of a run: ONNX, StableHLO, safetensors and a model card.

python scripts/export.py --workdir=runs/dbl [--out=DIR] [--web]

Needs `pip install -e '.[export]'`. Each file is loaded again and compared
with the model.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from dbl_jax.cli import parse_flags, run_main
from dbl_jax.errors import UserError

_WORKDIR = flags.DEFINE_string("workdir", None, "Workdir of the run.")
_OUT = flags.DEFINE_string("out", None, "Folder. Default: WORKDIR/export.")
_WEB = flags.DEFINE_bool(
  "web",
  False,
  "Also write a page that runs the model in the browser, to OUT/web. npm"
  " fetches onnxruntime-web for it.",
)


def main(argv: Sequence[str]) -> None:
  """Writes the files and prints how much each differs from the model."""
  parse_flags(argv)
  if _WORKDIR.value is None:
    raise UserError("--workdir is required, such as --workdir=runs/dbl.")
  try:
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401
  except ImportError as error:
    raise UserError(
      f"{error.name} is not installed: pip install -e '.[export]'."
    ) from error
  from dbl_jax.serving import export

  workdir = Path(_WORKDIR.value).expanduser()
  out = Path(_OUT.value or workdir / "export").expanduser()
  for name, difference in export.export(workdir, out).items():
    megabytes = (out / name).stat().st_size / 1e6
    print(
      f"  {out / name}: {megabytes:.1f} MB, differs from the model by at most"
      f" {difference:.1e}"
    )
  if (out / "README.md").is_file():
    print(f"Model card: {out / 'README.md'}")
  else:
    print("No model card: the run has no metrics.json, so it is not finished.")
  if _WEB.value:
    from dbl_jax.serving import web

    page = web.build(workdir, out)
    print(f"Page: python -m http.server --bind 127.0.0.1 --directory {page}")


if __name__ == "__main__":
  run_main(main)
