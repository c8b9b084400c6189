"""The noise floor: how much scores of one recipe differ from seed to seed, before a difference is read."""

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.special import stdtrit

from flanx.laws.cell import Cell

ENDS = (0.0, 100.0)  # a score there has nowhere to go: that its seeds agree says nothing of other cells
CONFIDENCE = 95  # percent


def pooled(groups: Iterable[Sequence[float]]) -> tuple[float | None, int]:
    """(standard deviation, degrees of freedom) of values about the means of their groups; (None, 0) without any.

    Groups whose values all lie at one end of the scale are left out.
    """
    squares, degrees = 0.0, 0
    for values in groups:
        if len(values) > 1 and not (len(set(values)) == 1 and values[0] in ENDS):
            mean = math.fsum(values) / len(values)
            squares += math.fsum((value - mean) ** 2 for value in values)
            degrees += len(values) - 1
    return (math.sqrt(squares / degrees), degrees) if degrees else (None, 0)


def floor(sd: float, degrees: int, first: int, second: int) -> float:
    """The difference between the means of so many runs each that seeds alone exceed in one of twenty tries."""
    return float(stdtrit(degrees, 0.5 + CONFIDENCE / 200)) * sd * math.sqrt(1 / first + 1 / second)


@dataclasses.dataclass(frozen=True)
class Noise:
    """How much the score of a cell differs from that of the same recipe with other seeds and items.

    Attributes:
      seeds: standard deviation of one run among those of its recipe; None where no recipe has two seeds.
      degrees: degrees of freedom of `seeds`.
      sd: (cells,); standard deviation of each cell's mean; ones where nothing is known.
      of_new: that of a new cell with as many seeds and items as these have (the median).
    """

    seeds: float | None
    degrees: int
    sd: np.ndarray
    of_new: float

    @property
    def is_known(self) -> bool:
        """Whether seeds say something; else the misfit of a law is all that is known."""
        return self.seeds is not None


def noise(cells: Sequence[Cell]) -> Noise:
    """The noise of measured cells, the seeds' pooled over all of them."""
    seeds, degrees = pooled(cell.values for cell in cells)
    if seeds is None:
        return Noise(None, 0, np.ones(len(cells)), 0.0)
    sd = np.array([math.hypot(seeds / math.sqrt(len(cell.values)), cell.item_error) for cell in cells])
    return Noise(seeds, degrees, sd, float(np.median(sd)))
