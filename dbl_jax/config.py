"""What a run is: defaults, the values left to the data set, and checks.

A config is `ml_collections.ConfigDict` with `seed`, `init_from`, `data`,
`model` and up to two phases, `pretrain` and `classify`. A phase says where on
each axis a method lies: how many views, which augmentation, head and losses,
the sampling exponent q, what is trained. The files in `configs/` fill it in.
"""

from typing import Any

from ml_collections import ConfigDict, config_dict

from dbl_jax import config_checks
from dbl_jax.data import sources
from dbl_jax.errors import UserError
from dbl_jax.training.phase import PHASES as PHASES
from dbl_jax.training.phase import phases as phases

# Fields that do not change what a run computes.
FREE_FIELDS = (
  "data.cache_dir",
  "data.input",
  "log_every",
  "steps_per_dispatch",
  "tensorboard",
)
# Fields added since runs were first kept, with what these runs did.
LATER_FIELDS = {"skip_nonfinite": False}


# SimCLR's family (Chen et al. 2020, appendix A) and the rotation of the
# paper's section 3. How strong is in `simclr`, by data set.
def strong_augmentation() -> dict[str, Any]:
  """Made anew each time: what is set in a placeholder is set for all of it."""
  return {
    "crop_scale": config_dict.placeholder(tuple),
    "crop_ratio": (3 / 4, 4 / 3),
    "flip": 0.5,
    "jitter_prob": 0.8,
    "jitter_strength": config_dict.placeholder(float),
    "grey": 0.2,
    "blur": config_dict.placeholder(float),
    "rotation": 10.0,
  }


# For a classifier on frozen features: little, since features of heavily
# augmented faces are not those the classifier will meet.
LIGHT_AUGMENTATION = {
  "crop_scale": (0.9, 1.0),
  "crop_ratio": (0.95, 1.05),
  "flip": 0.5,
  "jitter_prob": 0.0,
  "jitter_strength": 0.0,
  "grey": 0.0,
  "blur": 0.0,
  "rotation": 0.0,
}
# For supervised training: what leaves the expression easy to read.
WEAK_AUGMENTATION = {
  "crop_scale": (0.6, 1.0),
  "crop_ratio": (0.9, 1.1),
  "flip": 0.5,
  "jitter_prob": 0.8,
  "jitter_strength": 0.25,
  "grey": 0.0,
  "blur": 0.0,
  "rotation": 10.0,
}


def base() -> ConfigDict:
  """What all systems share. Fields left None depend on the data set."""
  return ConfigDict(
    {
      "seed": 0,
      "init_from": "",  # workdir of a run whose model to start from
      # A step whose loss or gradient is not finite: True leaves it out and
      # counts it, False ends the run.
      "skip_nonfinite": False,
      "data": {
        "name": "synthetic_faces",
        # Folder, zip, .csv of fer2013, prepared .npz; not for synthetic faces.
        "dir": "",
        "image_size": config_dict.placeholder(int),
        "validation_fraction": 0.1,  # of the training part, if it has none
        "test_fraction": 0.2,  # of the whole, if it has no test part
        "split_seed": 0,  # not `seed`: seeds are compared on one split
        "region": "face",  # or a part of aligned faces, see `data.regions`
        "cache_dir": "",  # where prepared files go; the user's cache if empty
        "input": "auto",  # 'resident', 'tf_data'
        # Cuts the training part: 'raf_db' to that set's class counts,
        # 'exponential' from the largest class down to 1/imbalance of it.
        "long_tail": "",
        "imbalance": 100.0,
        "num_train": 5000,  # these three: synthetic faces only
        "num_test": 1200,
        "image_seed": 1,
      },
      "model": {
        "name": "resnet18",
        "stem": "imagenet",  # 'small': 3x3 stride 1, no pooling
        # Of computation: 'float32', 'bfloat16'; 'auto': bfloat16 where it is
        # faster, on accelerators. Parameters and statistics are float32.
        "dtype": "auto",
      },
      "log_every": 10,  # steps
      "steps_per_dispatch": 0,  # 0: as many as suit the device
      "tensorboard": True,
    }
  )


def simclr() -> ConfigDict:
  """Phase 1, disentangled features: the paper's section 4.1, eq. (1)-(3)."""
  return ConfigDict(
    {
      "epochs": config_dict.placeholder(int),
      # For fields left None. Drawn faces get milder views, as their training
      # is short: a fifth of a face can be a cheek.
      "by_data": {
        "synthetic_faces": {
          "epochs": 3,
          "augment": {
            "crop_scale": (0.6, 1.0),
            "jitter_strength": 0.3,
            "blur": 0.2,
          },
        },
        "other": {
          "epochs": 200,
          "augment": {
            "crop_scale": (0.2, 1.0),
            "jitter_strength": 0.5,
            "blur": 0.5,
          },
        },
      },
      "batch_size": 64,
      "views": 2,
      "q": 1.0,
      "augment": strong_augmentation(),
      "cached_views": 0,  # see `classifier`
      "mixup": 0.0,
      "head": {"name": "projection", "hidden": 512, "out": 128},
      "losses": {"nt_xent": {"temperature": 0.1}},
      "inherit": ("encoder",),
      "trained": ("encoder", "head"),
      "optimizer": {
        "name": "adamw",
        "learning_rate": 6e-3,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "warmup": 0.1,
        "clip_norm": 0.0,
      },
      "predictor": "knn",  # how validation and the report classify
      "evaluate_every": 2.0,  # epochs; checkpoints are saved then
      "keep": "latest",  # the checkpoint that goes on: 'latest' or 'best'
    }
  )


