"""Names of a package whose modules are imported when they are first used.

`import bnext` takes little longer than `import numpy`: a program imports the layers, groups and
conventions of other libraries that it uses.
"""

import importlib
import sys
from collections.abc import Callable, Mapping

__all__ = ["attributes"]


def attributes(
    package: str, names: Mapping[str, str]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Make the ``__getattr__`` and the ``__dir__`` of a package.

    Parameters
    ----------
    package : str
        Its name.
    names : mapping of str to str
        Names, with spaces between, by the module that has them. Names that the package itself has
        are modules in it.
    """
    modules = {name: module for module, listed in names.items() for name in listed.split()}

    def find(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if modules[name] == package:
            return importlib.import_module(f"{package}.{name}")
        value: object = getattr(importlib.import_module(modules[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def listed_names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules})

    return find, listed_names
