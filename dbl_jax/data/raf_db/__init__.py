"""RAF-DB (Li, Deng & Du 2017): its files, its tfds builder, and loading."""

from dbl_jax.data.raf_db.prepare import load

__all__ = ["load"]
