"""DLP-CNN of Table 1 (Li et al. 2017): base DCNN and locality-preserving loss.

`configs/dlp_cnn.py:svm` classifies with a support vector machine on its
features, as the paper also does (needs scikit-learn).

python -m dbl_jax.main --config=configs/dlp_cnn.py --workdir=runs/dlp_cnn
"""

from ml_collections import ConfigDict

from dbl_jax import config as defaults


def get_config(predictor: str = "head") -> ConfigDict:
  config = defaults.base()
  config.model = defaults.dcnn()
  phase = defaults.supervised_dcnn()
  phase.losses = {
    "cross_entropy": {},
    "locality_preserving": {"weight": 0.003, "neighbours": 20},
  }
  if predictor == "head":
    config.classify = phase
  else:
    config.pretrain = phase
    config.classify = defaults.untrained(predictor)
  return config
