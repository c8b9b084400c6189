"""Area under the ROC curve, with its interval, of a suite that ranks two options, "yes" before "no".

The area is the probability that an item whose answer is "yes" has a higher normalised likelihood of "yes" than one
whose answer is "no", ties counting half. Its variance is DeLong, DeLong and Clarke-Pearson's (Biometrics 1988), by
midranks as in Sun and Xu (IEEE Signal Processing Letters 2014); the interval is computed on the logit, so it stays
within 0 to 100.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from flanx.evals import marking, metrics
from flanx.evals.generations import Generation
from flanx.evals.spec import Spec


def log_odds(row: Generation) -> float | None:
    """The logit of the first option's likelihood, normalised over both, which orders items identically but does not
    round to 1; None if it is not finite."""
    yes, no = row.option_scores
    return yes - no if yes is not None and no is not None and math.isfinite(yes - no) else None


def midranks(values: np.ndarray) -> np.ndarray:
    """f64[N] -> f64[N]: ranks from 1; ties get their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[place]


def area(positives: Sequence[float], negatives: Sequence[float]) -> tuple[float, float]:
    """(the area, its DeLong variance) for the scores of both classes, each with at least one score; the variance is
    NaN if either class has only one."""
    m, n = len(positives), len(negatives)
    first, second = np.asarray(positives, float), np.asarray(negatives, float)
    ranks = midranks(np.concatenate([first, second]))
    above = (ranks[:m] - midranks(first)) / n  # for each positive, the share of negatives below it
    below = 1 - (ranks[m:] - midranks(second)) / m
    variance = above.var(ddof=1) / m + below.var(ddof=1) / n if min(m, n) > 1 else math.nan
    return float(above.mean()), float(variance)


def interval(value: float, variance: float) -> tuple[float, float] | None:
    """The 95% interval of an area, via its logit; None if the area is 0 or 1 or nothing varies."""
    spread = value * (1 - value)
    if not 0 < value < 1 or not variance > 0:
        return None
    center, half = math.log(value / (1 - value)), math.sqrt(variance) / spread
    half *= statistics.NormalDist().inv_cdf(0.5 + metrics.CONFIDENCE / 200)
    return 1 / (1 + math.exp(half - center)), 1 / (1 + math.exp(-half - center))


def compute(spec: Spec, rows: Sequence[Generation]) -> dict[str, Any]:
    """The scores.json entry, in percent, for a task or for the items with a label.

    Items with non-finite log-probabilities are excluded and counted as `broken`. If a class has no items, `score` is 0
    without an interval; `positives` is the number of positive items.
    """
    known = [(value, row.targets[0] == row.options[0]) for row in rows if (value := log_odds(row)) is not None]
    positives = [value for value, is_yes in known if is_yes]
    negatives = [value for value, is_yes in known if not is_yes]
    found: dict[str, Any] = {"metric": metrics.AUC, "positives": len(positives)}
    accuracy = 100 * metrics.mean(marking.grade(spec, row).exact for row in rows)
    if not positives or not negatives:
        why = "items of one class alone have no AUC"
        return found | {"metrics": {}, "score": 0.0, "low": None, "high": None, "misfit": why, "flagged": True}
    value, variance = area(positives, negatives)
    enough = min(len(positives), len(negatives)) >= metrics.LEAST_ITEMS
    low, high = (enough and interval(value, variance)) or (None, None)
    shown = {"low": None if low is None else 100 * low, "high": None if high is None else 100 * high}
    return found | {"metrics": {metrics.AUC: 100 * value, "accuracy": accuracy}, "score": 100 * value, **shown}
