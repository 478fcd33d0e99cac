"""Every program and its flags: one clear line and status 2, nothing begun.

Programs run in this process, so that a hundred mistakes take seconds;
`main_test.py` makes some of them in processes of their own.
"""

import re

import mains
import pytest

from dbl_jax import train

DBL = "--config=configs/dbl.py"
LONG = "/" + "x" * 5000
CONFIGS = {
  "no_python": b"def get_config(:\n",
  "not_utf8": b"x = '\xff'\n",
  "raises": b"\nraise RuntimeError('why')\n",
  "typo": b"def get_config():\n  return nothing\n",
  "no_config": b"def get_config():\n  return {'classify': 1}\n",
  "nothing": b"",
}
START = """from dbl_jax import config
def get_config():
  c = config.base()
  c.classify = config.classifier()
  c.unlock()
  %s
  return c
"""
CHANGES = {
  "del c.data": "config.data.name is missing",
  "del c.classify": "The config does not have a phase",
  "del c.classify.optimizer": "optimizer.name is missing",
  "del c.classify.preset": "classify.epochs=None is invalid. Expected a num",
  "del c.classify.head.name": "head.name is missing",
  "c.classify.head.widht = 3": "widht.* config.classify.head 'mlp' are cosine",
  "c.classify.losses.cross_entropy.temprature = 1.": (
    "Unknown field .*cross_entropy.temprature.* are after, beta, weight"
  ),
  "c.classify.batchsize = 7": "Did you mean classify.batch_size",
  "c.sed = 5": "Unknown field config.sed. Did you mean seed",
  "c.data.imbalence = 3.": "Did you mean data.imbalance",
  "c.classify.weight_decay = .3": "classify.optimizer.weight_decay",
  "c.classify.optimizer.nesterov = False": "Unknown field .*optimizer.nesterov",
  "c.classify.augment.hue = .3": "Unknown field config.classify.augment.hue",
  "c.classify.augment.blur_sigma = (2., 1.)": "the smaller first",
  "c.classify.augment = None": "classify.augment=None is invalid",
  "c.classify.optimizer = None": "classify.optimizer=None is invalid",
  "c.classify = None": "config.classify=None is invalid",
  "c.data = None": "config.data=None is invalid",
  "c.classify.by_data = {'other': {'epochs': 3}}": "Unknown field .*by_data",
  "c.classify.losses.nt_xnt = {'temperature': .1}": "'nt_xnt'. Expected one of",
  "c.classify.preset = 'simclrr'": "one of '', classifier, simclr, supervised",
  "c.classify.losses = None": "classify.losses=None is invalid",
  "del c.classify.losses": "classify.losses=absent is invalid",
  "c.data.dir = None": "data.dir=None is invalid. Expected a string",
  "c.data.cache_dir = None": "cache_dir=None is invalid. Expected a string",
  "c.init_from = None": "init_from=None is invalid. Expected a string",
  "c.classify.epochs = 1000000000": "from 0 to 1000000",
  "del c.classify.augment": "classify.augment.crop_scale is missing",
}
PATTERN = "Expected a tuple, each a regular expression"
WIDTHS = "Expected a tuple of widths, each a whole number from 1 to 1000000"
# Field, value, message.
FIELDS = [
  ("seed", "-1", "whole number from 0 to 2147483647"),
  ("seed", "99999999999999999999", "seed=99999999999999999999 is invalid"),
  ("data", "5", "Flag --config.data is provided after"),
  ("data.name", "", "data.name='' is invalid"),
  ("data.name", "rafdb", "one of expw, fer2013, image_folder, listed, raf_db"),
  ("data.dir", "/etc", "data.dir=/etc is given, but data.name=synthetic_faces"),
  ("data.cache_dir", "/proc/no", "data.cache_dir=/proc/no cannot be written"),
  ("data.cache_dir", "~nosuchuser/x", "the user 'nosuchuser' does not exist"),
  ("data.image_size", "8", "image_size=8 is invalid"),
  ("data.image_size", "1e3", "image_size=1e3"),
  ("data.split_seed", "99999999999999999999", "split_seed=9+ is invalid"),
  ("data.num_train", "1000000000000", "from 14 to 10000000"),
  ("data.num_test", "0", "num_test=0 is invalid"),
  ("data.validation_fraction", "1.5", "validation_fraction=1.5"),
  ("data.test_fraction", "nan", "test_fraction=nan"),
  ("data.region", "ear", "data.region='ear' is invalid"),
  ("data.long_tail", "short", "long_tail='short' is invalid"),
  ("data.imbalance", "0", "imbalance=0.0 is invalid"),
  ("data.input", "magic", "input='magic' is invalid"),
  ("model.name", "resnet9000", "Expected one of dcnn, efficient"),
  ("model.dtype", "float8", "dtype='float8' is invalid"),
  ("model.width", "0", "no field 'model.width'"),
  ("model.stem", "", "stem='' is invalid"),
  ("steps_per_dispatch", "-1", "steps_per_dispatch=-1 is invalid"),
  ("tensorboard", "maybe", "tensorboard=maybe"),
  ("init_from", "~nosuchuser", "the user .* does not exist"),
  ("init_from", "/no/such/run", "does not hold a checkpoint"),
  ("classify.trained", "5", PATTERN),
  ("classify.trained", "('(',)", PATTERN),
  ("classify.inherit", "('encoder','')", PATTERN),
  ("classify.head.hidden", "(0,)", WIDTHS),
  ("classify.head.hidden", "('a',)", WIDTHS),
  ("classify.head.name", "tail", "head.name='tail' is invalid"),
  ("pretrain.head.hidden", "0", "head.hidden=0 is invalid"),
  ("pretrain.head.out", "-3", "head.out=-3 is invalid"),
  ("pretrain.views", "1", "compares two views"),
  ("pretrain.batch_size", "1", "batch_size=1 is invalid"),
  ("pretrain.epochs", "-1", "epochs=-1 is invalid"),
  ("pretrain.epochs", "ten", "epochs=ten"),
  ("pretrain.losses", "nt_xent", "losses=nt_xent"),
  ("pretrain.losses.nt_xent.temperature", "0.", "temperature=0.0 is inval"),
  ("pretrain.keep", "worst", "keep='worst' is invalid"),
  ("pretrain.predictor", "oracle", "predictor='oracle' is invalid"),
  ("pretrain.augment.crop_scale", "5", "the smaller first"),
  ("pretrain.augment.crop_scale", "(1,.2)", "the smaller first"),
  ("pretrain.augment.crop_scale", "(0.5,)", "the smaller first"),
  ("pretrain.augment.crop_scale", "(0.5,2.0)", "from 0.01 to 1, the smaller"),
  ("pretrain.augment.crop_ratio", "(0.0,1.0)", "from 0.1 to 10, the smaller"),
  ("pretrain.augment.blur", "2", "blur=2.0 is invalid"),
  ("pretrain.augment.rotation", "-5", "rotation=-5.0 is invalid"),
  ("classify.q", "2", "classify.q=2.0 is invalid"),
  ("classify.mixup", "-0.1", "mixup=-0.1 is invalid"),
  ("classify.evaluate_every", "inf", "evaluate_every=inf is invalid"),
  ("classify.optimizer.name", "magic", "Expected one of adamw, lars, sgd"),
  ("classify.optimizer.learning_rate", "-1", "learning_rate=-1.0 is inval"),
  ("classify.optimizer.learning_rate", "inf", "learning_rate=inf"),
]
MAIN = [
  ("", "--config is required"),
  ("--help=loses", "--help=loses: expected one of run, data"),
  ("--wokdir=x", "Unknown command line flag 'wokdir'"),
  ("--flagfile=/no/file", "/no/file"),
  ("--config=configs/dlb.py", "basic, center_loss, "),
  (
    "--config=configs/basic.py --config.pretrain.epochs=3",
    "no field 'pretrain.epochs'",
  ),
  (f"{DBL} --workdir=gs://b/run", "workdir=gs://b/run: URLs are not supported"),
  (f"{DBL} --config.data.dir s3://b/f", "s3://b/f: URLs are not supported"),
  ("--config", "--config=--workdir=.*: no such file"),
  ("--config=", "no such file"),
  ("--config nowhere.py", "--config=nowhere.py: no such file"),
  (f"--config={LONG}", "no such file"),
  ("--config=configs", "no such file"),
  ("--config=README.md", "README.md, line .*SyntaxError"),
  ("--config=LICENSE", "LICENSE, line 2: IndentationError"),
  ("--config=configs/dbl.py:a:b", "does not have the variant 'a:b'"),
  ("--config=configs/basic.py:x", "does not have the variant 'x'"),
  (
    "--config configs/dbl.py --config.data.nam=1",
    "no field 'data\\.nam'. Did you mean data\\.name",
  ),
  ("--config.data.name=raf_db", "Unknown command line flag"),
  (f"{DBL} --workdir=~nosuchuser/x", "the user .* does not exist"),
  (f"{DBL} --workdir={LONG}", "cannot be written"),
  (f"{DBL} --workdir=/proc/x", "cannot be written"),
  (f"{DBL} --coordinator=x", "numbered from 0"),
  (f"{DBL} --num_processes=2 --process_id=0", "need --coordinator"),
  ("--config=basic --config=dbl --config.seed=1", "--config is given twice"),
  ("--config=basic --config=dbl --config.sed=1", "--config is given twice"),
  ("--flagfile=bom.txt", "config.seed=-1 is invalid"),
  ("--flagfile=utf16.txt", "--flagfile is not UTF-8 text"),
  (f"{DBL} --process_id=x", "--process_id=x"),
  (f"{DBL} runs/a", "Unexpected argument 'runs/a'"),
  ("--config=configs/no\x1b[31m.py", "no\\\\x1b\\[31m\\.py: no such file"),
]
OTHERS = {
  "evaluate": [
    ("", "--workdir is required"),
    ("--workdir=", "does not hold a checkpoint"),
    ("--workdir=~nosuchuser", "the user .* does not exist"),
    (f"--workdir={LONG}", "File name too long"),
    ("--workdir=/etc/passwd", "is not a folder"),
    ("--workdir=/no/such/run", "is not a folder"),
    ("--workdir=/no --splt=test", "Unknown command line flag"),
  ],
  "check_data": [
    ("", "--name is required"),
    ("--name=", "data.name='' is invalid"),
    ("--name=foo", "Expected one of expw"),
    ("--name=image_folder", "needs --config.data.dir"),
    (f"--name=image_folder --dir={LONG}", "does not exist"),
    ("--name=image_folder --dir=~nosuchuser", "does not exist"),
    ("--name=raf_db --dir=/no/x.npz", "No such file"),
    ("--name=raf_db --dir=/no/such/folder", "/no/such/folder"),
    ("--name=expw --dir=/no --distance=x", "--distance=x"),
    ("--name=expw --dir=/no --distance=-1", "--distance"),
    ("--name=expw --dir=/no --distance=200", "--distance"),
    ("--name=expw --dir=/no --split_seed=-1", "split_seed"),
    (
      "--name=expw --dir=/no --test_fraction=2",
      "test_fraction=2.0 is invalid",
    ),
  ],
  "make_table": [
    ("--systems=", "expected one name or more"),
    ("--systems=basic,basic", "each once"),
    ("--systems=basic,nope", "--config=nope: no such file"),
    ("--systems=../setup", "no such file"),
    ("--systems=decoupling:x", "does not have the variant 'x'"),
    ("--seeds=", "expected one number or more"),
    ("--seeds=²", "is not a whole number"),
    ("--seeds=-1", "is not a whole number"),
    ("--seeds=0,0", "each once"),
    ("--seeds=99999999999", "seed=99999999999 is invalid"),
    ("--cuts=1", "the larger first"),
    ("--cuts=20,100", "the larger first"),
    ("--cuts=a,b", "is not a whole number"),
    ("--epochs=-1", "--epochs=-1"),
    ("--reference=nope", "--reference=nope is not among"),
    ("--data.nam=x", "no field 'nam'. Did you mean name"),
    ("--data.name=x", "data.name='x' is invalid"),
    ("--data.dir=/etc --systems=basic", "basic: data.dir=/etc is given"),
    ("--notrain --systems=basic", "No finished run"),
    ("--out=/proc/x/y", "--out=/proc/x/y cannot be written"),
    ("--batch_size=-1", "--batch_size=-1"),
    ("--set=dbl", "expected SYSTEM.FIELD=VALUE"),
    ("--set=no.seed=1", "a system among basic"),
    ("--set=dbl.no=1", "has no field 'no'"),
    ("--set=dbl.seed=x", "--set=dbl.seed=x: "),
    ("--set=dbl.seed={'a.b':1}", "does not accept dots in field names"),
  ],
  "soak": [
    ("--kills=0", "--kills=0"),
    ("--phase=lunch", "--phase=lunch: no such moment"),
  ],
  "fuzz": [
    ("--only=lunch", "unknown reader 'lunch'"),
    ("--minutes=-1", "--minutes=-1"),
  ],
  "benchmark": [
    ("--rounds=0", "--rounds=0"),
    ("--device=tpu", "should be one of <cpu|gpu>"),
    ("--only=foo", "unknown part 'foo'"),
    ("--only=", "unknown part ''"),
    ("--cases=x --device=cpu", "do not match any case"),
    ("--peers=/no/python", "is not a program"),
    ("--out=/no/x.json", "No such file or directory"),
    ("--out=/tmp", "Is a directory"),
  ],
}


