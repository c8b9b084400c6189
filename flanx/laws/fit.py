"""Fits a form to cells by least squares; parameter uncertainty comes from a bootstrap over seeds and items."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import optimize

from flanx.laws.cell import Cell, Data, Inputs
from flanx.laws.form import FORMS, Form
from flanx.laws.noise import CONFIDENCE, Noise, noise

CONVERGED = (1, 2, 3, 4)  # MINPACK's success codes
SPARE = 2  # cells that a fit needs beyond its number of parameters
SINGULAR = 2e-3  # smallest / largest singular value of the scaled Jacobian below which parameters trade off freely


@dataclasses.dataclass(frozen=True)
class Fit:
    """A form fitted to data.

    Attributes:
      bent, linear: its parameters, in the order of `form.parameters`.
      loss_law: for a form that reads scores off losses: (1 + variables,), ln loss over the coordinates.
      residuals: (cells,); measured minus fitted.
      problem: why it should not be used; "" if it is sound.
    """

    form: Form
    data: Data
    reference: Mapping[str, float]
    bent: np.ndarray
    linear: np.ndarray
    loss_law: np.ndarray | None
    residuals: np.ndarray
    problem: str = ""

    @property
    def names(self) -> list[str]:
        """The parameter names."""
        return self.form.parameters(self.data.inputs(reference=self.reference))

    @property
    def values(self) -> list[float]:
        """The parameter values, in the order of `names`."""
        return [*self.linear.tolist(), *self.bent.tolist()]

    @property
    def degrees(self) -> int:
        """Degrees of freedom of the residuals."""
        return len(self.residuals) - len(self.values)

    @property
    def misfit(self) -> float:
        """The standard deviation of the residuals, in the unit of the score."""
        return math.sqrt(float(self.residuals @ self.residuals) / self.degrees)

    def inputs(self, cells: Sequence[Cell]) -> Inputs:
        """The arrays of cells, in this fit's coordinates."""
        return self.data.inputs(cells, self.reference)

    def predict(self, cells: Sequence[Cell]) -> np.ndarray:
        """(cells,): the law's scores."""
        return evaluate(self.form, self.bent, self.linear, self.loss_law, self.inputs(cells))


def evaluate(
    form: Form, bent: np.ndarray, linear: np.ndarray, loss_law: np.ndarray | None, inputs: Inputs
) -> np.ndarray:
    """(cells,): the scores of a law with these parameters."""
    if loss_law is not None:
        inputs = dataclasses.replace(inputs, loss=np.exp(loss_law[0] + inputs.u @ loss_law[1:]))
    columns, fixed = form.columns(bent, inputs)
    return fixed + columns @ linear


