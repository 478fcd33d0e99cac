"""Only phase 1 of DBL: self-supervised features by SimCLR.

python -m dbl_jax.main --config=configs/simclr.py --workdir=runs/simclr
"""

from ml_collections import ConfigDict

from dbl_jax import config as defaults


def get_config() -> ConfigDict:
  config = defaults.base()
  config.pretrain = defaults.simclr()
  return config
