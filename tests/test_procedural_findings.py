"""The committed report on the embedded suite: its page quotes its own numbers."""

import csv
import pathlib
import re

import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "docs" / "findings"
QUOTED = re.compile(r"-?\d+\.\d+ \(-?\d+\.\d+ to -?\d+\.\d+\)")


def cells(name: str, table: str = "cells") -> list[dict[str, str]]:
    with open(FOLDER / name / f"{table}.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def differences() -> set[str]:
    """Those of both sweeps, as the page has them."""
    rows = [row for name in ("scaling", "cot") for row in cells(name, "differences")]
    return {" ".join(f"{float(row[key]):.1f}" for key in ("mean", "low", "high")) for row in rows}


def quoted(cell: dict[str, str], digits: int) -> str:
    """A cell as the page has it: over its seeds where there are several, else over the items."""
    of = "seeds" if cell["seeds_low"] else "items"
    mean, low, high = (f"{float(cell[key]):.{digits}f}" for key in ("mean", f"{of}_low", f"{of}_high"))
    return f"{mean} ({low} to {high})"


def test_every_number_of_the_page_stands_in_its_tables() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    names = sorted(path.parent.name for path in FOLDER.glob("*/cells.csv"))
    found = {quoted(cell, digits) for name in names for cell in cells(name) if cell["mean"] for digits in (1, 2)}
    found |= {"{} ({} to {})".format(*each.split()) for each in differences()}
    said = QUOTED.findall(page)
    assert len(names) == 4 and len(said) > 20
    assert set(said) <= found


def test_every_figure_of_the_page_is_there_and_small() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", page)
    assert len(pictures) >= 4
    for picture in pictures:
        assert (FOLDER / picture).stat().st_size < 200_000, picture


@pytest.mark.parametrize("name", ["scaling", "cot"])
def test_intervals_are_over_three_seeds(name: str) -> None:
    assert {cell["runs"] for cell in cells(name)} == {"3"}


HOME = FOLDER / "home"


def test_every_number_of_the_page_on_figure_4_stands_in_its_tables() -> None:
    said = QUOTED.findall((HOME / "README.md").read_text(encoding="utf-8"))
    every = [cell for name in ("figure4", "figure5", "larger") for cell in cells(f"home/{name}")]
    found = {quoted(cell, 1) for cell in every if cell["mean"]}
    for row in filter(lambda row: row["low"], [*cells("home", "answers"), *cells("home/figure4", "differences")]):
        mean, low, high = (f"{float(row[key]):.1f}" for key in ("mean", "low", "high"))
        found.add(f"{mean} ({low} to {high})")
    assert len(said) > 20
    assert set(said) <= found


def test_figure_4_at_home_has_five_numbers_of_tasks_three_sizes_and_its_seeds() -> None:
    runs = {(cell["tasks"], cell["size"]): int(cell["runs"]) for cell in cells("home/figure4")}
    assert {tasks for tasks, _ in runs} == {"0", "9", "89", "282", "1836"} and len(runs) == 15
    # the pretrained model has no seed: one run stands for all
    assert {count for (tasks, _), count in runs.items() if tasks != "0"} == {3}
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]*)\)", (HOME / "README.md").read_text(encoding="utf-8")):
        assert (HOME / picture).stat().st_size < 200_000, picture


def test_the_page_on_figure_4_gives_every_answer_that_the_script_gave() -> None:
    page = (HOME / "README.md").read_text(encoding="utf-8")
    answers = cells("home", "answers")
    assert {int(row["question"]) for row in answers} == set(range(1, 8))
    for row in answers:
        assert f"| {row['what']} |" in page and f"| {row['answer']} |" in page, row
