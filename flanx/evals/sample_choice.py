"""Chooses the answer to an open-ended prompt among several samples: by log-probability, without repetitions.

Section 6 and Appendix I of the paper: samples are ranked by log-probability, not normalized by length; those whose
log-probability is better than half the median are dropped as repetitive (with a median of -20, a sample at -3 is); the
best of the rest is kept.
"""

import statistics
from collections.abc import Sequence

from flanx.evals.generations import Generation


def choose(scores: Sequence[float]) -> int:
    """The index of the kept sample; ties go to the first. `scores`: log-probabilities in nats.

    The median sample is never dropped, so one is always kept.
    """
    half = statistics.median(scores) / 2
    return max((n for n, score in enumerate(scores) if score <= half), key=lambda n: scores[n])


def kept(row: Generation) -> int:
    """The index of the sample kept as an open-ended item's answer, never one with a non-finite log-probability."""
    finite = [(n, score) for n, score in enumerate(row.option_scores) if score is not None]
    return finite[choose([score for _, score in finite])][0] if finite else 0


def dropped(row: Generation) -> int:
    """How many samples of an open-ended item are dropped as repetitions."""
    finite = [score for score in row.option_scores if score is not None]
    return sum(score > statistics.median(finite) / 2 for score in finite)
