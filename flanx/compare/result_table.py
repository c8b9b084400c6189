"""Tables of a comparison's results, as printed by the command and shown on the page."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

Record = Mapping[str, Any]


class Result(NamedTuple):
    """A kind of result: its table's title, the columns, which ones are left-aligned, and the cells of a record."""

    title: str
    columns: tuple[str, ...]
    left: tuple[str, ...]
    cells: Callable[[Record], tuple[Any, ...]]


def tables(results: Sequence[Record]) -> Iterator[tuple[Result, list[tuple[Any, ...]]]]:
    """The tables that have rows."""
    for what, kind in RESULTS.items():
        if rows := [kind.cells(record) for record in results if record["what"] == what]:
            yield kind, rows


def _n(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _interval(record: Record) -> str:
    return "-" if record["low"] is None else f"{record['low']:.1f} to {record['high']:.1f}"


RESULTS: dict[str, Result] = {
    "rater": Result(
        "Raters",
        ("rater", "kind", "pairs", "of", "notes", "changed", "seconds"),
        ("kind",),
        lambda r: (r["raters"], r["kind"], r["pairs"], r["of"], r["notes"], r["changed"], _n(r["median_seconds"])),
    ),
    "win_rate": Result(
        "Preferences",
        ("raters", "A", "B", "task", "pairs", "A wins", "B wins", "tie", "both bad", "A preferred %", "95% interval"),
        ("A", "B", "task"),
        lambda r: (
            *(r["raters"], r["a"], r["b"], r["task"] or "all", r["pairs"], r["a_wins"], r["b_wins"], r["ties"]),
            *(r["both_bad"], _n(r["win_rate"]), _interval(r)),
        ),
    ),
    "rating": Result(
        "Ratings",
        ("raters", "candidate", "Bradley-Terry", "95% interval"),
        ("candidate",),
        lambda r: (
            (r["raters"], f"none: {r['missing']}", "-", "-")
            if r["candidate"] is None
            else (r["raters"], r["candidate"], f"{r['rating']:.0f}", f"{r['low']:.0f} to {r['high']:.0f}")
        ),
    ),
    "agreement": Result(
        "Agreement of raters",
        ("raters", "pairs that several rated", "equal %", "Krippendorff's alpha"),
        (),
        lambda r: (r["raters"], r["pairs"], _n(r["equal"]), _n(r["alpha"], 3)),
    ),
    "judge_agreement": Result(
        "Agreement of judges with people",
        ("judge", "pairs with people", "equal %", "Cohen's kappa"),
        (),
        lambda r: (r["raters"], r["pairs"], _n(r["equal"]), _n(r["kappa"], 3)),
    ),
    "position": Result(
        "Position bias",
        ("raters", "ballots", "left preferred %", "95% interval", "same in both orders %"),
        (),
        lambda r: (r["raters"], r["ballots"], _n(r["left"]), _interval(r), _n(r["consistent"])),
    ),
}
