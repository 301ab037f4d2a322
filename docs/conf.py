"""The documentation site: ``.ci/site`` builds it, with warnings as errors."""

import os
import re
from pathlib import Path

import bnext

ROOT = Path(__file__).parents[1]

project = "bnext"
author = "The bnext developers"
copyright = author
version = release = bnext.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "_templates", "pictures"]
html_theme = "furo"
html_title = f"bnext {release}"
html_theme_options = {"navigation_with_keys": True}
default_role = "py:obj"  # what docstrings and documents have between single backticks

# Documents of the repository are pages, or parts of pages: nothing is written twice.
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]
suppress_warnings = ["myst.header"]  # a section of README.md begins a page

autosummary_generate = True
autodoc_member_order = "groupwise"
autodoc_typehints = "none"  # numpydoc's sections have them, in words
numpydoc_show_class_members = False
sphinx_gallery_conf = {
    "examples_dirs": "pictures",
    "gallery_dirs": "gallery",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_signature": False,
}
numpydoc_class_members_toctree = False

# What links of the included documents lead to; links to other files lead nowhere on a site, and
# become their text.
PAGES = {
    "docs/glossary.md": "/glossary.md",
    "docs/conventions.md": "/conventions.md",
    "docs/releasing.md": "/releasing.md",
    "CODE_OF_CONDUCT.md": "/project/conduct.md",
    "csrc/README.md": "/explanation/architecture.md",
    "CONTRIBUTING.md": "/project/contributing.md",
    "SECURITY.md": "/project/security.md",
}
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|#)([^)\s]+)\)")


def with_links_of_the_site(app, path, document, text):
    """Let links of an included document lead to pages."""

    def replaced(match):
        file = (ROOT / path).parent / match[2]
        name = os.path.relpath(file.resolve(), ROOT)
        return f"[{match[1]}]({PAGES[name]})" if name in PAGES else match[1]

    text[0] = LINK.sub(replaced, text[0])


def setup(app):
    """Connect the links."""
    app.connect("include-read", with_links_of_the_site)
