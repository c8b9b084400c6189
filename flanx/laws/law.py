"""The law of one score: the chosen form, its parameters with intervals, and its predictions, all as text."""

import dataclasses
from collections.abc import Sequence

from flanx.laws import choice as choosing
from flanx.laws.cell import VARIABLES, Cell, Data, quantity
from flanx.laws.choice import Choice, Predicted
from flanx.laws.fit import Draws, bootstrap
from flanx.laws.form import FORMS

DRAWS = 1000


@dataclasses.dataclass(frozen=True)
class Law:
    """The law of one score.

    Attributes:
      draws: the bootstrap; None if no form is chosen. wider: the factor from `choice.widening`.
    """

    score: str
    choice: Choice
    draws: Draws | None
    wider: float

    def predict(self, cells: Sequence[Cell]) -> list[Predicted]:
        """Predictions for cells; [] if there is no law."""
        if self.draws is None or not cells:
            return []
        return choosing.predict(self.choice, self.draws, cells, self.wider)

    @property
    def is_useful(self) -> bool:
        """Whether there is a law that predicts held-out cells better than the nearest cell's score does."""
        return self.draws is not None and self.choice.check.error < self.choice.nearest.error

    @property
    def formula(self) -> str:
        """The chosen form in symbols, and its reference values."""
        fit = self.choice.fit
        text = fit.form.formula(fit.data.variables)
        references = [f"{VARIABLES[name].symbol}0 = {quantity(value)}" for name, value in fit.reference.items()]
        chance = [f"chance = {fit.data.floor:g}"] if "chance" in text else []
        return "; ".join([text, *references, *chance])

    def parameters(self) -> list[tuple[str, float, float, float]]:
        """(name, value, low, high) for every parameter, with 95% intervals."""
        if self.draws is None:
            return []
        fit = self.choice.fit
        return [(name, value, *self.draws.interval(name)) for name, value in zip(fit.names, fit.values, strict=True)]


def make(score: str, data: Data, forms: Sequence[str] = tuple(FORMS), draws: int = DRAWS, seed: int = 0) -> Law:
    """Chooses a form for the data, and bootstraps its parameters with `draws` draws."""
    chosen = choosing.choose(data, forms)
    if not chosen.chosen:
        return Law(score, chosen, None, 1.0)
    return Law(score, chosen, bootstrap(chosen.fit, draws, seed), choosing.widening(chosen, seed))


def error_text(law: Law, form: str) -> str:
    """The error of a form on held-out cells, or why it has none; plus any problem of the form."""
    check, fit = law.choice.checks[form], law.choice.fits[form]
    if not check.count:
        return check.reason or fit.problem
    most = max(each.count for each in law.choice.checks.values())
    remarks = [fit.problem.partition(":")[0]] if fit.problem else []
    remarks += [f"{check.count} of {most} cells"] if check.count < most else []
    return f"{check.error:.3g}" + (f" ({', '.join(remarks)})" if remarks else "")


def chosen_text(law: Law) -> str:
    """The chosen form, and whether it predicts no better than the nearest cell does."""
    return law.choice.chosen + ("" if law.is_useful else " (no better than no law)")


def undrawn_text(law: Law) -> str:
    """Why a law that is not useful has no figure."""
    error, nearest = law.choice.check.error, law.choice.nearest.error
    return (
        f"no figure, as on held-out cells the law ({law.choice.chosen}) is {error:.3g} off and no law, the nearest "
        f"cell's own score, {nearest:.3g}"
    )


def parameter_text(law: Law) -> str:
    """Every parameter with its interval."""
    return ", ".join(f"{name} = {value:.3g} [{low:.3g}, {high:.3g}]" for name, value, low, high in law.parameters())


def half_text(law: Law) -> str:
    """How many tasks give half of the gain, by the saturating form if it is sound, chosen or not; else ""."""
    fit = law.choice.fits.get("saturating")
    if fit is None or fit.problem:
        return ""
    draws = law.draws if law.draws is not None and law.choice.chosen == "saturating" else bootstrap(fit, 200)
    value = fit.values[fit.names.index("T_half")]
    low, high = draws.interval("T_half")
    return f"{value:,.0f} tasks [{low:,.0f}, {high:,.0f}]"


def place_text(cell: Cell, variables: Sequence[str]) -> str:
    """A cell's place, in the form that --predict accepts: "size=540B,tasks=1836"."""
    return ",".join(f"{name}={quantity(cell.at[name]).replace(',', '')}" for name in variables if name in cell.at)


def predicted_text(each: Predicted, is_loss: bool = False) -> str:
    """A prediction with its interval."""
    digits = 3 if is_loss else 1
    return f"{each.value:.{digits}f} [{each.low:.{digits}f}, {each.high:.{digits}f}]"
