"""The data that laws are fitted to: grid cells, each a score at a size, a number of tasks, and so on.

| variable | symbol | unit | how it enters a law |
|---|---|---|---|
| `size` | N | parameters | ln N |
| `tasks` | T | training tasks, 0 for a model that is not finetuned | ln(1 + T), or T itself if a law saturates |
| `tokens` | D | positions of all batches | ln D |
| `flops` | C | training FLOPs | ln C |
| `cot` | R | share of chain-of-thought examples, 0 to 1 | R |
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from flanx.errors import UserError, nearest


class Variable(NamedTuple):
    """A variable of a law: its symbol in formulas and what it counts."""

    symbol: str
    unit: str


VARIABLES = {
    "size": Variable("N", "parameters"),
    "tasks": Variable("T", "training tasks"),
    "cot": Variable("R", "share of chain of thought"),
    "tokens": Variable("D", "training tokens"),
    "flops": Variable("C", "training FLOPs"),
}
DEFAULT = (
    "size",
    "tasks",
    "cot",
    "tokens",
)  # FLOPs follow from size and tokens: used only on request
TASKS, COT = "tasks", "cot"
UNITS = {"k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
VARIES = 0.1  # the least range of a coordinate
COLLINEAR = 0.98  # a variable whose variation others explain to this share adds nothing


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell of a grid.

    Attributes:
      at: variable -> value.
      values: the score, in percent, or the loss, of each seed; () if not measured.
      item_error: the standard error of their mean over the scored items.
      loss: the mean validation loss of its runs, for `two_step`.
    """

    name: str
    at: Mapping[str, float]
    values: tuple[float, ...] = ()
    item_error: float = 0.0
    loss: float | None = None

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return math.fsum(self.values) / len(self.values)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The places where scores are known or wanted: the arrays that law forms read.

    Attributes:
      variables: the names of the columns.
      u: (cells, variables); the coordinate of each variable: ln(x / reference), ln(1 + T), or R.
      tasks: (cells,); T itself, zeros if tasks are not a variable.
      floor: the score by chance, in percent.
      loss: (cells,); validation losses, nan where unknown.
    """

    variables: tuple[str, ...]
    u: np.ndarray
    tasks: np.ndarray
    floor: float
    loss: np.ndarray


@dataclasses.dataclass(frozen=True)
class Data:
    """Measured cells as arrays.

    Attributes:
      cells: those with a score.
      variables: those that vary among the cells, none a function of the others.
      y: (cells,); the means over seeds.
      floor: the score by chance, in percent; is_loss: whether `y` are losses, not scores in percent.
      ends: the lower and upper bound of `y`.
    """

    cells: tuple[Cell, ...]
    variables: tuple[str, ...]
    floor: float = 0.0
    is_loss: bool = False
    ends: tuple[float, float] = (0.0, 100.0)

    @property
    def y(self) -> np.ndarray:
        """(cells,): the mean scores."""
        return np.array([cell.mean for cell in self.cells])

    @property
    def reference(self) -> dict[str, float]:
        """{variable: the geometric mean of its values}, at which ln(x / reference) is 0."""
        return {
            name: math.exp(math.fsum(math.log(cell.at[name]) for cell in self.cells) / len(self.cells))
            for name in self.variables
            if name not in (TASKS, COT)
        }

    def inputs(self, cells: Sequence[Cell] | None = None, reference: Mapping[str, float] | None = None) -> Inputs:
        """The arrays of `cells`, by default its own. Raises UserError for a cell that lacks one of the variables."""
        cells = self.cells if cells is None else cells
        reference = self.reference if reference is None else reference
        for cell in cells:
            if missing := [name for name in self.variables if name not in cell.at]:
                raise UserError(f"{cell.name}: no {missing[0]} is known; give it, as '{missing[0]}=1000'")
        u = [[coordinate(name, cell.at[name], reference.get(name, 1.0)) for name in self.variables] for cell in cells]
        tasks = [cell.at[TASKS] if TASKS in self.variables else 0.0 for cell in cells]
        loss = [math.nan if cell.loss is None else cell.loss for cell in cells]
        shape = (len(cells), len(self.variables))
        return Inputs(self.variables, np.array(u).reshape(shape), np.array(tasks), self.floor, np.array(loss))

    def only(self, kept: np.ndarray) -> "Data":
        """The cells where `kept` (cells,) is true, with the same variables."""
        return dataclasses.replace(self, cells=tuple(c for c, keep in zip(self.cells, kept, strict=True) if keep))

    def levels(self, name: str) -> list[float]:
        """The values of a variable, sorted."""
        return sorted({cell.at[name] for cell in self.cells})


def coordinate(name: str, value: float, reference: float = 1.0) -> float:
    """A variable's coordinate in laws. Raises UserError for a value without a logarithm."""
    if name == COT:
        return value
    if name == TASKS and value >= 0:
        return math.log1p(value)
    if name == TASKS or value <= 0:
        raise UserError(f"{name}={value:g}: a law needs {'0 or more' if name == TASKS else 'a number above 0'}")
    return math.log(value / reference)


