"""Imports between layers (folders, or modules of the root) point down only."""

import ast
from pathlib import Path

import dbl_jax

ROOT = Path(dbl_jax.__file__).parent

# A layer may import from the layers before it, and from itself.
LAYERS = [
  "errors",
  "runtime",
  "augment",
  "models",
  "data",
  "losses",
  "evaluation",
  "training",
  "config",
  "workdirs",
  "evaluate",
  "serving",
  "train",
  "cli",
  "compare",
  "demo",
  "main",
]


def layer_of(module):
  return module.split(".")[0]


def imports_of(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and node.module:
      if node.module == "dbl_jax":
        yield from (alias.name for alias in node.names)
      elif node.module.startswith("dbl_jax."):
        yield layer_of(node.module.removeprefix("dbl_jax."))


def test_every_module_is_in_a_layer():
  found = {
    path.relative_to(ROOT).with_suffix("").parts[0]
    for path in ROOT.rglob("*.py")
  }
  assert found - {"__init__"} == set(LAYERS)


def test_imports_point_down():
  level = {layer: i for i, layer in enumerate(LAYERS)}
  upward = []
  for path in ROOT.rglob("*.py"):
    own = path.relative_to(ROOT).with_suffix("").parts[0]
    if own != "__init__":
      upward += [
        f"{path.relative_to(ROOT)} imports {layer}"
        for layer in imports_of(path)
        if level[layer] > level[own]
      ]
  assert not upward
