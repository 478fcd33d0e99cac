"""The config of a run: its fields, presets for phases, and validation.

A config is an `ml_collections.ConfigDict` with `seed`, `init_from`, `data`,
`model` and one to three phases, see `PHASES`. The fields of a phase are the
axes on which methods differ: views, augmentation, head, losses, the sampling
exponent q, the trained parameters. The files in `configs/` fill them in.

Fields of the run, the data and the phase are declared here; the options of
encoders, heads, losses, augmentation and optimizers where these are defined.
"""

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, get_args

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict, config_dict

from dbl_jax.augment import views
from dbl_jax.data import face_crops, pipeline, sources, splits
from dbl_jax.errors import UserError
from dbl_jax.evaluation.predictors import PREDICTORS, READS_LOGITS
from dbl_jax.losses.terms import TERMS, TermFields
from dbl_jax.models import model, torch_weights
from dbl_jax.runtime import options
from dbl_jax.runtime.options import integer, number, one_of, patterns
from dbl_jax.training import optim
from dbl_jax.training.optim import OptimizerFields
from dbl_jax.training.phase import PHASES as PHASES
from dbl_jax.training.phase import phases as phases

# Fields that do not change what a run computes.
CHANGEABLE_FIELDS = (
  "data.cache_dir",
  "data.input",
  "log_every",
  "steps_per_dispatch",
  "tensorboard",
)
# Fields of a run that stored configs of older versions lack, see `migrate`.
NEW_FIELDS = {"skip_nonfinite": False}

# Leaf names of fields that are never required.
_OPTIONAL = ("preset", "blur_sigma", "crop_tries", "unlabelled", "mirror")

_Seed = Annotated[int, integer(0, 2**31 - 1)]
_Share = Annotated[float, number(0.01, 0.9)]


@dataclasses.dataclass
class RunFields:
  """Fields of a run.

  Attributes:
    seed: seed of initial parameters, batches and views.
    init_from: workdir of a run whose model the first phase starts from (its
      phase finetune, else pretrain, else classify), or a file of PyTorch
      weights (.pth, .safetensors) of the encoder.
    skip_nonfinite: whether a step whose loss or gradient is not finite is
      skipped and counted; otherwise it ends the run.
    log_every: steps between two entries of the log.
    steps_per_dispatch: steps that the device runs per call; 0 selects a number
      that suits the device.
    tensorboard: whether files for TensorBoard are written.
  """

  seed: _Seed = 0
  init_from: str = ""
  skip_nonfinite: bool = False
  log_every: Annotated[int, integer(1)] = 10
  steps_per_dispatch: Annotated[int, integer(0, 10_000)] = 0
  tensorboard: bool = True


