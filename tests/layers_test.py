"""Imports point down only, so that a part can be read without the whole."""

import ast
from pathlib import Path

import dbl_jax

ROOT = Path(dbl_jax.__file__).parent

# Each module may import from layers before its own.
LAYERS = [
  [
    "arrays",
    "errors",
    "machine",
    "startup",
    "stopping",
    "provenance",
    "trees",
  ],
  ["checksums", "distributed", "disk", "files", "locks"],
  ["step_folders"],
  ["losses", "metrics", "optim", "sharding", "models", "augment", "progress"],
  [
    "state",
    "inputs",
    "data",
    "figures",
    "report_page",
    "predictions",
  ],
  [
    "predictors",
    "checkpoint",
    "steps",
    "figures_training",
    "activation_maps",
    "comparison",
  ],
  ["validation"],
  ["config", "evaluate", "report"],
  ["results", "features", "cli", "run_folder"],
  ["trainer"],
  ["loop"],
  ["train"],
  ["main", "grid", "soak"],
]
LEVEL = {name: i for i, layer in enumerate(LAYERS) for name in layer}


def imports_of(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and node.module:
      if node.module == "dbl_jax":
        yield from (alias.name for alias in node.names)
      elif node.module.startswith("dbl_jax."):
        yield node.module.split(".")[1]


def group_of(path):
  return path.relative_to(ROOT).with_suffix("").parts[0]


def test_every_module_has_a_layer():
  groups = {group_of(path) for path in ROOT.rglob("*.py")} - {"__init__"}
  assert groups == set(LEVEL)


def test_imports_point_down():
  upward = [
    f"{path.relative_to(ROOT)} imports {name}"
    for path in ROOT.rglob("*.py")
    if group_of(path) != "__init__"
    for name in imports_of(path)
    if name != group_of(path) and LEVEL[name] >= LEVEL[group_of(path)]
  ]
  assert not upward
