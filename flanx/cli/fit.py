"""`flanx fit`: scaling laws of sweeps, or of the paper's scores, and predictions that are written down."""

import argparse
import os
from collections.abc import Mapping, Sequence

from flanx.cli.table import print_table
from flanx.errors import UserError, nearest
from flanx.files import local_folder
from flanx.laws import law as laws
from flanx.laws import prediction, published_cell
from flanx.laws.cell import VARIABLES, Cell, gather, parse_target
from flanx.laws.form import FORMS
from flanx.laws.law import Law
from flanx.settings import Range, flag, path_flag, text_flag
from flanx.sweep import figures, forecast, law_cells, law_figures, law_section, report, results, statistics
from flanx.sweep.law_cells import LOSS
from flanx.sweep.state import State

FEWEST_DRAWS = Range(40, 2**31 - 1)  # so that one lies beyond each end of a 95% interval


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `flanx fit`."""
    parser.add_argument(
        "sweep",
        nargs="+",
        type=_sweep,
        metavar="SWEEP",
        help="folder of a sweep; or published:3, published:5:T5, published:5:PaLM: the paper's tables",
    )
    parser.add_argument(
        "--scores", type=text_flag, metavar="A,B", help="only these scores (default: all, and the validation loss)"
    )
    parser.add_argument("--form", choices=sorted(FORMS), help="this form, whatever the others predict")
    parser.add_argument(
        "--over", type=text_flag, metavar="A,B", help=f"the variables of the laws, of {', '.join(VARIABLES)}"
    )
    parser.add_argument(
        "--predict",
        action="append",
        metavar="size=540B,tasks=1836",
        help="a cell to predict; may be given again (default: the cells that have not run)",
    )
    parser.add_argument(
        "--draws", type=flag(int, FEWEST_DRAWS), default=laws.DRAWS, help="of the bootstrap (default 1000)"
    )
    parser.add_argument(
        "--out",
        type=path_flag,
        metavar="FOLDER",
        help="of predictions.json and figures/ (default: the sweep's; of several, or of published scores, none)",
    )


def _sweep(text: str) -> str:
    """A path, or the name of published scores."""
    return text if _is_published(text) else path_flag(text)


def run(args: argparse.Namespace) -> int:
    """Prints the laws and predictions, and writes predictions.json and figures if given a folder."""
    figures.expect_matplotlib()
    _expect_different(args.sweep)
    grids = [_read(name) for name in args.sweep]
    if len(set().union(*(grid.validated_on for grid in grids))) > 1:
        print(f"note: {law_cells.NOT_COMPARABLE}")
        for grid in grids:
            grid.cells = law_cells.without_losses(grid.cells)
    cells = _joined(grids, _chosen(args.scores, grids))
    out = args.out or (args.sweep[0] if len(grids) == 1 and not _is_published(args.sweep[0]) else None)
    folder = local_folder(out) if out else None
    before = 0
    if folder:
        before = len(prediction.read(folder / prediction.FILE))  # rejects a modified file before doing any work
    labels = {key: value for grid in grids for key, value in grid.labels.items()}
    targets = [parse_target(text, labels) for text in args.predict or ()]
    over = [name.strip() for name in args.over.split(",")] if args.over else None
    forms = [args.form] if args.form else list(FORMS)
    entries: list[prediction.Entry] = []
    for number, (score, of_score) in enumerate(cells.items(), 1):
        chance = next(grid.chance[score] for grid in grids if score in grid.chance)
        ends = next(grid.ends[score] for grid in grids if score in grid.ends)
        data = gather(of_score, over, chance, score == LOSS, ends)
        if idle := [name for name in over or () if name not in data.variables]:
            why = "not known of every cell, the same in all of them, or given by the others"
            print(f"note: the law of {score} has no {' or '.join(idle)}: {why}")
        law = laws.make(score, data, forms, args.draws)
        wanted = _wanted(law, of_score, targets) if law.draws is not None else []
        predicted = law.predict(wanted)
        _print(law, predicted)
        if law.draws is not None and folder:
            entries += prediction.entries(score, law.choice, predicted)
        if law.draws is not None and not law.is_useful:
            print(laws.undrawn_text(law))
        elif law.draws is not None and folder:
            path = folder / "figures" / f"fit_{number}.svg"
            path.parent.mkdir(parents=True, exist_ok=True)
            hollow = [{"at": p.cell.at, "value": p.value, "low": p.low, "high": p.high} for p in predicted]
            law_figures.draw(law, hollow, f"Scaling of {score}", path)
            print(path.with_suffix(".png"))
    if entries and folder:
        path = folder / prediction.FILE
        new = len(prediction.append(path, entries)) - before
        kept = f"; {len(entries) - new} were there, and stay as they were first written" if new < len(entries) else ""
        print(f"{path}: {new} new predictions{kept}")
    return 0


def _expect_different(names: Sequence[str]) -> None:
    """Raises UserError for a duplicate sweep: its cells would count twice and appear more certain than they are."""
    seen: set[str] = set()
    for name in names:
        place = name if _is_published(name) else os.path.realpath(name)
        if place in seen:
            raise UserError(f"{name} is given twice: give each sweep once")
        seen.add(place)


class _Grid:
    """The cells of one sweep or table, {score: cells}, each score's chance level, which may be below 0, its lower and
    upper bound, the meaning of labels, and what its points were validated on."""

    def __init__(
        self, cells: Mapping[str, list[Cell]], chance: Mapping[str, float], ends: Mapping[str, tuple[float, float]]
    ) -> None:
        self.cells, self.chance, self.ends = cells, chance, ends
        self.labels: Mapping[tuple[str, str], float] = {}
        self.validated_on: set[tuple[tuple[str, int], ...]] = set()


def _is_published(name: str) -> bool:
    return name.startswith(published_cell.PREFIX)


def _read(name: str) -> _Grid:
    """The cells of a sweep folder or of published scores."""
    if _is_published(name):
        found = published_cell.cells(name)
        chances = {score: published_cell.chance(score) for score in found}
        return _Grid(found, chances, {score: published_cell.ends(score) for score in found})
    if not report.is_sweep(name) or name.endswith(".gin"):
        raise UserError(f"{name} is not the folder of a sweep; give one that `flanx sweep` wrote, or published:3")
    sweep = report.read(name)
    outcomes = results.collect(sweep, State(sweep.out_dir).statuses(sweep.points()))
    found = law_cells.cells(sweep, statistics.mean_scores(sweep, outcomes).values(), outcomes)
    chances = {score: law_section.chance(sweep, score) for score in found}
    grid = _Grid(found, chances, {score: law_section.ends(sweep, score) for score in found})
    grid.labels = law_cells.labels(sweep, outcomes)
    grid.validated_on = statistics.validated_on(sweep, outcomes)
    return grid


def _chosen(scores: str | None, grids: Sequence[_Grid]) -> list[str]:
    """The scores to fit: those requested, or all."""
    known = list(dict.fromkeys(score for grid in grids for score in grid.cells))
    if not known:
        raise UserError("nothing to fit: no run of the sweep has a score")
    asked = [text.strip() for text in scores.split(",")] if scores else known
    for score in asked:
        if score not in known:
            raise UserError(f"--scores: no score '{score}'{nearest(score, known)} (scores: {', '.join(known)})")
    return asked


def _joined(grids: Sequence[_Grid], scores: Sequence[str]) -> dict[str, list[Cell]]:
    """{score: the cells of all grids}."""
    return {score: [cell for grid in grids for cell in grid.cells.get(score, [])] for score in scores}


def _wanted(law: Law, cells: Sequence[Cell], targets: Sequence[Mapping[str, float]]) -> list[Cell]:
    """The cells to predict: the targets, under their name in the sweep if they are part of it; else those not run."""
    if not targets:
        return law_section.open_cells(cells, law)
    wanted = []
    for asked in targets:
        target = {name: value for name, value in asked.items() if name in law.choice.data.variables}
        if idle := [name for name in asked if name not in target]:
            print(f"note: the law of {law.score} has no {' or '.join(idle)}: the prediction is the same whatever it is")
        shared = [name for name in law.choice.data.variables if name in target]
        same = [c for c in cells if shared and all(c.at.get(name) == target[name] for name in shared)]
        whole = len(shared) == len(law.choice.data.variables)
        if done := [c for c in same if c.values and whole]:
            text = laws.place_text(done[0], shared)
            raise UserError(f"{text} has been measured ({law.score}: {done[0].mean:.4g}): predict what has not run")
        place = Cell("", target)
        name = same[0].name if same and whole else laws.place_text(place, list(target))
        wanted.append(Cell(name, target))
    return wanted


def _print(law: Law, predicted: Sequence[laws.Predicted]) -> None:
    """The forms, the law and its predictions."""
    print(f"\n{law.score}: {len(law.choice.data.cells)} cells")
    if law.choice.checks:
        rows = [
            [
                name,
                laws.error_text(law, name),
                f"{fit.misfit:.3g}" if len(fit.residuals) else "-",
                fit.problem or "sound",
            ]
            for name, fit in law.choice.fits.items()
        ]
        if law.choice.nearest.count:
            rows.append(["no law", f"{law.choice.nearest.error:.3g}", "-", "the nearest cell's own score"])
        print_table(["form", "error on held-out cells", "misfit", "fit"], rows, left=["error on held-out cells", "fit"])
    if law.draws is None:
        print(law.choice.reason)
        return
    print(f"law: {laws.chosen_text(law)}: {law.formula}")
    print(f"  {laws.parameter_text(law)}")
    if half := laws.half_text(law):
        print(f"  half of the gain of tasks: {half}")
    if law.draws.noise.seeds is not None:
        print(f"  noise: runs of one recipe differ by {law.draws.noise.seeds:.2g} (standard deviation)")
    for each in predicted:
        print(forecast.sentence(law, each))
