"""docs/jax.md runs as it stands, block after block; everything public explains its arguments."""

import importlib
import pathlib
import re

from ..optional import require_libraries
from ..test_docs import assert_is_explained, public
from . import support  # noqa: F401 - where JAX is missing, the test is not run

require_libraries("flax", "equinox")

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "jax.md"


def test_the_page_runs():
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == text.count("```python") == 8
    names = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["predictions"].shape == (64,)
    assert names["m"].count == names["moments"].count
    assert names["counted"].count == names["same"].count == names["lengths"].sum()


def test_everything_public_is_explained():
    names = ("bnext.jax", "bnext.jax.flax", "bnext.jax.equinox")
    found = public({name: importlib.import_module(name) for name in names})
    assert len(found) >= 8
    for name, value in found:
        assert_is_explained(name, value)
