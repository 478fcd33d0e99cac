"""Decoupling of Table 1 (Kang et al. 2020): supervised features, then balance.

Stage 1 is Basic. Variants of stage 2: `:crt` (the default), a new linear
classifier on class-balanced samples; `:lws`, one learned scale per class;
`:tau_normalised` and `:nearest_class_mean`, without training.

python -m dbl_jax.main --config=configs/decoupling.py --workdir=runs/decoupling
"""

from ml_collections import ConfigDict

from dbl_jax import config as defaults


def get_config(stage_2: str = "crt") -> ConfigDict:
  config = defaults.base()
  config.pretrain = defaults.supervised()
  config.classify = STAGES_2[stage_2]()
  return config


def _crt() -> ConfigDict:
  classify = defaults.classifier()
  classify.head.hidden = ()
  return classify


def _lws() -> ConfigDict:
  classify = _crt()
  classify.inherit = ("encoder", "head/logits")
  classify.head.scaled = True
  classify.trained = ("head/scale",)
  return classify


STAGES_2 = {
  "crt": _crt,
  "lws": _lws,
  "tau_normalised": lambda: defaults.untrained("tau_normalised"),
  "nearest_class_mean": lambda: defaults.untrained("nearest_class_mean"),
}
