"""docs/glossary.md: every term has an entry, and its files and code names exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GLOSSARY = ROOT / "docs" / "glossary.md"
TERMS = (
    "batch", "outer", "channels", "inner", "layout", "Problem", "cell", "slab",
    "parameter of a cell", "n",
    "Tiling", "chunk", "tile", "walk", "column", "run", "pack", "unit", "pilot", "slot",
    "thread", "team", "region", "task", "Plan", "schedule", "kernel table", "pool",
    "path", "part", "position", "step", "cursor",
    "phase", "seam", "Moments", "m2", "mean_low", "rstd", "row of statistics", "Saved",
    "double backward pass",
    "coefficients", "formula", "epilogue", "activation", "residual", "z", "g", "flag",
    "running statistics", "momentum", "estimator", "Bessel's correction", "ghost", "domain",
    "group", "member", "shard", "exchange", "header", "generation", "roll call", "replay", "turn",
    "point", "visit", "library", "engine", "intake", "ArrayRef", "Role", "Call", "plain", "road",
    "handler", "frame", "slice",
)  # fmt: skip
ENTRIES = {
    match[1]: match[2]
    for match in re.finditer(
        r"^- \*\*(.+?)\*\*: (.+?)(?=\n- |\n\n|\Z)", GLOSSARY.read_text("utf-8"), re.M | re.S
    )
}
SOURCES = "\n".join(
    path.read_text("utf-8")
    for folder in ("csrc", "python/bnext")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".hpp", ".cpp", ".cu", ".py", ".pyi")
)
NAMES = set(re.findall(r"\w+", SOURCES))


def code_of(entry):
    """Paths, and names of code, among what stands in backticks."""
    quoted = re.findall(r"`([^`]+)`", entry)
    paths = [text for text in quoted if re.fullmatch(r"[\w./-]*/[\w./-]+", text)]
    names = {n for text in quoted if text not in paths for n in re.findall(r"[A-Za-z_]\w*", text)}
    return paths, names


def test_every_term_has_one_entry():
    headings = [term for heading in ENTRIES for term in heading.split(", ")]
    assert len(headings) == len(set(headings))
    assert set(TERMS) <= set(headings), set(TERMS) - set(headings)
    assert GLOSSARY.read_text("utf-8").count("\n- **") == len(ENTRIES)


@pytest.mark.parametrize("heading", ENTRIES)
def test_what_an_entry_names_exists(heading):
    entry = ENTRIES[heading]
    paths, names = code_of(entry)
    assert names <= NAMES, names - NAMES
    words = {word.lower() for word in (*names, *heading.split(", "))}
    for path in paths:
        text = (ROOT / path).read_text("utf-8").lower()
        assert any(word in text for word in words), f"{path} does not speak of {heading}"


def test_most_entries_name_a_file():
    without = [heading for heading, entry in ENTRIES.items() if not code_of(entry)[0]]
    assert without == ["thread"]


@pytest.mark.parametrize("document", ["csrc/README.md", "CONTRIBUTING.md"])
def test_documents_lead_to_it(document):
    assert "docs/glossary.md" in (ROOT / document).read_text("utf-8")
