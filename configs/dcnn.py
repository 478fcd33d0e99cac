"""Base DCNN of Table 1: the network of Li et al. 2017.

python -m dbl_jax.main --config=configs/dcnn.py --workdir=runs/dcnn
"""

from ml_collections import ConfigDict

from dbl_jax import config as defaults


def get_config() -> ConfigDict:
  config = defaults.base()
  config.model = defaults.dcnn()
  config.classify = defaults.supervised_dcnn()
  return config
