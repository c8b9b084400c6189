"""The contrasts that answer the questions of design.md, from the folders of both sweeps, as answers.csv.

    python docs/findings/home/answers.py out/home/figure4 out/home/figure5 > answers.csv

A contrast is a weighted sum of scores within one seed; its mean over the seeds has a 95% interval by Student's t. "yes"
and "no" where the interval leaves zero on the side that the question hopes for or on the other.
"""

import csv
import pathlib
import statistics as numbers
import sys
from collections.abc import Mapping

from flanx.sweep import results, score_expressions, statistics
from flanx.sweep.grid import recorded
from flanx.sweep.state import State

SIZES = ("d48", "d64", "d96")
Term = tuple[float, str, str, str]  # weight, tasks or data, size, score
MEAN = "held-out mean"
UNTRAINED = ("0", "none")  # the pretrained model, which has no seed: one run stands for all
EARLY, LATE = 4.9696, 2.7028  # doublings from 9 to 282 and from 282 to 1,836 tasks


def contrasts() -> list[tuple[int, str, list[Term]]]:
    """(question, what, terms), each with a plus sign where the answer is yes."""
    found: list[tuple[int, str, list[Term]]] = []
    for size in SIZES:
        found.append((1, f"{size}: 1,836 tasks - 9", [(1, "1836", size, MEAN), (-1, "9", size, MEAN)]))
    for tasks in ("89", "282", "1836"):
        found.append((2, f"{tasks} tasks: d96 - d48", [(1, tasks, "d96", MEAN), (-1, tasks, "d48", MEAN)]))
    for size in SIZES:
        early = [(0.5 / EARLY, "282", size, MEAN), (-0.5 / EARLY, "9", size, MEAN)]
        late = [(-1 / LATE, "1836", size, MEAN), (1 / LATE, "282", size, MEAN)]
        found.append((3, f"{size}: half a doubling's gain to 282 - a doubling's after", [*early, *late]))
    one = "d64"
    for question, what, plus, minus in (
        (4, "with steps: all 1,836 - the 1,827", ("both", "with steps"), ("direct", "with steps")),
        (4, "notation: no finetuning - the 1,827", ("none", "notation"), ("direct", "notation")),
        (5, "1,836: trigger - plain", ("both", "compositions, trigger"), ("both", "compositions, plain")),
        (5, "1,827: plain - trigger", ("direct", "compositions, plain"), ("direct", "compositions, trigger")),
        (6, "1,836, walks: vote - greedy", ("both", "walks, vote"), ("both", "walks, trigger")),
        (6, "1,836, compositions: vote - greedy", ("both", "compositions, vote"), ("both", "compositions, trigger")),
    ):
        found.append((question, what, [(1, plus[0], one, plus[1]), (-1, minus[0], one, minus[1])]))
    for size in SIZES:
        terms: list[Term] = [(1, "282", size, "second language"), (-1, "0", size, "second language")]
        found.append((7, f"{size}: 282 tasks - none, second language", terms))
    return found


def read(folder: str) -> dict[tuple[str, str, str, str], float]:
    """{(tasks or data, size, seed, name of the score): score} of a sweep."""
    sweep = recorded(pathlib.Path(folder))
    outcomes = results.collect(sweep, State(folder).statuses(sweep.points()))
    found = {}
    for outcome in outcomes:
        labels: Mapping[str, str] = outcome.point.labels
        for name, terms in statistics.scores(sweep, outcomes).items():
            value = score_expressions.value(terms, outcome.suites)
            if not isinstance(value, str):
                key = (labels.get("tasks") or labels["data"], labels["size"], labels["seed"], name)
                found[key] = value.score
    return found


def main(folders: list[str]) -> None:
    found = {key: value for folder in folders for key, value in read(folder).items()}
    seeds = sorted({key[2] for key in found})
    for (row, size, _, score), value in list(found.items()):
        if row in UNTRAINED:
            found |= {(row, size, seed, score): value for seed in seeds}
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(("question", "what", "mean", "runs", "low", "high", "each", "answer"))
    for question, what, terms in contrasts():
        keys = {seed: [(weight, (row, size, seed, score)) for weight, row, size, score in terms] for seed in seeds}
        each = [sum(w * found[k] for w, k in keys[s]) for s in seeds if all(k in found for _, k in keys[s])]
        if not each:
            out.writerow((question, what, "", 0, "", "", "", "not run"))
            continue
        low, high = statistics.student_interval(each) or (float("nan"), float("nan"))
        answer = "yes" if low > 0 else "no" if high < 0 else "not settled"
        row = (f"{value:.3f}" for value in (numbers.fmean(each), low, high))
        mean, low_text, high_text = row
        out.writerow((question, what, mean, len(each), low_text, high_text, " ".join(f"{v:.3f}" for v in each), answer))


if __name__ == "__main__":
    main(sys.argv[1:])
