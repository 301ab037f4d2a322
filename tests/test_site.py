"""The documentation site: every public name has a page, and pages are made of what there is.

`.ci/site` builds it. What can be tested without Sphinx is here.
"""

import importlib
import importlib.util
import pathlib
import re
import types

import pytest

import bnext

from .optional import import_torch

DOCS = pathlib.Path(__file__).parents[1] / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md"))
REFERENCE = sorted((DOCS / "reference").glob("*.rst"))
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


def test_every_public_name_of_torch_is_on_one_page():
    import_torch()
    listed = [name for _, name in documented() if name.startswith("bnext.torch.")]
    assert list(missing(["bnext.torch"], listed)) == []
    assert "bnext.torch.functional.batch_norm" in listed
    assert len(set(listed)) == len(listed)


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.relative_to(DOCS).as_posix())
def test_what_a_page_includes_is_there_once(path):
    text = path.read_text(encoding="utf-8")
    for file, options in re.findall(r"^```\{include\} (\S+)\n((?::.*\n)*)```$", text, re.MULTILINE):
        source = (path.parent / file).resolve().read_text(encoding="utf-8")
        for marker in re.findall(r'^:(?:start-after|end-before): "(.*)"$', options, re.MULTILINE):
            assert source.count(f"\n{marker}\n") == 1, (file, marker)


def test_sections_of_the_readme_are_all_on_the_site():
    """Of each section whose beginning a page includes, another one has what follows it."""
    text = "".join(path.read_text(encoding="utf-8") for path in PAGES)
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    starts = set(re.findall(r'^:start-after: "(.*)"$', text, re.MULTILINE))
    ends = set(re.findall(r'^:end-before: "(.*)"$', text, re.MULTILINE))
    headings = set(re.findall(r"^##+ .*$", readme, re.MULTILINE)) - {"## Further documents"}
    assert starts == headings
    assert ends == headings | {"## Further documents"}


def test_every_page_is_in_the_index():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    listed = re.findall(r"^([a-z][\w/-]+)$", index, re.MULTILINE)
    pages = [path.relative_to(DOCS).with_suffix("").as_posix() for path in (*PAGES, *REFERENCE)]
    assert sorted(listed) == sorted(set(pages) - {"index"})


APART = (
    "jax.md",
    "keras.md",
    "small_batches.md",
)  # they need frameworks, and have tests of their own


@pytest.mark.parametrize(
    "path",
    [p for p in PAGES if p.name not in APART],
    ids=lambda p: p.relative_to(DOCS).as_posix(),
)
def test_python_on_a_page_runs(path):
    """README.md's blocks have tests of their own, too."""
    text = path.read_text(encoding="utf-8")
    names = {"__name__": "page", "bnext": bnext}
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        exec(compile(block, str(path), "exec"), names)
