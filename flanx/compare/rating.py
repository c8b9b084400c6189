"""Bradley-Terry ratings of candidates compared in pairs, with intervals from a bootstrap over prompts.

The model (Bradley and Terry 1952): i is preferred to j with probability s_i / (s_i + s_j). A tie is half a win for each
(as is "both bad"). Every two candidates that were compared get one extra tie, so that one that never lost still has a
rating. Fitted by Hunter's MM algorithm (2004, equation 3). On the Elo scale: 400 points are odds of ten to one, and the
mean is 1000. Prompts are resampled with all their ballots, because ballots on one prompt are not independent.
"""

import dataclasses

import numpy as np

from flanx.evals.metrics import CONFIDENCE

SCALE, MEAN = 400.0, 1000.0
DRAWS = 1_000
STEPS, CONVERGED = 10_000, 1e-9  # iterations, and tolerance on the log-strengths


@dataclasses.dataclass(frozen=True)
class Rating:
    """A candidate's rating with its 95% interval, in Elo points."""

    points: float
    low: float
    high: float


def strengths(wins: np.ndarray) -> np.ndarray:
    """log s, with mean 0: f64[..., C, C] -> f64[..., C], where wins[i, j] counts how often i was preferred to j.

    Raises ValueError if candidates fall into groups that were never compared with each other.
    """
    games = wins + np.swapaxes(wins, -1, -2)
    compared = np.asarray((games.reshape(-1, *games.shape[-2:]) > 0).any(axis=0))
    if not _connected(compared):
        raise ValueError("candidates that were never compared with each other")
    prior = 0.5 * compared
    wins, games = wins + prior, games + 2 * prior
    won, logs = wins.sum(axis=-1), np.zeros(wins.shape[:-1])
    for _ in range(STEPS):
        s = np.exp(logs)
        found = np.log(won) - np.log((games / (s[..., :, None] + s[..., None, :])).sum(axis=-1))
        found -= found.mean(axis=-1, keepdims=True)
        moved, logs = np.abs(found - logs).max(), found
        if moved < CONVERGED:
            break
    return logs


def _connected(compared: np.ndarray) -> bool:
    """Whether every candidate is linked to every other: bool[C, C]."""
    reached = np.eye(len(compared), dtype=bool)
    for _ in range(len(compared)):
        reached = reached | (reached @ compared)
    return bool(reached.all())


def ratings(wins: np.ndarray, draws: int = DRAWS, seed: int = 0) -> list[Rating]:
    """The rating of each candidate from f64[P, C, C], the wins on each of P prompts."""
    random = np.random.default_rng(seed)
    counts = random.multinomial(len(wins), np.full(len(wins), 1 / len(wins)), size=draws)
    drawn = np.tensordot(counts.astype(float), wins, axes=1)
    # All draws use the prior of the full data: a draw may lack the prompts on which two candidates were compared.
    points = MEAN + SCALE * strengths(wins.sum(axis=0)) / np.log(10)
    spread = MEAN + SCALE * strengths(drawn) / np.log(10)
    low, high = np.percentile(spread, [(100 - CONFIDENCE) / 2, (100 + CONFIDENCE) / 2], axis=0)
    return [Rating(*map(float, each)) for each in zip(points, low, high, strict=True)]
