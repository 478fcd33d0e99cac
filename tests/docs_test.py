"""What the documents name exists."""

import re
from pathlib import Path

import pytest

_TESTS = Path(__file__).parent
_ROOT = _TESTS.parent
_NAMED = re.compile(r"`([\w/]*\.py)?::(\w+)`")


def named_tests(text):
  """(file, test) of each test named; `::test` is of the file named before."""
  file, found = "", []
  for name, test in _NAMED.findall(text):
    file = name or file
    found.append((file, test))
  return found


def test_reliability_names_tests_that_exist():
  named = named_tests((_ROOT / "docs/reliability.md").read_text())
  assert len(named) > 30
  missing = [
    f"{file}::{test}"
    for file, test in named
    if f"\ndef {test}(" not in (_TESTS / file).read_text()
  ]
  assert not missing


@pytest.mark.parametrize(
  "page", ["README.md", "CONTRIBUTING.md", *(_ROOT / "docs").glob("*.md")]
)
def test_links_lead_somewhere(page):
  page = _ROOT / page
  links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
  missing = [
    link
    for link in links
    if "://" not in link and not (page.parent / link).exists()
  ]
  assert not missing
