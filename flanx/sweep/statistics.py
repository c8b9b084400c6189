"""The numbers of a report's figures: a score of one cell of the grid, over its items and over its seeds."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from flanx.evals import published
from flanx.sweep import score_expressions
from flanx.sweep.grid import Sweep
from flanx.sweep.results import CHOSEN, LAST, Outcome

# 97.5 % points of Student's t by degrees of freedom, 1 to 30; beyond, the normal distribution's
T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclasses.dataclass(frozen=True)
class Cell:
    """A score of one cell of the grid: the mean over the runs that differ only in the seed.

    Attributes:
      labels: axis -> label, without the axes that are averaged over.
      items: 95% interval over the items, of one run the suites' own; the runs share their items, so of several it is
        the mean of their intervals.
      seeds: 95% interval of the mean over the runs (Student's t); None for fewer than two.
      outcomes: the runs behind the mean; missing: {point: why it has no score}.
      published: the paper's value; note: what is to be known of it.
    """

    labels: Mapping[str, str]
    score: str
    checkpoint: str
    mean: float | None
    items: tuple[float, float] | None
    seeds: tuple[float, float] | None
    flagged: bool
    outcomes: tuple[Outcome, ...]
    missing: Mapping[str, str]
    published: float | None
    note: str = ""

    @property
    def interval(self) -> tuple[float, float] | None:
        """What a figure draws: over the seeds where there are several, else over the items."""
        return self.seeds or self.items

    @property
    def marks(self) -> str:
        """ "!" for a flagged score, "†" where runs are missing from the mean."""
        return ("!" if self.flagged else "") + ("†" if self.missing and self.mean is not None else "")

    @property
    def steps(self) -> str:
        """The steps of the runs behind it."""
        return ", ".join(dict.fromkeys(f"{outcome.step:,}" for outcome in self.outcomes)) or "-"

    @property
    def why(self) -> str:
        """Why runs have no score, in a word or two; `missing` has the reasons."""
        return ", ".join(dict.fromkeys(reason.partition(":")[0] for reason in self.missing.values()))


def axes(sweep: Sweep) -> dict[str, list[str]]:
    """The axes that nothing averages over, with their labels."""
    return {a: [str(v) for v in values] for a, values in sweep.axes.items() if a not in sweep.average_over}


def scores(sweep: Sweep, outcomes: Sequence[Outcome]) -> dict[str, list[str]]:
    """The sweep's scores, {name: terms}; every suite that was run where it names none. UserError for a wrong term."""
    named = {name: [terms] if isinstance(terms, str) else list(terms) for name, terms in sweep.scores.items()}
    for terms in [*named.values(), sweep.choose_by]:
        for each in terms:
            score_expressions.parts(each)
    return named or {name: [name] for outcome in outcomes for name in outcome.suites}


def over_seeds(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95% interval of a mean of independent runs, by Student's t."""
    count = len(values)
    if count < 2:
        return None
    mean = math.fsum(values) / count
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (count - 1))
    half = (T[count - 2] if count - 2 < len(T) else 1.96) * deviation / math.sqrt(count)
    return mean - half, mean + half


def cells(sweep: Sweep, outcomes: Sequence[Outcome]) -> dict[tuple[tuple[str, ...], str, str], Cell]:
    """Every cell: {(labels of `axes`, name of the score, checkpoint): cell}, in the order of the points."""
    kept = list(axes(sweep))
    groups: dict[tuple[tuple[str, ...], str], list[Outcome]] = {}
    for outcome in outcomes:
        key = tuple(outcome.point.labels[axis] for axis in kept)
        groups.setdefault((key, outcome.checkpoint), []).append(outcome)
    return {
        (key, name, checkpoint): _cell(sweep, dict(zip(kept, key, strict=True)), name, terms, checkpoint, members)
        for (key, checkpoint), members in groups.items()
        for name, terms in scores(sweep, outcomes).items()
    }


def _cell(
    sweep: Sweep, labels: dict[str, str], name: str, terms: Sequence[str], checkpoint: str, members: Sequence[Outcome]
) -> Cell:
    values: list[score_expressions.Value] = []
    behind, missing = [], {}
    for outcome in members:
        found = score_expressions.value(terms, outcome.suites) if outcome.suites else outcome.absence
        if isinstance(found, str):
            missing[outcome.point.name] = found
        else:
            values.append(found)
            behind.append(outcome)
    reference = sweep.published.get("_".join(labels.values()))
    theirs = published.model(reference).get(name) if reference else None
    note = published.note(reference) if reference else ""
    if not values:
        return Cell(labels, name, checkpoint, None, None, None, False, (), missing, theirs, note)
    mean = math.fsum(v.score for v in values) / len(values)
    low = mean - math.fsum(v.score - v.low for v in values) / len(values)
    high = mean + math.fsum(v.high - v.score for v in values) / len(values)
    seeds = over_seeds([v.score for v in values])
    flagged = any(v.flagged for v in values)
    return Cell(labels, name, checkpoint, mean, (low, high), seeds, flagged, tuple(behind), missing, theirs, note)


def shown(sweep: Sweep) -> str:
    """The checkpoint that figures show: the chosen one where the sweep chooses."""
    return CHOSEN if sweep.choose_by else LAST
