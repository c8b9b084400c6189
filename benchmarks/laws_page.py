"""docs/laws.md and docs/laws/*.png: the paper's printed scores as scaling laws. Remade by this file alone, in a minute.

python benchmarks/laws_page.py --out docs/laws.md
"""

import argparse
import datetime
import importlib.metadata
import itertools
import math
import pathlib
import platform
from collections.abc import Sequence

import numpy as np

from flanx.files import write_atomic
from flanx.laws import fit as fitting
from flanx.laws import law as laws
from flanx.laws import published_cell
from flanx.laws.cell import Cell, Data, gather, quantity
from flanx.laws.form import FORMS
from flanx.laws.law import Law
from flanx.sweep import law_figures
from flanx.sweep.statistics import student_interval

SCORES = ("normalized_average", "mmlu_direct", "mmlu_cot", "bbh_direct", "bbh_cot", "tydiqa", "mgsm_cot")
COMPARED = ("log", "crossed", "saturating", "power", "multiplicative", "logistic")
BIGGEST = 540e9
NOBODY_RAN = (
    ("20B, 1,836 tasks", {"size": 20e9, "tasks": 1836}),
    ("540B, 10,000 tasks", {"size": 540e9, "tasks": 10_000}),
    ("1.8T, 1,836 tasks", {"size": 1.8e12, "tasks": 1836}),
)
DETAILED = ("log", "crossed", "saturating", "multiplicative", "logistic")
DRAWN = ("crossed", "saturating", "log")
COUNTS = (0, 9, 89, 282, 1836)
VERSIONS = ("flanx", "numpy", "scipy")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown, with an empty line after it."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def data_of(name: str, score: str) -> Data:
    """The cells of a published table."""
    ends = published_cell.ends(score)
    return gather(published_cell.cells(name)[score], floor=published_cell.chance(score), ends=ends)


def beyond(data: Data) -> tuple[Data, Data]:
    """(the cells below the largest size, the cells of the largest size)."""
    top = np.array([cell.at["size"] == max(data.levels("size")) for cell in data.cells])
    return data.only(~top), data.only(top)


def misses(data: Data, form: str) -> str:
    """The mean and maximum error on the largest size of a form fitted to the smaller ones."""
    small, large = beyond(data)
    found = fitting.fit(FORMS[form], small, 1)
    if not len(found.residuals):
        return "-"
    errors = np.abs(large.y - found.predict(large.cells))
    return f"{errors.mean():.1f} (at most {errors.max():.1f})"


def normalized_average(law: Law) -> list[str]:
    """The first exhibit: the 15 points."""
    rows = []
    for name in COMPARED:
        found = law.choice.fits[name]
        state = found.problem or "sound"
        error = f"{law.choice.checks[name].error:.1f}"
        rows.append([name, f"{found.misfit:.1f}", error, misses(law.choice.data, name), state])
    rows.append(["no law", "-", f"{law.choice.nearest.error:.1f}", "-", "the score of the nearest cell"])
    saturating = law.choice.fits["saturating"]
    drawn = fitting.bootstrap(saturating)
    values = dict(zip(saturating.names, saturating.values, strict=True))
    ends = {name: drawn.interval(name) for name in saturating.names}
    parts = {name: f"{value:.3g} [{ends[name][0]:.3g}, {ends[name][1]:.3g}]" for name, value in values.items()}
    return [
        "## The normalized average: 15 points of Table 3",
        "",
        "![The law of the normalized average](laws/normalized_average.png)",
        "",
        "Fitted to 8B and 62B alone; hollow: what that predicts of 540B; crosses: what the paper measured there.",
        "",
        *table(["form", "misfit (points)", "error on held-out cells", "540B from 8B and 62B", "fit"], rows),
        f"Chosen: **{law.choice.chosen}**, {law.formula}: {laws.parameter_text(law)}. Of forms whose errors differ "
        f"by less "
        "than 5% the one with fewest parameters is taken; the smallest error of several forms is a little optimistic. "
        "`crossed` was added to the forms after Table 5's T5 family was seen to misfit the others, so its errors on "
        "the paper's own tables are not those of a form that was chosen beforehand.",
        "",
        f"The saturating form: score = c + b_N ln(N/N0) + b_T T/(T + T_half), with b_N = {parts['b_N']}, "
        f"b_T = {parts['b_T']} and half of the gain at T_half = {laws.half_text(law)}.",
        "",
        "The multiplicative joint law of finetuning, A N^-a T^-b + E (arXiv 2402.17193), fits as well as the "
        "logarithm and "
        "predicts badly: the exponents run to 0, where a power is a logarithm, and fitted to 8B and 62B it misses "
        "the 540B "
        f"models by {misses(law.choice.data, 'multiplicative')} points: from so few points its floor cannot be told.",
        "",
    ]