@dataclasses.dataclass
class DataFields:
  """The data set and its splits.

  Attributes:
    name: name of the data set.
    dir: folder, zip file, .csv file of fer2013, or prepared .npz file or folder
      of shards; '' for synthetic faces. For tfds its data_dir, or the folder
      of a prepared set.
    tfds: the set of tensorflow-datasets, such as 'cifar10', or
      'name/config:1.0.0'.
    download: whether tensorflow-datasets may download and prepare the set.
    image_feature: feature of tfds that holds the image; '' finds it.
    label_feature: feature of tfds that holds the class; '' finds it.
    train_split: training split of tfds, such as 'train[:80%]', or list of a
      listed set; '' finds it by its name.
    validation_split: likewise for validation, which may be missing.
    test_split: likewise for testing.
    image_size: height and width in pixels; None depends on the data set.
    validation_fraction: share of the training split to validate on, if the
      data set has no validation split.
    test_fraction: share to test on, if the data set has no test split.
    groups: keeps images of a group, such as a person, in one split where the
      splits are made here: 'folder', for the folders in the class folders, or a
      text file with a line 'path group' for each image.
    split_seed: seed of the splits, apart from `seed`: all seeds are compared
      on the same splits.
    align: 'face' searches each image for its largest face and aligns it, for
      photos that are not cropped; 'none' uses the central square of an image.
    region: region to which aligned faces are cut.
    cache_dir: folder for prepared images; '' is the user's cache.
    input: 'resident' holds the images in memory and on the device, 'tf_data'
      streams them decoded from disk, 'encoded' decodes the image files for each
      batch, unless faces are searched; 'auto' chooses by size. All give the
      same batches.
    long_tail: reduces the training split, 'raf_db' to that set's class counts,
      'exponential' from the largest class down to 1/imbalance of it.
    imbalance: largest class over smallest, for 'exponential'.
    num_train: training images; synthetic faces only.
    num_test: test images; synthetic faces only.
    image_seed: seed of the images; synthetic faces only.
  """

  name: Annotated[str, one_of(sources.SOURCES)] = "synthetic_faces"
  dir: str = ""
  tfds: str = ""
  download: bool = False
  image_feature: str = ""
  label_feature: str = ""
  train_split: str = ""
  validation_split: str = ""
  test_split: str = ""
  image_size: Annotated[int | None, integer(16, 1024)] = None
  validation_fraction: _Share = 0.1
  test_fraction: _Share = 0.2
  groups: str = ""
  split_seed: _Seed = 0
  align: Annotated[str, one_of(("none", "face"))] = "none"
  region: Annotated[str, one_of(face_crops.REGIONS)] = "face"
  cache_dir: str = ""
  input: Annotated[str, one_of(pipeline.FORMS)] = "auto"
  long_tail: Annotated[str, one_of(("", *splits.KINDS))] = ""
  imbalance: Annotated[float, number(1, 1_000_000)] = 100.0
  num_train: Annotated[int, integer(14, 10_000_000)] = 5000
  num_test: Annotated[int, integer(7, 10_000_000)] = 1200
  image_seed: _Seed = 1


@dataclasses.dataclass
class ModelFields:
  """The encoder; its own options are fields too.

  Attributes:
    name: the encoder.
    dtype: type of the computation; 'auto' is bfloat16 on accelerators and
      float32 on CPU. Parameters and statistics are float32.
    normalisation: normalisation of pixels; None is that of the published
      weights if `init_from` is a file of PyTorch weights, else 'half', mean
      0.5 and deviation 0.25.
    mirror: outside training, averages the features of an image and its mirror
      image; it doubles the time of a prediction.
  """

  name: Annotated[str, one_of(model.ENCODERS)] = "resnet18"
  dtype: Annotated[str, one_of(("auto", "bfloat16", "float32"))] = "auto"
  normalisation: Annotated[str | None, one_of(model.NORMALISATIONS)] = None
  mirror: bool = False


# Up to this size the ImageNet stem leaves maps too small to learn from, and
# SimCLR's blur has no effect.
_SMALL = 64
# Defaults that depend on the data set: preset, name of the data set or
# 'other', field of the phase. They replace fields that are None.
BY_DATA: dict[str, dict[str, dict[str, Any]]] = {
  "": {"other": {}},
  "simclr": {
    # Milder views: training is short, and 20 % of a drawn face can be a cheek.
    "synthetic_faces": {
      "epochs": 3,
      "batch_size": 64,
      "augment.crop_scale": (0.6, 1.0),
      "augment.jitter_strength": 0.3,
    },
    "other": {
      "epochs": 200,
      "batch_size": 256,
      "augment.crop_scale": (0.2, 1.0),
      "augment.jitter_strength": 0.5,
    },
  },
  "supervised": {"synthetic_faces": {"epochs": 6}, "other": {"epochs": 60}},
  "classifier": {"synthetic_faces": {"epochs": 4}, "other": {"epochs": 30}},
}


