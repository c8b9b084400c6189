"""Is a difference more than chance? Paired tests over the same items, a multiple-testing correction, and power.

| what | by |
|---|---|
| right or wrong, of two runs | McNemar 1947, exact: a binomial test on the items that only one gets right |
| other item scores | a bootstrap of the items within each task (Efron and Tibshirani 1993) |
| many comparisons | Holm 1979 |
"""

import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import bdtr

from flanx.evals import metrics

LEVEL, POWER = 0.05, 0.8  # significance level, and the required probability of detecting a difference
DRAWS = 5_000
SEEDS_SD = (
    3.0  # points, assumed for one run when there is no sweep; docs/findings/scaling: 2.0 to 4.7 at scores of 16 to 55
)
ITEM_VARIANCE = 2 * 50.0**2  # points squared, of the difference on one item: two independent runs at 50% accuracy


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p value, given the numbers of items that only one of two runs gets right."""
    count = only_first + only_second
    return min(1.0, 2 * float(bdtr(min(only_first, only_second), count, 0.5))) if count else 1.0


def holm(values: Sequence[float]) -> list[float]:
    """Holm-corrected p values of a family of tests, which keep the family-wise error rate at the level."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    found, largest = [0.0] * len(values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - rank) * values[i]))
        found[i] = largest
    return found


def paired_bootstrap(
    tasks: Mapping[str, Sequence[float]], draws: int = DRAWS, seed: int = 0
) -> tuple[float, float, float]:
    """(low, high, p) for the mean over tasks of differences between two runs on the same items.

    The 95% interval is a percentile interval; p is twice the share of draws across zero, at least 1 / draws.
    """
    random = np.random.default_rng(seed)
    means = np.zeros(draws)
    for differences in tasks.values():
        values, counts = np.unique(np.asarray(differences, float), return_counts=True)
        drawn = random.multinomial(len(differences), counts / len(differences), size=draws)
        means += drawn @ values / len(differences)
    means /= len(tasks)
    low, high = np.percentile(means, [(100 - metrics.CONFIDENCE) / 2, (100 + metrics.CONFIDENCE) / 2])
    tail = min(float((means <= 0).mean()), float((means >= 0).mean()))
    return float(low), float(high), min(1.0, max(2 * tail, 1 / draws))


# ---- power -----------------------------------------------------------------------------------------------------------


def _quantiles() -> float:
    normal = statistics.NormalDist()
    return normal.inv_cdf(1 - LEVEL / 2) + normal.inv_cdf(POWER)


def seeds_needed(difference: float, items: float, seeds_sd: float) -> int | None:
    """Seeds per cell needed to detect a difference in points between two cells with probability `POWER` (normal
    approximation); None if no number of seeds suffices with so few items."""
    room = (difference / _quantiles()) ** 2 - ITEM_VARIANCE / items
    return max(1, math.ceil(2 * seeds_sd**2 / room - 1e-9)) if room > 0 else None


def items_needed(difference: float, seeds: int, seeds_sd: float) -> int | None:
    """Items needed to detect a difference; None if no number of items suffices with so few seeds."""
    room = (difference / _quantiles()) ** 2 - 2 * seeds_sd**2 / seeds
    return math.ceil(ITEM_VARIANCE / room - 1e-9) if room > 0 else None


def power_lines(seeds: int, seeds_sd: float, source: str) -> list[str]:
    """Lines that say what it takes to detect differences between two cells."""
    lines = [
        f"To find a difference between two cells in {POWER:.0%} of tries (two-sided {LEVEL:.0%}), where runs of one "
        f"recipe differ by {seeds_sd:.2g} points ({source}; standard deviation) and items count as independent at 50%:"
    ]
    for points in (1, 2, 5, 10):
        items = items_needed(points, seeds, seeds_sd)
        runs = "1 seed" if seeds == 1 else f"{seeds} seeds"
        first = f"{items:,} items with {runs}" if items else f"no number of items suffices with {runs}"
        needed = [(n, seeds_needed(points, n, seeds_sd)) for n in (250, 1_000, 5_000)]
        more = ", ".join(f"{count:,} with {n:,} items" for n, count in needed if count)
        more = f"seeds: {more}" if more else "no number of seeds suffices with 5,000 items"
        lines.append(f"  {points:>2} {'point' if points == 1 else 'points'}: {first}; {more}")
    return lines
