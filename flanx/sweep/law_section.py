"""The scaling sections of a sweep's report: the law of each score, predictions and their outcomes."""

import math
import pathlib
import sys
from collections.abc import Mapping, Sequence

from flanx.errors import UserError
from flanx.evals import metrics, registry
from flanx.laws import law as laws
from flanx.laws import prediction
from flanx.laws.cell import Cell, Data, gather
from flanx.laws.form import FORMS
from flanx.laws.law import Law
from flanx.sweep import law_cells, law_figures, score_expressions, statistics
from flanx.sweep.document import Section, Table
from flanx.sweep.grid import Sweep
from flanx.sweep.law_cells import LOSS
from flanx.sweep.results import Outcome
from flanx.sweep.statistics import MeanScore

DRAWS = 300  # bootstrap draws in a report; `flanx fit` uses more
MOST_FIGURES = 3
NOTE = (
    "How each score depends on size (N, parameters), number of tasks (T) and what else varies. Of the forms that fit, "
    "the one with the smallest error on held-out cells (the largest size, the largest number of tasks, the corner) is "
    "chosen; brackets are 95% intervals of a bootstrap over seeds and items. The error of no law is that of the "
    "nearest cell's own score. `flanx fit` has more."
)


def chance(sweep: Sweep, score: str) -> float:
    """The chance score, in percent, for a score that is one suite with a known lower bound; 0 for others."""
    terms = _terms(sweep, score)
    if len(terms) != 1 or terms[0].startswith("normalized"):
        return 0.0
    try:
        spec = registry.resolve(terms[0].partition("|")[0].strip())
    except UserError:
        return 0.0
    return metrics.BOUNDS[spec.family][0] if spec.family in metrics.BOUNDS else 0.0


def ends(sweep: Sweep, score: str) -> tuple[float, float]:
    """The lower and upper bound of a score, or of a loss; infinite where its suite is not known any more."""
    if score == LOSS:
        return 0.0, math.inf
    try:
        return score_expressions.ends(_terms(sweep, score))
    except UserError:
        return -math.inf, math.inf


def _terms(sweep: Sweep, score: str) -> list[str]:
    terms = sweep.scores.get(score, [score])
    return [terms] if isinstance(terms, str) else list(terms)


def data(sweep: Sweep, score: str, cells: Sequence[Cell], over: Sequence[str] | None = None) -> Data:
    """The cells of one of the sweep's scores as data for a law, over these variables or all that vary."""
    return gather(cells, over, chance(sweep, score), score == LOSS, ends(sweep, score))


def fit_all(sweep: Sweep, cells: Mapping[str, Sequence[Cell]]) -> list[Law]:
    """The law of every score."""
    return [laws.make(score, data(sweep, score, of_score), draws=DRAWS) for score, of_score in cells.items()]


def open_cells(cells: Sequence[Cell], law: Law) -> list[Cell]:
    """The cells that have not run and whose coordinates are known."""
    return [c for c in cells if not c.values and all(name in c.at for name in law.choice.data.variables)]


def sections(sweep: Sweep, means: Mapping[tuple, MeanScore], outcomes: Sequence[Outcome]) -> list[Section]:
    """The sections for a sweep with two or more sizes or numbers of tasks; [] for any other."""
    if not law_cells.is_scaling(sweep):
        return []
    cells = law_cells.cells(sweep, means.values(), outcomes)
    out = pathlib.Path(sweep.out_dir)
    made, refused = _read(out / prediction.FILE)
    if not made and not any(law_cells.varies(of_score) for of_score in cells.values()):
        return refused
    found = fit_all(sweep, cells)
    return [_summary(found), *refused, *_predictions(sweep, means, made), *_figures(out, found, cells, made)]


def _read(path: pathlib.Path) -> tuple[list[prediction.Entry], list[Section]]:
    """The predictions; if their file was changed or is damaged, none and a section that says so: the scores are
    reported anyway."""
    try:
        return prediction.read(path), []
    except UserError as error:
        print(f"note: {error}", file=sys.stderr)
        return [], [Section("Predictions", notes=[f"None are shown: {error}"])]


