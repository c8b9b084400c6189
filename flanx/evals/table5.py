"""`flanx report RUN...`: runs in the layout of the paper's Table 5, with our scores next to the published ones.

No cell is blank: a suite that was not run is marked as such; a score with too many failed extractions has a "!".
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from flanx.errors import UserError
from flanx.evals import metrics
from flanx.evals.published import tables
from flanx.evals.scores import FLAGGED, flags, interval_text, not_available, partial, read_scores, version_note
from flanx.files import csv_text, markdown_table

COLUMNS = ("normalized_average", *metrics.HEADLINE)
TITLES = ("norm. avg.", "MMLU direct", "MMLU CoT", "BBH direct", "BBH CoT", "TyDiQA", "MGSM CoT")
NOT_RUN = "not run"
INCOMPLETE = "needs all six, whole"
NOT_PRINTED = "not printed"


@dataclasses.dataclass(frozen=True)
class Line:
    """One run: its label, its scores.json and that file's folder, and the published model to compare it with."""

    label: str
    scores: dict[str, Any]
    model: str | None
    folder: pathlib.Path

    @classmethod
    def read(cls, text: str) -> "Line":
        """From "RUN" or "RUN=MODEL"; with several evaluations below RUN, the newest step."""
        name, model = text.rpartition("=")[::2] if "=" in text and not pathlib.Path(text).exists() else (text, "")
        folder = pathlib.Path(name)
        found = [folder / "scores.json"] if (folder / "scores.json").is_file() else []
        found = found or sorted(folder.rglob("scores.json"), key=_step)
        if not folder.is_dir():
            raise UserError(f"no folder {folder}: give one that `flanx evaluate` or `flanx train` wrote")
        if not found:
            raise UserError(
                f"{folder} holds no scores.json: give a folder that `flanx evaluate` or `flanx train` wrote"
            )
        if model and model not in published():
            known = ", ".join(sorted(published()))
            raise UserError(f"Table 5 has no model '{model}'; after '=' give one of {known}, or leave both out")
        return cls(name, read_scores(found[-1]), model or None, found[-1].parent)


def _step(path: pathlib.Path) -> tuple[int, str]:
    number = path.parent.name.removeprefix("step_")
    return (int(number) if number.isdigit() else -1, str(path))


def published() -> dict[str, dict[str, float]]:
    """Table 5: {model: {column: value}}."""
    return tables()["5"]


def cell(scores: dict[str, Any], column: str) -> str:
    """Our score with its interval and flag, or the reason why there is none."""
    if column == "normalized_average":
        value = scores.get("normalized_average")
        if value is None:
            return INCOMPLETE
        flagged = any(scores["suites"][name]["flagged"] for name in metrics.HEADLINE)
        return f"{value:.1f}" + (" !" if flagged else "")
    entry = scores["suites"].get(column)
    return NOT_RUN if entry is None else value_of(entry)


def value_of(entry: dict[str, Any]) -> str:
    """One suite's score as text."""
    text = not_available(entry) or f"{entry['score']:.1f} [{interval_text(entry, ', ')}]"
    text += "".join(f" ({what})" for what in partial(entry))
    return text + (f" ! {', '.join(flags(entry))}" if entry["flagged"] else "")


def table(lines: Sequence[Line]) -> str:
    """The table as CSV: one row per run and column, ours and published."""
    rows: list[list[Any]] = []
    for line in lines:
        for column in COLUMNS:
            entry = line.scores["suites"].get(column)
            theirs = published()[line.model].get(column, NOT_PRINTED) if line.model else NOT_PRINTED
            if column == "normalized_average":
                ours = [line.scores.get(column, INCOMPLETE), "", "", "", ""]
            else:
                ours = [entry[k] for k in ("score", "low", "high", "flagged")] if entry else [NOT_RUN, "", "", ""]
                ours.append("; ".join(partial(entry)) if entry else "")
                if entry and (reason := not_available(entry)):
                    ours[:3] = [reason, "", ""]
            rows.append([line.label, line.model or "", column, *ours, theirs, entry["spec"] if entry else ""])
    columns = ["run", "model", "benchmark", "ours", "low", "high", "flagged", "partial", "published", "spec"]
    return csv_text(columns, rows)


def markdown(lines: Sequence[Line]) -> str:
    """The table in Markdown: two rows per run, then the suites outside the paper's six, then the notes.

    Without a run of the six or a published model, only those other suites: a table of "not run" says nothing."""
    rows, out = [], []
    has_six = any(line.model or not line.scores["suites"].keys().isdisjoint(metrics.HEADLINE) for line in lines)
    for line in lines:
        rows.append([line.label, *(cell(line.scores, column) for column in COLUMNS)])
        if line.model:
            theirs = [published()[line.model].get(column) for column in COLUMNS]
            shown = [NOT_PRINTED if value is None else f"{value:.1f}" for value in theirs]
            rows.append([f"published: {line.model}", *shown])
    if has_six:
        out += [markdown_table(["run", *TITLES], rows), ""]
    others = [
        [line.label, name, value_of(entry), entry["n"], entry["spec"]]
        for line in lines
        for name, entry in line.scores["suites"].items()
        if name not in metrics.HEADLINE
    ]
    if others:
        out += [markdown_table(["run", "suite", "score", "items", "spec"], others), ""]
    out += [f"[low, high]: {metrics.CONFIDENCE}% intervals. {FLAGGED}"]
    out += version_note({f"{line.label} {k}": entry for line in lines for k, entry in line.scores["suites"].items()})
    missing = {
        f"{line.label}, {name}: {', '.join(entry['missing'])}"
        for line in lines
        for name, entry in line.scores["suites"].items()
        if entry.get("missing")
    }
    out += [f"Left out by name: {text}." for text in sorted(missing)]
    return "\n".join([*out, "", *bounds()] if has_six else out)


def bounds() -> list[str]:
    """The lower bounds of the normalized average, each with its source."""
    sources: dict[str, list[str]] = {}
    for name, (bound, source) in {**metrics.BOUNDS, **metrics.BBH_BOUNDS}.items():
        sources.setdefault(source, []).append(f"{name} {bound:g}")
    found = "; ".join(f"{', '.join(names)} ({source})" for source, names in sources.items())
    return [f"Lower bounds of the normalized average: {found}."]