def flattening(data: Data, law: Law) -> list[str]:
    """How much "flattens after 282 tasks" amounts to."""
    scores = {(cell.at["size"], cell.at["tasks"]): cell.mean for cell in data.cells}
    rows, per_doubling = [], {}
    for low, high in itertools.pairwise(COUNTS):
        doublings = math.log2((1 + high) / (1 + low))
        gains = [scores[size, high] - scores[size, low] for size in data.levels("size")]
        rates = [gain / doublings for gain in gains]
        per_doubling[low] = rates
        interval = student_interval(rates) or (math.nan, math.nan)
        each = ", ".join(f"{gain:+.1f}" for gain in gains)
        mean = f"{np.mean(rates):.2f} [{interval[0]:.2f}, {interval[1]:.2f}]"
        rows.append([f"{low:,} to {high:,}", each, f"{np.mean(gains):+.1f}", mean])
    before = [(scores[size, 282] - scores[size, 0]) / math.log2(283) for size in data.levels("size")]
    drops = [after / whole for after, whole in zip(per_doubling[282], before, strict=True)]
    low, high = student_interval(drops) or (math.nan, math.nan)
    last = [scores[size, 1836] - scores[size, 282] for size in data.levels("size")]
    gain_low, gain_high = student_interval(last) or (math.nan, math.nan)
    saturating, log = law.choice.fits["saturating"], law.choice.fits["log"]
    at = [Cell("", {"size": 62e9, "tasks": t}) for t in (282, 1836)]
    said = []
    for found in (saturating, log):
        drawn = fitting.bootstrap(found).predict(at)
        value = found.predict(at)
        ends = fitting.quantiles(drawn[:, 1] - drawn[:, 0])
        said.append(f"{value[1] - value[0]:.1f} [{ends[0]:.1f}, {ends[1]:.1f}] ({found.form.name})")
    return [
        '## "Flattens after 282 tasks", as a number',
        "",
        *table(["tasks", "gain at 8B, 62B, 540B", "mean", "points per doubling of 1 + T, 95% interval"], rows),
        f"From 282 to 1,836 tasks the average rises by {np.mean(last):.1f} points [{gain_low:.1f}, {gain_high:.1f}] "
        f"(Student's t over the three sizes): a doubling of the tasks brings {100 * np.mean(drops):.0f}% "
        f"[{100 * low:.0f}%, {100 * high:.0f}%] of what one brought from 0 to 282. So it flattens, and the gain "
        f"after 282 is "
        f"not nothing. The laws say {said[0]} and {said[1]}: the logarithm overstates the last step, and the choice "
        f"between "
        "them rests on 15 numbers.",
        "",
        "The steps are not the same kind of task: 9 are chain of thought, 80 Muffin, 193 T0-SF, 1,554 NIV2. The "
        "paper cannot "
        "tell the number of tasks from their kind, and nor can a law fitted to it.",
        "",
    ]


def worth(law: Law) -> list[str]:
    """What tasks are worth in model size, and what nobody has run."""
    data = law.choice.data
    log = law.choice.fits["log"]
    drawn = fitting.bootstrap(log)
    gains = drawn.linear[:, log.names.index("b_T")] * math.log(1837) / drawn.linear[:, log.names.index("b_N")]
    values = dict(zip(log.names, log.values, strict=True))
    factor = math.exp(values["b_T"] * math.log(1837) / values["b_N"])
    low, high = fitting.quantiles(np.exp(gains))
    rows = []
    for text, at in NOBODY_RAN:
        row = [text]
        for name in DRAWN:
            one = laws.make("", data, [name])
            row.append(laws.predicted_text(one.predict([Cell("", at)])[0]))
        rows.append(row)
    return [
        "## What nobody ran",
        "",
        *table(["normalized average of", *DRAWN], rows),
        f"Finetuning on 1,836 tasks is worth a model {factor:.1f} times as large [{low:.1f}, {high:.1f}] (log). "
        f"These are "
        "predictions from 15 points of three sizes, their intervals widened where the form "
        "missed held-out cells by more than it expected. 100 is the end of the scale, and both forms ignore it.",
        "",
    ]


def each_score() -> list[str]:
    """Every score of Table 3 separately."""
    rows = []
    for score in SCORES:
        law = laws.make(score, data_of("published:3", score))
        chosen = law.choice.chosen or "none"
        error = f"{law.choice.check.error:.1f}" if law.choice.chosen else "-"
        forms = [misses(law.choice.data, name) for name in DETAILED]
        half = laws.half_text(law) or "no saturation"
        rows.append([score, chosen, error, f"{law.choice.nearest.error:.1f}", *forms, half])
    columns = [f"{name}: 540B" for name in DETAILED]
    head = ["score", "chosen", "held-out error", "no law", *columns, "half of the gain of tasks"]
    return [
        "## Every score apart",
        "",
        *table(head, rows),
        "Columns with 540B: mean and largest error on the five 540B cells, fitted to 8B and 62B. Where the error of "
        "a law is "
        "not below that of no law (the nearest cell's own score), the law knows nothing of that score.",
        "",
    ]


