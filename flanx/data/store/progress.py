"""Progress of a build on standard error: one line per collection with examples, rate and time left."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars


class Progress:
    """Counts finished jobs and examples per collection; drawn live on a terminal, one line at the end elsewhere."""

    def __init__(self, quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet)
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[examples]:,} examples, {task.fields[rate]:,.0f}/s"),
            TimeRemainingColumn(),
            console=self._console,
            disable=quiet,
        )
        self._of: dict[str, TaskID] = {}  # collection -> its bar

    def __enter__(self) -> "Progress":
        self._bars.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, place: TracebackType | None) -> None:
        self._bars.stop()

    def expect(self, collection: str) -> None:
        """One more job of a collection."""
        if collection not in self._of:
            self._of[collection] = self._bars.add_task(collection, total=0, examples=0, rate=0.0)
        bar = self._bar(collection)
        self._bars.update(bar.id, total=(bar.total or 0) + 1)

    def count(self, collection: str, examples: int) -> None:
        bar = self._bar(collection)
        total = bar.fields["examples"] + examples
        self._bars.update(bar.id, examples=total, rate=total / max(bar.elapsed or 0.0, 1e-3))

    def finish(self, collection: str) -> None:
        """One job done."""
        self._bars.advance(self._of[collection])

    def say(self, line: str) -> None:
        self._console.print(line, style="yellow", highlight=False)

    def _bar(self, collection: str):
        return self._bars.tasks[self._of[collection]]
