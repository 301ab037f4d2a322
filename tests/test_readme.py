"""README.md: its Python blocks run as they stand, one after the other, and have types.

tests/test_site.py runs the blocks of pages; their types are checked here.
"""

import importlib.util
import pathlib
import re

import pytest

import bnext

from .optional import import_extra
from .readme import CHECKERS, PAGES, README, blocks, check_types, needs

BLOCKS = blocks()
RUNS = [
    pytest.param(number, marks=[getattr(pytest.mark, each) for each in needs(block)])
    for number, block in enumerate(BLOCKS)
]
ROOT = pathlib.Path(bnext.__file__).parents[1]


def test_there_are_blocks():
    assert len(BLOCKS) == README.read_text(encoding="utf-8").count("```python")
    assert {frozenset(needs(block)) for block in BLOCKS} == {frozenset(), frozenset({"torch"})}
    assert len(PAGES) >= 10


def test_links_lead_to_files():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README.read_text(encoding="utf-8"))
    assert len(links) >= 10
    assert [link for link in links if not (README.parent / link).exists()] == []


@pytest.mark.parametrize("number", RUNS)
def test_a_block_runs_after_those_before_it(number):
    names = {"__name__": "readme"}
    for block in BLOCKS[: number + 1]:
        exec(compile(block, str(README), "exec"), names)


@pytest.mark.timeout(900)  # a checker reads all of PyTorch
@pytest.mark.parametrize("checker", CHECKERS)
def test_types(checker, tmp_path):
    if importlib.util.find_spec(checker) is None:
        pytest.skip(f"{checker} is not installed")
    status, output = check_types(checker, ROOT, tmp_path)
    assert status == 0, output


@pytest.mark.timeout(900)
def test_wrong_types_are_found(tmp_path):
    import_extra("mypy")
    status, output = check_types(
        "mypy", ROOT, tmp_path, "x_of_readme: str = bnext.BatchNorm1d(4)\n"
    )
    assert status != 0
    assert "Incompatible types in assignment" in output
