"""Tables that fit the terminal: a table that is too wide continues below."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["TextTable", "column_groups", "table_width", "text_width"]

WIDEST_TEXT = 100
UNBOUNDED = 1000


def text_width() -> int:
    """Give the width of running text: the terminal's, at most 100."""
    return min(WIDEST_TEXT, shutil.get_terminal_size((WIDEST_TEXT, 24)).columns)


def table_width() -> int:
    """Give the width of a table: the terminal's; unbounded in a file or a pipe."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    return shutil.get_terminal_size().columns if is_terminal else UNBOUNDED


def column_groups(
    columns: int, keys: int, fits: Callable[[Sequence[int]], bool]
) -> list[list[int]]:
    """Divide the columns of a table among tables that each fit.

    Parameters
    ----------
    columns : int
        Their number.
    keys : int
        The number of columns at the left that name a row: every table has them.
    fits : callable
        Whether a table of these columns fits.

    Returns
    -------
    list of list of int
        The columns of each table, in order: at least one besides the keys.
    """
    first = list(range(keys))
    groups: list[list[int]] = []
    current = list(first)
    for column in range(keys, columns):
        if len(current) > keys and not fits([*current, column]):
            groups.append(current)
            current = list(first)
        current.append(column)
    return [*groups, current]


@dataclass(frozen=True)
class TextTable:
    """A table as text, to be printed with rich.

    Attributes
    ----------
    title : str
        Above the first of the tables.
    header : sequence of str
        Names of the columns.
    rows : sequence of sequences of str
        The cells, with rich's markup.
    keys : int
        The number of columns that name a row: at the left of every table.
    left : collection of str
        Columns with cells aligned to the left, besides the keys.
    sections : collection of int
        Rows with a line below them.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    keys: int = 1
    left: Collection[str] = ()
    sections: Collection[int] = ()

    def show(self, console: Console) -> None:
        """Print it, in as many tables as the terminal needs, without cutting numbers off."""
        unbounded = console.options.update(width=UNBOUNDED)

        def width(columns: Sequence[int]) -> int:
            return console.measure(self._table(columns, ""), options=unbounded).maximum

        usual = console.width
        limit = usual if console.is_terminal else UNBOUNDED
        groups = column_groups(len(self.header), self.keys, lambda chosen: width(chosen) <= limit)
        for place, columns in enumerate(groups):
            # A number that is cut off is worse than a line that the terminal breaks.
            console.width = max(usual, width(columns))
            console.print(self._table(columns, "" if place else self.title))
            console.width = usual

    def _table(self, columns: Sequence[int], title: str) -> Table:
        from rich import box
        from rich.table import Table

        table = Table(
            title=title or None,
            title_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            collapse_padding=True,
        )
        for column in columns:
            name = self.header[column]
            at_left = column < self.keys or name in self.left
            table.add_column(name, justify="left" if at_left else "right", no_wrap=True)
        for place, row in enumerate(self.rows):
            cells = (row[column] for column in columns)
            table.add_row(*cells, end_section=place in self.sections)
        return table
