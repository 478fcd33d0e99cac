"""Reads pages and pictures that the tests of reports and tables check."""

import io
from html.parser import HTMLParser

from PIL import Image


class Page(HTMLParser):
  """Tags with their attributes, all text, and the bold text of tables."""

  def __init__(self, page):
    super().__init__()
    self.tags, self.text, self.bold, self.open = [], "", [], []
    self.feed(page)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    self.open.append(tag)

  def handle_endtag(self, tag):
    while self.open and self.open.pop() != tag:
      pass

  def handle_data(self, data):
    self.text += data
    if self.open[-2:] == ["td", "strong"]:
      self.bold.append(data)

  def find(self, tag):
    return [attrs for name, attrs in self.tags if name == tag]


def size(png):
  """Width and height of a PNG file, which is decoded to its end."""
  with Image.open(io.BytesIO(png)) as image:
    assert image.format == "PNG"
    image.load()
    return image.size
