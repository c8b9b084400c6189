"""Bradley-Terry ratings of candidates that were compared in pairs, with intervals by a bootstrap over prompts.

The model (Bradley and Terry 1952): i is preferred to j with probability s_i / (s_i + s_j). A tie is half a win of each
(both bad, too). Each two candidates that were compared count one tie more, so that one that never lost still has a
rating. Fitted by Hunter's MM algorithm (2004, equation 3). On Elo's scale: 400 points are odds of ten to one, and the
mean is 1000. Prompts are drawn again with all their ballots, for those of one prompt are not independent.
"""

import dataclasses

import numpy as np

from flanx.evals.metrics import CONFIDENCE

SCALE, MEAN = 400.0, 1000.0
DRAWS = 1_000
STEPS, CONVERGED = 10_000, 1e-9  # of the strengths' logarithms


@dataclasses.dataclass(frozen=True)
class Rating:
    """A candidate's rating with its 95% interval, in Elo points."""

    points: float
    low: float
    high: float


def strengths(wins: np.ndarray) -> np.ndarray:
    """The logarithms of s, with mean 0: f64[..., C] from f64[..., C, C], where wins[i, j] counts i preferred to j.

    Raises ValueError where candidates fall into groups that were never compared with each other.
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
    # The prior of a draw is that of all: a draw may lack the prompts on which two candidates were compared.
    points = MEAN + SCALE * strengths(wins.sum(axis=0)) / np.log(10)
    spread = MEAN + SCALE * strengths(drawn) / np.log(10)
    low, high = np.percentile(spread, [(100 - CONFIDENCE) / 2, (100 + CONFIDENCE) / 2], axis=0)
    return [Rating(*map(float, each)) for each in zip(points, low, high, strict=True)]
