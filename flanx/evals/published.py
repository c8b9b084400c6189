"""The paper's printed scores, `published.csv`: {table: {model: {benchmark: value}}}."""

import csv
import functools
import importlib.resources
import io

from flanx.errors import UserError, nearest


@functools.cache
def tables() -> dict[str, dict[str, dict[str, float]]]:
    """Scores over whole benchmarks, in percent; those of single tasks are left out."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows():
        if not row["task"]:
            found.setdefault(row["table"], {}).setdefault(row["model"], {})[row["benchmark"]] = float(row["value"])
    return found


def rows() -> list[dict[str, str]]:
    """Every row as it stands in the file."""
    text = importlib.resources.files("flanx.sweep").joinpath("published.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(io.StringIO(text)))


def note(reference: str) -> str:
    """What the file says of all values of "TABLE:MODEL"; "" where it says nothing or not the same of each."""
    table, _, name = reference.partition(":")
    said = {row["note"] for row in rows() if row["table"] == table and row["model"] == name and not row["task"]}
    return said.pop() if len(said) == 1 else ""


def model(reference: str) -> dict[str, float]:
    """{benchmark: value} of "TABLE:MODEL", as "3:PaLM 8B". Raises UserError with the nearest known name."""
    table, _, name = reference.partition(":")
    known = tables().get(table, {})
    if not known:
        raise UserError(f"published '{reference}': no table '{table}' (there are {', '.join(tables())})")
    if name not in known:
        raise UserError(f"published '{reference}': table {table} has no model '{name}'{nearest(name, known)}")
    return known[name]
