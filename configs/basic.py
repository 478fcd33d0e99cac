"""Basic of Table 1: a ResNet-18, cross-entropy, instance sampling.

python -m dbl_jax.main --config=configs/basic.py --workdir=runs/basic
"""

from ml_collections import ConfigDict

from dbl_jax import config as defaults


def get_config() -> ConfigDict:
  config = defaults.base()
  config.classify = defaults.supervised()
  return config
