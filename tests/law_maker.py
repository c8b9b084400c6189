"""Cells drawn from laws that are known, with noise."""

from collections.abc import Sequence

import numpy as np
from scipy.special import expit

from flanx.laws.cell import Cell

SIZES = (1e6, 4e6, 16e6, 64e6)
TASKS = (0, 9, 89, 282, 1836)
REFERENCE = 8e6  # the geometric mean of SIZES
TRUE = {
    "log": {"c": 30.0, "b_N": 4.0, "b_T": 3.0},
    "crossed": {"c": 20.0, "b_N": 1.0, "b_T": 3.0, "b_NT": 0.8},
    "saturating": {"c": 30.0, "b_N": 4.0, "b_T": 20.0, "T_half": 60.0},
    "power": {"E": 80.0, "A_N": 20.0, "A_T": 25.0, "a_N": 0.4, "a_T": 0.35},
    "multiplicative": {"E": 90.0, "A": 60.0, "a_N": 0.3, "a_T": 0.2},
    "logistic": {"c": -2.0, "b_N": 0.5, "b_T": 0.4},
    "two_step": {"c": 5.0, "b_L": 2.5},
}


def loss(size: float, tasks: float) -> float:
    """The validation loss of a cell, without noise."""
    return float(np.exp(0.8 - 0.1 * np.log(size / REFERENCE) - 0.06 * np.log1p(tasks)))


def truth(name: str, size: float, tasks: float) -> float:
    """The score of a cell by one of TRUE, without noise."""
    p, u, v = TRUE[name], np.log(size / REFERENCE), np.log1p(tasks)
    if name == "log":
        return p["c"] + p["b_N"] * u + p["b_T"] * v
    if name == "crossed":
        return p["c"] + p["b_N"] * u + p["b_T"] * v + p["b_NT"] * u * v
    if name == "saturating":
        return p["c"] + p["b_N"] * u + p["b_T"] * tasks / (tasks + p["T_half"])
    if name == "power":
        return p["E"] - p["A_N"] * np.exp(-p["a_N"] * u) - p["A_T"] * np.exp(-p["a_T"] * v)
    if name == "multiplicative":
        return p["E"] - p["A"] * np.exp(-p["a_N"] * u - p["a_T"] * v)
    if name == "logistic":
        return 100 * expit(p["c"] + p["b_N"] * u + p["b_T"] * v)
    return 100 * expit(p["c"] - p["b_L"] * loss(size, tasks))


def cell(size: float, tasks: float, values: Sequence[float] = (), of_loss: float | None = None) -> Cell:
    """A cell of the grid."""
    return Cell(f"{size:g}_{tasks:g}", {"size": size, "tasks": tasks}, tuple(values), 0.0, of_loss)


def draw(
    name: str, random: np.random.Generator, seeds: int = 3, sd: float = 1.0, sizes: Sequence[float] = SIZES
) -> list[Cell]:
    """The grid of a law, each cell's seeds with normal noise of `sd` points."""
    return [
        cell(
            size,
            tasks,
            (truth(name, size, tasks) + sd * random.standard_normal(seeds)).tolist(),
            loss(size, tasks) * float(np.exp(0.003 * random.standard_normal())),
        )
        for size in sizes
        for tasks in TASKS
    ]
