"""The paper's printed scores: `published.csv`, {table: {model: {benchmark: value}}}, and its responsible-AI evaluations
(appendix C), `published_responsible.csv`, where the column `task` names parts of a benchmark."""

import csv
import functools
import importlib.resources
import io

from flanx.errors import UserError, nearest


@functools.cache
def tables() -> dict[str, dict[str, dict[str, float]]]:
    """Scores over whole benchmarks, in percent; scores of single tasks are left out."""
    result: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows():
        if not row["task"]:
            result.setdefault(row["table"], {}).setdefault(row["model"], {})[row["benchmark"]] = float(row["value"])
    return result


@functools.cache
def responsible() -> dict[str, dict[tuple[str, str], float]]:
    """Appendix C's printed scores, in percent: {model: {(benchmark, task or ""): value}}."""
    result: dict[str, dict[tuple[str, str], float]] = {}
    for row in rows("published_responsible.csv"):
        result.setdefault(row["model"], {})[row["benchmark"], row["task"]] = float(row["value"])
    return result


def rows(file: str = "published.csv") -> list[dict[str, str]]:
    """Every row of a file."""
    text = importlib.resources.files("flanx.evals").joinpath(file).read_text(encoding="utf-8")
    return list(csv.DictReader(io.StringIO(text)))


def note(reference: str) -> str:
    """The note shared by all values of "TABLE:MODEL"; "" if there is none, or more than one."""
    table, _, name = reference.partition(":")
    notes = {row["note"] for row in rows() if row["table"] == table and row["model"] == name and not row["task"]}
    return notes.pop() if len(notes) == 1 else ""


def model(reference: str) -> dict[str, float]:
    """{benchmark: value} for "TABLE:MODEL", such as "3:PaLM 8B". Raises UserError with the nearest known name."""
    table, _, name = reference.partition(":")
    known = tables().get(table, {})
    if not known:
        raise UserError(f"published '{reference}': no table '{table}' (known: {', '.join(tables())})")
    if name not in known:
        raise UserError(f"published '{reference}': table {table} has no model '{name}'{nearest(name, known)}")
    return known[name]
