"""`flanx report` of a sweep's folder or gin file."""

import csv
import pathlib
import shutil

from flanx import config
from flanx.cli.main import main
from flanx.sweep import grid
from tests import sweep_maker
from tests.sweep_maker import entry


def test_a_report_is_made_again_from_the_sweeps_folder_wherever_it_lies(tmp_path, capsys):
    (tmp_path / "own.gin").write_text(
        "from __gin__ import dynamic_registration\nfrom flanx.sweep import grid\n"
        "OUT_DIR = 'nowhere'\nLABELS = {'z': [], 'a': []}\nUNUSED = 'x'\n"
        "grid.Sweep:\n  out_dir = %OUT_DIR\n  gin_files = []\n  axes = {'size': %LABELS, 'b': {2: [], 1: []}}\n"
        "  title = %UNUSED\n"
    )
    config.parse([str(tmp_path / "own.gin")], ["Sweep.title='found again'"])
    home = tmp_path / "home"
    (home / "runs").mkdir(parents=True)
    (home / "sweep.gin").write_text("from __gin__ import dynamic_registration\nimport antigravity\n")
    (home / "sweep.json").write_text(grid.record(config.make(grid.Sweep)))
    sweep_maker.leave(home / "runs" / "z_2", {3: {"suite_rule": entry(12.5)}})
    moved = tmp_path / "moved"
    shutil.move(home, moved)
    assert main(["report", str(moved)]) == 0
    assert str(moved / "report.html") in capsys.readouterr().out
    table = rows(moved / "results.csv")
    assert [(r["point"], r["score"]) for r in table] == [("z_2", "12.5"), ("z_1", ""), ("a_2", ""), ("a_1", "")]
    assert main(["report", str(moved), "--gin.Sweep.title='x'"]) == 2
    assert "give the sweep's gin file" in capsys.readouterr().err
    assert main(["report", str(moved), str(tmp_path)]) == 2
    assert "report sweeps and runs separately" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "own.gin")]) == 2
    assert "nowhere is not a folder: the sweep has not been run" in capsys.readouterr().err


def test_a_sweeps_folder_is_read_as_data(tmp_path, capsys):
    (tmp_path / "sweep.gin").write_text("from __gin__ import dynamic_registration\nfrom flanx.sweep import grid\n")
    assert main(["report", str(tmp_path)]) == 2
    assert "if you trust its gin file" in capsys.readouterr().err
    for damaged in (
        '{"axes": 5}',
        '{"axes": {"a": {"b": [7]}}, "out_dir": "x", "gin_files": []}',
        '{"x": 1}',
        "[]",
        "{",
    ):
        (tmp_path / "sweep.json").write_text(damaged)
        assert main(["report", str(tmp_path)]) == 2
        assert "sweep.json is damaged" in capsys.readouterr().err


def rows(path: pathlib.Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))
