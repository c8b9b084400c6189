"""The results of a sweep: the step that is chosen for each point."""

import json

import pytest

from flanx.cli.main import main
from flanx.errors import UserError
from flanx.sweep import grid, law_cells, report, results, statistics
from tests import sweep_maker
from tests.sweep_maker import entry


def test_points_of_one_model_share_the_step_that_is_best_for_their_mean(tmp_path):
    sweep = sweep_maker.make(tmp_path, choose_by=["suite_rule"], choose_per=["size"])
    curves = {"d1_2": {5: 10, 10: 20, 15: 90}, "d1_8": {5: 30, 10: 25}, "d2_2": {0: 3}, "d2_8": {5: 1, 10: 2}}
    for point in sweep.points():
        made = {step: {"suite_rule": entry(score)} for step, score in curves[point.name].items()}
        sweep_maker.leave(point.folder, made)
    # only one has step 15; 10 has the better mean; a parent that is only evaluated is a group of its own
    assert results.choices(sweep, sweep.points()) == {"d1_2": 10, "d1_8": 10, "d2_2": 0, "d2_8": 10}


def test_a_damaged_record_is_named_and_the_others_are_reported(tmp_path, capsys):
    sweep = sweep_maker.make(tmp_path)
    for point in sweep.points():
        sweep_maker.leave(point.folder, {5: {"suite_rule": entry(12.5)}})
    folder = tmp_path / "runs" / "d1_2"
    (folder / "evals" / "step_5" / "scores.json").write_text('{"suites": {"suite_rule": {"score": "x"}}}')
    (folder / "run.json").write_text('{"num_params": [1]}')
    (folder / "evals" / "step_x").mkdir()
    (folder / "evals" / "step_x" / "scores.json").write_text("{")
    found = results.collect(sweep, {point.name: ("done", "") for point in sweep.points()})
    assert [len(each.suites) for each in found] == [0, 1, 1, 1] and not found[0].run
    said = capsys.readouterr().err
    assert "'score' is 'x', it takes a number" in said and "'num_params' is [1]" in said


def test_losses_of_different_examples_are_ranked_apart_and_no_law_is_fitted_to_them(tmp_path, capsys):
    sweep = sweep_maker.make(tmp_path)
    losses = {"d1_2": 1.5, "d1_8": 0.5, "d2_2": 1.25, "d2_8": 0.75}

    def validate(tasks_of):
        for number, point in enumerate(sweep.points()):
            sweep_maker.leave(point.folder, {4: {"suite_rule": entry(10.0 + number)}})
            tasks = {f"task_{n}": {"loss": 1.0, "tokens": 50} for n in range(tasks_of(point.labels["tasks"]))}
            record = {"step": 4, "validation": {"loss": losses[point.name], "tasks": tasks, "collections": {}}}
            (point.folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")
        outcomes = results.collect(sweep, {p.name: ("done", "") for p in sweep.points()})
        means = statistics.mean_scores(sweep, outcomes).values()
        (section,) = report.validation(sweep, outcomes)
        return section, law_cells.cells(sweep, means, outcomes)

    section, cells = validate(lambda label: int(label))  # each on the tasks that it was trained on
    table = section.tables[0]
    assert [row[0] for row in table.rows] == ["d2_2", "d1_2", "d1_8", "d2_8"] and table.head[-1] == "validated on"
    assert [row[-1] for row in table.rows] == ["2 tasks, 100 tokens"] * 2 + ["8 tasks, 400 tokens"] * 2
    assert "The lowest of the 2 validated on 2 tasks, 100 tokens is d2_2's, 1.2500 at step 4." in section.notes
    assert "no law is fitted to them" in section.notes[-1]
    assert law_cells.LOSS not in cells and all(cell.loss is None for of_score in cells.values() for cell in of_score)
    (tmp_path / grid.RECORD).write_text(grid.record(sweep))
    main(["fit", str(tmp_path), "--form=log", "--draws=40"])
    assert "note: Validation losses of different examples do not compare" in capsys.readouterr().out
    section, cells = validate(lambda label: 3)
    assert {cell.loss for cell in cells["suite_rule"]} == set(losses.values())
    joined = law_cells.without_losses(cells)  # as `flanx fit` of two sweeps that do not compare
    assert list(joined) == ["suite_rule"] and {cell.loss for cell in joined["suite_rule"]} == {None}
    assert [row[0] for row in section.tables[0].rows] == ["d1_8", "d2_8", "d2_2", "d1_2"]
    assert len(section.tables[0].head) == 3 and section.notes == ["The lowest is d1_8's, 0.5000 at step 4."]
    assert {cell.name: cell.values for cell in cells[law_cells.LOSS]} == {n: (loss,) for n, loss in losses.items()}


def test_validation_loss_chooses_the_step_and_scores_do_not(tmp_path):
    sweep = sweep_maker.make(tmp_path, tasks=(2,), choose_by=["validation loss"])
    for point in sweep.points():
        sweep_maker.leave(point.folder, {step: {"suite_rule": entry(10 * step)} for step in (2, 4, 6)})
        losses = {2: (1.5, 0.25), 3: (0.5, 0.75), 4: (1.25, 0.5), 6: (1.75, 0.75)}  # at 3 there is no evaluation
        records = [{"step": 2, "loss": 0.1}]
        records += [
            {"step": step, "validation": {"loss": loss, "collections": {"cot": {"loss": other}}}}
            for step, (loss, other) in losses.items()
        ]
        (point.folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert results.choices(sweep, sweep.points()) == {"d1_2": 4, "d2_2": 4}
    of_cot = sweep_maker.make(tmp_path, tasks=(2,), choose_by=["validation loss:cot"])
    assert results.choices(of_cot, sweep.points()) == {"d1_2": 2, "d2_2": 2}
    assert statistics.scores(sweep, results.collect(sweep, {p.name: ("done", "") for p in sweep.points()}))
    assert "lowest validation loss" in report.selection_rule(sweep)
    lower = sweep.points()[1].folder / "metrics.jsonl"
    lower.write_text(lower.read_text().replace('"loss": 1.25', '"loss": 0.75'))
    outcomes = results.collect(sweep, {p.name: ("done", "") for p in sweep.points()})
    assert [o.validation_loss for o in outcomes] == [1.75, 1.25, 1.75, 0.75]  # last and chosen of each
    (section,) = report.validation(sweep, outcomes)
    assert "The lowest is d2_2's, 0.7500 at step 4." in section.notes[0]
    assert [row[0] for row in section.tables[0].rows] == ["d2_2", "d1_2"]
    assert ",chosen,4,0.75,suite_rule," in results.table(sweep, outcomes)
    (sweep.points()[0].folder / "metrics.jsonl").write_text("")
    assert results.choices(sweep, sweep.points()) == {"d2_2": 4}
    with pytest.raises(UserError, match="name validation loss alone"):
        results.choices(sweep_maker.make(tmp_path, choose_by=["validation loss", "suite_rule"]), [])
