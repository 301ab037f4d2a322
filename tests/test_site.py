"""The documentation site: every public name has a page, and pages are made of what there is.

`.ci/site` builds it. What can be tested without Sphinx is here.
"""

import importlib
import importlib.util
import pathlib
import re
import runpy
import types

import pytest

from .optional import import_extra
from .readme import blocks, needs

DOCS = pathlib.Path(__file__).parents[1] / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md"))
REFERENCE = sorted((DOCS / "reference").glob("*.rst"))


def name_of(path):
    return path.relative_to(DOCS).as_posix()


MODULES = ("bnext", "bnext.functional", "bnext.sync", "bnext.cuda", "bnext.inference")


def documented():
    """Names by the page of the reference that lists them, in full."""
    found = []
    for path in REFERENCE:
        text = path.read_text(encoding="utf-8")
        module = re.search(r"currentmodule:: (\S+)", text)[1]
        names = re.findall(r"^   ([\w.]+)$", text, re.MULTILINE)
        found += [(path.name, f"{module}.{name}") for name in names]
    return found


def value_of(name):
    """The object of a full name."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        module = ".".join(parts[:end])
        if importlib.util.find_spec(module) if end == 1 else _is_module(module):
            value = importlib.import_module(module)
            for attribute in parts[end:]:
                value = getattr(value, attribute)
            return value
    raise AssertionError(name)


def _is_module(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def missing(modules, listed):
    """Public names of modules whose objects no page has."""
    known = {id(value_of(name)) for name in listed}
    for module in map(importlib.import_module, modules):
        for name in module.__all__:
            value = getattr(module, name)
            if (
                not isinstance(value, types.ModuleType)
                and not name.startswith("_")
                and id(value) not in known
            ):
                yield f"{module.__name__}.{name}"


def test_every_public_name_is_on_one_page():
    listed = [name for _, name in documented() if not name.startswith("bnext.torch.")]
    assert len(listed) >= 40
    assert list(missing(MODULES, listed)) == []
    assert list(missing(MODULES, [n for n in listed if n != "bnext.fold"])) == ["bnext.fold"]
    objects = [id(value_of(name)) for name in listed]
    assert len(set(objects)) == len(objects)


@pytest.mark.torch
def test_every_public_name_of_torch_is_on_one_page():
    listed = [name for _, name in documented() if name.startswith("bnext.torch.")]
    assert list(missing(["bnext.torch"], listed)) == []
    assert "bnext.torch.functional.batch_norm" in listed
    assert len(set(listed)) == len(listed)


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_what_a_page_includes_is_there_once(path):
    text = path.read_text(encoding="utf-8")
    for file, options in re.findall(r"^```\{include\} (\S+)\n((?::.*\n)*)```$", text, re.MULTILINE):
        source = (path.parent / file).resolve().read_text(encoding="utf-8")
        for marker in re.findall(r'^:(?:start-after|end-before): "(.*)"$', options, re.MULTILINE):
            assert source.count(f"\n{marker}\n") == 1, (file, marker)


def test_every_page_is_in_the_index():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    listed = re.findall(r"^([a-z][\w/-]+)$", index, re.MULTILINE)
    pages = [path.relative_to(DOCS).with_suffix("").as_posix() for path in (*PAGES, *REFERENCE)]
    made = ["gallery/index"]  # of docs/pictures
    assert sorted(listed) == sorted({*pages, *made} - {"index", "pictures/README"})


APART = (
    "jax.md",
    "keras.md",
    "small_batches.md",
)  # they need frameworks, and have tests of their own


def needs_of(path):
    return {name for block in blocks(path) for name in needs(block)}


def run_blocks(path):
    names = {"__name__": "page"}
    for block in blocks(path):
        exec(compile(block, str(path), "exec"), names)


RUN = [path for path in PAGES if path.name not in APART and blocks(path)]


@pytest.mark.parametrize("path", [p for p in RUN if not needs_of(p)], ids=name_of)
def test_python_on_a_page_runs(path):
    run_blocks(path)


@pytest.mark.torch
@pytest.mark.parametrize("path", [p for p in RUN if needs_of(p) == {"torch"}], ids=name_of)
def test_python_on_a_page_with_torch_runs(path):
    run_blocks(path)


@pytest.mark.gpu
@pytest.mark.parametrize("path", [p for p in RUN if "cuda" in needs_of(p)], ids=name_of)
def test_python_on_a_page_with_torch_on_a_gpu_runs(path):
    run_blocks(path)


@pytest.mark.parametrize("path", sorted((DOCS / "pictures").glob("plot_*.py")), ids=name_of)
def test_a_program_of_the_gallery_draws(path, monkeypatch):
    import_extra("matplotlib").use("Agg")
    import matplotlib.pyplot as plt

    drawn = []
    monkeypatch.setattr(plt, "show", lambda: drawn.extend(plt.get_fignums()))
    runpy.run_path(str(path))
    assert len(drawn) == 1
    plt.close("all")


def test_answers_name_files_and_tests_that_exist():
    """A stranger's questions: what the answers name is there."""
    text = (DOCS / "explanation" / "questions.md").read_text(encoding="utf-8")
    quoted = re.findall(r"`([^`\n]+)`", text)
    files = [name for name in quoted if re.fullmatch(r"(?:csrc|tests|docs)/[\w./]+", name)]
    assert len(files) >= 10
    assert [name for name in files if not (DOCS.parent / name).exists()] == []
    sources = "".join(p.read_text("utf-8") for p in (DOCS.parent / "tests").glob("test_*.py"))
    tests = [name for name in quoted if name.startswith("test_")]
    assert len(tests) >= 2
    assert [name for name in tests if f"def {name}(" not in sources] == []
