"""Includes in csrc point only downward, and never in a circle (csrc/README.md)."""

import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

CSRC = Path(__file__).parent.parent / "csrc"
BELOW = {
    "core": set(),
    "sync": {"core"},
    "cpu": {"core"},
    "cuda": {"core"},
    "intake": {"core", "cpu"},
    "bindings": {"core", "sync", "cpu", "cuda", "intake"},
}
SOURCES = sorted(p for p in CSRC.rglob("*") if p.suffix in (".hpp", ".cpp", ".cu"))


def includes(path):
    return re.findall(r'^\s*#\s*include "([^"]+)"', path.read_text(), re.MULTILINE)


@pytest.mark.parametrize("layer", sorted(p.name for p in CSRC.iterdir() if p.is_dir()))
def test_a_layer_includes_only_itself_and_those_below(layer):
    own = [p for p in SOURCES if p.relative_to(CSRC).parts[0] == layer]
    assert own
    for path in own:
        for name in includes(path):
            assert name.split("/")[0] in BELOW[layer] | {layer}, f"{path.name} includes {name}"


def test_includes_have_no_circle():
    graph = {str(p.relative_to(CSRC)): includes(p) for p in SOURCES}
    TopologicalSorter(graph).prepare()
