"""Seconds to choose a law for 60 cells and to draw its parameters 1,000 times, as `flanx fit` does for one score."""

import argparse
import time

import numpy as np
import record

from flanx.laws import law as laws
from flanx.laws.cell import Cell, gather

SIZES = [1e6 * 4**i for i in range(12)]
TASKS = (0, 9, 89, 282, 1836)


def cells() -> list[Cell]:
    """60 cells with three seeds: a logistic law with a standard deviation of one point."""
    random = np.random.default_rng(0)
    found = []
    for size in SIZES:
        for tasks in TASKS:
            score = 100 / (1 + np.exp(4 - 0.2 * np.log(size / 1e6) - 0.4 * np.log1p(tasks)))
            loss = 3 * (size / 1e6) ** -0.05 * (1 + tasks) ** -0.04
            values = tuple((score + random.standard_normal(3)).tolist())
            found.append(Cell(f"{size:g}_{tasks}", {"size": size, "tasks": tasks}, values, 0.0, float(loss)))
    return found


def main() -> None:
    """Prints one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the same: it takes seconds")
    parser.parse_args()
    began = time.perf_counter()
    found = laws.make("score", gather(cells()), draws=1000)
    seconds = time.perf_counter() - began
    line = {"benchmark": "fit", "metric": "60_cells_1000_draws", "value": round(seconds, 2), "unit": "s"}
    record.write(line | {"form": found.choice.chosen})


if __name__ == "__main__":
    main()
