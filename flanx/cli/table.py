"""The one way in which commands print a table."""

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

_UNBOUNDED = 1_000_000  # width if the output is not a terminal


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], left: Sequence[str] = (), header: bool = True
) -> None:
    """Prints rows under their column names; the first column and those in `left` are aligned left, the others right.

    On a terminal long cells are wrapped to its width; elsewhere every row is one line. Cells are printed verbatim,
    without rich markup.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=header)
    for number, name in enumerate(columns):
        is_left = number == 0 or name in left
        table.add_column(Text(name), justify="left" if is_left else "right", overflow="fold", no_wrap=not is_left)
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    Console(highlight=False, width=None if sys.stdout.isatty() else _UNBOUNDED).print(table)
