"""Chooses the form of a law: the one that best predicts held-out cells, never the one that fits best.

The largest value of each variable is held out in turn (if two smaller ones remain), as is the corner where all are
largest. A prediction error is measured minus predicted, in the unit of the score.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import fdtr

from flanx.laws import fit as fitting
from flanx.laws.cell import Cell, Data, quantity
from flanx.laws.fit import Draws, Fit
from flanx.laws.form import FORMS, Form
from flanx.laws.noise import CONFIDENCE, Noise, noise

# among forms whose errors are within this factor of the smallest plus the effect of noise on their mean, the one with
# the fewest parameters is chosen
TIE = 1.05
LEAST = 4  # cells needed to choose at all
FOLD_DRAWS = 100
FOLD_SPARE = 1  # cells beyond its number of parameters that a form needs to predict a fold
MOST_WIDER = 5.0  # cap on the factor by which errors on held-out cells widen intervals


@dataclasses.dataclass(frozen=True)
class Fold:
    """Held-out cells: their name in tables, and a mask (cells,)."""

    name: str
    held: np.ndarray


@dataclasses.dataclass(frozen=True)
class Check:
    """A form's predictions of held-out cells.

    Attributes:
      errors: {fold: measured minus predicted for its cells}, for the folds without which the form can be fitted.
      reason: why there are none.
    """

    errors: Mapping[str, np.ndarray]
    reason: str = ""

    @property
    def error(self) -> float:
        """The mean over folds of each fold's mean absolute error; inf if nothing could be checked."""
        means = [float(np.abs(errors).mean()) for errors in self.errors.values()]
        return math.fsum(means) / len(means) if means else math.inf

    @property
    def count(self) -> int:
        """The number of predictions checked."""
        return sum(len(errors) for errors in self.errors.values())


@dataclasses.dataclass(frozen=True)
class Choice:
    """The forms fitted to one score, their predictions for held-out cells, and the chosen one.

    Attributes:
      fits, checks: by form. nearest: the check of a baseline without a law: the nearest cell's score.
      chosen: the form; "" if there is none. reason: why there is none, or a remark on it.
    """

    data: Data
    fits: Mapping[str, Fit]
    checks: Mapping[str, Check]
    nearest: Check
    chosen: str
    reason: str = ""

    @property
    def fit(self) -> Fit:
        """The chosen fit."""
        return self.fits[self.chosen]

    @property
    def check(self) -> Check:
        """The chosen form's check."""
        return self.checks[self.chosen]


def folds(data: Data) -> list[Fold]:
    """The folds to hold out of the data; [] if too little would remain."""
    tops = {name: data.levels(name)[-1] for name in data.variables}
    held = {
        f"{name} {quantity(top)}": np.array([cell.at[name] == top for cell in data.cells])
        for name, top in tops.items()
        if len(data.levels(name)) > 2
    }
    if len(tops) > 1:
        corner = np.array([all(cell.at[name] == top for name, top in tops.items()) for cell in data.cells])
        held["corner"] = corner
    return [Fold(name, mask) for name, mask in held.items() if mask.any() and not mask.all()]


def check(form: Form, data: Data) -> Check:
    """Checks a form's predictions of each fold from the other cells."""
    errors = {}
    for fold in folds(data):
        found = fitting.fit(form, data.only(~fold.held), FOLD_SPARE)
        if len(found.residuals):
            held = data.only(fold.held)
            errors[fold.name] = held.y - found.predict(held.cells)
    return Check(errors, "" if errors else "too few cells to hold any out")


def check_nearest(data: Data) -> Check:
    """The same for the baseline: a held-out cell gets the score of the nearest other one, with ranges normalized."""
    u = data.inputs().u
    width = np.ptp(u, axis=0) if len(u) and u.shape[1] else np.ones(u.shape[1])
    errors = {}
    for fold in folds(data):
        apart = np.abs(u[fold.held][:, None] - u[~fold.held][None]) / np.where(width, width, 1.0)
        near = apart.sum(-1).argmin(1)
        errors[fold.name] = data.y[fold.held] - data.y[~fold.held][near]
    return Check(errors)


def nothing(data: Data) -> str:
    """Why there is nothing to fit, as a sentence; "" if there is something."""
    if len(data.cells) < LEAST:
        return f"No law is fitted: {len(data.cells)} cells have a score, and {LEAST} are the least."
    if not np.isfinite(data.y).all():
        return "No law is fitted: a score is not a finite number."
    if float(np.ptp(data.y)) == 0:
        return f"No law is fitted: every cell scores {data.y[0]:.4g}."
    if not data.variables:
        return "No law is fitted: the cells have one size, one number of tasks, and one share of chain of thought."
    heard = noise(data.cells)
    if heard.is_known and _is_noise(data, heard):
        return "No law is fitted: all differences between the cells are within the noise of the seeds."
    return ""


