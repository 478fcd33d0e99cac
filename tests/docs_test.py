"""The documents name files that exist, and their links lead somewhere."""

import re
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]
_PAGES = [
  _ROOT / "README.md",
  _ROOT / "CONTRIBUTING.md",
  *sorted((_ROOT / "docs").glob("*.md")),
]
# A path may be given in full, or as seen from the package or from the tests.
_FOLDERS = (_ROOT, _ROOT / "dbl_jax", _ROOT / "tests", _ROOT / "configs")
_PATH = re.compile(r"`([\w/]+\.(?:py|sh))`")


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_files_named_exist(page):
  missing = [
    path
    for path in _PATH.findall(page.read_text())
    if not any((folder / path).is_file() for folder in _FOLDERS)
  ]
  assert not missing


def test_every_guarantee_names_its_tests():
  guarantees, _ = (
    (_ROOT / "docs/reliability.md").read_text().split("## Measurements")
  )
  rows = re.findall(r"^\| (.+) \| (.+) \|$", guarantees, re.MULTILINE)
  rows = [row for row in rows if row[0] != "guarantee"]
  assert len(rows) > 30
  assert not [promise for promise, tests in rows if "_test.py`" not in tests]


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
  links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
  missing = [
    link
    for link in links
    if "://" not in link and not (page.parent / link).exists()
  ]
  assert not missing
