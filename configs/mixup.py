"""Mixup, then label-aware smoothing: MiSLAS (Zhong et al. 2021).

Stage 1 is Basic on mixed examples; stage 2 trains its linear classifier
further, class-balanced, with more label smoothing for frequent classes.
`configs/mixup.py:only` is stage 1.

python -m dbl_jax.main --config=configs/mixup.py --workdir=runs/mixup
"""

from ml_collections import ConfigDict

from dbl_jax import config as defaults


def get_config(stages: str = "both") -> ConfigDict:
  config = defaults.base()
  phase = defaults.supervised()
  phase.mixup = 0.2
  if stages == "only":
    config.classify = phase
    return config
  config.pretrain = phase
  config.classify = defaults.classifier()
  config.classify.head.hidden = ()
  config.classify.inherit = ("encoder", "head")
  config.classify.losses = {"label_aware_smoothing": {"head": 0.3, "tail": 0.0}}
  return config