def _is_noise(data: Data, heard: Noise) -> bool:
    """Whether the cells vary no more than seeds do (F test at 5%)."""
    runs = np.array([len(cell.values) for cell in data.cells])
    whole = float((runs * data.y).sum() / runs.sum())
    between = float((runs * (data.y - whole) ** 2).sum()) / (len(runs) - 1)
    if not heard.seeds:
        return False
    return bool(fdtr(len(runs) - 1, heard.degrees, between / heard.seeds**2) < 0.95)


def choose(data: Data, names: Sequence[str] = tuple(FORMS)) -> Choice:
    """Fits every form and chooses the one with the smallest error on held-out cells."""
    if reason := nothing(data):
        return Choice(data, {}, {}, Check({}), "", reason)
    fits = fitting.fit_all(data, names)
    checks = {
        name: check(FORMS[name], data) if len(found.residuals) else Check({}, found.problem)
        for name, found in fits.items()
    }
    sound = {name: checks[name].error for name, found in fits.items() if not found.problem}
    known = {name: error for name, error in sound.items() if math.isfinite(error)}
    chosen, reason = "", ""
    if known:
        # only errors over the same folds are comparable
        most = max(checks[name].count for name in known)
        known = {name: error for name, error in known.items() if checks[name].count == most}
        heard = noise(data.cells)
        slack = heard.of_new / math.sqrt(most) if heard.is_known else 0.0
        most_error = TIE * min(known.values()) + slack
        tied = [name for name, error in known.items() if error <= most_error]
        chosen = min(tied, key=lambda name: (len(fits[name].values), known[name]))
    elif sound:
        reason = "No form is chosen: too few cells to hold any out; a fit alone says nothing of what it predicts."
    else:
        reason = "No form fits: " + "; ".join(f"{name}: {found.problem}" for name, found in fits.items()) + "."
    return Choice(data, fits, checks, check_nearest(data), chosen, reason)


# ---- predictions -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Predicted:
    """The prediction for one cell: its value and 95% interval, for the measured mean over seeds."""

    cell: Cell
    value: float
    low: float
    high: float


def widening(choice: Choice, seed: int = 0) -> float:
    """The factor by which prediction intervals are widened: the root mean square of (error / expected error) on
    held-out cells, at least 1. A law of the wrong form misses by more than its bootstrap says."""
    ratios: list[float] = []
    for fold in folds(choice.data):
        found = fitting.fit(FORMS[choice.chosen], choice.data.only(~fold.held), FOLD_SPARE)
        if not len(found.residuals) or found.problem:
            continue
        held = choice.data.only(fold.held)
        low, high = np.percentile(fitting.bootstrap(found, FOLD_DRAWS, seed).measured(held.cells), [2.5, 97.5], axis=0)
        half = np.maximum((high - low) / 2, 1e-12)
        ratios += (np.abs(held.y - found.predict(held.cells)) / half * 1.96).tolist()
    if not ratios:
        return 1.0
    return min(max(1.0, math.sqrt(math.fsum(r * r for r in ratios) / len(ratios))), MOST_WIDER)


def predict(choice: Choice, draws: Draws, cells: Sequence[Cell], wider: float) -> list[Predicted]:
    """The chosen law's predictions for cells, clipped to the range of scores."""
    least, most = choice.data.ends
    values = draws.fit.predict(cells)
    spread = np.clip(values + (draws.measured(cells) - values) * wider, least, most)
    values = np.clip(values, least, most)
    tail = (100 - CONFIDENCE) / 2
    lows, highs = np.percentile(spread, [tail, 100 - tail], axis=0)
    return [
        Predicted(cell, float(value), float(min(low, value)), float(max(high, value)))
        for cell, value, low, high in zip(cells, values, lows, highs, strict=True)
    ]


@dataclasses.dataclass(frozen=True)
class Reach:
    """A prediction error against extrapolation distance: `factor` is the cell's value over the largest one fitted."""

    variable: str
    factor: float
    error: float


def reaches(form: Form, data: Data) -> list[Reach]:
    """The errors of predicting every cell above a level of a variable from those at or below it."""
    found = []
    for name in data.variables:
        for level in data.levels(name)[1:-1]:
            below = np.array([cell.at[name] <= level for cell in data.cells])
            fitted = fitting.fit(form, data.only(below), FOLD_SPARE)
            if len(fitted.residuals):
                above = data.only(~below)
                errors = above.y - fitted.predict(above.cells)
                found += [
                    Reach(name, cell.at[name] / level, float(abs(error)))
                    for cell, error in zip(above.cells, errors, strict=True)
                    if level > 0
                ]
    return found
