"""What a built site has: ``python .ci/check_site.py FOLDER``.

Every public name is in its index of objects, every link from page to page leads to a page and to an
anchor that is there, and every picture is a file.
"""

import importlib
import sys
import types
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

from sphinx.util.inventory import InventoryFile

MODULES = ("bnext", "bnext.functional", "bnext.sync", "bnext.cuda", "bnext.torch")


class Page(HTMLParser):
    """The anchors of a page, and what it leads to."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.links = set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        """Note an element's anchor and link."""
        values = dict(attributes)
        self.anchors.update(filter(None, (values.get("id"), values.get("name"))))
        link = values.get("href" if tag in ("a", "link") else "src")
        if link:
            self.links.append(link)


def unknown_names(folder):
    """Public names that the index of objects lacks."""
    with (folder / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", lambda base, path: path)
    listed = {name for kind in inventory if kind.startswith("py:") for name in inventory[kind]}
    objects = {id(value) for name in listed if (value := value_of(name)) is not None}
    for module in map(importlib.import_module, MODULES):
        for name in module.__all__:
            value = getattr(module, name)
            if not isinstance(value, types.ModuleType | str) and id(value) not in objects:
                yield f"{module.__name__}.{name}: no page of the reference"


def value_of(name):
    """Give the object of a full name; None for what is no function or class."""
    module, _, attribute = name.rpartition(".")
    while module:
        try:
            value = importlib.import_module(module)
        except ModuleNotFoundError:
            module, _, before = module.rpartition(".")
            attribute = f"{before}.{attribute}"
            continue
        for part in attribute.split("."):
            value = getattr(value, part, None)
        return value
    return None


def broken_links(folder):
    """Links from page to page that lead nowhere."""
    pages = {path: Page(path) for path in folder.rglob("*.html")}
    for path, page in pages.items():
        for link in page.links:
            target, anchor = urldefrag(link)
            target = target.partition("?")[0]  # a version, for caches
            if "://" in target or target.startswith(("mailto:", "data:")):
                continue
            file = (path.parent / unquote(target)).resolve() if target else path.resolve()
            name = path.relative_to(folder)
            if not file.exists():
                yield f"{name}: leads to {link}, which is not there"
            elif anchor and file in pages and unquote(anchor) not in pages[file].anchors:
                yield f"{name}: leads to {link}, where the anchor is not"


def main(folder):
    """Check a site; 1 if something is wrong."""
    folder = Path(folder).resolve()
    wrong = [*unknown_names(folder), *sorted(set(broken_links(folder)))]
    print("\n".join(wrong) or f"{len(list(folder.rglob('*.html')))} pages, all names, all links")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
