"""Lines of benchmarks: the machine in each, no ratio on a busy one, and what became worse between two files."""

import importlib.util
import json
import pathlib
import subprocess
import sys
import time
from typing import Any

import pytest

BENCHMARKS = pathlib.Path(__file__).resolve().parent.parent / "benchmarks"


def load(name: str) -> Any:
    """A module of `benchmarks/`, which is not a package."""
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_line_has_its_machine_and_no_ratio_where_others_computed(capsys: pytest.CaptureFixture[str]) -> None:
    record = load("record")
    record.write({"benchmark": "x", "metric": "y", "value": 2.0})
    line = json.loads(capsys.readouterr().out)
    assert line["machine"]["processor"] and line["machine"]["cores"] >= 1
    assert {"python", "numpy", "flanx"} <= line["versions"].keys() and len(line["load"]["average"]) == 3
    claimed = {"ratio": 1.4, "value": 2.0}
    assert record.judged(claimed, 0.05)["ratio"] == 1.4
    for others, text in ((0.23, "23%"), (None, "unknown")):
        line = record.judged(claimed, others)
        assert line["ratio"] is None and text in line["refused"]
        assert line["load"]["others"] == others and line["value"] == 2.0


@pytest.mark.skipif(not pathlib.Path("/proc/stat").is_file(), reason="needs Linux's /proc/stat")
def test_work_of_another_process_counts_and_own_work_does_not() -> None:
    record = load("record")
    watch, ends = record.Watch(), time.monotonic() + 1
    while time.monotonic() < ends:
        pass
    alone = watch.others()
    burn = "import time; ends = time.monotonic() + 4\nwhile time.monotonic() < ends: pass"
    with subprocess.Popen([sys.executable, "-c", burn]) as other:
        time.sleep(0.3)
        watch.others()
        time.sleep(1)
        busy = watch.others()
        other.kill()
    assert alone is not None and busy is not None
    assert busy * record.cores() > 0.3  # of one processor, however many share it
    assert alone <= 1 - 0.3 / record.cores()  # the loop above was our own


def line(metric: str, value: float, unit: str = "s", **more: Any) -> dict[str, Any]:
    return {
        "benchmark": "b", "metric": metric, "value": value, "unit": unit, "machine": {"processor": "P"},
        "load": {"others": 0.0}, **more,
    }  # fmt: skip


def test_compare_marks_what_became_worse(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare = load("compare")
    old = [
        line("time", 10),
        line("speed", 100, "tokens/s"),
        line("ratio", 5, ratio=1.3),
        line("other", 1),
        line("gone", 1),
    ]
    new = [
        *(line("time", 10.4), line("speed", 90, "tokens/s"), line("ratio", 50, ratio=1.28)),
        {**line("other", 9), "machine": {"processor": "Q"}},
    ]
    paths = [tmp_path / "old.jsonl", tmp_path / "new.jsonl"]
    for path, lines in zip(paths, (old, new), strict=True):
        path.write_text("warming up\n" + "".join(json.dumps(each) + "\n" for each in lines))
    assert compare.main(list(map(str, paths))) == 1
    told = capsys.readouterr()
    rows = {row.split(" | ")[1]: row for row in told.out.splitlines() if " | " in row}
    assert "-3.8% |" in rows["time"] and "-10.0% **regression**" in rows["speed"]
    assert "| ratio | 1.3 | 1.28 | -1.5% |" in rows["ratio"] and "not judged" in rows["other"]
    assert "gone" in told.err
    assert compare.main([*map(str, paths), "--tolerance", "0.2"]) == 0
    assert compare.main([str(paths[0]), str(tmp_path / "old.jsonl")]) == 0


def test_lines_of_a_busy_machine_are_not_judged() -> None:
    compare = load("compare")
    busy = line("time", 20, load={"others": 0.4})
    assert compare.change(line("time", 10), busy)[3] is None
    assert compare.change(line("time", 10), line("time", 20))[3] == -0.5


def test_lines_of_growth_are_drawn_a_panel_each_and_others_are_left_out(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("matplotlib")
    line = {"benchmark": "growth", "x": [1, 10, 100], "y": [0.5, 0.6, 0.7], "unit": "seconds"}
    lines = [line | {"figure": "tasks", "slope": 0.07}, {"benchmark": "build", "value": 3}]
    lines += [line | {"figure": "batch", "slope": 1.5}]
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)))
    command = [sys.executable, str(BENCHMARKS / "growth.py"), "--draw", str(tmp_path / "lines.jsonl")]
    subprocess.run([*command, "--to", str(tmp_path / "figure")], check=True)
    drawn = (tmp_path / "figure.svg").read_text()
    assert "<!-- tasks: slope 0.07 -->" in drawn and "<!-- batch: slope 1.5 -->" in drawn
    assert drawn.count(": slope ") == 2
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
