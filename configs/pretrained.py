"""Published weights, fine-tuned with labels, then a balanced classifier.

`configs/pretrained.py:resnet18` is for weights of another encoder than
EfficientNet-Lite0. Without `init_from` the encoder starts at random.

python -m dbl_jax.main --config=configs/pretrained.py \\
  --workdir=runs/pretrained --config.init_from=FILE.pth
"""

from ml_collections import ConfigDict

from dbl_jax import config as defaults


def get_config(encoder: str = "efficientnet_lite0") -> ConfigDict:
  config = defaults.base()
  config.model.name = encoder
  config.finetune = defaults.finetune()
  config.finetune.optimizer.encoder_rate = 0.5
  config.classify = defaults.classifier()
  config.classify.inherit = ("encoder", "head")
  config.classify.head.hidden = ()
  config.classify.losses = {"label_aware_smoothing": {"head": 0.3, "tail": 0.0}}
  config.classify.q = 0.5
  return config