def _summary(found: Sequence[Law]) -> Section:
    """The laws and the forms that they were chosen from; a sentence for each score without a law."""
    sound = [law for law in found if law.draws is not None]
    without: dict[str, list[str]] = {}
    for law in found:
        if law.draws is None:
            without.setdefault(law.choice.reason, []).append(law.score)
    notes = [f"{', '.join(names)}: {reason}" for reason, names in without.items()]
    notes += [f"{law.score}: {laws.undrawn_text(law)}." for law in sound if not law.is_useful]
    if not sound:
        return Section("Scaling law", notes=notes)
    head = ["score", "form", "parameters", "half of the gain of tasks"]
    rows = [
        [law.score, f"{law.choice.chosen}: {law.formula}", laws.parameter_text(law), laws.half_text(law)]
        for law in sound
    ]
    names = [name for name in FORMS if any(law.choice.checks[name].count for law in sound)]
    errors = [
        [
            law.score,
            *(laws.error_text(law, name) for name in names),
            f"{law.choice.nearest.error:.3g}",
            laws.chosen_text(law),
        ]
        for law in sound
    ]
    tables = [Table(head, rows), Table(["error on held-out cells", *names, "no law", "chosen"], errors)]
    return Section("Scaling law", notes=[NOTE, *notes], tables=tables)


def _predictions(sweep: Sweep, means: Mapping[tuple, MeanScore], made: Sequence[prediction.Entry]) -> list[Section]:
    """What was predicted before it ran, and what was measured."""
    if not made:
        return []
    shown = [each for each in means.values() if each.checkpoint == statistics.shown_checkpoint(sweep)]
    found = prediction.verdicts(made, law_cells.finished(shown))
    rows = [
        [
            *(v.entry["cell"], v.entry["score"], v.entry["form"], f"{v.entry['value']:.1f}"),
            f"{v.entry['low']:.1f} to {v.entry['high']:.1f}",
            "-" if v.measured is None else f"{v.measured:.1f}",
            v.text,
            "-" if v.entry["error"] is None else f"{v.entry['error']:.1f}",
            f"{v.entry['made']}, {len(v.entry['seen'])} cells {v.entry['data'][:12]}",
        ]
        for v in found
    ]
    head = ["cell", "score", "form", "predicted", "95% interval", "measured", "verdict", "error before", "made from"]
    note = (
        f"{prediction.coverage(found)} Written into {prediction.FILE} before the cells ran; 'error before' is the mean "
        f"error of the same form on the cells that could be held out then. Last hash: {made[-1]['hash']}."
    )
    return [Section("Predictions", notes=[note], tables=[Table(head, rows)])]


def _figures(
    out: pathlib.Path, found: Sequence[Law], cells: Mapping[str, Sequence[Cell]], made: Sequence[prediction.Entry]
) -> list[Section]:
    """Figures of the first few useful laws; those of predicted scores come first."""
    asked = {entry["score"] for entry in made}
    useful = sorted((law for law in found if law.is_useful), key=lambda law: law.score not in asked)
    result = []
    for number, law in enumerate(useful[:MOST_FIGURES], 1):
        path = out / "figures" / f"law_{number}.svg"
        path.parent.mkdir(exist_ok=True)
        hollow = [e for e in made if e["score"] == law.score and set(law.choice.data.variables) <= set(e["at"])]
        done = {entry["cell"] for entry in hollow}
        open_ones = [c for c in open_cells(cells[law.score], law) if c.name not in done]
        hollow += [
            {"at": each.cell.at, "value": each.value, "low": each.low, "high": each.high}
            for each in law.predict(open_ones)
        ]
        title = f"Scaling of {law.score}"
        law_figures.draw(law, hollow, title, path)
        result.append(Section(title, figure=path, notes=[_caption(law)]))
    return result


def _caption(law: Law) -> str:
    what = "losses" if law.score == LOSS else "scores"
    return (
        "Filled: measured, with two standard errors of the seeds where there are seeds. Hollow: predicted "
        f"{what} of cells that had not run, with 95% intervals. Bands: 95% intervals of the law itself."
    )
