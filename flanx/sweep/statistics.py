"""Statistics for reports: means over seeds with their intervals, and paired differences between settings.

Runs with the same seed share their initial parameters, data order or parent, so the effects of these on a score cancel
in a paired difference: its interval is narrower than those of the two means.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy.special import stdtrit

from flanx.errors import UserError, nearest
from flanx.evals import published
from flanx.sweep import score_expressions
from flanx.sweep.grid import Sweep
from flanx.sweep.results import CHOSEN, LAST, Outcome
from flanx.sweep.score_expressions import Estimate


@dataclasses.dataclass(frozen=True)
class MeanScore:
    """A score for one cell of the grid: the mean over runs that differ only in seed.

    Attributes:
      labels: axis -> label, without the axes averaged over.
      items: 95% interval over items; the runs share their items, so it is the mean of their intervals.
      seeds: 95% interval of the mean over runs (Student's t); None for fewer than two.
      partial: what its suites leave out or truncate, see `flanx.evals.scores.partial`.
      outcomes: the runs behind the mean; values: their scores; missing: {point: why it has no score}.
      published: the paper's value; note: the note on it in published.csv.
      combined: whether `items` combines the intervals of the score's parts.
      ends: the lower and upper bound of the score.
    """

    labels: Mapping[str, str]
    score: str
    checkpoint: str
    mean: float | None
    items: tuple[float, float] | None
    seeds: tuple[float, float] | None
    flagged: bool
    partial: tuple[str, ...]
    outcomes: tuple[Outcome, ...]
    missing: Mapping[str, str]
    published: float | None
    note: str = ""
    values: tuple[float, ...] = ()
    combined: bool = False
    ends: tuple[float, float] = (-math.inf, math.inf)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval shown in figures: over seeds if there are several, else over items."""
        return self.seeds or self.items

    @property
    def bar(self) -> tuple[float, float] | None:
        """The interval as drawn in figures: clipped to the score's bounds."""
        if self.interval is None:
            return None
        low, high = (min(max(edge, self.ends[0]), self.ends[1]) for edge in self.interval)
        return low, high

    @property
    def marks(self) -> str:
        """ "!" for a flagged score, "†" if runs are missing from the mean, "‡" for a partial score."""
        is_short = self.missing and self.mean is not None
        return "!" * self.flagged + ("†" if is_short else "") + ("‡" if self.partial else "")

    @property
    def steps(self) -> str:
        """The steps of the runs behind it."""
        return ", ".join(dict.fromkeys(f"{outcome.step:,}" for outcome in self.outcomes)) or "-"

    @property
    def missing_because(self) -> str:
        """Why runs have no score, in a word or two; `missing` has the full reasons."""
        return ", ".join(dict.fromkeys(reason.partition(":")[0] for reason in self.missing.values()))


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """A cell's score minus that of the cell it is compared with.

    Attributes:
      labels: the cell's, axis -> label, without the axes averaged over; against: the other cell's label.
      values: percentage points, one per pair of runs.
    """

    labels: Mapping[str, str]
    against: str
    score: str
    checkpoint: str
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean over pairs."""
        return math.fsum(self.values) / len(self.values)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95% interval of the mean over pairs (Student's t); None for one pair."""
        return student_interval(self.values)


def axes(sweep: Sweep) -> dict[str, list[str]]:
    """The axes not averaged over, with their labels."""
    return {a: [str(v) for v in values] for a, values in sweep.axes.items() if a not in sweep.average_over}


def scores(sweep: Sweep, outcomes: Sequence[Outcome]) -> dict[str, list[str]]:
    """The sweep's scores, {name: expressions}; every suite that was run if the sweep names none.

    Raises UserError for an invalid expression.
    """
    named = {name: [terms] if isinstance(terms, str) else list(terms) for name, terms in sweep.scores.items()}
    by_loss = score_expressions.validation_loss(sweep.choose_by) is not None
    for expressions in [*named.values(), () if by_loss else sweep.choose_by]:
        for expression in expressions:
            score_expressions.parse(expression)
    return named or {name: [name] for outcome in outcomes for name in outcome.suites}


def shown_checkpoint(sweep: Sweep) -> str:
    """The checkpoint that figures show: the chosen one if the sweep chooses."""
    return CHOSEN if sweep.choose_by else LAST


def validated_on(sweep: Sweep, outcomes: Iterable[Outcome]) -> set[tuple[tuple[str, int], ...]]:
    """What the points were validated on at the shown checkpoint; their losses compare if it is one."""
    shown = shown_checkpoint(sweep)
    return {o.validated_on for o in outcomes if o.checkpoint == shown and o.validation_loss is not None}


def student_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95% interval of a mean over independent runs, by Student's t; None for fewer than two."""
    if len(values) < 2:
        return None
    mean, count = math.fsum(values) / len(values), len(values)
    half = float(stdtrit(count - 1, 0.975)) * float(np.std(values, ddof=1)) / math.sqrt(count)
    return mean - half, mean + half


def mean_scores(sweep: Sweep, outcomes: Sequence[Outcome]) -> dict[tuple[tuple[str, ...], str, str], MeanScore]:
    """{(labels of `axes`, score name, checkpoint): mean} for every cell of the grid, in point order."""
    kept = list(axes(sweep))
    groups: dict[tuple[tuple[str, ...], str], list[Outcome]] = {}
    for outcome in outcomes:
        key = tuple(outcome.point.labels[axis] for axis in kept)
        groups.setdefault((key, outcome.checkpoint), []).append(outcome)
    return {
        (key, name, checkpoint): _mean_score(sweep, dict(zip(kept, key, strict=True)), name, terms, checkpoint, members)
        for (key, checkpoint), members in groups.items()
        for name, terms in scores(sweep, outcomes).items()
    }


def _mean_score(
    sweep: Sweep, labels: dict[str, str], name: str, terms: Sequence[str], checkpoint: str, members: Sequence[Outcome]
) -> MeanScore:
    values: list[Estimate] = []
    behind, missing = [], {}
    for outcome in members:
        estimate = score_expressions.value(terms, outcome.suites) if outcome.suites else outcome.absence
        if isinstance(estimate, str):
            missing[outcome.point.name] = estimate
        else:
            values.append(estimate)
            behind.append(outcome)
    reference = sweep.published.get("_".join(labels.values()))
    mean: float | None = None
    items: tuple[float, float] | None = None
    if values:
        mean = math.fsum(v.score for v in values) / len(values)
        below = math.fsum(v.score - v.low for v in values) / len(values)
        above = math.fsum(v.high - v.score for v in values) / len(values)
        items = (mean - below, mean + above)
    return MeanScore(
        labels=labels,
        score=name,
        checkpoint=checkpoint,
        mean=mean,
        items=items,
        seeds=student_interval([v.score for v in values]),
        flagged=any(v.flagged for v in values),
        partial=tuple(dict.fromkeys(each for v in values for each in v.partial)),
        outcomes=tuple(behind),
        missing=missing,
        published=published.model(reference).get(name) if reference else None,
        note=published.note(reference) if reference else "",
        values=tuple(v.score for v in values),
        combined=any(v.combined for v in values),
        ends=score_expressions.ends(terms) if values else (-math.inf, math.inf),
    )


# ---- paired differences ----------------------------------------------------------------------------------------------


def check_compare(sweep: Sweep) -> None:
    """Raises UserError if `sweep.compare` names an axis or a label that the sweep does not have."""
    for axis, label in sweep.compare.items():
        if axis not in sweep.axes:
            raise UserError(f"Sweep.compare: the sweep has no axis '{axis}'{nearest(axis, sweep.axes)}")
        labels = [str(each) for each in sweep.axes[axis]]
        if str(label) not in labels:
            raise UserError(f"Sweep.compare: axis '{axis}' has no '{label}'{nearest(str(label), labels)}")


def paired_differences(sweep: Sweep, outcomes: Sequence[Outcome]) -> list[PairedDifference]:
    """Compares every cell with its reference, pair by pair; pairs in which a run has no score are left out."""
    check_compare(sweep)
    kept = list(axes(sweep))
    values: dict[tuple[tuple[str, ...], str, str, str], list[float]] = {}
    by_labels = {(o.checkpoint, tuple(o.point.labels.items())): o for o in outcomes}
    for axis, reference in sweep.compare.items():
        for outcome in outcomes:
            labels = outcome.point.labels
            base = by_labels[outcome.checkpoint, tuple((labels | {axis: str(reference)}).items())]
            if base is outcome:
                continue
            for name, terms in scores(sweep, outcomes).items():
                ours, theirs = (score_expressions.value(terms, o.suites) for o in (outcome, base))
                if isinstance(ours, Estimate) and isinstance(theirs, Estimate):
                    key = (tuple(labels[a] for a in kept), f"{axis} {reference}", name, outcome.checkpoint)
                    values.setdefault(key, []).append(ours.score - theirs.score)
    return [
        PairedDifference(dict(zip(kept, labels, strict=True)), against, name, checkpoint, tuple(each))
        for (labels, against, name, checkpoint), each in values.items()
    ]
