"""DBL (Fan et al. 2020): features first, then a balanced classifier.

Variants of phase 1: SimCLR (the default, as in the paper), and with labels
`configs/dbl.py:sup_con` (Khosla et al. 2020) and `:balanced_contrastive` (Zhu
et al. 2022). `:fine_tuned` also trains the encoder's last stage in phase 2;
`:three_phases` trains the whole encoder with labels between the two phases.

python -m dbl_jax.main --config=configs/dbl.py --workdir=runs/dbl
"""

from ml_collections import ConfigDict

from dbl_jax import config as defaults


def get_config(features: str = "simclr") -> ConfigDict:
  config = defaults.base()
  config.pretrain = defaults.simclr()
  config.classify = defaults.classifier()
  FEATURES[features](config)
  return config


def _simclr(config: ConfigDict) -> None:
  """Leaves the defaults unchanged."""


def _sup_con(config: ConfigDict) -> None:
  config.pretrain.losses = {"sup_con": {"temperature": 0.1}}


def _balanced_contrastive(config: ConfigDict) -> None:
  config.pretrain.losses = {"balanced_contrastive": {"temperature": 0.1}}
  config.pretrain.head.prototypes = True


def _fine_tuned(config: ConfigDict) -> None:
  config.classify.trained = ("encoder/stage4", "head")
  config.classify.cached_views = 0
  config.classify.optimizer.learning_rate = 1e-3


def _three_phases(config: ConfigDict) -> None:
  config.finetune = defaults.finetune()
  config.finetune.optimizer.encoder_rate = 0.3


FEATURES = {
  "simclr": _simclr,
  "sup_con": _sup_con,
  "balanced_contrastive": _balanced_contrastive,
  "fine_tuned": _fine_tuned,
  "three_phases": _three_phases,
}