def classifier() -> ConfigDict:
  """Phase 2, balanced classifier: section 4.2, eq. (4)-(7)."""
  return ConfigDict(
    {
      "epochs": config_dict.placeholder(int),
      "by_data": {"synthetic_faces": {"epochs": 4}, "other": {"epochs": 30}},
      "batch_size": 128,
      "views": 1,
      "q": 0.0,
      "augment": dict(LIGHT_AUGMENTATION),
      # Frozen features are extracted once: of the plain image, and of this
      # many views less one. 0: augment and encode at every step.
      "cached_views": 1,
      "mixup": 0.0,  # alpha of Beta(alpha, alpha); 0: examples are not mixed
      "head": {"name": "mlp", "hidden": (256,)},
      "losses": {"cross_entropy": {}},  # see `losses.terms`
      # What is taken over from the phase, or the run, before; the rest starts
      # fresh. Like `trained`, patterns of parameter paths.
      "inherit": ("encoder",),
      "trained": ("head",),
      "optimizer": {
        "name": "adamw",
        "learning_rate": 4e-3,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "warmup": 0.1,
        "clip_norm": 0.0,
      },
      "predictor": "head",  # see `predictors`
      "evaluate_every": 1.0,
      "keep": "best",
    }
  )


def supervised() -> ConfigDict:
  """A classifier trained end to end: the axes of `classifier`, all trained."""
  config = classifier()
  config.by_data.synthetic_faces.epochs = 6
  config.by_data.other.epochs = 60
  config.q = 1.0
  config.augment.update(WEAK_AUGMENTATION)
  config.cached_views = 0
  config.head.hidden = ()
  config.trained = ("encoder", "head")
  return config


def untrained(predictor: str) -> ConfigDict:
  """A last phase that trains nothing: the model before, another predictor."""
  config = classifier()
  config.inherit = ("encoder", "head")
  config.epochs = 0
  config.head.hidden = ()
  config.predictor = predictor
  return config


def dcnn() -> ConfigDict:
  """The encoder of the RAF-DB paper, in place of `base`'s."""
  return ConfigDict({"name": "dcnn", "dtype": "auto", "pooling": "flatten"})


def supervised_dcnn() -> ConfigDict:
  """`supervised` for that encoder, by plain SGD as its paper (Li et al. 2017).

  The rate is four times theirs, 0.01: better on validation in short trainings.
  """
  config = supervised()
  config.batch_size = 64
  config.optimizer.update(name="sgd", learning_rate=0.16, weight_decay=5e-4)
  return config


def from_dict(fields: dict[str, Any]) -> ConfigDict:
  """A resolved config read back from JSON, which has no tuples."""

  def restored(value: Any) -> Any:
    if isinstance(value, dict):
      return {key: restored(item) for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value

  return ConfigDict(LATER_FIELDS | restored(fields))


def resolve(config: ConfigDict) -> ConfigDict:
  """Fills in what depends on the data set, and checks every field.

  Args:
    config: as the config file and the flags left it; not changed.

  Returns:
    A locked copy without empty fields.

  Raises:
    UserError: naming the first impossible field, its value and what it may be.
  """
  config = ConfigDict(config).copy_and_resolve_references()
  with config.unlocked():
    if not phases(config):
      raise UserError(
        "The config has no phase: give it `pretrain`, `classify` or both."
      )
    config_checks.check_fields(config, phases(config))
    config_checks.check_data_name(config)
    name = config.data.name
    if config.data.image_size is None:
      config.data.image_size = sources.SOURCES[name].image_size
    for phase in phases(config):
      config_checks.check_by_data(config, phase)
      by_data = config[phase].by_data
      _fill(config[phase], by_data.get(name, by_data.other))
  config_checks.check(config, phases(config))
  return config


def _fill(fields: ConfigDict, values: ConfigDict) -> None:
  """Gives fields that are None their values."""
  for name, value in values.items():
    if name not in fields:  # `validation.check` says so
      continue
    if isinstance(value, ConfigDict):
      _fill(fields[name], value)
    elif fields[name] is None:
      fields[name] = value


def field_names(config: ConfigDict, prefix: str = "") -> list[str]:
  """Every field's full name, such as 'pretrain.optimizer.learning_rate'."""
  names = []
  for key, value in config.items():
    if isinstance(value, ConfigDict):
      names += field_names(value, f"{prefix}{key}.")
    else:
      names.append(f"{prefix}{key}")
  return names


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
  """The fields in which two configs differ, one line each."""
  old, new = ConfigDict(old), ConfigDict(new)
  flat_old = {name: _get(old, name) for name in field_names(old)}
  flat_new = {name: _get(new, name) for name in field_names(new)}
  absent = object()
  lines = []
  for name in sorted(flat_old | flat_new):
    a, b = flat_old.get(name, absent), flat_new.get(name, absent)
    if _plain(a) != _plain(b):
      shown = ["absent" if value is absent else repr(value) for value in (a, b)]
      lines.append(f"{name}: {shown[0]} -> {shown[1]}")
  return lines


def _get(config: ConfigDict, name: str) -> Any:
  for part in name.split("."):
    config = config[part]
  return config


def _plain(value: Any) -> Any:
  return list(value) if isinstance(value, tuple) else value
