"""Cells that run last, after their prediction has been written."""

import dataclasses
import json
import pathlib
import sys

import pytest

from flanx import bucket
from flanx.cli import sweep as cli
from flanx.errors import UserError
from flanx.laws import prediction
from flanx.sweep import forecast, grid, scheduler
from flanx.sweep.dependencies import Parent
from flanx.sweep.scheduler import Launcher
from flanx.sweep.state import State
from tests import bucket_case, sweep_maker

COUNTS = (1, 3, 9, 27, 60)
LATE = [{"size": ["d2"], "tasks": [60]}]
STAND_IN = sweep_maker.STAND_IN.replace('{"store": {"hash": "5707e"}}', '{"store": {"hash": "5707e"}, "mixture": '
                                        '{"tasks": int(bound["TASKS"])}}')  # fmt: skip


@pytest.fixture
def sweep(tmp_path, monkeypatch) -> grid.Sweep:
    """Two sizes, five numbers of tasks, the last corner late; sizes of late points as planned without a model."""
    monkeypatch.setattr(forecast, "planned", lambda points, paths: {p.name: {"size": 2000.0} for p in points})
    (tmp_path / "out").mkdir()
    return sweep_maker.make(tmp_path / "out", COUNTS, predict_first=LATE)


def run(sweep: grid.Sweep, capsys, stand_in: str = STAND_IN) -> str:
    """Runs it as the command does."""
    launcher = Launcher([sys.executable, "-c", stand_in])
    cli.run_points_and_predict(sweep, sweep.points(), 2, "", launcher, {}, {})
    return capsys.readouterr().out


def test_late_cells_run_last_and_their_prediction_is_written_before(sweep, capsys):
    assert "predicted: d2_60, held_out: " in run(sweep, capsys)
    out = pathlib.Path(sweep.out_dir)
    assert sweep_maker.runs(out)[-1] == "d2_60" and len(sweep_maker.runs(out)) == 10
    [entry] = prediction.read(out / prediction.FILE)
    assert entry["cell"] == "d2_60" and entry["at"]["size"] == 2000 and "d2_60" not in entry["seen"]
    assert len(entry["seen"]) == 9
    begun = State(out).read()["d2_60"]["at"]
    assert (out / prediction.FILE).stat().st_mtime <= begun
    before = (out / prediction.FILE).read_text()
    assert run(sweep, capsys).count("predicted:") == 0  # what has run is not predicted again
    assert (out / prediction.FILE).read_text() == before


def test_drivers_in_a_bucket_write_one_chain_before_the_late_cells_run(sweep, tmp_path, monkeypatch):
    """Another driver may write between this one's reading and writing."""
    first, late = forecast.split(sweep, sweep.points(), {})
    scheduler.run_points(first, 2, "", sweep_maker.no_show, (sys.executable, "-c", STAND_IN))
    kept = {p.relative_to(tmp_path).as_posix(): p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    monkeypatch.setenv("FLANX_CACHE", str(tmp_path / "cache"))
    predicted, others = forecast._predicted, []

    def meanwhile(*arguments):
        lines, new = predicted(*arguments)
        if others:
            text = prediction.text(prediction.extended([], others.pop()(new)))
            service.objects["out/predictions.json"] = text.encode(), 777
        return lines, new

    monkeypatch.setattr(forecast, "_predicted", meanwhile)
    with bucket_case.service() as service:
        for other, own in ((lambda new: [new[0] | {"score": "another"}], 1), (lambda new: new, 0)):
            service.objects.clear()
            service.objects |= {name: (content, 5) for name, content in kept.items()}
            others.append(other)
            with bucket.copied(["gs://bucket/out"]) as (copy,):
                here = dataclasses.replace(sweep, out_dir=copy)
                lines = forecast.write(here, late, forecast.planned(late, ""))
                made = prediction.read(pathlib.Path(copy) / prediction.FILE)
                assert service.objects["out/predictions.json"][0] == prediction.text(made).encode()
            assert len(made) == 1 + own and made[-1]["cell"] == "d2_60"
            assert lines[-1:] == ["written before these cells run: gs://bucket/out/predictions.json"] * own


def test_what_only_runs_know_is_no_variable_of_a_prediction(sweep, capsys):
    """The share of chain of thought in the data of Proportion A, which goes up and down with the number of tasks."""
    share = '"cot_share": int(bound["TASKS"]) * 7 % 10 / 10, "tasks":'
    sweep = dataclasses.replace(sweep, predict_first=[{"tasks": [60]}])
    assert "predicted: d2_60, held_out: " in run(sweep, capsys, STAND_IN.replace('"tasks":', share))


def test_what_is_not_predictable_says_so_and_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(forecast, "planned", lambda points, paths: {p.name: {"size": 2000.0} for p in points})
    (tmp_path / "few").mkdir()
    sweep = sweep_maker.make(tmp_path / "few", (1, 3), predict_first=[{"size": ["d2"]}])
    assert "held_out: not predicted. No law is fitted: 2 cells have a score" in run(sweep, capsys)
    assert sorted(sweep_maker.runs(tmp_path / "few")[2:]) == ["d2_1", "d2_3"]
    assert not (tmp_path / "few" / prediction.FILE).exists()


def test_a_condition_holds_by_all_its_axes_and_a_point_by_any_condition(tmp_path):
    sweep = sweep_maker.make(tmp_path, predict_first=[{"size": ["d2"]}, {"tasks": [8]}])
    assert [p.name for p in sweep.points() if forecast.is_late(sweep, p)] == ["d1_8", "d2_2", "d2_8"]
    corner = sweep_maker.make(tmp_path, predict_first=[{"size": ["d2"], "tasks": [8]}])
    assert [p.name for p in corner.points() if forecast.is_late(corner, p)] == ["d2_8"]
    first, late = forecast.split(corner, corner.points(), {})
    assert [p.name for p in late] == ["d2_8"] and len(first) == 3
    with pytest.raises(UserError, match="d1_2 starts from d2_8, which is to run last"):
        forecast.split(corner, corner.points(), {"d1_2": Parent(pathlib.Path("x"), False, "d2_8")})


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ([{"sizes": ["d2"]}], "no axis 'sizes' to predict along; did you mean 'size'"),
        ([{"size": ["d3"]}], "axis 'size' has no 'd3'"),
        ([{"size": ["d1", "d2"]}], "names every cell"),
    ],
)
def test_conditions_are_checked(conditions, message, tmp_path):
    with pytest.raises(UserError, match=message):
        forecast.check(sweep_maker.make(tmp_path, predict_first=conditions))


def test_a_sweep_that_was_recorded_before_has_no_conditions(tmp_path):
    record = json.loads(grid.record(sweep_maker.make(tmp_path)))
    del record["predict_first"]
    (tmp_path / grid.RECORD).write_text(json.dumps(record))
    assert not grid.recorded(tmp_path).predict_first


def test_planned_sizes_are_those_of_the_gin_files(tmp_path):
    axes = {"size": {"tiny": ["models/t5_1_1/tiny.gin"]}, "tasks": {8: ["NUM_TASKS=8"]}}
    bindings = {"VOCABULARY": "byte", "MIXTURE_OR_TASK_NAME": "cot", "TRAIN_STEPS": 5, "BATCH_SIZE": 2}
    bindings["TASK_FEATURE_LENGTHS"] = {"inputs": 8, "targets": 4}
    sweep = sweep_maker.make(tmp_path, axes=axes, bindings=bindings)
    [at] = forecast.planned(sweep.points(), "").values()
    assert at["size"] > 1e4 and at["tokens"] == 5 * 2 * 12 and at["flops"] > at["size"]
