"""A progress bar on request."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

__all__ = ["Watch", "watching"]

# Goes through an iterable that is described in words, and gives its elements.
Watch = Callable[[Iterable[Any], str], Iterator[Any]]


@contextlib.contextmanager
def watching(show: bool) -> Iterator[Watch]:
    """Give a function that goes through iterables and shows, if asked to, how far it is."""
    if not show:
        yield lambda batches, _: iter(batches)
        return
    try:
        from rich.progress import Progress
    except ImportError:
        raise ImportError(
            "progress: expected rich to be installed (pip install 'bnext[statistics]')"
        ) from None
    with Progress(transient=True) as bar:

        def watch(batches: Iterable[Any], description: str) -> Iterator[Any]:
            try:
                total = len(batches)  # type: ignore[arg-type]
            except TypeError:
                total = None
            task = bar.add_task(description, total=total)
            for batch in batches:
                yield batch
                bar.advance(task)
            bar.remove_task(task)

        yield watch
