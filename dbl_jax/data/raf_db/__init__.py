"""RAF-DB (Li, Deng & Du 2017): its reader and its tfds builder."""

from dbl_jax.data.raf_db.reader import IMAGE_SIZE, find

__all__ = ["IMAGE_SIZE", "find"]
