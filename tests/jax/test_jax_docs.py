"""The Python blocks of docs/jax.md run as they stand, one after the other."""

import pathlib
import re

from ..optional import require_modules
from . import support  # noqa: F401 - where JAX is missing, the test is not run

require_modules("Flax and Equinox", "flax", "equinox")

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "jax.md"


def test_jax_the_page_runs():
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == text.count("```python") == 5
    names = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["predictions"].shape == (64,)
    assert names["m"].count == names["moments"].count
