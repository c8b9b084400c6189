"""`flanx report RUN...`: scores by label, and misgendering in the layout of the paper's Table 10, with its scores."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flanx.evals import published
from flanx.evals.scores import interval_text, not_available, partial
from flanx.evals.table5 import Line
from flanx.files import markdown_table

COLUMNS = ("overall", "he", "she", "worst language", "worst set")
TRANSLATION = {"language", "pronoun", "set"}  # the labels of a suite for Table 10
MOST = 16  # the most values of a label that are listed
PRINTED = "misgendering"  # the suite whose scores Table 10 prints

Entry = Mapping[str, Any]


def worst(entries: Mapping[str, Entry]) -> tuple[str, Entry]:
    """The label value with the lowest score, ties broken by name, and its entry."""
    return min(entries.items(), key=lambda pair: (pair[1]["score"], pair[0]))


def table10(entry: Entry) -> dict[str, tuple[str, Entry]]:
    """{column: (name of the worst, or "", its entry)} for a suite with Table 10's labels; {} for any other."""
    slices = entry.get("slices", {})
    if not set(slices) >= TRANSLATION:
        return {}
    found = {"overall": ("", entry), "worst language": worst(slices["language"]), "worst set": worst(slices["set"])}
    return found | {pronoun: ("", each) for pronoun, each in slices["pronoun"].items() if pronoun in COLUMNS}


def printed() -> dict[str, dict[str, tuple[str, float]]]:
    """{model: {column: (name of the worst, or "", value)}} from Table 10."""
    found: dict[str, dict[str, tuple[str, float]]] = {}
    for row in published.rows("published_responsible.csv"):
        if row["benchmark"] == PRINTED:
            of_model = found.setdefault(row["model"], {})
            of_model[row["task"] or "overall"] = row["note"], float(row["value"])
    return found


def _text(entry: Entry) -> str:
    """A score with its interval, or why there is none."""
    if reason := not_available(entry) or entry.get("misfit"):
        return reason
    return f"{entry['score']:.1f} [{interval_text({'metric': 'it', **entry}, ', ')}]"


def _suite(suite: str, entry: Entry) -> str:
    """A suite with what its scores leave out, and a mark if they should not be quoted."""
    reasons = [*partial(entry), *filter(None, [not_available(entry)])]
    return suite + "".join(f" ({reason})" for reason in reasons) + " !" * bool(entry.get("flagged"))


def _misgendering(lines: Sequence[Line]) -> Iterator[list[str]]:
    for line in lines:
        for suite, entry in line.scores["suites"].items():
            if found := table10(entry):
                of = {column: f"{name} {_text(each)}".strip() for column, (name, each) in found.items()}
                cells = [of.get(column, "-") for column in COLUMNS]
                yield [line.label, _suite(suite, entry), *cells]


def _labels(line: Line) -> Iterator[list[str]]:
    for suite, entry in line.scores["suites"].items():
        for label, values in entry.get("slices", {}).items():
            begin = [line.label, _suite(suite, entry), label]
            if len(values) > MOST:
                yield [*begin, f"{len(values)} values, in scores.json", "-", "-", "-", "-"]
                continue
            for value, each in values.items():
                more = ", ".join(f"{name} {number:.1f}" for name, number in each.get("metrics", {}).items())
                failed = f"{100 * each['extraction_failed']:.1f}%"
                yield [*begin, value, _text(each), str(each["n"]), failed, more or "-"]


def markdown(lines: Sequence[Line]) -> str:
    """The tables; "" if no suite has labels."""
    rows = [row for line in lines for row in _labels(line)]
    if not rows:
        return ""
    out = []
    if ours := list(_misgendering(lines)):
        theirs = [
            [
                f"published: {model}",
                "table 10",
                *(f"{values[name][0]} {values[name][1]:.0f}".strip() for name in COLUMNS),
            ]
            for model, values in printed().items()
            if any(suite.startswith(PRINTED) for line in lines for suite in line.scores["suites"])
        ]
        out += [markdown_table(["run", "suite", *COLUMNS], [*ours, *theirs]), ""]
    head = ["run", "suite", "label", "value", "score", "items", "without an answer", "also"]
    return "\n".join([*out, markdown_table(head, rows)])