@dataclasses.dataclass
class PhaseFields:
  """Fields of a phase, next to augment, head, losses and optimizer.

  Attributes:
    preset: row of `config.BY_DATA` that replaces fields that are None.
    epochs: number of epochs; None depends on the data set, and 0 skips
      training.
    batch_size: images per step over all devices.
    unlabelled: folders or zips, separated by commas, of further images to train
      on, without labels. Copies of images of any split are left out. An epoch
      then covers the training split and these images.
    views: augmented views of each image.
    q: sampling exponent: a class of n images is drawn with probability
      proportional to n^q. 1 is instance sampling, 0 class-balanced sampling.
    cached_views: views of each image whose features are computed once, for a
      frozen encoder; the first is the image itself. 0 augments and encodes at
      every step.
    mixup: alpha of Beta(alpha, alpha); 0 disables mixup.
    inherit: parameters taken from the phase or run before; all others are
      initialised.
    trained: parameters that are trained.
    predictor: method by which validation and the report classify.
    evaluate_every: epochs between two validations.
    keep: checkpoint that the next phase and the report use. A validation
      split with few images of a class chooses 'best' mostly by chance.
  """

  preset: Annotated[str, one_of(BY_DATA)] = ""
  epochs: Annotated[float | None, number(0, 1_000_000)] = None
  batch_size: Annotated[int, integer(2, 10_000_000)] = 128
  unlabelled: str = ""
  views: Annotated[int, integer(1, 8)] = 1
  q: Annotated[float, number(0, 1)] = 1.0
  cached_views: Annotated[int, integer(0, 64)] = 0
  mixup: Annotated[float, number(0, 10)] = 0.0
  inherit: Annotated[tuple[str, ...], patterns()] = ("encoder",)
  trained: Annotated[tuple[str, ...], patterns()] = ("encoder", "head")
  predictor: Annotated[str, one_of(PREDICTORS)] = "head"
  evaluate_every: Annotated[float, number(0.01)] = 1.0
  keep: Annotated[str, one_of(("best", "latest"))] = "latest"


@dataclasses.dataclass
class HeadFields:
  """The head; its own options are fields too.

  Attributes:
    name: the head.
  """

  name: Annotated[str, one_of(model.HEADS)]


# For a classifier on frozen features: weak, since features of heavily
# augmented faces differ from those that the classifier is applied to.
CLASSIFIER_AUGMENTATION: dict[str, Any] = {
  "crop_scale": (0.9, 1.0),
  "crop_ratio": (0.95, 1.05),
  "crop_tries": 10,
  "flip": 0.5,
  "jitter_prob": 0.0,
  "jitter_strength": 0.0,
  "grey": 0.0,
  "blur": 0.0,
  "rotation": 0.0,
}
# For supervised training: the expression stays easy to recognise.
SUPERVISED_AUGMENTATION = CLASSIFIER_AUGMENTATION | {
  "crop_scale": (0.6, 1.0),
  "crop_ratio": (0.9, 1.1),
  "jitter_prob": 0.8,
  "jitter_strength": 0.25,
  "rotation": 10.0,
}


def _defaults(component: Callable[..., Any]) -> dict[str, Any]:
  """Defaults of a component's fields, with placeholders for None."""
  parameters = inspect.signature(component).parameters

  def placeholder(name: str) -> Any:  # of the first type in 'float | None'
    first = get_args(get_args(parameters[name].annotation)[0])[0]
    return config_dict.placeholder(first)

  return {
    name: placeholder(name) if value is None else value
    for name, value in options.defaults(component).items()
  }


def base() -> ConfigDict:
  """What all systems share; image size and stem depend on the data set."""
  stem = {"stem": config_dict.placeholder(str)}
  return ConfigDict(
    options.defaults(RunFields)
    | {"data": _defaults(DataFields), "model": _defaults(ModelFields) | stem}
  )


def _phase(preset: str, **fields: Any) -> ConfigDict:
  """A phase with the defaults of its fields, except those given."""
  return ConfigDict(
    _defaults(PhaseFields)
    | {"preset": preset, "optimizer": _defaults(OptimizerFields)}
    | {"epochs": config_dict.placeholder(int)}
    | fields
  )


