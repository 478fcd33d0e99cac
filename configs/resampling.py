"""Re-sampling of Table 1: class-balanced batches, Fan et al. 2020, eq. (4).

`configs/resampling.py:0.5` samples by the square root of the class's size.

python -m dbl_jax.main --config=configs/resampling.py --workdir=runs/resampling
"""

from ml_collections import ConfigDict

from dbl_jax import config as defaults


def get_config(q: str = "0") -> ConfigDict:
  config = defaults.base()
  config.classify = defaults.supervised()
  config.classify.q = float(q)
  return config
