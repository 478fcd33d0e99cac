"""LDAM-DRW (Cao et al. 2019): margins by class, weights for the last fifth.

python -m dbl_jax.main --config=configs/ldam_drw.py --workdir=runs/ldam_drw
"""

from ml_collections import ConfigDict

from dbl_jax import config as defaults


def get_config() -> ConfigDict:
  config = defaults.base()
  config.classify = defaults.supervised()
  config.classify.head.cosine = 30.0
  config.classify.losses = {"ldam": {"margin": 0.5, "after": 0.8}}
  return config
