"""The benchmark for the first accelerator: its order, its table, how a measurement fails; the whole of it on a CPU."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import accelerator  # noqa: E402
import accelerator_work  # noqa: E402
from accelerator import Measurement  # noqa: E402

sys.path.remove(str(ROOT / "benchmarks"))  # a file there has the name of lm-eval's package

SCRIPT = ROOT / "benchmarks" / "accelerator.py"


def test_what_matters_most_comes_first():
    names = [one.name for one in accelerator.measurements(False)]
    assert [name.partition(",")[0].split(" ")[0] for name in names[:4]] == ["floor", "parity", "parity", "train"]
    assert len(set(names)) == len(names)
    workers = {one.worker for one in accelerator.measurements(True)}
    assert all(callable(getattr(accelerator_work, worker)) for worker in workers)


def test_the_floor_alone_is_written_as_it_comes(tmp_path):
    command = [sys.executable, str(SCRIPT), "--quick", "--only=floor", f"--out={tmp_path / 'a.jsonl'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["unit"] for line in lines] == ["", "TFLOP/s", "GB/s"] and lines[0]["device"]
    assert (tmp_path / "a.jsonl").read_text() == done.stdout
    assert "| floor | product 512^3, bfloat16 |" in (tmp_path / "a.md").read_text()


def test_a_measurement_that_fails_or_takes_too_long_is_a_line(tmp_path, monkeypatch):
    work = tmp_path / "work.py"
    work.write_text(
        'import sys, time\nprint(\'{"metric": "a", "value": 1, "unit": ""}\', flush=True)\n'
        "time.sleep(60) if sys.argv[1] == 'slow' else sys.exit(sys.argv[1])\n"
    )
    monkeypatch.setattr(accelerator, "WORK", work)
    cases = {
        "slow": ("not done in 1 s", True),
        "RESOURCE_EXHAUSTED: x": ("out of memory", True),
        "broke": ("broke", False),
    }
    for worker, (why, expected) in cases.items():
        first, last = accelerator.run(Measurement("m", worker, {}), 1.0, str(tmp_path))
        assert first["metric"] == "a" and (last["why"], last["expected"]) == (why, expected)


def test_parity_is_refused_where_an_answer_differs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATOR_SCRATCH", str(tmp_path))
    right = {"logits": np.ones((2, 3, 4), np.float32), "losses": np.array([4.0, 3.0]), "tokens": np.arange(32)}
    np.savez(tmp_path / "reference.npz", **right)
    for changed in (
        {},
        {"logits": 1.01 * right["logits"]},
        {"losses": right["losses"] + 0.01},
        {"tokens": np.arange(32) // 2},
    ):
        monkeypatch.setattr(accelerator_work, "answers", lambda *_, found=changed, **__: right | found)
        accelerator_work.parity()
        held = [json.loads(line)["holds"] for line in capsys.readouterr().out.splitlines()]
        assert held == [name not in changed for name in ("logits", "losses", "tokens")]


def test_the_table_has_the_peer_beside_ours():
    ours = {
        "name": "train step xl, 8 rows, remat none, 1 microbatches",
        "metric": "tokens/s",
        "value": 300.0,
        "unit": "u",
    }
    results = [
        {**ours, "MFU": 0.41},
        {**ours, "name": "train step xl, 8 rows, transformers on torch", "value": 100.0},
        {**ours, "name": "other", "value": None, "why": "out of memory"},
    ]
    lines = accelerator.table(results).splitlines()
    assert lines[2] == f"| {ours['name']} | tokens/s | 300 u | 100 (3.00 x) | MFU 0.41 |"
    assert lines[4] == "| other | tokens/s |  |  | why out of memory |"


@pytest.mark.slow
def test_the_whole_of_it_runs_on_a_cpu(tmp_path):
    command = [sys.executable, str(SCRIPT), "--quick", f"--out={tmp_path / 'a.jsonl'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["name"] for line in results} == {
        one.name for one in accelerator.measurements(True) if one.worker != "reference"
    }
    assert all(line["holds"] for line in results if line["name"] == "parity")
    assert not [line for line in results if line["metric"] in ("failed", "not begun")]
