"""A score as a mean of expressions over a point's scores.json.

mmlu_cot                       the suite's score
muffin_rte:validation          a split of a task is also a suite
bbh_cot:nlp                    the mean over one of its task groups
winogender_zero_shot:pronoun=she     the items with one label value (`slices` in scores.json)
normalized mmlu_cot            rescaled from its lower bound and 100 to 0 and 100, as in the paper's averages
mmlu_direct | mmlu_cot         the first one that the point has
normalized_average             the paper's mean of its six normalized scores

`choose_by` also accepts `validation loss` and `validation loss:COLLECTION`: the run's validation loss during training.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from flanx.errors import UserError
from flanx.evals import metrics, registry, scores
from flanx.evals.spec import Spec

LOSS = re.compile(r"validation loss(?::(\w+))?")  # chooses a checkpoint: lowest over all tokens, or a collection's
PATTERN = re.compile(r"(normalized )?([^\s:][^\s]*)")
LABEL = re.compile(r"(\w+)=([^:#]+)")  # selects a slice
AVERAGE = "normalized_average"
_OPEN = ("seqio", "lm_eval", "task")  # suite metrics whose score may be any number; for tasks, even a correlation


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A score in percent with its 95% interval over items; flagged if a suite behind it is.

    Attributes:
      partial: what its suites omit, see `scores.partial`.
      combined: whether the interval combines those of the score's parts, which is wider than one over all items.
    """

    score: float
    low: float
    high: float
    flagged: bool = False
    partial: tuple[str, ...] = ()
    combined: bool = False


@dataclasses.dataclass(frozen=True)
class Part:
    """One alternative in an expression: the score of a suite, or of one of its groups or slices ("pronoun=she")."""

    normalized: bool
    suite: str
    group: str


def parse(expression: str) -> list[Part]:
    """The alternatives in an expression. Raises UserError for one that names no score."""
    if expression == AVERAGE:
        return []
    alternatives = []
    for text in map(str.strip, expression.split("|")):
        match = PATTERN.fullmatch(text)
        if not match:
            raise UserError(f"'{text}' is not a score of a suite: write SUITE, SUITE:GROUP or normalized SUITE")
        suite, spec, group = _find(match[2])
        part = Part(bool(match[1]), suite, group)
        groups = dict(spec.groups)
        if group and group not in groups and not LABEL.fullmatch(group):
            raise UserError(f"suite '{suite}' has no group '{group}' (groups: {', '.join(groups) or 'none'})")
        if part.normalized and (part.group or spec.family not in ("bbh", *metrics.BOUNDS)):
            raise UserError(f"'{text}': only all of MMLU, BBH, TyDiQA and MGSM have lower bounds")
        alternatives.append(part)
    return alternatives


def _find(text: str) -> tuple[str, Spec, str]:
    """(suite, its spec, group or "") for SUITE or SUITE:GROUP; suite names may contain colons, too."""
    suite, _, group = text.rpartition(":")
    is_named = suite and "]" not in group and suite.partition("[")[0].partition("+")[0] in registry.specs()
    if is_named and (group in dict(registry.resolve(suite).groups) or LABEL.fullmatch(group)):
        return suite, registry.resolve(suite), group
    try:
        return text, registry.resolve(text), ""
    except UserError:
        if not is_named:
            raise
        return suite, registry.resolve(suite), group


def validation_loss(choose_by: Sequence[str]) -> str | None:
    """The collection ("" for all) whose validation loss chooses; None if scores choose. UserError if both do."""
    hits = [LOSS.fullmatch(expression) for expression in choose_by]
    if any(hits) and len(hits) > 1:
        raise UserError(f"choose_by = {list(choose_by)}: a loss and a score have no mean; name validation loss alone")
    return (hits[0][1] or "") if hits and hits[0] else None


