"""docs/guide/small_batches.md runs as it stands, block after block."""

import pathlib
import re

import pytest

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "guide" / "small_batches.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def run(blocks):
    names = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    return names


def test_the_blocks_for_numpy_run():
    names = run(block for block in BLOCKS if "torch" not in block)
    assert len(BLOCKS) == PAGE.read_text("utf-8").count("```python") == 7
    assert names["domains"].current == "sketch"
    assert len(names["state"]) == 12


@pytest.mark.torch
def test_the_blocks_for_torch_run(capsys):
    names = run(block for block in BLOCKS if "torch" in block)
    assert names["y_adapted"].shape == (32, 8)
    assert "1 layer of Sequential normalizes by" in capsys.readouterr().out