def simclr() -> ConfigDict:
  """Phase 1, disentangled features: Fan et al. 2020, section 4.1."""
  return _phase(
    "simclr",
    batch_size=config_dict.placeholder(int),
    views=2,
    # SimCLR's (Chen et al. 2020, appendix A) and the rotation of Fan et al.
    # 2020, section 3. Its strength depends on the data, see `BY_DATA`; blur
    # is for images of more than 64 pixels.
    augment=SUPERVISED_AUGMENTATION
    | {
      "crop_scale": config_dict.placeholder(tuple),
      "crop_ratio": (3 / 4, 4 / 3),
      "jitter_strength": config_dict.placeholder(float),
      "grey": 0.2,
      "blur": config_dict.placeholder(float),
    },
    head={"name": "projection", "hidden": 512, "out": 128},
    losses={"nt_xent": {"temperature": 0.1}},
    predictor="knn",
    evaluate_every=2.0,
  )


def classifier() -> ConfigDict:
  """Phase 2, balanced classifier: Fan et al. 2020, section 4.2."""
  return _phase(
    "classifier",
    q=0.0,
    cached_views=1,
    trained=("head",),
    augment=dict(CLASSIFIER_AUGMENTATION),
    head={"name": "mlp", "hidden": (256,)},
    losses={"cross_entropy": {}},
  )


def supervised() -> ConfigDict:
  """A linear classifier and its encoder, trained end to end with labels."""
  return _phase(
    "supervised",
    augment=dict(SUPERVISED_AUGMENTATION),
    head={"name": "mlp", "hidden": ()},
    losses={"cross_entropy": {}},
  )


def finetune() -> ConfigDict:
  """`supervised`, starting from the encoder of the phase before it."""
  return supervised()


def untrained(predictor: str) -> ConfigDict:
  """A last phase without training, for another predictor."""
  config = classifier()
  config.inherit = ("encoder", "head")
  config.epochs = 0
  config.head.hidden = ()
  config.predictor = predictor
  return config


def dcnn() -> ConfigDict:
  """The encoder of Li et al. 2017, who published RAF-DB."""
  return ConfigDict(
    _defaults(ModelFields) | {"name": "dcnn", "pooling": "flatten"}
  )


def supervised_dcnn() -> ConfigDict:
  """`supervised` for that encoder, with SGD as in Li et al. 2017."""
  config = supervised()
  config.batch_size = 64
  config.optimizer.name = "sgd"
  return config


def migrate(fields: dict[str, Any]) -> dict[str, Any]:
  """Converts a config stored by any version to the fields of this one.

  Removed fields are dropped, and new ones get the values that give the same
  computation.
  """

  def fill(section: dict[str, Any], name: str, former: dict[str, Any]) -> None:
    if isinstance(section.get(name), dict):
      section[name] = former | section[name]

  fields = NEW_FIELDS | fields
  fill(fields, "data", options.defaults(DataFields))
  if isinstance(encoder := fields.get("model"), dict):
    if "normalisation" not in encoder and encoder.get("name") == "dcnn":
      # It had a fourth pooling.
      flat = encoder.get("pooling", "flatten") == "flatten"
      encoder = {"last_pool": flat} | encoder
    if encoder.get("dtype") == "auto":
      encoder = encoder | {"dtype": model.auto_dtype()}
    fields["model"] = {"normalisation": "half", "mirror": False} | encoder
  for name in PHASES:
    if isinstance(phase := fields.get(name), dict):
      phase = {k: v for k, v in phase.items() if k != "by_data"}
      fill(phase, "optimizer", {"scaling": "linear", "encoder_rate": 1.0})
      fill(phase, "augment", {"crop_tries": 1})
      fields[name] = {"unlabelled": ""} | phase
  return fields


