"""What a setting changes: differences between runs that have all else in common, the seed and the parent too.

Runs of one seed share their first parameters, their order of data or their parent, so what these make of a score falls
out of the difference: its interval is narrower than those of the two means.
"""

import csv
import dataclasses
import io
import math
from collections.abc import Iterable, Mapping, Sequence

from flanx.errors import UserError, nearest
from flanx.sweep import score_expressions, statistics
from flanx.sweep.grid import Sweep
from flanx.sweep.results import Outcome

COLUMNS = ("against", "score", "checkpoint", "mean", "runs", "low", "high", "each")
SAID = (
    "Between runs that have all else in common, in points; 95% intervals of the mean over the pairs of runs (Student's "
    "t). What a seed does to both runs of a pair falls out."
)
SHOWN = ("against", "score", "difference", "95% interval", "run by run")


@dataclasses.dataclass(frozen=True)
class Difference:
    """A score of one cell less that of the cell it is compared with.

    Attributes:
      labels: of the cell, axis -> label, without the axes that are averaged over; against: the other cell's label.
      values: points of a percent, one for each pair of runs.
    """

    labels: Mapping[str, str]
    against: str
    score: str
    checkpoint: str
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return math.fsum(self.values) / len(self.values)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95% interval of the mean over the pairs (Student's t); None for one pair."""
        return statistics.over_seeds(self.values)

    def shown(self) -> list[str]:
        """The texts of a report's row."""
        low, high = self.interval or (math.nan, math.nan)
        interval = f"{low:+.1f} to {high:+.1f}" if self.interval else "one pair of runs"
        each = ", ".join(f"{value:+.1f}" for value in self.values)
        return [*self.labels.values(), self.against, self.score, f"{self.mean:+.1f}", interval, each]


def check(sweep: Sweep) -> None:
    """Raises UserError where `sweep.compare` names an axis or a label that the sweep has not."""
    for axis, label in sweep.compare.items():
        if axis not in sweep.axes:
            raise UserError(f"Sweep.compare: the sweep has no axis '{axis}'{nearest(axis, sweep.axes)}")
        labels = [str(each) for each in sweep.axes[axis]]
        if str(label) not in labels:
            raise UserError(f"Sweep.compare: axis '{axis}' has no '{label}'{nearest(str(label), labels)}")


def differences(sweep: Sweep, outcomes: Sequence[Outcome]) -> list[Difference]:
    """Every cell beside the one it is compared with, pair by pair; pairs of which a run has no score are left out."""
    check(sweep)
    kept, found = list(statistics.axes(sweep)), {}
    by_labels = {(o.checkpoint, *o.point.labels.items()): o for o in outcomes}
    for axis, reference in sweep.compare.items():
        for (checkpoint, *labels), outcome in by_labels.items():
            labels = dict(labels)
            base = by_labels[checkpoint, *(labels | {axis: str(reference)}).items()]
            if base is outcome:
                continue
            for name, terms in statistics.scores(sweep, outcomes).items():
                ours, theirs = (score_expressions.value(terms, o.suites) for o in (outcome, base))
                if isinstance(ours, str) or isinstance(theirs, str):
                    continue
                key = (tuple(labels[a] for a in kept), f"{axis} {reference}", name, checkpoint)
                found.setdefault(key, []).append(ours.score - theirs.score)
    return [
        Difference(dict(zip(kept, labels, strict=True)), against, name, checkpoint, tuple(values))
        for (labels, against, name, checkpoint), values in found.items()
    ]


def table(sweep: Sweep, found: Iterable[Difference]) -> str:
    """differences.csv."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*statistics.axes(sweep), *COLUMNS])
    for each in found:
        low, high = each.interval or ("", "")
        values = " ".join(str(value) for value in each.values)
        row = [each.against, each.score, each.checkpoint, each.mean, len(each.values), low, high, values]
        writer.writerow([*each.labels.values(), *row])
    return text.getvalue()