class Search:
    """Least squares for one form over fixed cells, reusable for any scores of these cells."""

    def __init__(self, form: Form, inputs: Inputs) -> None:
        self.form, self.inputs = form, inputs
        bounds = form.bent(inputs)
        self.is_log = np.array([each.is_log for each in bounds], bool)
        ends = [(math.log(b.low), math.log(b.high)) if b.is_log else (b.low, b.high) for b in bounds]
        self.low, self.high = np.array([low for low, _ in ends]), np.array([high for _, high in ends])
        if not bounds:
            self.columns, self.fixed = form.columns(np.zeros(0), inputs)
            self.inverse = np.linalg.pinv(self.columns)

    def bent(self, at: np.ndarray) -> np.ndarray:
        """The bent parameters at a point of the search, clipped to their ranges."""
        inside = np.clip(at, self.low, self.high)
        return np.where(self.is_log, np.exp(np.where(self.is_log, inside, 0.0)), inside)

    def is_at_an_end(self, at: np.ndarray) -> bool:
        """Whether a bent parameter has hit the end of its range."""
        slack = 1e-3 * (self.high - self.low)
        return bool(((at < self.low + slack) | (at > self.high - slack)).any())

    def linear(self, at: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(the best linear parameters at a point, the residuals (cells,))."""
        columns, fixed = self.form.columns(self.bent(at), self.inputs)
        if not columns.shape[1]:
            return np.zeros(0), y - fixed
        found = np.linalg.lstsq(columns, y - fixed, rcond=None)[0]
        return found, y - fixed - columns @ found

    def run(self, y: np.ndarray, starts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, bool]:
        """(point, linear parameters, whether it converged) of the best fit from the best of the starts."""
        if not len(self.low):
            return np.zeros(0), self.inverse @ (y - self.fixed), True
        squares = [float(r @ r) for r in (self.linear(start, y)[1] for start in starts)]
        start = starts[int(np.argmin(squares))]
        found: Any = optimize.leastsq(lambda at: self.linear(at, y)[1], start, full_output=True)  # MINPACK's lmdif
        place = np.atleast_1d(found[0])
        return place, self.linear(place, y)[0], found[-1] in CONVERGED


def fit(form: Form, data: Data, spare: int = SPARE) -> Fit:
    """The least-squares fit of a form; needs `spare` more cells than parameters. Any fault is in `problem`."""
    inputs, y = data.inputs(), data.y
    none = np.zeros(0)
    count = len(form.parameters(inputs)) + (len(inputs.variables) + 1 if form.by_loss else 0)
    reason = form.misfit(inputs, data.is_loss)
    if not reason and not data.variables:
        reason = "nothing varies between the cells"
    if not reason and len(y) < count + spare:
        reason = f"{len(y)} cells for {count} parameters; it needs {count + spare}"
    if reason:
        return Fit(form, data, data.reference, none, none, None, none, reason)
    search = Search(form, inputs)
    place, linear, converged = search.run(y, form.starts(inputs))
    bent, loss_law = search.bent(place), None
    if form.by_loss:
        design = np.column_stack([np.ones(len(y)), inputs.u])
        loss_law = np.linalg.lstsq(design, np.log(inputs.loss), rcond=None)[0]
    residuals = y - evaluate(form, bent, linear, None, inputs)  # at the measured losses, as fitted
    problem = ""
    if not converged or not np.isfinite(residuals).all():
        problem = "did not converge"
    elif search.is_at_an_end(place) or _is_singular(search, place, linear, y):
        problem = f"degenerate: {form.degenerate or 'its parameters trade off freely'}"
    return Fit(form, data, data.reference, bent, linear, loss_law, residuals, problem)


def _is_singular(search: Search, place: np.ndarray, linear: np.ndarray, y: np.ndarray) -> bool:
    """Whether some combination of the parameters has no effect on the measured scores."""
    columns, _ = search.form.columns(search.bent(place), search.inputs)

    def scores(at: np.ndarray) -> np.ndarray:
        each, fixed = search.form.columns(search.bent(at), search.inputs)
        return fixed + each @ linear

    steps = np.eye(len(place)) * 1e-4
    slopes = [(scores(place + step) - scores(place - step)) / 2e-4 for step in steps]
    jacobian = np.column_stack([columns, *slopes])
    norms = np.linalg.norm(jacobian, axis=0)
    if (norms < 1e-9 * max(1.0, float(np.abs(y).max()))).any():
        return True
    values = np.linalg.svd(jacobian / norms, compute_uv=False)
    return bool(values[-1] < SINGULAR * values[0])


# ---- bootstrap -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Draws:
    """A fit, and refits to scores as other seeds and items could have given them.

    Attributes:
      bent (draws, bent), linear (draws, linear), loss_law (draws, 1 + variables): the parameters of each draw.
      scale: (draws,); the noise of each draw relative to `noise`: above 1 if the law misses by more than noise.
    """

    fit: Fit
    noise: Noise
    bent: np.ndarray
    linear: np.ndarray
    loss_law: np.ndarray | None
    scale: np.ndarray

    def interval(self, name: str) -> tuple[float, float]:
        """The 95% interval of a parameter."""
        return quantiles(np.concatenate([self.linear, self.bent], axis=1)[:, self.fit.names.index(name)])

    def predict(self, cells: Sequence[Cell]) -> np.ndarray:
        """(draws, cells): the scores from each draw's law."""
        inputs = self.fit.inputs(cells)
        if not self.bent.shape[1]:
            columns, fixed = self.fit.form.columns(self.bent[0], inputs)
            return fixed + self.linear @ columns.T
        laws = [None] * len(self.scale) if self.loss_law is None else self.loss_law
        rows = [evaluate(self.fit.form, *each, inputs) for each in zip(self.bent, self.linear, laws, strict=True)]
        return np.array(rows)

    def measured(self, cells: Sequence[Cell], seed: int = 0) -> np.ndarray:
        """(draws, cells): the same as they would be measured, with the noise of seeds and items."""
        random = np.random.default_rng([seed, 1])
        own = self.noise.of_new if self.noise.is_known else 1.0
        spread = random.standard_normal((len(self.scale), len(cells)))
        return self.predict(cells) + spread * (own * self.scale)[:, None]


def quantiles(values: np.ndarray) -> tuple[float, float]:
    """The 95% interval over draws."""
    tail = (100 - CONFIDENCE) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def bootstrap(found: Fit, draws: int = 1000, seed: int = 0) -> Draws:
    """Refits to resampled scores: the law's own plus noise.

    The noise of a cell is that of its seeds, pooled over cells, and of its items; if the law misses by more (or no
    recipe has two seeds), it is scaled to the misfit (Birge 1932). Each draw has its own noise scale, from the
    chi-squared distribution of the estimate, so that few cells give wide intervals, as with Student's t.
    """
    random = np.random.default_rng(seed)
    heard = noise(found.data.cells)
    inputs, y = found.data.inputs(), found.data.y
    law = y - found.residuals
    expected = heard.sd**2 * found.degrees / len(y)
    ratio = math.sqrt(float(found.residuals @ found.residuals) / max(float(expected.sum()), 1e-300))
    by_seeds = heard.is_known and ratio <= 1
    degrees = heard.degrees if by_seeds else found.degrees
    scale = (1.0 if by_seeds else ratio) * np.sqrt(degrees / random.chisquare(degrees, draws))
    drawn = law + random.standard_normal((draws, len(y))) * heard.sd * scale[:, None]
    search = Search(found.form, inputs)
    start = np.where(search.is_log, np.log(np.where(search.is_log, found.bent, 1.0)), found.bent)
    laws = None
    if found.loss_law is not None:
        laws = _draw_loss_laws(found.loss_law, inputs, draws, random)
    if not len(start):  # all draws at once
        linear = (drawn - search.fixed) @ search.inverse.T
        return Draws(found, heard, np.zeros((draws, 0)), linear, laws, scale)
    places = [search.run(each, [start]) for each in drawn]
    bent = np.array([search.bent(place) for place, _, _ in places])
    linear = np.array([each for _, each, _ in places]).reshape(draws, -1)
    return Draws(found, heard, bent, linear, laws, scale)


def _draw_loss_laws(law: np.ndarray, inputs: Inputs, draws: int, random: np.random.Generator) -> np.ndarray:
    """(draws, 1 + variables): the law of losses, refitted to its own values plus noise as large as its misfit."""
    design = np.column_stack([np.ones(len(inputs.u)), inputs.u])
    misses = np.log(inputs.loss) - design @ law
    degrees = len(misses) - len(law)
    scale = math.sqrt(float(misses @ misses) / degrees) * np.sqrt(degrees / random.chisquare(degrees, draws))
    spread = random.standard_normal((draws, len(misses))) * scale[:, None]
    return law + spread @ np.linalg.pinv(design).T


def fit_all(data: Data, names: Sequence[str] = tuple(FORMS)) -> dict[str, Fit]:
    """{form: its fit}."""
    return {name: fit(FORMS[name], data) for name in names}
