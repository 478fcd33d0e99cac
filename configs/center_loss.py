"""Center Loss of Table 1 (Wen et al. 2016): features near a centre.

python -m dbl_jax.main --config=configs/center_loss.py \
  --workdir=runs/center_loss
"""

from ml_collections import ConfigDict

from dbl_jax import config as defaults


def get_config() -> ConfigDict:
  config = defaults.base()
  config.classify = defaults.supervised()
  config.classify.losses = {
    "cross_entropy": {},
    "center": {"weight": 0.008, "rate": 0.5},
  }
  return config
