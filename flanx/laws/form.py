"""One table of law forms: how a score, or a loss, depends on size, tasks, tokens, FLOPs and CoT share.

Each form is linear in some parameters given the others: score = fixed + columns @ linear. This makes fitting the few
others fast and robust (variable projection, Golub and Pereyra 1973).
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import expit

from flanx.laws.cell import TASKS, VARIABLES, Inputs

Columns = Callable[[np.ndarray, Inputs], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Bent:
    """A parameter that enters a form nonlinearly.

    Attributes:
      name: its name in tables.
      starts: initial values for the search.
      low, high: the range outside which it is degenerate.
      is_log: whether it is positive and fitted as a logarithm.
    """

    name: str
    starts: tuple[float, ...]
    low: float
    high: float
    is_log: bool = False


@dataclasses.dataclass(frozen=True)
class Form:
    """A form of a law.

    Attributes:
      columns: (bent parameters, inputs) -> (columns (cells, linear), fixed (cells,)).
      bent: the nonlinear parameters, given the inputs of a fit.
      linear: the names of the linear ones.
      formula: as text.
      of_losses: whether it also applies to losses; by_loss: it reads the score off the validation loss.
      degenerate: what a bent parameter at the end of its range means.
    """

    name: str
    columns: Columns
    bent: Callable[[Inputs], list[Bent]]
    linear: Callable[[Sequence[str]], list[str]]
    formula: Callable[[Sequence[str]], str]
    of_losses: bool = True
    by_loss: bool = False
    degenerate: str = ""

    def parameters(self, inputs: Inputs) -> list[str]:
        """The names of all parameters: the linear ones, then the others."""
        return [*self.linear(inputs.variables), *(each.name for each in self.bent(inputs))]

    def misfit(self, inputs: Inputs, is_loss: bool) -> str:
        """Why it cannot be a law for such data; "" if it can."""
        if is_loss and not self.of_losses:
            return "of scores in percent only"
        if self.name == "saturating" and TASKS not in inputs.variables:
            return "the number of tasks does not vary"
        if self.name == "crossed" and len(inputs.variables) < 2:
            return "one variable varies: nothing to cross it with"
        if self.by_loss and not np.isfinite(inputs.loss).all():
            return "not every cell has a validation loss"
        return ""

    def starts(self, inputs: Inputs) -> list[np.ndarray]:
        """Initial points for the bent parameters, in fitted coordinates."""
        return [
            np.array([np.log(v) if b.is_log else v for v, b in zip(values, self.bent(inputs), strict=True)])
            for values in itertools.product(*(b.starts for b in self.bent(inputs)))
        ]


def _symbols(variables: Sequence[str]) -> list[str]:
    return [VARIABLES[name].symbol for name in variables]


def _logs(variables: Sequence[str]) -> list[str]:
    """The coordinate of each variable, as text."""
    special = {"T": "ln(1 + T)", "R": "R"}
    return [special.get(symbol, f"ln({symbol}/{symbol}0)") for symbol in _symbols(variables)]


def _powers(variables: Sequence[str]) -> list[str]:
    special = {"T": "(1 + T)^-a_T", "R": "exp(-a_R R)"}
    return [special.get(symbol, f"({symbol}/{symbol}0)^-a_{symbol}") for symbol in _symbols(variables)]


def _others(inputs: Inputs) -> list[int]:
    return [i for i, name in enumerate(inputs.variables) if name != TASKS]


def _log(bent: np.ndarray, x: Inputs) -> tuple[np.ndarray, np.ndarray]:
    return np.column_stack([np.ones(len(x.u)), x.u]), np.zeros(len(x.u))


def _crossed(bent: np.ndarray, x: Inputs) -> tuple[np.ndarray, np.ndarray]:
    product = np.prod(x.u[:, :2], axis=1)
    return np.column_stack([np.ones(len(x.u)), x.u, product]), np.zeros(len(x.u))


def _saturating(bent: np.ndarray, x: Inputs) -> tuple[np.ndarray, np.ndarray]:
    share = x.tasks / (x.tasks + bent[0])
    return np.column_stack([np.ones(len(x.u)), x.u[:, _others(x)], share]), np.zeros(len(x.u))


def _power(bent: np.ndarray, x: Inputs) -> tuple[np.ndarray, np.ndarray]:
    return np.column_stack([np.ones(len(x.u)), -np.exp(-bent * x.u)]), np.zeros(len(x.u))


def _multiplicative(bent: np.ndarray, x: Inputs) -> tuple[np.ndarray, np.ndarray]:
    return np.column_stack([np.ones(len(x.u)), -np.exp(-x.u @ bent)]), np.zeros(len(x.u))


def _logistic(bent: np.ndarray, x: Inputs) -> tuple[np.ndarray, np.ndarray]:
    fixed = x.floor + (100 - x.floor) * expit(bent[0] + x.u @ bent[1:])
    return np.zeros((len(x.u), 0)), fixed


def _two_step(bent: np.ndarray, x: Inputs) -> tuple[np.ndarray, np.ndarray]:
    fixed = x.floor + (100 - x.floor) * expit(bent[0] - bent[1] * x.loss)
    return np.zeros((len(x.u), 0)), fixed


def _half(x: Inputs) -> list[Bent]:
    """The number of tasks that gives half of the gain: within the data's range, or a little beyond."""
    known = np.unique(x.tasks[x.tasks > 0])
    least, most = (float(known[0]), float(known[-1])) if len(known) else (1.0, 1.0)
    starts = tuple(np.geomspace(max(least / 2, 0.5), 2 * most, 8).tolist())
    return [Bent("T_half", starts, least / 10, 10 * most, is_log=True)]


