"""The paper's printed scores as cells: "published:3" (Table 3), "published:5:T5" and "published:5:PaLM" (Table 5).

Single runs, without printed items or seeds: their noise is taken from a law's misfit.
"""

import math
import re
from collections.abc import Mapping

from flanx.errors import UserError
from flanx.evals import metrics, published
from flanx.laws.cell import Cell, number

PREFIX = "published:"
WHOLE = 1836.0  # training tasks of Table 5's models whose names begin with "Flan"
# name -> (table, models)
FAMILIES = {
    "3": ("3", r".*"),
    "5:T5": ("5", r"(Flan-)?T5-.*"),
    "5:PaLM": ("5", r"(Flan-)?PaLM( \d+B)?"),
}


def tasks(model: str) -> float:
    """The number of tasks that a model was finetuned on, from its name."""
    if match := re.search(r"(\d+) tasks", model):
        return float(match[1])
    return WHOLE if model.startswith("Flan-") else 0.0


def cells(name: str) -> dict[str, list[Cell]]:
    """{score: cells} for a name such as "published:3". Raises UserError with the known names."""
    if name.removeprefix(PREFIX) not in FAMILIES:
        known = ", ".join(PREFIX + each for each in FAMILIES)
        raise UserError(f"{name}: no such published scores; there are {known}")
    table, models = FAMILIES[name.removeprefix(PREFIX)]
    sizes: Mapping[str, str] = {row["model"]: row["params"] for row in published.rows() if row["table"] == table}
    found: dict[str, list[Cell]] = {}
    for model, scores in published.tables()[table].items():
        size = number(sizes[model])
        if re.fullmatch(models, model) and size is not None:
            for score, value in scores.items():
                found.setdefault(score, []).append(Cell(model, {"size": size, "tasks": tasks(model)}, (value,)))
    return found


def chance(score: str) -> float:
    """The chance score, in percent; BBH's differs by task, and is taken as 0."""
    family = score.partition("_")[0]
    return metrics.BOUNDS[family][0] if family in metrics.BOUNDS else 0.0


def ends(score: str) -> tuple[float, float]:
    """The lower and upper bound of a score: normalized ones may be negative."""
    return -math.inf if score.startswith("normalized") else 0.0, 100.0
