"""Synthetic faces, drawn from parameters: the default data set."""

from dbl_jax.data.synthetic.faces import CLASS_NAMES, VERSION, make_split

__all__ = ["CLASS_NAMES", "VERSION", "make_split"]
