"""Settings of the documentation's site, see `make docs`."""

import inspect

project = "dbl_jax"
html_title = "dbl_jax"
html_theme = "furo"
html_show_copyright = False
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 4  # links to headings, as on GitHub
autodoc_preserve_defaults = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_use_ivar = True
default_role = "code"  # docstrings write code in single backticks

# Links as GitHub resolves them -> as in the site, which includes these files.
_LINKS = {
  "](docs/": "](",
  "](../README.md": "](index.md",
  "](../CONTRIBUTING.md": "](contributing.md",
  "](CONTRIBUTING.md": "](contributing.md",
  "](CITATION.cff": "](../CITATION.cff",
  "](LICENSE": "](../LICENSE",
}


def setup(app):
  """Adapts links and docstrings, and leaves out fields of classes."""

  def relink(app, *names_and_source):
    source = names_and_source[-1]
    for link, replacement in _LINKS.items():
      source[0] = source[0].replace(link, replacement)

  def escape(app, what, name, obj, options, lines):
    # `|x|` is a norm, not a substitution.
    lines[:] = [line.replace("|", "\\|") for line in lines]

  def is_field(app, what, name, obj, skip, options):
    # "Attributes:" of the docstring has them.
    described = inspect.isfunction(obj) or isinstance(obj, property)
    return True if what == "class" and not described else None

  app.connect("source-read", relink)
  app.connect("include-read", relink)
  app.connect("autodoc-process-docstring", escape)
  app.connect("autodoc-skip-member", is_field)
