"""Tables that fit the terminal: a table that is too wide continues below."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDEST_TEXT = 100
UNBOUNDED = 1000  # columns of a file or a pipe

Columns = list[int]


def text_width() -> int:
    """Give the width of running text: the terminal's, at most 100."""
    return min(WIDEST_TEXT, shutil.get_terminal_size((WIDEST_TEXT, 24)).columns)


@dataclass(frozen=True)
class TextTable:
    """A table of text."""

    title: str  # above the first of the tables
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    keys: int = 1  # columns that name a row: at the left of every table
    left: Collection[str] = ()  # columns with cells aligned to the left, besides the keys
    sections: Collection[int] = ()  # rows with a line below them, with rich
    style: Callable[[str, str], str] = lambda column, cell: ""  # with rich

    def show(self, console: Console) -> None:
        """Print it, in as many tables as the terminal needs, without cutting numbers off."""
        unbounded = console.options.update(width=UNBOUNDED)

        def width(columns: Columns) -> int:
            return console.measure(self._table(columns, None), options=unbounded).maximum

        usual = console.width
        title: str | None = self.title
        for columns in self._groups(usual if console.is_terminal else UNBOUNDED, width):
            # A number that is cut off is worse than a line that the terminal breaks.
            console.width = max(usual, width(columns))
            console.print(self._table(columns, title))
            console.width, title = usual, None

    def show_plain(self) -> None:
        """Print it in the same way without rich: without lines and colours."""
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        aligned = [str.ljust if self._is_left(n) else str.rjust for n in range(len(self.header))]

        def width(columns: Columns) -> int:
            return sum(widths[column] + 2 for column in columns) - 2

        is_terminal = sys.stdout is not None and sys.stdout.isatty()
        limit = shutil.get_terminal_size().columns if is_terminal else UNBOUNDED
        begin = f"\n{self.title}\n"
        for columns in self._groups(limit, width):
            print(begin, end="")
            begin = "\n"
            for line in (self.header, *self.rows):
                cells = (aligned[column](line[column], widths[column]) for column in columns)
                print("  ".join(cells).rstrip())

    def _groups(self, limit: int, width: Callable[[Columns], int]) -> Iterator[Columns]:
        """Divide the columns among tables that each fit, with one at least besides the keys."""
        current = list(range(self.keys))
        for column in range(self.keys, len(self.header)):
            if len(current) > self.keys and width([*current, column]) > limit:
                yield current
                current = current[: self.keys]
            current = [*current, column]
        yield current

    def _is_left(self, column: int) -> bool:
        return column < self.keys or self.header[column] in self.left

    def _table(self, columns: Columns, title: str | None) -> Table:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(
            title=title,
            title_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            collapse_padding=True,
        )
        names = [self.header[column] for column in columns]
        for column, name in zip(columns, names, strict=True):
            table.add_column(
                name, justify="left" if self._is_left(column) else "right", no_wrap=True
            )
        for place, row in enumerate(self.rows):
            cells = zip(names, (row[column] for column in columns), strict=True)
            texts = (Text(cell, self.style(name, cell)) for name, cell in cells)
            table.add_row(*texts, end_section=place in self.sections)
        return table
