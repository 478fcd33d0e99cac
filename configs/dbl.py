"""DBL, the paper's proposal: SimCLR features, then a balanced classifier.

python -m dbl_jax.main --config=configs/dbl.py --workdir=runs/dbl
"""

from ml_collections import ConfigDict

from dbl_jax import config as defaults


def get_config() -> ConfigDict:
  config = defaults.base()
  config.pretrain = defaults.simclr()
  config.classify = defaults.classifier()
  return config
