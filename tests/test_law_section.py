"""The laws of a sweep in its report: cells, predictions and verdicts, and a sentence wherever nothing can be fitted."""

import json

import numpy as np
import pytest

from flanx.laws import law as laws
from flanx.laws import prediction
from flanx.laws.cell import gather
from flanx.sweep import law_cells, law_figures, law_section, report, results, statistics
from flanx.sweep.state import State
from tests import law_maker, sweep_maker
from tests.sweep_maker import entry

SIZES = {"d1": 1e6, "d2": 4e6, "d3": 16e6}
COUNTS = (0, 9, 89, 282)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """A bootstrap that takes no time."""
    monkeypatch.setattr(law_section, "DRAWS", 30)


def make(out, sizes=tuple(SIZES), counts=COUNTS, seeds=(0, 1), **more):
    """A sweep of sizes and numbers of tasks."""
    axes = {"size": {s: [] for s in sizes}, "tasks": {n: [f"NUM_TASKS={n}"] for n in counts}}
    axes["seed"] = {n: [f"SEED={n}"] for n in seeds}
    figures = {"one": {"x": "tasks", "series": "size"}}
    return sweep_maker.make(out, axes=axes, figures=figures, **{"bindings": {}} | more)


def leave(sweep, skip=(), score=None):
    """What its runs leave: scores by a logarithm with a little noise of the seeds, but for the cells in `skip`."""
    random = np.random.default_rng(0)
    for point in sweep.points():
        labels = point.labels
        noise = float(random.normal(0, 0.5))
        if f"{labels['size']}_{labels['tasks']}" in skip:
            continue
        value = law_maker.truth("log", SIZES[labels["size"]], int(labels["tasks"])) + noise if score is None else score
        sweep_maker.leave(point.folder, {5: {"held_out": entry(value)}}, int(SIZES[labels["size"]]))
        record = json.loads((point.folder / "run.json").read_text())
        record["data"]["mixture"] = {"tasks": int(labels["tasks"]), "missing": {}, "cot_share": 0.1}
        record["data"] |= {"batch_size": 8, "lengths": {"inputs": 64, "targets": 24}}
        record["settings"] = {"t5.T5.emb_dim": 5}
        (point.folder / "run.json").write_text(json.dumps(record))


def cells_of(sweep, planned=None):
    """The cells of its score by name."""
    outcomes = results.collect(sweep, State(sweep.out_dir).statuses(sweep.points()))
    means = statistics.mean_scores(sweep, outcomes)
    return {cell.name: cell for cell in law_cells.cells(sweep, means.values(), outcomes, planned)["held_out"]}


def test_cells_have_their_runs_scores_and_lie_where_the_runs_say(tmp_path):
    sweep = make(tmp_path)
    leave(sweep, skip=("d3_282", "d2_9"))
    found = cells_of(sweep)
    tokens = 5 * 8 * 88
    assert found["d1_9"].at == {"size": 1e6, "tasks": 9, "cot": 0.1, "tokens": tokens, "flops": 3e6 * tokens}
    assert len(found["d1_9"].values) == 2 and found["d1_9"].item_error == pytest.approx(2.0 / 1.96, rel=1e-3)
    assert found["d2_9"].values == () and found["d2_9"].at == found["d1_9"].at | {"size": 4e6, "flops": 12e6 * tokens}


def test_a_size_that_never_ran_is_as_planned_or_as_its_label_says(tmp_path):
    sweep = make(tmp_path, sizes=("d1", "d2", "8M"))
    leave(sweep, skip=[f"8M_{n}" for n in COUNTS])
    assert cells_of(sweep)["8M_9"].at["size"] == 8e6 and cells_of(sweep)["8M_9"].at["tasks"] == 9
    sweep = make(tmp_path / "two", sizes=("d1", "d2", "d3"))
    leave(sweep, skip=[f"d3_{n}" for n in COUNTS])
    assert "size" not in cells_of(sweep)["d3_9"].at
    planned = {p.name: {"size": 7e6} for p in sweep.points()}
    assert cells_of(sweep, planned)["d3_9"].at["size"] == 7e6 and cells_of(sweep, planned)["d1_9"].at["size"] == 1e6


def publish(sweep):
    """The report as text; every part of it is made."""
    report.publish(sweep, State(sweep.out_dir))
    return (law_section.pathlib.Path(sweep.out_dir) / "report.md").read_text()


