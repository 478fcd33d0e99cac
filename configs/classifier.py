"""Only phase 2 of DBL: a balanced classifier on the encoder of another run.

python -m dbl_jax.main --config=configs/classifier.py \
  --config.init_from=runs/simclr --workdir=runs/classifier
"""

from ml_collections import ConfigDict

from dbl_jax import config as defaults


def get_config() -> ConfigDict:
  config = defaults.base()
  config.classify = defaults.classifier()
  return config