def _exponents(x: Inputs) -> list[Bent]:
    """Positive exponents: a power law approaches its floor or ceiling."""
    return [Bent(f"a_{s}", (0.05, 0.2, 0.7, 1.5), 0.01, 5.0, is_log=True) for s in _symbols(x.variables)]


SQUASHED = (-3.0, -1.0, 0.5)  # initial values of a logistic's constant


FORMS = {
    form.name: form
    for form in (
        Form(
            "log",
            _log,
            lambda x: [],
            lambda v: ["c", *(f"b_{s}" for s in _symbols(v))],
            lambda v: " + ".join(["c", *(f"b_{s} {t}" for s, t in zip(_symbols(v), _logs(v), strict=True))]),
        ),
        Form(
            "crossed",  # the gain from tasks depends on size
            _crossed,
            lambda x: [],
            lambda v: ["c", *(f"b_{s}" for s in _symbols(v)), f"b_{''.join(_symbols(v)[:2])}"],
            lambda v: " + ".join(
                [
                    "c",
                    *(f"b_{s} {t}" for s, t in zip(_symbols(v), _logs(v), strict=True)),
                    f"b_{''.join(_symbols(v)[:2])} {' '.join(_logs(v)[:2])}",
                ]
            ),
        ),
        Form(
            "saturating",
            _saturating,
            _half,
            lambda v: ["c", *(f"b_{s}" for s in _symbols(v) if s != "T"), "b_T"],
            lambda v: " + ".join(
                [
                    "c",
                    *(f"b_{s} {t}" for s, t in zip(_symbols(v), _logs(v), strict=True) if s != "T"),
                    "b_T T/(T + T_half)",
                ]
            ),
            degenerate="no saturation in sight: the gain is not half reached, or is reached at once",
        ),
        Form(
            "power",
            _power,
            _exponents,
            lambda v: ["E", *(f"A_{s}" for s in _symbols(v))],
            lambda v: " - ".join(["E", *(f"A_{s} {t}" for s, t in zip(_symbols(v), _powers(v), strict=True))]),
            degenerate="an exponent at 0 is a logarithm, one at 5 a step",
        ),
        Form(
            "multiplicative",  # arXiv 2402.17193: loss = A X^-a D^-b + E; for a score, 100 - score
            _multiplicative,
            _exponents,
            lambda v: ["E", "A"],
            lambda v: f"E - A {' '.join(_powers(v))}",
            degenerate="an exponent at 0 is a logarithm, one at 5 a step",
        ),
        Form(
            "logistic",
            _logistic,
            lambda x: [
                Bent("c", SQUASHED, -50, 50),
                *(Bent(f"b_{s}", (0.1, 0.8), -20, 20) for s in _symbols(x.variables)),
            ],
            lambda v: [],
            lambda v: (
                "chance + (100 - chance) / (1 + exp(-(c + "
                + " + ".join(f"b_{s} {t}" for s, t in zip(_symbols(v), _logs(v), strict=True))
                + ")))"
            ),
            of_losses=False,
            degenerate="the scores are all chance, or all 100",
        ),
        Form(
            "two_step",
            _two_step,
            lambda x: [Bent("c", (2.0, 6.0), -200, 200), Bent("b_L", (1.0, 4.0), -100, 100)],
            lambda v: [],
            lambda v: (
                "chance + (100 - chance) / (1 + exp(-(c - b_L L))), ln L = "
                + " + ".join(["c'", *(f"b'_{s} {t}" for s, t in zip(_symbols(v), _logs(v), strict=True))])
            ),
            of_losses=False,
            by_loss=True,
            degenerate="the loss says nothing of the score",
        ),
    )
}
