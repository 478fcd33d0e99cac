"""Re-weighting of Table 1: rare classes count more, Fan et al. 2020, eq. (5).

By inverse frequency, or `configs/reweighting.py:effective` by the effective
number of samples (Cui et al. 2019).

python -m dbl_jax.main --config=configs/reweighting.py \
  --workdir=runs/reweighting
"""

from ml_collections import ConfigDict

from dbl_jax import config as defaults


def get_config(weighting: str = "inverse") -> ConfigDict:
  config = defaults.base()
  config.classify = defaults.supervised()
  config.classify.losses = {"cross_entropy": {"weighting": weighting}}
  return config
