"""Progress of builds, downloads and sweeps on standard error: named rows, live on a terminal, else lines of text."""

import math
import threading
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars


class Progress:
    """Rows of running work. Thread-safe.

    A row with a known total has a bar and the remaining time; every row has a text. On a terminal the rows are drawn
    live. Elsewhere, those that have changed are printed every `line_period` seconds and at the end.
    """

    def __init__(self, quiet: bool = False, line_period: float = math.inf) -> None:
        self.line_period = line_period
        self._console = Console(stderr=True, quiet=quiet, highlight=False)
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            TimeRemainingColumn(),
            console=self._console,
            disable=quiet,
        )
        self._rows: dict[str, TaskID] = {}
        self._changed: set[str] = set()
        self._lock = threading.RLock()
        self._printed = time.monotonic()

    def __enter__(self) -> "Progress":
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._lock:
            if self._console.is_terminal:
                self._bars.stop()
            elif self._rows:
                self._print()

    def update(self, name: str, text: str, done: float | None = None, total: float | None = None) -> None:
        """Shows a row's text, and how many parts of the total are done, if known."""
        with self._lock:
            if name not in self._rows:
                self._rows[name] = self._bars.add_task(name, total=total, text=text)
            self._bars.update(self._rows[name], completed=done, total=total, text=text)
            self._changed.add(name)
            if not self._console.is_terminal and time.monotonic() - self._printed >= self.line_period:
                self._print()

    def remove(self, name: str) -> None:
        """Removes a row once its work has ended."""
        with self._lock:
            if name in self._rows:
                self._bars.remove_task(self._rows.pop(name))
                self._changed.discard(name)

    @property
    def is_live(self) -> bool:
        """Whether rows are drawn live, so that they may be updated often."""
        return self._console.is_terminal

    def note(self, line: str, style: str | None = "yellow") -> None:
        """Prints a line above the rows."""
        self._console.print(line, style=style, markup=False, soft_wrap=True)

    def _print(self) -> None:
        """Prints the rows that have changed, one line each."""
        self._printed = time.monotonic()
        for task in self._bars.tasks:
            if task.description in self._changed:
                parts = "" if task.total is None else f"{task.completed:g}/{task.total:g}  "
                self._console.print(f"{task.description}: {parts}{task.fields['text']}", markup=False, soft_wrap=True)
        self._changed.clear()