def gather(
    cells: Sequence[Cell],
    over: Sequence[str] | None = None,
    floor: float = 0.0,
    is_loss: bool = False,
    ends: tuple[float, float] = (0.0, 100.0),
) -> Data:
    """The measured cells as data, over the given variables, or over those that vary.

    The latter exclude variables that a cell lacks, that do not vary, or that earlier ones explain.
    """
    measured = tuple(cell for cell in cells if cell.values)
    for name in over or ():
        if name not in VARIABLES:
            raise UserError(f"'{name}' is not a variable of a law{nearest(name, VARIABLES)} ({', '.join(VARIABLES)})")
    found: list[str] = []
    columns: list[np.ndarray] = [np.ones(len(measured))]
    for name in over or DEFAULT:
        if any(name not in cell.at or (name not in (TASKS, COT) and cell.at[name] <= 0) for cell in measured):
            continue
        column = np.array([coordinate(name, cell.at[name]) for cell in measured])
        if _is_new(column, columns):
            found.append(name)
            columns.append(column)
    return Data(measured, tuple(found), floor, is_loss, ends)


def _is_new(column: np.ndarray, columns: Sequence[np.ndarray]) -> bool:
    """Whether a column varies (by more than a tenth in its logarithm) in a way that no other columns explain."""
    if len(column) < 2 or np.ptp(column) < VARIES:
        return False
    if any(_follows(column, other) for other in columns[1:]):
        return False
    others = np.column_stack(columns)
    rest = column - others @ np.linalg.lstsq(others, column, rcond=None)[0]
    return float(rest @ rest) > (1 - COLLINEAR) * float(np.var(column) * len(column))


def _follows(column: np.ndarray, other: np.ndarray) -> bool:
    """Whether a column is a function of another: it does not vary among cells with equal, repeated values of that.

    One example is the chain-of-thought share along nested sets of tasks, whatever its curve.
    """
    groups = [column[other == level] for level in np.unique(other)]
    repeated = [group for group in groups if len(group) > 1]
    return bool(repeated) and all(np.ptp(group) < VARIES for group in repeated)


def number(label: str) -> float | None:
    """The number that a label denotes: "1836", "0.03", "80M", "540B", "1e9"; None for any other text."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?(?:[eE][+-]?\d{1,2})?)([kKMBT]?)", label)
    return float(match[1]) * UNITS.get(match[2], 1.0) if match else None


def quantity(value: float) -> str:
    """A number as a label: 1836, 0.03, 80M, 540B."""
    for letter in ("T", "B", "M", "k"):
        if value >= 10 * UNITS[letter] or (letter != "k" and value >= UNITS[letter]):
            return f"{value / UNITS[letter]:.3g}{letter}"
    return f"{value:,.0f}" if value == round(value) else f"{value:.3g}"


def parse_target(text: str, labels: Mapping[tuple[str, str], float] | None = None) -> dict[str, float]:
    """Parses a target, "size=540B,tasks=1836", to {variable: value}. Raises UserError for any other form.

    `labels`: a sweep's names for values, {("size", "d96"): 4.1e5}.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, label = (each.strip() for each in part.partition("="))
        if name not in VARIABLES:
            raise UserError(
                f"--predict={text}: no variable '{name}'{nearest(name, VARIABLES)} ({', '.join(VARIABLES)})"
            )
        value = (labels or {}).get((name, label), number(label))
        if value is None:
            raise UserError(f"--predict={text}: '{label}' is not a number such as 1836, 0.5, 80M or 540B")
        if name in found:
            raise UserError(f"--predict={text}: '{name}' is given twice; another cell has its own --predict")
        if name == COT and value > 1:
            raise UserError(f"--predict={text}: cot is a share, 0 to 1")
        found[name] = value
    return found
