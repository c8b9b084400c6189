"""Which of several samples is the answer to an open-ended prompt: by log-probability, repetitions left out.

Section 6 and Appendix I of the paper: samples are ranked by their log-probability, not divided by their length; those
whose log-probability is better than half the median are dropped, as they repeat themselves (with a median of -20, one
of -3 is); the best of the others is kept.
"""

import statistics
from collections.abc import Sequence

from flanx.evals.generations import Generation


def choose(scores: Sequence[float]) -> int:
    """The index of the sample that is kept, the first of equals. `scores`: log-probabilities, natural logarithm.

    The sample at the median is never dropped, so there always is one.
    """
    half = statistics.median(scores) / 2
    return max((n for n, score in enumerate(scores) if score <= half), key=lambda n: scores[n])


def kept(row: Generation) -> int:
    """The index of the sample that is an open-ended item's answer, never one whose log-probability is not finite."""
    finite = [(n, score) for n, score in enumerate(row.option_scores) if score is not None]
    return finite[choose([score for _, score in finite])][0] if finite else 0


def dropped(row: Generation) -> int:
    """How many samples of an open-ended item are left out as repetitions."""
    finite = [score for score in row.option_scores if score is not None]
    return sum(score > statistics.median(finite) / 2 for score in finite)