def test_the_report_has_the_law_and_verdicts_of_what_was_predicted_before_it_ran(tmp_path, capsys):
    sweep = make(tmp_path, compare={"size": "d1"})
    leave(sweep, skip=("d3_282", "d3_89"))
    cells = cells_of(sweep)
    law = law_section.fit_all(sweep, {"held_out": list(cells.values())})[0]
    predicted = law.predict([cells["d3_282"], cells["d3_89"]])
    prediction.append(tmp_path / prediction.FILE, prediction.entries("held_out", law.choice, predicted))
    text = publish(sweep)
    assert "| held_out | log: c + b_N ln(N/N0) + b_T ln(1 + T); N0 = " in text
    assert "2 predictions, none measured yet." in text and text.count("not measured yet |") == 2
    assert (tmp_path / "figures" / "law_1.png").exists() and "law_1.svg" not in text
    assert "## Noise floor" in text
    leave(sweep, skip=("d3_89",))
    assert "1 of 1 measured cells lie inside their 95% intervals (100%); 1 predictions are still open." in publish(
        sweep
    )
    page = (tmp_path / "report.html").read_text()
    assert "<td>inside</td>" in page
    path = tmp_path / prediction.FILE
    path.write_text(path.read_text().replace('"value": ', '"value": 1'))
    text = publish(sweep)  # of the scores; the predictions are no longer proof of anything
    assert "None are shown: " in text and "was changed after it was written" in text and "measured yet" not in text
    assert "was changed after it was written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("grid", "left", "sentence"),
    [
        ({"sizes": ["d1"], "counts": [9]}, {}, None),
        ({"sizes": ["d1"]}, {"score": 0.0}, "every cell scores 0."),
        ({}, {"score": 40.0}, "every cell scores 40."),
        ({"counts": [9], "sizes": ["d1", "d2"]}, {}, "2 cells have a score, and 4 are the least"),
        ({"seeds": [0]}, {}, "| held_out | log: "),
        ({"seeds": [0], "counts": [9, 89], "sizes": ["d1", "d2"]}, {}, "it needs 5"),
        ({}, {"skip": [f"d{s}_{t}" for s in (2, 3) for t in COUNTS]}, "b_T ln(1 + T)"),
        ({}, {"skip": [f"d{s}_{t}" for s in (1, 2, 3) for t in COUNTS]}, None),
    ],
    ids=["one cell", "zeros", "equal", "two cells", "one seed", "four cells", "one size ran", "nothing ran"],
)  # fmt: skip
def test_where_there_is_nothing_to_fit_a_sentence_says_so(grid, left, sentence, tmp_path):
    sweep = make(tmp_path, **grid)
    leave(sweep, **left)
    text = publish(sweep)
    assert ("## Scaling law" in text) == (sentence is not None)
    assert sentence is None or sentence in text


def test_a_law_that_is_no_better_than_none_is_not_drawn_and_the_report_says_why(tmp_path):
    sweep = make(tmp_path, sizes=("d1", "d2", "d3"), counts=(9, 89), seeds=(0,))
    for point in sweep.points():  # what the third size adds is nothing, which no form has seen before it is held out
        score = {"d1": 20.0, "d2": 60.0, "d3": 61.0}[point.labels["size"]] + int(point.labels["tasks"]) / 100
        leave(sweep, score=score, skip=[p.name.rpartition("_")[0] for p in sweep.points() if p != point])
    text = publish(sweep)
    assert "held_out: no figure, as on held-out cells the law (" in text and "own score, " in text
    assert "(no better than no law)" in text and not (tmp_path / "figures" / "law_1.png").exists()


def test_bands_of_a_law_end_where_scores_do(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    grid = [law_maker.cell(n, t, [max(0.0, 3 * np.log1p(t) - 2) + e for e in (0.0, 1.5)])
            for n in law_maker.SIZES for t in (0, 9, 89)]  # fmt: skip
    law = laws.make("score", gather(grid), ["log"], 40)
    assert (law.draws.predict([law_maker.cell(1e6, 0)]) < 0).any()  # else the test shows nothing
    kept = []

    def seen(canvas, path):
        bands = [place for each in canvas.axes[0].collections for one in each.get_paths() for place in one.vertices]
        kept.extend([*bands, *(place for line in canvas.axes[0].lines for place in line.get_xydata())])

    monkeypatch.setattr(law_figures, "save", seen)
    law_figures.draw(law, [], "t", tmp_path / "f.svg")
    assert len(kept) > 100 and min(y for _, y in kept) == 0.0


def test_a_laws_scores_end_where_the_sweeps_do(tmp_path):
    sweep = make(tmp_path)
    assert law_section.ends(sweep, "held_out") == (0.0, 100.0)
    assert law_section.ends(sweep, "normalized mmlu_cot") == (-np.inf, 100.0)
    assert law_section.ends(sweep, "muffin_stsb:validation") == (-np.inf, np.inf)  # a correlation
    assert law_section.ends(sweep, law_cells.LOSS) == (0.0, np.inf)
    assert law_section.ends(sweep, "a suite that was removed") == (-np.inf, np.inf)