def value(expressions: Sequence[str], suites: Mapping[str, Any]) -> Estimate | str:
    """The mean of the expressions over the suites in a scores.json; or, as text, what is missing."""
    six = [f"normalized {name}" for name in metrics.HEADLINE]
    estimates = []
    for whole, text in [(e == AVERAGE, text) for e in expressions for text in (six if e == AVERAGE else [e])]:
        alternatives = parse(text)
        known = [part for part in alternatives if part.suite in suites]
        if not known:
            return f"{' | '.join(part.suite for part in alternatives)} not run"
        entry = suites[known[0].suite]
        if whole and (left_out := scores.incomplete(entry)):
            return f"{known[0].suite}: {', '.join(left_out)}"
        estimate = _evaluate(known[0], entry)
        if isinstance(estimate, str):
            return estimate
        estimates.append(estimate)
    return mean(estimates)


def _evaluate(part: Part, entry: Mapping[str, Any]) -> Estimate | str:
    if reason := scores.not_available(entry):
        return f"{part.suite} {reason}"
    if label := LABEL.fullmatch(part.group):
        found = entry.get("slices", {}).get(label[1], {}).get(label[2])
        kept = {
            key: entry.get(key) for key in ("flagged", "data", "missing", "truncated", "shots_dropped") if key in entry
        }
        return _rescaled({**kept, **found}, 0.0) if found else f"{part.suite} has no items with {part.group}"
    tasks = entry.get("tasks", {})
    spec = registry.resolve(part.suite)
    names = dict(spec.groups)[part.group] if part.group else tuple(metrics.BBH_BOUNDS)
    if part.group or (part.normalized and spec.family == "bbh"):
        missing = [task for task in names if task not in tasks]
        if missing:
            return f"{part.suite} without {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
        bounds = {task: metrics.BBH_BOUNDS[task][0] if part.normalized else 0.0 for task in names}
        over_tasks = mean([_rescaled(tasks[task], bounds[task]) for task in names], spec.average)
        own = entry.get("group_intervals", {}).get(part.group)  # over the tasks that the group had when scored
        if own and math.isclose(entry["groups"].get(part.group, math.nan), over_tasks.score, abs_tol=1e-9):
            return _rescaled({**entry, "score": over_tasks.score, **own}, 0.0)
        return dataclasses.replace(over_tasks, flagged=entry["flagged"], partial=tuple(scores.partial(entry)))
    return _rescaled(entry, metrics.BOUNDS[spec.family][0] if part.normalized else 0.0)


def _rescaled(entry: Mapping[str, Any], bound: float) -> Estimate:
    whole = entry["low"] is None  # too few items for an interval: rules nothing out
    edges = (0.0, 100.0) if whole else (entry["low"], entry["high"])
    low, score, high = (metrics.normalize(value, bound) for value in (edges[0], entry["score"], edges[1]))
    return Estimate(score, low, high, bool(entry.get("flagged")), tuple(scores.partial(entry)))


def mean(estimates: Sequence[Estimate], how: str = "mean") -> Estimate:
    """The mean of k independent scores, with half-width sqrt(sum of squared half-widths) / k on each side.

    `how`: "harmonic" if a suite averages its tasks that way; half-widths are then weighted by that average's slopes.
    """
    count, slopes = len(estimates), metrics.slopes([e.score for e in estimates], how)
    score = metrics.average((e.score for e in estimates), how)
    below = math.sqrt(math.fsum((s * (e.score - e.low)) ** 2 for s, e in zip(slopes, estimates, strict=True))) / count
    above = math.sqrt(math.fsum((s * (e.high - e.score)) ** 2 for s, e in zip(slopes, estimates, strict=True))) / count
    partial = tuple(dict.fromkeys(each for e in estimates for each in e.partial))
    combined = count > 1 or any(e.combined for e in estimates)
    return Estimate(score, score - below, score + above, any(e.flagged for e in estimates), partial, combined)


def ends(expressions: Sequence[str]) -> tuple[float, float]:
    """The lower and upper bound of the mean of the expressions; infinite if unknown, as for the functions of a user's
    task."""
    parts = [part for expression in expressions for part in parse(expression)]
    if any(registry.resolve(part.suite).metric in _OPEN for part in parts):
        return -math.inf, math.inf
    is_rescaled = AVERAGE in expressions or any(part.normalized for part in parts)
    return -math.inf if is_rescaled else 0.0, 100.0
