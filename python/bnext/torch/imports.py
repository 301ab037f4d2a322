"""Doing something once a module has been imported, without importing it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

__all__ = ["is_being_imported", "when_imported"]

Action = Callable[[ModuleType], object]


def when_imported(name: str, action: Action) -> None:
    """Call `action` with the module of that name: now if it is there, or after its import."""
    module = sys.modules.get(name)
    if module is not None and not is_being_imported(module):
        action(module)
        return
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    _FINDER.actions.setdefault(name, []).append(action)


def is_being_imported(module: ModuleType) -> bool:
    """Whether the code of a module has not been run to its end yet."""
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


class _Finder:
    """Finds nothing of its own: it has the others find a module, and the action follow its code."""

    def __init__(self) -> None:
        self.actions: dict[str, list[Action]] = {}

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> Any:
        if name not in self.actions:
            return None
        others = (each for each in sys.meta_path if each is not self and hasattr(each, "find_spec"))
        found = (each.find_spec(name, path, target) for each in others)
        spec = next((each for each in found if each is not None), None)
        loader: Any = getattr(spec, "loader", None)
        run: Any = getattr(loader, "exec_module", None)

        def exec_module(module: ModuleType) -> None:
            run(module)
            for action in self.actions[name]:
                action(module)

        if run is not None:
            loader.exec_module = exec_module
        return spec


_FINDER: Any = _Finder()
