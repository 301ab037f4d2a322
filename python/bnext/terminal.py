"""Tables that fit the terminal: one that is too wide goes on below."""

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
    """Give the columns that running text may take: the terminal's, at most 100."""
    return min(WIDEST_TEXT, shutil.get_terminal_size((WIDEST_TEXT, 24)).columns)


def table_width() -> int:
    """Give the columns that a table may take: the terminal's; any in a file or a pipe."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    return shutil.get_terminal_size().columns if is_terminal else UNBOUNDED


def column_groups(
    columns: int, keys: int, fits: Callable[[Sequence[int]], bool]
) -> list[list[int]]:
    """Divide the columns of a table among tables that each fit.

    Parameters
    ----------
    columns : int
        How many there are.
    keys : int
        How many at the left say what a row is: every table has them.
    fits : callable
        Whether a table of these columns fits.

    Returns
    -------
    list of list of int
        The columns of each table, in order; one besides the keys where even that does not fit.
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
        How many columns at the left say what a row is: at the left of every table.
    left : collection of str
        Columns whose cells begin at the left; the keys' do.
    sections : collection of int
        Rows that a line follows.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    keys: int = 1
    left: Collection[str] = ()
    sections: Collection[int] = ()

    def show(self, console: Console) -> None:
        """Print it, in as many tables as the terminal needs; no number is cut off."""
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
