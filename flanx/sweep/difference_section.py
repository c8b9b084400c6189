"""The noise floor of a sweep's scores, and its paired differences, with those below the floor in grey."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from flanx.laws import noise
from flanx.sweep import statistics
from flanx.sweep.document import Cell, Section, Span, Table
from flanx.sweep.grid import Sweep
from flanx.sweep.statistics import MeanScore, PairedDifference

DIFFERENCES_NOTE = (
    "Between runs that have all else in common, in percentage points; 95% intervals of the mean over the pairs of runs "
    "(Student's t). What a seed does to both runs of a pair cancels."
)
FLOOR_NOTE = (
    "How much runs that differ only in the seed differ: the standard deviation of one run, pooled over all cells "
    "(without those whose runs are all at 0 or all at 100), and the difference between two cells that seeds alone "
    "exceed in one of twenty tries. A difference below it is not to be read."
)


class Floor(NamedTuple):
    """The noise of a score: the standard deviation of one run, its degrees of freedom, the fewest seeds of any cell."""

    sd: float
    degrees: int
    seeds: int

    def of(self, first: int, second: int) -> float:
        """The noise floor for a difference between means of `first` and `second` runs."""
        return noise.floor(self.sd, self.degrees, first, second)


def floors(sweep: Sweep, means: Mapping[tuple, MeanScore]) -> dict[str, Floor]:
    """{score: its noise} at the shown checkpoint, for scores with two runs in some cell."""
    found = {}
    shown = [each for each in means.values() if each.checkpoint == statistics.shown_checkpoint(sweep)]
    for score in dict.fromkeys(each.score for each in shown):
        groups = [each.values for each in shown if each.score == score and len(each.values) > 1]
        sd, degrees = noise.pooled(groups)
        if sd is not None:
            found[score] = Floor(sd, degrees, min(map(len, groups)))
    return found


def noise_sections(found: Mapping[str, Floor]) -> list[Section]:
    """The table of noise floors."""
    if not found:
        return []
    head = ["score", "one run (standard deviation)", "degrees of freedom", "floor of a difference"]
    rows = [
        [score, f"{each.sd:.2f}", str(each.degrees), f"{each.of(each.seeds, each.seeds):.1f} ({each.seeds} seeds each)"]
        for score, each in found.items()
    ]
    return [Section("Noise floor", notes=[FLOOR_NOTE], tables=[Table(head, rows)])]


def is_within(difference: PairedDifference, found: Mapping[str, Floor]) -> bool:
    """Whether seeds alone could explain such a difference."""
    floor, count = found.get(difference.score), len(difference.values)
    return floor is not None and abs(difference.mean) < floor.of(count, count)


def difference_sections(
    sweep: Sweep, differences: Sequence[PairedDifference], found: Mapping[str, Floor]
) -> list[Section]:
    """The table of paired differences."""
    if not differences:
        return []
    head = [*statistics.axes(sweep), "against", "score", "difference", "95% interval", "run by run"]
    rows: list[list[Cell | str]] = []
    for each in differences:
        texts = difference_row(each)
        if is_within(each, found):
            at = len(each.labels) + 2
            texts[at] += " (within noise)"
            rows.append([Cell([Span(text)], "faint") for text in texts])
        else:
            rows.append([*texts])
    note = DIFFERENCES_NOTE + (" Grey, within noise: below the noise floor above." if found else "")
    return [Section("Differences", notes=[note], tables=[Table(head, rows)])]


def difference_row(difference: PairedDifference) -> list[str]:
    """The cell texts for a paired difference."""
    interval = "one pair of runs"
    if difference.interval:
        interval = f"{difference.interval[0]:+.1f} to {difference.interval[1]:+.1f}"
    each = ", ".join(f"{value:+.1f}" for value in difference.values)
    mean = f"{difference.mean:+.1f}"
    return [*difference.labels.values(), difference.against, difference.score, mean, interval, each]
