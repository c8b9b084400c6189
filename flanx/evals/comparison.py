"""Two runs on the same items: what `flanx report A B` says about their difference, from their saved generations."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from flanx.evals import generations, marking, metrics, significance, toxicity
from flanx.files import markdown_table

WHOLE = ("seqio", "lm_eval", metrics.AUC)  # metrics over all items at once: single items have no score
NOT_PAIRED = {
    "items": "not the same items, not the same spec, or not the same toxicity scorer",
    "unscored": "its continuations are not scored",
    "whole": "its metric is of all items at once",
}


@dataclasses.dataclass(frozen=True)
class Marks:
    """The scores of a suite's items, {task: {id: 0 to 1}}, and the hash of its spec and data.

    `scorer`: the toxicity scorer; `unscored`: it has not scored all items."""

    hash: str
    metric: str
    average: str
    tasks: Mapping[str, Mapping[str, float]]
    scorer: str = ""
    unscored: bool = False


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One suite in two runs.

    Attributes:
      difference: second minus first, in points; low, high: its 95% interval over items.
      only_first, only_second: items that only one run gets right; None if items are not simply right or wrong.
      p: the p value of `test`; holm: corrected for all comparisons in the table.
      reason: why no test was done.
    """

    first: str
    second: str
    suite: str
    items: int = 0
    difference: float = math.nan
    low: float = math.nan
    high: float = math.nan
    only_first: int | None = None
    only_second: int | None = None
    p: float = math.nan
    holm: float = math.nan
    reason: str = ""

    @property
    def test(self) -> str:
        """The test that `p` is of."""
        return "paired bootstrap" if self.only_first is None else "McNemar, exact"


def read_marks(folder: pathlib.Path) -> dict[str, Marks]:
    """{suite: its item scores} for an evaluation's folder; {} if it saved no generations."""
    found: dict[str, Marks] = {}
    tasks: dict[str, dict[str, dict[str, float]]] = {}
    unscored: set[str] = set()
    for path in generations.paths(folder):
        header, rows = generations.read(path)
        spec = generations.spec_of(header, path)
        scorer = toxicity.join(folder, spec, rows).get("scorer", "")
        if spec.metric in metrics.TOXICITY and not all(row.toxicity or row.broken for row in rows):
            unscored.add(spec.name)
        of_suite = tasks.setdefault(spec.name, {})
        for row in rows:
            of_suite.setdefault(row.task, {})[row.id] = marking.grade(spec, row).exact
        is_unscored = spec.name in unscored
        found[spec.name] = Marks(header["hash"], spec.metric, spec.average, of_suite, scorer, is_unscored)
    return found


def compare(first: str, second: str, suite: str, ours: Marks, theirs: Marks) -> Comparison:
    """The comparison of one suite: `theirs` minus `ours`."""
    items = {task: set(marks) for task, marks in ours.tasks.items()}
    if ours.unscored or theirs.unscored:
        return Comparison(first, second, suite, reason=NOT_PAIRED["unscored"])
    same = (ours.hash, ours.scorer) == (theirs.hash, theirs.scorer)
    if not same or items != {task: set(marks) for task, marks in theirs.tasks.items()}:
        return Comparison(first, second, suite, reason=NOT_PAIRED["items"])
    if ours.metric in WHOLE:
        return Comparison(first, second, suite, reason=NOT_PAIRED["whole"])
    pairs = {task: [(marks[i], theirs.tasks[task][i]) for i in sorted(marks)] for task, marks in ours.tasks.items()}
    pooled = metrics.pooled(pairs, ours.average)
    differences = {task: [100 * (b - a) for a, b in each] for task, each in pooled.items()}
    low, high, p = significance.paired_bootstrap(differences)
    whole = metrics.mean(metrics.mean(each) for each in differences.values())
    found = Comparison(first, second, suite, sum(map(len, pairs.values())), whole, low, high, p=p)
    every = [pair for each in pairs.values() for pair in each]
    if all(mark in (0.0, 1.0) for pair in every for mark in pair):
        only_first, only_second = every.count((1.0, 0.0)), every.count((0.0, 1.0))
        exact = significance.mcnemar(only_first, only_second)
        found = dataclasses.replace(found, only_first=only_first, only_second=only_second, p=exact)
    return found


def compare_all(runs: Sequence[tuple[str, pathlib.Path]]) -> list[Comparison]:
    """Each later run against the first, suite by suite, corrected for their number; `runs`: (label, folder)."""
    marks = [(label, read_marks(folder)) for label, folder in runs]
    (base, ours), others = marks[0], marks[1:]
    found = [
        compare(base, label, suite, ours[suite], theirs[suite])
        for label, theirs in others
        for suite in ours
        if suite in theirs
    ]
    tested = [each for each in found if not each.reason]
    corrected = iter(significance.holm([each.p for each in tested]))
    return [each if each.reason else dataclasses.replace(each, holm=next(corrected)) for each in found]


def markdown(found: Sequence[Comparison]) -> str:
    """The table of paired tests; "" if the runs share no suite."""
    if not found:
        return ""
    tested = [each for each in found if not each.reason]
    head = ["run", "against", "suite", "items", "difference", "95% interval", "only one right", "test", "p", "Holm"]
    note = (
        f"Differences in points over the same items, with 95% intervals over the items; another seed may differ "
        f"by more. p is corrected by Holm's method for {len(tested)} comparisons, bold below {significance.LEVEL:g}."
    )
    return "\n".join([markdown_table(head, map(_row, found)), "", note])


def _row(each: Comparison) -> list[Any]:
    if each.reason:
        cells: list[Any] = ["-", f"not tested: {each.reason}", "-", "-", "-", "-", "-"]
    else:
        alone = "-" if each.only_first is None else f"{each.only_second} / {each.only_first}"
        bold = "**" * (each.holm < significance.LEVEL)
        interval = f"{each.low:+.1f} to {each.high:+.1f}"
        cells = [f"{each.items:,}", f"{each.difference:+.1f}", interval, alone, each.test]
        cells += [f"{each.p:.2g}", f"{bold}{each.holm:.2g}{bold}"]
    return [each.second, each.first, each.suite, *cells]
