"""Balanced softmax (Ren et al. 2020): log class shares added to the logits.

python -m dbl_jax.main --config=configs/balanced_softmax.py \
  --workdir=runs/balanced_softmax
"""

from ml_collections import ConfigDict

from dbl_jax import config as defaults


def get_config() -> ConfigDict:
  config = defaults.base()
  config.classify = defaults.supervised()
  config.classify.losses = {"balanced_softmax": {}}
  return config
