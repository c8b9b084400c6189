"""The noise floor: how much scores of one recipe differ from seed to seed, needed to interpret any difference."""

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.special import stdtrit

from flanx.laws.cell import Cell

ENDS = (0.0, 100.0)  # scores there are saturated: that their seeds agree says nothing about other cells
CONFIDENCE = 95  # percent


def pooled(groups: Iterable[Sequence[float]]) -> tuple[float | None, int]:
    """(standard deviation, degrees of freedom) of values about their group means; (None, 0) if there are none.

    Groups whose values are all at one end of the scale are left out.
    """
    squares, degrees = 0.0, 0
    for values in groups:
        if len(values) > 1 and not (len(set(values)) == 1 and values[0] in ENDS):
            mean = math.fsum(values) / len(values)
            squares += math.fsum((value - mean) ** 2 for value in values)
            degrees += len(values) - 1
    return (math.sqrt(squares / degrees), degrees) if degrees else (None, 0)


def floor(sd: float, degrees: int, first: int, second: int) -> float:
    """The difference between means of `first` and `second` runs that seeds alone exceed 5% of the time."""
    return float(stdtrit(degrees, 0.5 + CONFIDENCE / 200)) * sd * math.sqrt(1 / first + 1 / second)


@dataclasses.dataclass(frozen=True)
class Noise:
    """How much a cell's score differs from that of the same recipe with other seeds and items.

    Attributes:
      seeds: standard deviation of single runs of a recipe; None if no recipe has two seeds.
      degrees: degrees of freedom of `seeds`.
      sd: (cells,); standard deviation of each cell's mean; ones if unknown.
      of_new: that of a new cell with a typical number of seeds and items (the median).
    """

    seeds: float | None
    degrees: int
    sd: np.ndarray
    of_new: float

    @property
    def is_known(self) -> bool:
        """Whether the noise of seeds is known; otherwise there is only a law's misfit."""
        return self.seeds is not None


def noise(cells: Sequence[Cell]) -> Noise:
    """The noise of measured cells, with seed noise pooled over all of them."""
    seeds, degrees = pooled(cell.values for cell in cells)
    if seeds is None:
        return Noise(None, 0, np.ones(len(cells)), 0.0)
    sd = np.array([math.hypot(seeds / math.sqrt(len(cell.values)), cell.item_error) for cell in cells])
    return Noise(seeds, degrees, sd, float(np.median(sd)))