def gains(data: Data) -> list[tuple[float, float, float]]:
    """(size, score without finetuning, gain from finetuning) for each size, the smallest first."""
    scores = {(cell.at["size"], cell.at["tasks"]): cell.mean for cell in data.cells}
    return [(n, scores[n, 0], scores[n, published_cell.WHOLE] - scores[n, 0]) for n in data.levels("size")]


def families(folder: pathlib.Path) -> list[str]:
    """Table 5: T5 and PaLM."""
    rows, said = [], []
    for name in ("T5", "PaLM"):
        data = data_of(f"published:5:{name}", "normalized_average")
        law = laws.make("normalized_average", data)
        forms = [laws.error_text(law, form) for form in COMPARED]
        misfit = f"{law.choice.fit.misfit:.1f}" if law.draws is not None else "-"
        rows.append([name, str(len(data.cells)), law.choice.chosen or "none", misfit, *forms])
        if law.draws is not None:
            title = f"Normalized average of {name} and Flan-{name} (Table 5)"
            law_figures.draw(law, [], title, folder / f"{name.lower()}.svg")
        first, *_, last = gains(data)
        said.append(
            f"{name} gains {first[2]:.1f} points at {quantity(first[0])} (from {first[1]:.1f}) and {last[2]:.1f} at "
            f"{quantity(last[0])} (from {last[1]:.1f})"
        )
    return [
        "## Table 5: the T5 and PaLM families",
        "",
        "![The law of T5 and Flan-T5](laws/t5.png)",
        "",
        "![The law of PaLM and Flan-PaLM](laws/palm.png)",
        "",
        *table(["family", "cells", "chosen", "misfit", *(f"{form}: error" for form in COMPARED)], rows),
        f"{said[0]}; {said[1]}. What finetuning brings grows with size within T5 and shrinks with size within PaLM, "
        f"so a law "
        "of the one family does not carry over to the other. With two numbers of tasks (0 and 1,836) nothing can be "
        "said of "
        "the number of tasks.",
        "",
    ]


def page(out: pathlib.Path) -> str:
    """The text of the page; its figures are written next to it."""
    folder = out.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    data = data_of("published:3", "normalized_average")
    law = laws.make("normalized_average", data)
    small, large = beyond(data)
    of_small = laws.make("normalized_average", small, [law.choice.chosen])
    predicted = [
        {"at": p.cell.at, "value": p.value, "low": p.low, "high": p.high} for p in of_small.predict(large.cells)
    ]
    inside = sum(p["low"] <= cell.mean <= p["high"] for p, cell in zip(predicted, large.cells, strict=True))
    path = folder / "normalized_average.svg"
    law_figures.draw(of_small, predicted, "Normalized average, 540B predicted from 8B and 62B", path, large.cells)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in VERSIONS)
    lines = [
        "# Scaling laws of the paper's own numbers",
        "",
        "`python benchmarks/laws_page.py --out docs/laws.md` makes this page from flanx/evals/published.csv, "
        f"{datetime.date.today().isoformat()}, {versions}, {platform.machine()}, with {laws.DRAWS:,} draws of each "
        f"bootstrap. "
        "How laws are fitted, chosen and written down: [sweeps.md](sweeps.md#laws-and-predictions). The same for "
        "your own "
        "sweep, or for one of these tables:",
        "",
        "    flanx fit published:3 --scores=normalized_average --predict=size=1.8T,tasks=1836",
        "",
        "Errors are of cells that the fit has not seen: the largest size, the largest number of tasks, and the "
        "corner of "
        "both; brackets are 95% intervals. The paper prints single runs, so the noise is what a law misses by.",
        "",
        *normalized_average(law),
        f"Of the five 540B points {inside} lie inside the 95% intervals that {law.choice.chosen} gave from 8B and 62B.",
        "",
        *flattening(data, law),
        *worth(law),
        *each_score(),
        *families(folder),
    ]
    for figure in folder.glob("*.svg"):  # the docs use the .png
        figure.unlink()
    return "\n".join(lines).rstrip("\n") + "\n"


def main() -> None:
    """Writes the page and its figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("docs/laws.md"))
    args = parser.parse_args()
    write_atomic(args.out, page(args.out))
    print(args.out)


if __name__ == "__main__":
    main()