@pytest.fixture(autouse=True)
def nothing_trains(monkeypatch, tmp_path):
  """In the project's root, as users start it; training is a failure."""
  monkeypatch.chdir(mains.ROOT)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
  monkeypatch.setattr(
    train, "make_phase", lambda *_: pytest.fail("training began")
  )


def check(program, command, message):
  done = mains.run(program, command.split())
  assert done.status == 2, done.err
  assert re.search(message, done.err)
  assert re.fullmatch(r"error: [^\n]*\n", done.err)
  assert done.err[:-1].isprintable()


@pytest.mark.parametrize(("command", "message"), MAIN)
def test_main(command, message, tmp_path):
  flags = "--config=dbl\r\n--config.seed=-1\r\n"
  for encoding, name in (("utf-8-sig", "bom.txt"), ("utf-16", "utf16.txt")):
    (tmp_path / name).write_text(flags, encoding)
    command = command.replace(f"={name}", f"={tmp_path / name}")
  if "--workdir" not in command:
    command += f" --workdir={tmp_path / 'run'}"
  check("main", command, message)
  assert not (tmp_path / "run").exists()


def test_a_config_elsewhere(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  check("main", DBL, "no such file. Give .* name of one: .*, dbl, ")
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("field", "value", "message"), FIELDS)
def test_a_field(field, value, message, tmp_path):
  command = (
    f"{DBL} --workdir={tmp_path / 'run'}"
    f" --config.data.cache_dir={tmp_path / 'cache'} --config.{field}={value}"
  )
  check("main", command, message)
  assert not (tmp_path / "cache").exists()
  assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_file_that_is_none(name, tmp_path):
  path = tmp_path / f"{name}.py"
  path.write_bytes(CONFIGS[name])
  line = {"raises": "2", "typo": "2", "no_python": "1"}.get(name)
  message = f"{name}.py" + (f", line {line}: " if line else "")
  check("main", f"--config={path} --workdir={tmp_path / 'r'}", message)


@pytest.mark.parametrize("change", CHANGES)
def test_a_config_file_with_an_impossible_field(change, tmp_path):
  path = tmp_path / "c.py"
  path.write_text(START % change)
  check(
    "main", f"--config={path} --workdir={tmp_path / 'run'}", CHANGES[change]
  )
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("program", "command", "message"),
  [(program, *row) for program, rows in OTHERS.items() for row in rows],
)
def test_other_programs(program, command, message, tmp_path):
  if program not in ("evaluate", "fuzz") and "--out" not in command:
    command += f" --out={tmp_path / 'out'}"
  check(program, command, message)
  left = [path for path in tmp_path.rglob("*") if path.is_file()]
  assert not [path for path in left if "stages" not in path.parts]
