"""Includes in csrc point only downward, and never in a circle; nor do imports (csrc/README.md)."""

import ast
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
    "xla": {"core", "cpu", "cuda"},
    "bindings": {"core", "sync", "cpu", "cuda", "intake", "xla"},
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


# --- Python ---------------------------------------------------------------------------------------

PYTHON = CSRC.parent / "python"


def modules():
    for path in sorted((PYTHON / "bnext").rglob("*.py")):
        parts = path.relative_to(PYTHON).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(path, known):
    """Modules of the package that are imported when this one is."""
    for node in ast.parse(path.read_text()).body:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [
                full if (full := f"{node.module}.{alias.name}") in known else node.module
                for alias in node.names
                if alias.name not in ("_core", "_cuda")  # which are no Python
            ]
        yield from set(names) & known


def test_imports_have_no_circle():
    known = dict(modules())
    assert "bnext.spine" in known
    graph = {name: set(imports(path, known.keys())) for name, path in known.items()}
    TopologicalSorter(graph).prepare()
