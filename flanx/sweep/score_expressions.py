"""A score as a mean of terms, each a part of what a point's evaluation found.

mmlu_cot                       the suite's score
bbh_cot:nlp                    the mean of one of its groups of tasks
normalized mmlu_cot            set between its lower bound and 100, as the paper's averages are
mmlu_direct | mmlu_cot         the first of them that the point has
normalized_average             the paper's mean of its six normalized scores
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from flanx.errors import UserError
from flanx.evals import metrics, registry

TERM = re.compile(r"(normalized )?([a-z0-9_]+(?:\[[^\]]*\])?(?:\+\w+)?)(?::(\w+))?")
AVERAGE = "normalized_average"


@dataclasses.dataclass(frozen=True)
class Value:
    """A score in percent with the 95% interval over its items; flagged where a suite behind it is."""

    score: float
    low: float
    high: float
    flagged: bool = False


def parts(term: str) -> list[tuple[bool, str, str]]:
    """The alternatives of a term: (normalized, suite, group)."""
    if term == AVERAGE:
        return []
    found = []
    for text in term.split("|"):
        match = TERM.fullmatch(text.strip())
        if not match:
            raise UserError(f"'{text.strip()}' is no score of a suite: write SUITE, SUITE:GROUP or normalized SUITE")
        spec = registry.resolve(match[2])
        groups = dict(spec.groups)
        if match[3] and match[3] not in groups:
            raise UserError(f"suite '{match[2]}' has no group '{match[3]}' (groups: {', '.join(groups) or 'none'})")
        if match[1] and (match[3] or spec.family not in ("bbh", *metrics.BOUNDS)):
            raise UserError(f"'{text.strip()}': only whole MMLU, BBH, TyDiQA and MGSM have lower bounds")
        found.append((bool(match[1]), match[2], match[3] or ""))
    return found


def value(terms: Sequence[str], suites: Mapping[str, Any]) -> Value | str:
    """The mean of the terms over the suites of a scores.json; or, as text, what is absent."""
    six = [f"normalized {name}" for name in metrics.HEADLINE]
    found = []
    for text in (text for term in terms for text in (six if term == AVERAGE else [term])):
        known = [part for part in parts(text) if part[1] in suites]
        if not known:
            return f"{' | '.join(name for _, name, _ in parts(text))} not run"
        each = _term(*known[0], suites[known[0][1]])
        if isinstance(each, str):
            return each
        found.append(each)
    return mean(found)


def _term(is_normalized: bool, name: str, group: str, entry: Mapping[str, Any]) -> Value | str:
    tasks = entry.get("tasks", {})
    spec = registry.resolve(name)
    names = dict(spec.groups)[group] if group else tuple(metrics.BBH_BOUNDS)
    if group or (is_normalized and spec.family == "bbh"):
        absent = [task for task in names if task not in tasks]
        if absent:
            return f"{name} without {absent[0]}" + (f" and {len(absent) - 1} more" if len(absent) > 1 else "")
        bounds = {task: metrics.BBH_BOUNDS[task][0] if is_normalized else 0.0 for task in names}
        whole = mean([_scaled(tasks[task], bounds[task]) for task in names])
        return dataclasses.replace(whole, flagged=entry["flagged"])
    return _scaled(entry, metrics.BOUNDS[spec.family][0] if is_normalized else 0.0)


def _scaled(entry: Mapping[str, Any], bound: float) -> Value:
    low, score, high = (metrics.normalize(entry[key], bound) for key in ("low", "score", "high"))
    return Value(score, low, high, bool(entry.get("flagged")))


def mean(values: Sequence[Value]) -> Value:
    """The mean of k independent scores: half-width sqrt(sum of squared half-widths) / k on each side."""
    count = len(values)
    score = math.fsum(v.score for v in values) / count
    below = math.sqrt(math.fsum((v.score - v.low) ** 2 for v in values)) / count
    above = math.sqrt(math.fsum((v.high - v.score) ** 2 for v in values)) / count
    return Value(score, score - below, score + above, any(v.flagged for v in values))
