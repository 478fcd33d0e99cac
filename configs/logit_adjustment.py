"""Post-hoc logit adjustment (Menon et al. 2021): Basic, its logits shifted.

Its strength is chosen on validation. To adjust any other run:
`python scripts/evaluate.py --workdir=... --predictor=logit_adjusted`.

python -m dbl_jax.main --config=configs/logit_adjustment.py \
  --workdir=runs/logit_adjustment
"""

from ml_collections import ConfigDict

from dbl_jax import config as defaults


def get_config() -> ConfigDict:
  config = defaults.base()
  config.pretrain = defaults.supervised()
  config.classify = defaults.untrained("logit_adjusted")
  return config
