"""CIFAR-10-LT as Cao et al. 2019 train on it: ResNet-32, 200 epochs.

`configs/cifar_lt.py` is cross-entropy, `:ldam_drw` their method, `:dbl` SimCLR
and a balanced classifier. `--config.data.tfds=cifar100` is CIFAR-100-LT. Two
things differ from the paper: the rate falls by a cosine, not in two steps, and
the crops are of 77 to 100 % of the image, not shifts by four pixels. One image
in a hundred is for validation, so the largest class lacks 50 of 5,000 images.

python -m dbl_jax.main --config=configs/cifar_lt.py --workdir=runs/cifar_lt \
  --config.data.dir=$HOME/tensorflow_datasets
"""

from ml_collections import ConfigDict

from dbl_jax import config as defaults


def get_config(method: str = "cross_entropy") -> ConfigDict:
  config = defaults.base()
  config.data.update(
    name="tfds",
    tfds="cifar10",
    validation_fraction=0.01,
    long_tail="exponential",
    imbalance=100.0,
  )
  config.model.name, config.model.stem = "resnet32", "small"
  METHODS[method](config)
  return config


def _cross_entropy(config: ConfigDict) -> None:
  config.classify = phase = defaults.supervised()
  phase.update(epochs=200, batch_size=128)
  phase.optimizer.update(
    name="sgd",
    learning_rate=0.1,
    scaling="none",
    weight_decay=2e-4,
    warmup=0.025,
  )
  phase.augment.update(
    crop_scale=(0.77, 1.0),
    crop_ratio=(1.0, 1.0),
    jitter_prob=0.0,
    rotation=0.0,
  )


def _ldam_drw(config: ConfigDict) -> None:
  _cross_entropy(config)
  config.classify.head.cosine = 30.0
  config.classify.losses = {"ldam": {"margin": 0.5, "after": 0.8}}


def _dbl(config: ConfigDict) -> None:
  config.pretrain = defaults.simclr()
  config.pretrain.epochs = 200
  config.classify = defaults.classifier()


METHODS = {
  "cross_entropy": _cross_entropy,
  "dbl": _dbl,
  "ldam_drw": _ldam_drw,
}
