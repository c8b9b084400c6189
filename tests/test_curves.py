"""The curves of runs from their records: with and without sources, validation and scores, whole, cut short, damaged."""

import json
import pathlib

import pytest

from flanx.errors import UserError
from flanx.sweep import curves
from tests import run_maker
from tests.sweep_maker import entry


def by_title(*names: pathlib.Path) -> dict[str, curves.Panel]:
    return {panel.title: panel for panel in curves.panels(curves.read_runs([str(name) for name in names]))}


def test_every_panel_of_a_run_has_its_curves(tmp_path: pathlib.Path) -> None:
    run_maker.leave(tmp_path / "a")
    scores = tmp_path / "a" / "evals" / "step_1000" / "scores.json"
    scores.parent.mkdir(parents=True)
    scores.write_text(json.dumps({"suites": {"own_x:test": entry(40.0)}}))
    found = by_title(tmp_path / "a")
    assert found["Training loss"].curves == {"": [(s, run_maker.loss(s)) for s in range(50, 1001, 50)]}
    assert set(found["Training loss by collection"].curves) == {"cot", "muffin"}
    assert found["Validation loss"].curves["all tokens"] == [
        (s, run_maker.loss(s) + 0.2) for s in (250, 500, 750, 1000)
    ]
    assert set(found["Validation loss by collection"].curves) == {"cot", "muffin"}
    rate = dict(found["Learning rate"].curves[""])
    assert rate[500] == pytest.approx(0.025) and rate[1000] == pytest.approx(0.0)
    assert found["Padding"].curves[""][0] == (50, 0.05) and found["Speed"].curves[""][0] == (50, 20050.0)
    assert found["Held-out scores"].curves == {"own_x:test": [(1000, 40.0)]}
    assert found["Model FLOPs utilisation"].curves == {"": [(s, 0.4) for s in range(50, 1001, 50)]}
    spent = found["Where the time goes"].curves
    assert list(spent) == ["goodput", "input", "step", "checkpoint", "evaluation", "compile"]
    assert spent["goodput"][0] == (50, 0.9) and spent["input"][0] == (50, 0.25) and spent["step"][0] == (50, 0.75)
    assert found["Memory at its peak"].curves == {"host": [(s, 2.0) for s in range(50, 1001, 50)]}
    (first, second) = curves.task_losses(curves.read_runs([str(tmp_path / "a")])[0])
    assert (first.task, first.examples, first.tokens) == ("muffin_a", 36, 400) and first.validation is None
    assert second.validation == pytest.approx(run_maker.loss(1000) + 0.2)
    assert second.last == pytest.approx(run_maker.loss(1000)) and second.first == pytest.approx(run_maker.loss(250))
    assert second.loss == pytest.approx(sum(map(run_maker.loss, (250, 500, 750, 1000))) / 4)


def test_a_run_that_records_less_says_what_it_lacks(tmp_path: pathlib.Path) -> None:
    run_maker.leave(tmp_path / "old", sources=False)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "run.json").write_text("{}")
    found = by_title(tmp_path / "old", tmp_path / "new")
    assert set(found["Training loss"].curves) == {"old"}
    empty = {title: panel.absent for title, panel in found.items() if not panel.curves}
    assert set(empty) == {
        "Training loss by collection", "Validation loss", "Validation loss by collection", "Held-out scores",
        "Model FLOPs utilisation", "Where the time goes", "Memory at its peak",
    }  # fmt: skip
    assert "no run has been validated (VALIDATION)" in empty["Validation loss"]
    assert curves.task_losses(curves.read_runs([str(tmp_path / "old")])[0]) == []


def test_runs_are_named_by_the_shortest_ends_of_their_paths(tmp_path: pathlib.Path) -> None:
    names = [tmp_path / one / "run" for one in ("x", "y")]
    for name in names:
        run_maker.leave(name)
    assert [run.name for run in curves.read_runs([str(name) for name in names])] == ["x/run", "y/run"]
    assert set(by_title(*names)["Training loss by collection"].curves) == {
        f"{one}/run {c}" for one in "xy" for c in run_maker.COLLECTIONS
    }


def test_a_line_that_is_still_written_is_left_for_later(tmp_path: pathlib.Path) -> None:
    run_maker.leave(tmp_path / "a", done=False)
    whole = curves.read_runs([str(tmp_path / "a")])[0]
    with open(tmp_path / "a" / "metrics.jsonl", "a") as file:
        file.write('{"step": 1050, "lo')
    again = curves.read_runs([str(tmp_path / "a")])[0]
    assert again.records == whole.records and again.step == 1000 and not again.done


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("metrics.jsonl", "{]\n", r"metrics.jsonl:2: not a JSON object"),
        ("metrics.jsonl", '{"loss": 1.0}\n', r"metrics.jsonl:2: no 'step'"),
        ("metrics.jsonl", '{"step": 5, "loss": "low"}\n', r"metrics.jsonl:2 is damaged: 'loss' is 'low'"),
        ("metrics.jsonl", '{"step": 5, "sources": {"a": {"loss": []}}}\n', r":2 is damaged: 'loss' is \[\]"),
        ("tasks.jsonl", '{"step": 5, "tasks": {"a": {"loss_sum": "x"}}}\n', r"tasks.jsonl:2 is damaged: 'loss_sum'"),
    ],
)
def test_damaged_lines_are_named(tmp_path: pathlib.Path, file: str, text: str, said: str) -> None:
    run_maker.leave(tmp_path / "a")
    path = tmp_path / "a" / file
    path.write_text(path.read_text().splitlines(keepends=True)[0] + text)
    with pytest.raises(UserError, match=said):
        curves.read_runs([str(tmp_path / "a")])


def test_what_is_no_run_is_named(tmp_path: pathlib.Path) -> None:
    run_maker.leave(tmp_path / "a")
    for name, said in ((tmp_path, "is not a run, as it has neither"), (tmp_path / "b", "is not a folder")):
        with pytest.raises(UserError, match=said):
            curves.read_runs([str(tmp_path / "a"), str(name)])
    with pytest.raises(UserError, match="is given twice"):
        curves.read_runs([str(tmp_path / "a"), str(tmp_path / "a" / ".." / "a")])


def test_a_long_curve_is_thinned_by_means() -> None:
    found = curves.thinned([(step, float(step % 2)) for step in range(1, 4001)])
    assert len(found) <= curves.MOST_POINTS and found[-1][0] == 4000
    assert all(0.3 < value < 0.7 for _, value in found)
