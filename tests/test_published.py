"""The published scores: `published.csv` holds what the reference's section 4 prints, every cell of it and no more."""

import pathlib
import re
from collections.abc import Iterator

import pytest

from flanx.errors import UserError
from flanx.evals import published

Key = tuple[str, str, str, str]  # table, model, benchmark, task
SIX = ("normalized_average", "mmlu_direct", "mmlu_cot", "bbh_direct", "bbh_cot", "tydiqa", "mgsm_cot")
SIZED = ("PaLM", "Flan-PaLM")  # names that several sizes share


def tables(text: str, section: str) -> list[list[str]]:
    """The rows of the first table of a section, header first."""
    _, found, rest = text.partition(f"\n### {section}")
    assert found, f"the reference has no section {section}"
    lines = [line for line in rest.partition("\n### ")[0].splitlines() if line.startswith("|")]
    rows = [[cell.strip().strip("*") for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in rows if set("".join(row)) - set("-")]


def number(text: str) -> float | None:
    """The first number of a cell."""
    match = re.match(r"-?\d+(\.\d+)?", text)
    return float(match[0]) if match else None


def plain(model: str) -> str:
    """A model as published.csv calls it: sizes stay only where several models have the name."""
    name, _, size = model.rpartition(" ")
    return model if name in SIZED or not re.fullmatch(r"\d+B", size) else name


def printed(text: str) -> Iterator[tuple[Key, float | None]]:
    """Every cell of the reference's tables 3 to 5 and 17 to 21."""
    for size, _, tasks, *values in tables(text, "4.2")[1:]:
        model = f"PaLM {size}" if tasks == "0" else f"Flan-PaLM {size}, {tasks} tasks"
        yield from (((("3", model, name, "")), number(v)) for name, v in zip(SIX, values, strict=True))
    for row, *values in tables(text, "4.3")[2:]:
        model = row.replace("PaLM", "PaLM 540B")
        names = ("mmlu", "bbh_nlp", "bbh_alg", "tydiqa", "mgsm")
        yield from ((("4", model, name, ""), number(v)) for name, v in zip(names, values, strict=True))
    size = ""
    for params, name, *values in tables(text, "4.5")[1:]:
        size = params or size
        model = f"{name} {size}" if name in SIZED else name
        yield from ((("5", model, benchmark, ""), number(v)) for benchmark, v in zip(SIX, values, strict=True))
    head, *rows = tables(text, "4.6")
    models = [column.removesuffix(" d / c").replace("F-", "Flan-T5-") for column in head[2:]]
    for task, _, *values in rows:
        for model, pair in zip(models, values, strict=True):
            for benchmark, value in zip(("bbh_direct", "bbh_cot"), pair.split(" / "), strict=True):
                yield ("17-19", model, benchmark, task.removesuffix(" (alg)")), number(value)
    for section, table, benchmark in (("4.7", "20", "tydiqa"), ("4.8", "21", "mgsm_cot")):
        head, *rows = tables(text, section)
        for model, *values in rows:
            for language, value in zip(head[1:], values, strict=True):
                yield (table, plain(model), benchmark, language.replace("avg", "")), number(value)


def test_the_published_tables_are_those_of_the_reference(reference_dir: pathlib.Path):
    text = (reference_dir / "paper.md").read_text(encoding="utf-8")
    wanted = {key: value for key, value in printed(text) if value is not None}
    held = {
        (row["table"], row["model"], row["benchmark"], row["task"]): float(row["value"])
        for row in published.rows()
        if row["table"] in ("3", "4", "5", "17-19", "20", "21")
    }
    assert len(wanted) > 850
    assert held == wanted


def test_what_the_paper_does_not_print_says_where_it_comes_from():
    for row in published.rows():
        if row["table"] == "figure5":
            assert "not printed" in row["note"]
        if row["table"].startswith("flan_collection"):
            assert "2301.13688" in row["note"]


@pytest.mark.parametrize("model", ["8B", "62B", "540B"])
def test_what_is_derived_for_figure_5_follows_from_table_3(model):
    """Normalized with one bound of 26 for BBH, as the reference derives it, to its printed digit."""
    bounds = {"mmlu": 25.0, "bbh": 26.0, "tydiqa": 0.0, "mgsm": 0.0}
    rows = {"none": f"PaLM {model}", "CoT": f"Flan-PaLM {model}, 9 tasks", "both": f"Flan-PaLM {model}, 1836 tasks"}
    for data, row in rows.items():
        scores = published.model(f"3:{row}")
        for name, parts in (("held-out CoT", SIX[2::2]), ("held-out non-CoT", SIX[1::2])):
            names = [part for part in parts if part != "normalized_average"]
            part = [(scores[n] - bounds[n.partition("_")[0]]) / (100 - bounds[n.partition("_")[0]]) for n in names]
            assert published.model(f"figure5:{model} {data}")[name] == pytest.approx(100 * sum(part) / 3, abs=0.06)


def test_a_published_row_that_is_not_there_is_named():
    assert published.model("3:PaLM 8B")["normalized_average"] == 6.4
    with pytest.raises(UserError, match="did you mean 'PaLM 8B'"):
        published.model("3:PaLM 8")
    with pytest.raises(UserError, match="no table '9'"):
        published.model("9:PaLM 8B")


def test_the_responsible_tables_are_those_of_the_reference(reference_dir: pathlib.Path):
    """Tables 6 and 7, as the reference's section 6 prints them."""
    text = (reference_dir / "paper.md").read_text(encoding="utf-8").partition("\n## 6.")[2]
    six, seven = (
        [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("|")]
        for part in (text.partition("**C.2")[0], text.partition("**C.3")[2].partition("**C.4")[0])
    )
    wanted: dict[tuple[str, str, str], float] = {}
    for name, *cells in six[2:]:
        for part, cell in zip(("non_toxic", "toxic"), cells, strict=True):
            models = [name] if "->" not in cell else [f"PaLM {name}", f"Flan-PaLM {name}"]
            for model, value in zip(models, cell.split(" -> "), strict=True):
                wanted[model, "real_toxicity_prompts", part] = 100 * float(value)
    for size, name, *cells in seven[2:]:
        for suite, cell in zip(("civil_comments", "civil_comments_10_shot"), cells, strict=True):
            models = [name] if "/" not in name else [f"{each} {size}" for each in name.split(" / ")]
            for model, value in zip(models, cell.split(" / "), strict=True):
                wanted[model, suite, ""] = float(value)
    wanted["Perspective API", "civil_comments", ""] = 97.0
    held = {
        (row["model"], row["benchmark"], row["task"]): float(row["value"])
        for row in published.rows("published_responsible.csv")
        if row["table"] in ("6", "7")
    }
    assert len(wanted) == 29 and held == {key: pytest.approx(value) for key, value in wanted.items()}
    assert published.responsible()["Flan-T5-XXL"]["real_toxicity_prompts", "toxic"] == 26


def test_table_10_is_that_of_the_reference(reference_dir: pathlib.Path):
    text = (reference_dir / "paper.md").read_text(encoding="utf-8").partition("**C.5")[2].partition("\n###")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    wanted = {}
    for model, overall, he, she, *worst in rows[2:]:
        cells = [("", ("", overall)), ("he", ("", he)), ("she", ("", she))]
        names = ("worst language", "worst set")
        cells += [
            (name, (cell.rpartition(" ")[0], cell.rpartition(" ")[2])) for name, cell in zip(names, worst, strict=True)
        ]
        wanted |= {(model, task): (note, float(value)) for task, (note, value) in cells}
    held = {
        (row["model"], row["task"]): (row["note"], float(row["value"]))
        for row in published.rows("published_responsible.csv")
        if row["benchmark"] == "misgendering"
    }
    assert len(held) == 35 and held == wanted