def from_dict(fields: dict[str, Any]) -> ConfigDict:
  """A resolved config read from JSON, with lists as tuples."""

  def restored(value: Any) -> Any:
    if isinstance(value, dict):
      return {key: restored(item) for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value

  return ConfigDict(migrate(restored(fields)))


def resolve(config: ConfigDict) -> ConfigDict:
  """Fills in what depends on the data set, and validates every field.

  Returns:
    A locked copy in which every field has a value, without `preset`.

  Raises:
    UserError: the first invalid field, its value and what is expected.
  """
  config = ConfigDict(config).copy_and_resolve_references()
  if not phases(config):
    raise UserError(
      f"The config does not have a phase. Add one of {', '.join(PHASES)}."
    )
  known = _declared(config)
  with config.unlocked():
    if "model.stem" not in known and _get(config, "model.stem") is None:
      del config.model.stem  # left open by `base`, for encoders that have one
    _check_names(config, known)
    _validate(config, "data.name", known)
    if _get(config, "data.image_size") is None:
      config.data.image_size = sources.SOURCES[config.data.name].image_size
    for path in ("init_from", "data.image_size"):
      _validate(config, path, known)
    for phase in phases(config):
      for field in ("preset", "optimizer.name"):
        _validate(config, f"{phase}.{field}", known)
    for path, value in _open_values(config).items():
      if _get(config, path) is None:
        config.update_from_flattened_dict({path: value})
    for phase in phases(config):
      if "preset" in config[phase]:
        del config[phase].preset
  for path in known:
    _validate(config, path, known)
  for phase in phases(config):
    for conflict in _conflicts(config[phase]):
      raise UserError(f"config.{phase}.{conflict}")
  return config


def with_dtype(config: ConfigDict) -> ConfigDict:
  """A resolved config with 'auto' replaced by this device's type."""
  config = config.copy_and_resolve_references()
  if config.model.dtype == "auto":
    config.model.dtype = model.auto_dtype()
  return config


def _validate(
  config: ConfigDict, path: str, known: Mapping[str, options.Option]
) -> None:
  value = _get(config, path)
  value = value.to_dict() if isinstance(value, ConfigDict) else value
  options.validate(path, value, known[path])


def _open_values(config: ConfigDict) -> dict[str, Any]:
  """Values of the fields that a config may leave None.

  They depend on the data set, the image size, the start and the optimizers.
  """
  data, small = config.data, config.data.image_size <= _SMALL
  from_torch = config.init_from.endswith(torch_weights.SUFFIXES)
  encoder = model.ENCODERS[config.model.name]
  values = {"model.stem": "imagenet", "model.normalisation": "half"}
  # Drawn faces are simple; the first run should be short.
  quick = data.name == "synthetic_faces"
  loads = not from_torch or getattr(encoder, "stems_share_weights", False)
  if small and loads and not quick:
    values["model.stem"] = getattr(encoder, "small_stem", "imagenet")
  if from_torch:
    values["model.normalisation"] = getattr(
      encoder, "pretrained_normalisation", "imagenet"
    )
  for name in phases(config):
    phase = config[name]
    rows = BY_DATA[phase.get("preset", "")]
    optimizer = optim.OPTIMIZERS[phase.optimizer.name]
    defaults = {
      f"optimizer.{field}": getattr(optimizer, field)
      for field in optim.OWN_FIELDS
    }
    defaults |= rows.get(data.name, rows["other"])
    defaults["augment.blur"] = 0.0 if small else 0.5
    values |= {f"{name}.{path}": value for path, value in defaults.items()}
  return values


def _declared(config: ConfigDict) -> dict[str, options.Option]:
  """Every field the config may have, given its encoder, heads and losses."""
  known: dict[str, options.Option] = {}

  def add(path: str, component: Callable[..., Any], required: bool) -> None:
    _section(config, path, required=False)  # else a field is missing
    for name, option in options.of(component).items():
      if required and name not in _OPTIONAL:
        option = dataclasses.replace(option, default=options.REQUIRED)
      known.setdefault(f"{path}.{name}".lstrip("."), option)

  def add_chosen(path: str, fields: Any, registry: Mapping[str, Any]) -> None:
    add(path, fields, required=True)
    _validate(config, f"{path}.name", known)
    add(path, registry[_get(config, f"{path}.name")], required=False)

  add("", RunFields, required=True)
  add("data", DataFields, required=True)
  add_chosen("model", ModelFields, model.ENCODERS)
  for phase in phases(config):
    add(phase, PhaseFields, required=True)
    add(f"{phase}.augment", views.augment, required=True)
    add(f"{phase}.optimizer", OptimizerFields, required=True)
    add_chosen(f"{phase}.head", HeadFields, model.HEADS)
    for loss in _section(config, f"{phase}.losses", required=True):
      if loss not in TERMS:
        raise UserError(
          f"config.{phase}.losses names {loss!r}. Expected one of"
          f" {', '.join(sorted(TERMS))}."
        )
      for component in (TermFields, TERMS[loss].loss):
        add(f"{phase}.losses.{loss}", component, required=False)
  return known


def _section(config: ConfigDict, path: str, required: bool) -> ConfigDict:
  """A section of the config, empty if it is absent and not required."""
  section = _get(config, path) if path else config
  if section is options.ABSENT and not required:
    return ConfigDict()
  if not isinstance(section, ConfigDict):
    raise UserError(
      f"config.{path}={section!r} is invalid. Expected options by name, as"
      " in docs/config.md."
    )
  return section


def _check_names(config: ConfigDict, known: Mapping[str, Any]) -> None:
  """Raises UserError for a field that is not declared."""
  for path in field_names(config):
    if path in known:
      continue
    section, dot, _ = path.rpartition(".")
    named = _get(config, f"{section}{dot}name")
    component = "" if named is options.ABSENT else f" {named!r}"
    fields = [name.rpartition(".") for name in sorted(known)]
    shown = ", ".join(name for other, _, name in fields if other == section)
    raise UserError(
      f"Unknown field config.{path}.{similar(path, known)} The fields of"
      f" config{dot}{section}{component} are {shown}."
    )


def similar(unknown: str, names: Iterable[str]) -> str:
  """A question that names similar fields, or ''."""
  near = difflib.get_close_matches(unknown, names, n=3, cutoff=0.5)
  return f" Did you mean {' or '.join(near)}?" if near else ""


def _conflicts(phase: ConfigDict) -> Iterator[str]:
  """Yields messages about valid fields of a phase that conflict."""
  losses, head = phase.losses, phase.head
  labelled = [loss for loss in losses if TERMS[loss].labels]
  weights = [fields.get("weight", 1.0) for fields in losses.values()]
  for loss in losses:
    if phase.mixup and not TERMS[loss].mixes:
      possible = ", ".join(sorted(k for k, t in TERMS.items() if t.mixes))
      yield (
        f"mixup={phase.mixup} mixes labels, which the loss {loss!r} does not"
        f" support. Set mixup=0, or use {possible}."
      )
  if "nt_xent" in losses and phase.views != 2:
    yield (
      f"views={phase.views}: the loss 'nt_xent' compares two views of each"
      " image. Set views=2, or another loss."
    )
  if "balanced_contrastive" in losses and not head.get("prototypes", False):
    yield (
      "losses.balanced_contrastive compares with prototypes, which the head"
      " does not have. Set head.prototypes=True."
    )
  # LDAM's margins are in units of the cosine, times the scale of the head.
  scale, cosine = losses.get("ldam", {}).get("scale", 30.0), head.get("cosine")
  if "ldam" in losses and head.name == "mlp" and scale != cosine:
    yield (
      f"losses.ldam has scale={scale}, but its logits are head.cosine="
      f"{cosine or 0.0} times cosines. Set both to the same, such as 30.0."
    )
  if phase.epochs and not any(weights):
    yield (
      "losses is empty, or all weights are 0, so the phase cannot learn. Add"
      f" one of {', '.join(sorted(TERMS))}, or set epochs=0."
    )
  gives = model.gives(head.name)
  readers = {f"losses.{loss}": TERMS[loss].reads for loss in losses}
  if phase.predictor in READS_LOGITS:
    readers[f"predictor={phase.predictor!r}"] = "logits"
  for reader, what in readers.items():
    if what not in ("features", *gives):
      others = [one for one in sorted(model.HEADS) if what in model.gives(one)]
      yield (
        f"{reader} reads {what}, but head.name={head.name!r} gives"
        f" {' and '.join(gives)}. Set head.name to {' or '.join(others)}, or"
        " change the other field."
      )
  unlabelled = phase.get("unlabelled")
  if unlabelled and (labelled or phase.q != 1):
    found = f"losses.{labelled[0]}" if labelled else f"q={phase.q}"
    yield (
      f"{found} needs labels, which unlabelled={unlabelled!r} lacks. Use"
      " unlabelled images with only the loss nt_xent and q=1."
    )
  if unlabelled and phase.cached_views:
    yield (
      f"cached_views={phase.cached_views} caches features of the training split"
      " only. Set cached_views=0 for unlabelled images."
    )
  if phase.epochs and not phase.trained:
    yield (
      "trained=() selects no parameters. Set it to some, such as ('head',), or"
      " set epochs=0."
    )


def describe(section: str) -> str:
  """Describes the fields of one of `SECTIONS`, in Markdown.

  Raises:
    UserError: if the section does not exist.
  """
  if section not in SECTIONS:
    raise UserError(f"--help={section}: expected one of {', '.join(SECTIONS)}.")
  shared, registry = SECTIONS[section]
  parts = {name: getattr(one, "loss", one) for name, one in registry.items()}
  return f"## {section.capitalize()}\n" + options.describe(shared | parts)


# Section of `--help=<section>` -> heading -> shared fields; components.
SECTIONS: dict[str, tuple[dict[str, Any], Mapping[str, Any]]] = {
  "run": ({"config": RunFields}, {}),
  "data": ({"config.data": DataFields}, {}),
  "encoders": ({"config.model": ModelFields}, model.ENCODERS),
  "phase": ({"config.<phase>": PhaseFields}, {}),
  "augment": ({"config.<phase>.augment": views.augment}, {}),
  "heads": ({"config.<phase>.head": HeadFields}, model.HEADS),
  "losses": ({"config.<phase>.losses.<name>": TermFields}, TERMS),
  "optimizers": ({"config.<phase>.optimizer": OptimizerFields}, {}),
}


def markdown() -> str:
  """The page docs/config.md, made from the declarations of all fields."""
  return (
    "# Fields of a config\n\nSet them by flags, such as"
    " `--config.classify.q=0.5`, or in a file of `configs/`.\n`<phase>` is"
    f" one of {', '.join(PHASES)}. `python -m dbl_jax.main --help=losses`\n"
    "shows a section in the terminal. Presets, such as `config.simclr()`, set"
    " other\nvalues than these defaults.\n\n<!-- Written by:"
    ' python -c "from dbl_jax import config;'
    " print(config.markdown(), end='')\" > docs/config.md -->\n\n"
    + "\n".join(map(describe, SECTIONS))
  )


def field_names(config: ConfigDict) -> list[str]:
  """Every field's full name, such as 'pretrain.optimizer.learning_rate'."""
  return list(flatten_dict(config.to_dict(), sep="."))


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
  """The fields in which two configs differ, one line each."""
  before, after = (
    # JSON turns tuples into lists.
    {k: list(v) if isinstance(v, tuple) else v for k, v in flat.items()}
    for flat in (flatten_dict(old, sep="."), flatten_dict(new, sep="."))
  )
  absent = options.ABSENT
  return [
    f"{name}: {before.get(name, absent)!r} -> {after.get(name, absent)!r}"
    for name in sorted(before | after)
    if before.get(name, absent) != after.get(name, absent)
  ]


def _get(config: ConfigDict, path: str) -> Any:
  """A field or section, or `options.ABSENT`."""
  value: Any = config
  for part in path.split("."):
    if not isinstance(value, ConfigDict) or part not in value:
      return options.ABSENT
    value = value[part]
  return value
