"""CIFAR-10-LT as in Cao et al. 2019: ResNet-32, 200 epochs.

`configs/cifar_lt.py` uses cross-entropy, `:ldam_drw` the authors' method and
`:dbl` SimCLR with a balanced classifier. For CIFAR-100-LT set
`--config.data.tfds=cifar100`. Unlike in the paper, the learning rate follows a
cosine, and crops cover 77 to 100 % of the image. One image in a hundred is for
validation: the largest class has 4,950 images.

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
