"""DBL's idea with the recipe that did best on validation: docs/results.md.

Phase 1 trains base DCNN, which keeps the resolution of small faces, with labels
and instance sampling. Phase 2 trains a balanced classifier on its features:
square-root sampling, and more label smoothing for larger classes.

python -m dbl_jax.main --config=configs/dbl_plus.py --workdir=runs/dbl_plus
"""

from ml_collections import ConfigDict

from dbl_jax import config as defaults


def get_config() -> ConfigDict:
  config = defaults.base()
  config.model = defaults.dcnn()
  config.pretrain = defaults.supervised_dcnn()
  config.classify = defaults.classifier()
  config.classify.q = 0.5
  config.classify.head.hidden = ()
  config.classify.losses = {"label_aware_smoothing": {"head": 0.3, "tail": 0.0}}
  return config
