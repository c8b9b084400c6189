"""Trackers: what is sent, once, under one id; and that one which fails or hangs neither stops nor slows a run."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time
import types
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from flanx import files, tracker
from flanx.cli.main import main
from flanx.errors import UserError
from flanx.storage import open_storage
from tests import bucket_case, run_case, run_maker

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Recorder:
    """A tracker that keeps what it is told, of all runs by their ids."""

    seen: ClassVar[dict[str, list[tuple[int, Mapping[str, float]]]]] = {}

    def __init__(self, run: tracker.Tracked) -> None:
        self.id = run.id or f"id{len(self.seen)}"
        self.seen.setdefault(self.id, [])

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        self.seen[self.id].append((step, numbers))

    def close(self) -> None:
        pass


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[int, Mapping[str, float]]]]:
    monkeypatch.setattr(tracker, "TRACKERS", {"recorder": Recorder})
    monkeypatch.setattr(tracker, "PERIOD", 0.01)
    monkeypatch.setattr(Recorder, "seen", {})
    return Recorder.seen


def test_every_record_is_sent_once_under_one_id(tmp_path: pathlib.Path, seen: dict) -> None:
    run = tmp_path / "run"
    run_maker.leave(run, steps=500, period=50)  # validated at 250 and 500, beside a record of training
    assert tracker.send(run, "recorder") == 12
    (sent,) = seen.values()
    assert [step for step, _ in sent] == [50, 100, 150, 200, 250, 250, 300, 350, 400, 450, 500, 500]
    assert sent[0][1]["loss"] == run_maker.loss(50) + 0.01 and sent[0][1]["performance/mfu"] == 0.4
    assert sent[5][1].keys() == {"validation/loss", "validation/cot/loss", "validation/muffin/loss"}
    assert tracker.send(run, "recorder") == 0
    path = run / "metrics.jsonl"
    kept = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= 400]
    kept += [json.dumps({"step": step, "loss": 1.0}) for step in (450, 500, 550)]  # a run that was killed, and resumed
    path.write_text("\n".join([*kept, '{"step": 600, "lo']))
    assert tracker.send(run, "recorder") == 1
    assert list(seen) == ["id0"] and sent[-1] == (550, {"loss": 1.0})


@pytest.mark.parametrize("has_records", [True, False])
def test_a_run_that_begins_and_ends_between_two_looks_is_sent(tmp_path, seen: dict, monkeypatch, has_records) -> None:
    class End(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            if has_records and not (tmp_path / "run").exists():
                run_maker.leave(tmp_path / "run", steps=100)
            return True

    monkeypatch.setattr(tracker, "_end_of_input", End)
    assert tracker.send(tmp_path / "run", "recorder", follows=True) == (2 if has_records else 0)
    assert len(seen) == has_records


def test_a_file_is_read_as_it_grows_and_anew_when_it_is_another(tmp_path: pathlib.Path) -> None:
    tail = tracker._Tail(tmp_path / "metrics.jsonl")
    assert tail.read() == []
    for text, found in (('{"step": 1}\n{"step"', [1]), (': 2}\n{"step": 3}\n', [2, 3]), ("", [])):
        with open(tail.path, "a") as file:
            file.write(text)
        assert [each["step"] for each in tail.read()] == found
    (tmp_path / "new").write_text('{"step": 7}\n')
    os.replace(tmp_path / "new", tail.path)
    assert tail.read() == [{"step": 7}]
    with open(tail.path, "a") as file:
        file.write('{"step": 8}\n{]\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:3: not a JSON object"):
        tail.read()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe is not a regular file"):
        tracker._Tail(tmp_path / "pipe").read()


def test_a_tracker_that_is_not_there_is_refused(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(
        UserError, match=r"no tracker 'wandbb'; did you mean 'wandb'\? \(known: wandb, trackio, mlflow\)"
    ):
        tracker.following(tmp_path, ["wandbb"])
    tracker.TRACKERS["not_installed"] = Recorder  # type: ignore[index]
    try:
        with pytest.raises(UserError, match=r"is not installed: pip install 'flanx\[not_installed\]'"):
            tracker.following(tmp_path, ["not_installed"])
    finally:
        del tracker.TRACKERS["not_installed"]  # type: ignore[attr-defined]
    assert main(["track", str(tmp_path), "--to", "nosuch"]) == 2
    assert not list(tmp_path.iterdir())


def test_one_process_sends_at_a_time(tmp_path: pathlib.Path, seen: dict) -> None:
    run_maker.leave(tmp_path / "run", steps=100)
    with (
        files.lock(tmp_path / "run" / "tracking" / "recorder.lock"),
        pytest.raises(UserError, match="another process sends its records to recorder"),
    ):
        tracker.send(tmp_path / "run", "recorder")
    assert not seen and tracker.send(tmp_path / "run", "recorder") == 2


def test_a_run_that_is_deleted_does_not_come_back(tmp_path: pathlib.Path, seen: dict, monkeypatch) -> None:
    run = tmp_path / "run"
    run_maker.leave(run, steps=100)
    is_over = threading.Event()
    monkeypatch.setattr(tracker, "_end_of_input", lambda: is_over)
    write = Recorder.write

    def write_and_delete(self: Recorder, step: int, numbers: Mapping[str, float]) -> None:
        write(self, step, numbers)
        shutil.rmtree(run, ignore_errors=True)

    monkeypatch.setattr(Recorder, "write", write_and_delete)
    with pytest.raises(UserError, match="run was deleted while its records were sent"):
        tracker.send(run, "recorder", follows=True)
    assert not run.exists() and len(seen["id0"]) == 2


class Refusing(Recorder):
    """A tracker whose server takes nobody."""

    def __init__(self, run: tracker.Tracked) -> None:
        raise ConnectionError("http://me:hush@host: 401\nmore")


def test_what_a_tracker_refuses_is_told_without_its_password(tmp_path, seen, monkeypatch, capsys) -> None:
    run_maker.leave(tmp_path / "a run", steps=100)
    monkeypatch.setattr(tracker, "TRACKERS", {"refusing": Refusing, "recorder": Recorder})
    monkeypatch.setattr(tracker, "expect_known", lambda names: None)
    words = ["track", str(tmp_path / "a run"), "--to", "refusing"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "refusing failed (ConnectionError: http://host: 401); look at its credentials" in said
    assert f"flanx track '{tmp_path}/a run' --to refusing" in said and "hush" not in said
    assert main([*words, "--to", "recorder", "--to", "recorder"]) == 1  # the others get theirs, once
    printed = capsys.readouterr()
    assert "refusing failed" in printed.err and printed.out == "a run: 2 records sent to recorder\n"


@pytest.mark.parametrize("text", ["[]", '{"train": "x"}', '{"id": 7}', "{"])
def test_a_damaged_state_is_named(tmp_path: pathlib.Path, seen: dict, text: str) -> None:
    run_maker.leave(tmp_path / "run", steps=100)
    (tmp_path / "run" / "tracking").mkdir()
    (tmp_path / "run" / "tracking" / "recorder.json").write_text(text)
    with pytest.raises(UserError, match=r"recorder\.json is damaged.*remove it"):
        tracker.send(tmp_path / "run", "recorder")
    assert not seen


def test_a_folder_of_a_trackers_name_is_not_its_package(tmp_path: pathlib.Path, monkeypatch) -> None:
    (tmp_path / "likeatracker").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(tracker, "TRACKERS", {"likeatracker": Recorder})
    with pytest.raises(UserError, match="is not installed"):
        tracker.expect_known(["likeatracker"])


def test_a_tracker_that_is_named_twice_follows_once(tmp_path: pathlib.Path, monkeypatch) -> None:
    started: list[str] = []
    monkeypatch.setattr(tracker, "_start", lambda run, name: started.append(name))
    with tracker._following(tmp_path, ["wandb", "wandb"]):
        assert started == ["wandb"]


def test_a_run_in_a_bucket_is_sent_and_its_state_kept_there(seen: dict, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(tracker, "expect_known", lambda names: None)
    run_maker.leave(tmp_path / "run", steps=100)
    with bucket_case.service():
        for name in ("metrics.jsonl", "run.json", "done.json"):
            open_storage("gs://bucket/run").write(name, (tmp_path / "run" / name).read_bytes())
        for count in (2, 0):
            assert main(["track", "gs://bucket/run", "--to", "recorder"]) == 0
            assert capsys.readouterr().out == f"run: {count} records sent to recorder\n"
        assert main(["watch", "gs://bucket/run", "--once"]) == 0
        assert "run  step 100  done" in capsys.readouterr().out
    assert list(seen) == ["id0"]


CHILDREN = {
    "fails": "raise SystemExit('no network')",
    "hangs": "import time; print('begun', flush=True); time.sleep(60)",
    "ends": "import sys; sys.stdin.read(); print('all sent')",
}


@pytest.mark.parametrize("kind", CHILDREN)
def test_the_end_of_a_run_waits_for_a_tracker_no_longer_than_it_has_patience(tmp_path, monkeypatch, capsys, kind):
    children: list[subprocess.Popen] = []
    popen = subprocess.Popen
    monkeypatch.setattr(tracker, "PATIENCE", 5.0 if kind == "ends" else 0.5)
    monkeypatch.setattr(tracker, "_command", lambda run, name: [sys.executable, "-c", CHILDREN[kind]])
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: children.append(popen(*a, **k)) or children[-1])
    began = time.monotonic()
    with tracker._following(tmp_path, ["wandb"]):
        assert time.monotonic() - began < 1.0
        if kind == "fails":
            children[0].wait()
    assert time.monotonic() - began < 6.0
    said, log = capsys.readouterr().out, (tmp_path / "tracking" / "wandb.log").read_text()
    children[0].kill()
    children[0].wait()
    if kind == "ends":
        assert said == "" and log == "all sent\n"
    else:
        assert f"wandb {'failed' if kind == 'fails' else 'has not sent all yet'}" in said
        assert f"later: flanx track {tmp_path} --to wandb" in said


# ---- the libraries ---------------------------------------------------------------------------------------------------


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, calls: list[tuple[str, Any]]) -> None:
    """A module of that name whose functions and runs note how they were called."""

    class Run:
        def __getattr__(self, called: str) -> Any:
            return lambda *args, **named: calls.append((called, named or args))

    module = types.ModuleType(name)
    module.init = lambda *args, **named: calls.append(("init", named)) or Run()  # type: ignore[attr-defined]
    module.Settings = dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_run_is_opened_again_under_its_id(tmp_path, monkeypatch, name):
    calls: list[tuple[str, Any]] = []
    stand_in(monkeypatch, name, calls)
    run_maker.leave(tmp_path / "a", steps=100)
    tracker.send(tmp_path / "a", name)
    tracker.send(tmp_path / "a", name)
    first, second = (named for called, named in calls if called == "init")
    key = "id" if name == "wandb" else "name"
    assert first["resume"] == "allow" and first[key] == second[key]
    assert first["config"]["optim.adafactor.learning_rate"] == "linear" and first["config"]["num_params"] == 1234
    assert [called for called, _ in calls if called == "finish"] == ["finish"] * 2
    (step,) = [named for called, named in calls if called == "log"][:1]
    assert step[0]["step"] == 50 if name == "wandb" else step["step"] == 50


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow"])
def test_the_real_library_takes_a_run_offline_and_goes_on_with_it(tmp_path: pathlib.Path, name: str) -> None:
    pytest.importorskip(name, reason="an extra that the test environment does not install")
    folder = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "trackio"), "HOME": str(tmp_path)}
    env = os.environ | folder | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    run_maker.leave(tmp_path / "run", steps=200)
    command = [sys.executable, "-m", "flanx", "track", str(tmp_path / "run"), "--to", name]

    def track() -> tuple[str, str]:
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1], json.loads((tmp_path / "run/tracking" / f"{name}.json").read_text())["id"]

    first = track()
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write(run_maker.line({"step": 250, "loss": 0.5}))
    assert first[0] == f"run: 4 records sent to {name}"
    assert track() == (f"run: 1 records sent to {name}", first[1])


@pytest.mark.slow
@pytest.mark.parametrize("body", ["raise OSError('no network')", "import time; time.sleep(90)"])
def test_a_tracker_that_fails_or_hangs_leaves_a_run_as_it_is(tmp_path, monkeypatch, body):
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "wandb.py").write_text(f"Settings = dict\ndef init(**_):\n    {body}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    folder = tmp_path / "run"
    began = time.monotonic()
    said = run_case.run(run_case.command(folder, TRACKERS=["wandb"]))
    assert time.monotonic() - began < 120
    assert run_case.losses(folder) == run_case.losses(run_case.undisturbed()) and run_case.done(folder) == 8
    assert "wandb failed (" in said if "OSError" in body else "wandb has not sent all yet (" in said
    assert json.loads((folder / "done.json").read_text())["step"] == 8
