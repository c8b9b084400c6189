"""`flanx launch` against recorded programs: whole lives of launches, and a Ctrl-C at every stage."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from flanx import process
from flanx.cli import main
from flanx.launch import cleanup, code, estimate, lifecycle, local, record
from tests import bucket_case
from tests.recorded import Recorder

ROOT = pathlib.Path(__file__).resolve().parent.parent
CLOUD = ("gcloud", "kubectl", "xpk", "sky", "sbatch", "squeue", "sacct", "scancel", "docker", "git")
NOT_FOUND = {"status": 1, "err": "ERROR: NOT_FOUND: queuedResources/run-1 was not found\n"}
ACTIVE = {"out": '{"state": {"state": "ACTIVE"}}'}
LOST = {"out": '{"state": {"state": "SUSPENDED"}}'}
FLAGS = {
    "tpu-vm": ["--topology=v5e:2x4", "--project=p-1", "--zone=us-west4-a", "--bucket=gs://b-1", "--image=r/f:1"],
    "jobset": ["--topology=v5e:4x4", "--project=p-1", "--zone=us-west4-a", "--cluster=c-1", "--image=r/f:1"],
    "slurm": ["--processes=2"],
    "skypilot": ["--topology=h100:16", "--image=r/f:1"],
}


@pytest.fixture
def cloud(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Recorded programs on PATH, an empty folder to be in, and gin files that are not read."""
    recorder = Recorder(tmp_path / "bin", CLOUD)
    monkeypatch.setenv("PATH", f"{recorder.folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(estimate, "operative_config", lambda *_: ("SEED = 1\n", str(tmp_path / "run")))
    monkeypatch.setattr(estimate, "own_files", lambda _: [])
    monkeypatch.setattr(code, "find", lambda *_: code.Code("0123456789abcdef"))
    return recorder


def launch(program: str, *more: str, what: str = "train") -> int:
    shared = ["--name=run-1", "--yes", "--no_plan", "--period=0.01", "--grace=1"]
    return main.main(["launch", program, what, "--gin_file=a.gin", *FLAGS.get(program, ()), *shared, *more])


def stage() -> str:
    return record.read(pathlib.Path("out/launches/run-1")).stage


def leave(tmp_path: pathlib.Path, step: int) -> None:
    """A checkpoint of the run."""
    (tmp_path / "run" / "checkpoints" / f"checkpoint_{step}").mkdir(parents=True)


# ---- TPU VMs ---------------------------------------------------------------------------------------------------------


def tpu_vm(cloud: Recorder, *states: dict) -> None:
    """A queued resource whose states these are, the first of which is the look whether the name is free."""
    cloud.answer("queued-resources describe", NOT_FOUND, *states)


def test_a_tpu_vm_from_its_queue_to_its_end(cloud, capsys):
    tpu_vm(cloud, {"out": '{"state": {"state": "WAITING_FOR_RESOURCES"}}'}, ACTIVE)
    cloud.answer("docker run", {"out": "step 1 loss 2.0\n"})
    assert launch("tpu-vm") == 0
    said = capsys.readouterr()
    assert "waiting (WAITING_FOR_RESOURCES)" in said.err and "[run-1-w0] step 1 loss 2.0" in said.out
    order = [
        cloud.count(text) for text in ("storage cp", "resources create", "docker run", "resources delete", "storage rm")
    ]
    assert order == [1] * 5 and stage() == record.ENDED
    assert pathlib.Path("out/launches/run-1/logs/run-1-w0.log").read_text() == "step 1 loss 2.0\n"


def test_a_preempted_tpu_vm_is_made_again_and_goes_on(cloud, tmp_path, capsys):
    tpu_vm(cloud, ACTIVE, LOST, ACTIVE)
    cloud.answer("docker run", {"status": 255, "err": "connection closed\n"}, {})
    assert launch("tpu-vm") == 0
    assert cloud.count("resources create") == 2 and cloud.count("resources delete") == 2
    assert "(1 of 3 without progress)" in capsys.readouterr().err


def test_a_preemption_in_the_queue_asks_again(cloud):
    tpu_vm(cloud, LOST, ACTIVE)
    assert launch("tpu-vm") == 0
    assert cloud.count("resources create") == 2


def test_the_stream_of_a_log_that_is_cut_ends_the_run_on_the_host_before_it_starts_again(cloud):
    tpu_vm(cloud, ACTIVE)
    cloud.answer("docker run", {"status": 255}, {})
    assert launch("tpu-vm") == 0
    done = [
        next(k for k in ("docker run", "docker stop") if k in " ".join(c)) for c in cloud.calls if "docker" in str(c)
    ]
    assert done == ["docker run", "docker stop", "docker run"] and cloud.count("resources create") == 1


def test_restarts_without_progress_have_a_limit(cloud, capsys):
    tpu_vm(cloud, ACTIVE)
    cloud.answer("docker run", *[{"status": 75, "out": "preempted\n"}] * 5, {})
    assert launch("tpu-vm", "--restarts=2") == 2
    assert "3 ends in a row without a newer checkpoint" in capsys.readouterr().err
    assert cloud.count("docker run") == 3 and cloud.count("resources delete") == 1


def test_restarts_with_progress_have_none(cloud, tmp_path, monkeypatch):
    tpu_vm(cloud, ACTIVE)
    cloud.answer("docker run", *[{"status": 75}] * 4, {})
    steps = iter([0, 2, 4, 6, 8])
    monkeypatch.setattr(lifecycle, "newest_step", lambda _: next(steps))
    assert launch("tpu-vm", "--restarts=0") == 0


def test_a_bad_input_on_one_host_stops_all_and_is_not_tried_again(cloud, capsys):
    tpu_vm(cloud, ACTIVE)
    cloud.answer("worker=1 .*docker run", {"status": 2, "out": "flanx train: no store\n"})
    cloud.answer("worker=[023] .*docker run", {"sleep": 60})
    began = time.monotonic()
    assert launch("tpu-vm", "--topology=v5e:4x4") == 2
    assert time.monotonic() - began < 20
    assert "run-1-w1 ended with 2: flanx train: no store" in capsys.readouterr().err
    assert cloud.count("docker run") == 4 and cloud.count("resources delete") == 1


def test_a_worker_that_cannot_be_reached_is_tried_again(cloud):
    tpu_vm(cloud, ACTIVE)
    cloud.answer("docker run", {"status": 1, "err": "ERROR: Could not SSH into the instance.\n"}, {})
    assert launch("tpu-vm") == 0
    assert cloud.count("docker run") == 2


@pytest.mark.parametrize(
    ("said", "repair"),
    [("RESOURCE_EXHAUSTED: Quota limit 'TPUV5sLitepodPerProject'", "no quota"), ("PERMISSION_DENIED", "log in")],
)
def test_a_refused_request(cloud, capsys, said, repair):
    tpu_vm(cloud, NOT_FOUND)
    cloud.answer("resources create", {"status": 1, "err": f"ERROR: {said}\n"})
    assert launch("tpu-vm") == 2
    err = capsys.readouterr().err
    assert said in err and repair in err and stage() == record.ENDED


def test_the_bucket_of_the_run_is_looked_at_before_anything_is_made(cloud, monkeypatch, capsys):
    monkeypatch.setattr(estimate, "operative_config", lambda *_: ("SEED = 1\n", place))
    cloud.answer("queued-resources describe", NOT_FOUND)
    with bucket_case.service() as service:
        place = "gs://nobody/run"
        assert launch("tpu-vm") == 2
        assert "there is no bucket gs://nobody" in capsys.readouterr().err and not cloud.count("create")
        place, service.fault = "gs://bucket/run", lambda method, path: 403  # the hosts may be allowed what we are not
        tpu_vm(cloud, NOT_FOUND, {"out": '{"state": {"state": "FAILED"}}'})
        assert launch("tpu-vm") == 2 and cloud.count("create") == 1
        assert "every restart will count as one without progress: gs://bucket/run" in capsys.readouterr().err


def test_a_request_that_fails_in_the_queue(cloud, capsys):
    failed = {"out": '{"state": {"state": "FAILED", "failedData": {"error": {"message": "no more capacity"}}}}'}
    tpu_vm(cloud, failed)
    assert launch("tpu-vm") == 2
    assert "no more capacity" in capsys.readouterr().err and cloud.count("resources delete") == 1


def test_the_resource_of_another_is_not_deleted(cloud, capsys):
    """Its name was free when we looked, and taken when we asked."""
    tpu_vm(cloud, NOT_FOUND)
    cloud.answer("resources create", {"status": 1, "err": "ERROR: ALREADY_EXISTS: already exists\n"})
    assert launch("tpu-vm") == 2
    assert "the name is taken" in capsys.readouterr().err
    assert not cloud.count("delete") and not cloud.count("storage rm")


def test_a_service_that_answers_no_more(cloud, capsys):
    tpu_vm(cloud, {"status": 1, "err": "ERROR: timed out\n"})
    assert launch("tpu-vm") == 2
    assert "no state from the service, 5 times in a row: ERROR: timed out" in capsys.readouterr().err


def test_what_cannot_be_given_back_is_printed_kept_and_removed_later(cloud, capsys):
    tpu_vm(cloud, ACTIVE)
    cloud.answer("resources delete", {"status": 1, "err": "ERROR: internal\n"}, {})
    assert launch("tpu-vm") == 0
    assert "LEFT BEHIND" in capsys.readouterr().err and stage() == record.LEFT
    assert main.main(["launch", "status", "run-1"]) == 1
    assert "gcloud compute tpus queued-resources delete run-1" in capsys.readouterr().out
    assert launch("tpu-vm") == 2  # its name is not free before that
    assert main.main(["launch", "stop", "run-1"]) == 0
    assert stage() == record.ENDED


# ---- Ctrl-C ----------------------------------------------------------------------------------------------------------


def interrupt_when(happened: Callable[[], object]) -> threading.Thread:
    """Sends this process Ctrl-C once something has happened."""

    def wait() -> None:
        limit = time.monotonic() + 20
        while not happened() and time.monotonic() < limit:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


STAGES = {  # program -> the calls at which it is interrupted, and whether hosts were asked for then
    "tpu-vm": {
        "storage cp": False,
        "resources create": True,
        "resources describe": True,
        "opt/flanx/ready": True,
        "docker run": True,
    },
    "jobset": {"get-credentials": False, "kubectl create": True, "get jobset": True, "logs": True},
    "slurm": {"sbatch": False, "squeue --noheader --jobs": True},
    "skypilot": {"jobs launch": True, "jobs queue": True, "jobs logs": True},
}
REMOVALS = {"tpu-vm": "resources delete", "jobset": "kubectl .*delete", "slurm": "scancel", "skypilot": "jobs cancel"}


@pytest.mark.parametrize(("program", "call"), [(program, call) for program, calls in STAGES.items() for call in calls])
def test_ctrl_c_leaves_nothing(cloud, program, call):
    waiting = {"out": '{"state": {"state": "PROVISIONING"}}'}
    cloud.answer("queued-resources describe", NOT_FOUND, waiting if "describe" in call else ACTIVE)
    cloud.answer("get jobset", {"status": 1, "err": "NotFound"}, {"out": '{"status": {}}'})
    cloud.answer("get pods", {"out": '{"items": [{"status": {"phase": "Running"}}]}'})
    cloud.answer("sbatch", {"out": "77\n"})
    cloud.answer("squeue --noheader --jobs", {"out": "RUNNING\n"})
    cloud.answer("jobs queue", {"out": '[{"job_name": "run-1", "job_id": 1, "status": "RUNNING"}]'})
    if call not in ("resources describe", "get jobset", "jobs queue", "squeue --noheader --jobs"):
        cloud.answer(call, {"sleep": 60, "out": "77\n"})
    seen = 2 if call in ("resources describe", "get jobset") else 1  # the first looks whether the name is free
    thread = interrupt_when(lambda: cloud.count(call) >= seen)
    try:
        assert launch(program) == 130
    finally:
        thread.join()
    removed = sum(bool(re.search(REMOVALS[program], " ".join(words))) for words in cloud.calls)
    assert bool(removed) == STAGES[program][call]
    if pathlib.Path("out/launches/run-1/launch.json").exists():
        assert stage() == record.ENDED


@pytest.mark.parametrize(("program", "call"), [("tpu-vm", "docker run"), ("jobset", "kubectl create")])
def test_ctrl_c_as_a_program_starts_ends_it_too(cloud, monkeypatch, program, call):
    """It runs in its own session, only its Popen can end it: without one, hosts would be made after their removal."""
    cloud.answer("queued-resources describe", NOT_FOUND, ACTIVE)
    cloud.answer("get jobset", {"status": 1, "err": "NotFound"})
    cloud.answer(call, {"sleep": 60})
    started = []

    class Interrupted(subprocess.Popen):
        def _execute_child(self, args, *rest, **options):
            super()._execute_child(args, *rest, **options)
            if call in " ".join(args):
                started.append(self.pid)
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    assert launch(program) == 130 and started
    for pid in started:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_second_ctrl_c_says_what_is_left(cloud, capsys):
    tpu_vm(cloud, ACTIVE)
    cloud.answer("docker run", {"sleep": 60})
    cloud.answer("resources delete", {"sleep": 60})
    threads = [
        interrupt_when(lambda: cloud.count("docker run")),
        interrupt_when(lambda: cloud.count("resources delete")),
    ]
    assert launch("tpu-vm") == 130
    for thread in threads:
        thread.join()
    assert "LEFT BEHIND" in capsys.readouterr().err and stage() == record.LEFT


# ---- services that keep the run --------------------------------------------------------------------------------------


def test_a_jobset_from_its_queue_through_a_restart_to_its_end(cloud, capsys):
    jobset = ({"out": '{"status": {}}'}, {"out": '{"status": {"restarts": 1}}'}, {"out": '{"status": {"restarts": 1}}'})
    done = {"out": '{"status": {"conditions": [{"type": "Completed", "status": "True", "message": "jobs completed"}]}}'}
    cloud.answer("get jobset", {"status": 1, "err": "NotFound"}, *jobset, done)
    pod = '{"status": {"phase": "%s"}}'
    phases = [[], ["Running", "Pending"], ["Running"] * 2]
    cloud.answer("get pods", *[{"out": f'{{"items": [{", ".join(pod % p for p in each)}]}}'} for each in phases])
    cloud.answer("logs", {"out": "[pod/run-1-slice-0-0/flanx] step 1\n"})
    assert launch("jobset") == 0
    said = capsys.readouterr()
    expected = [
        "waiting (queued)",
        "1 of 2 pods run, restart 1",
        "running (2 pods run, restart 1)",
        "done (jobs completed)",
    ]
    assert [text for text in expected if text in said.err] == expected
    assert "[pod/run-1-slice-0-0/flanx] step 1" in said.out
    assert cloud.count("delete --ignore-not-found jobset/run-1 configmap/run-1") == 1


def test_a_jobset_that_is_restarted_no_more_is_made_again_while_there_is_progress(cloud, tmp_path, monkeypatch, capsys):
    leave(tmp_path, 2)
    ended = '{"status": {"conditions": [{"type": "Failed", "status": "True", "reason": "%s", "message": "no more"}]}}'
    over = {"out": ended % "ReachedMaxRestarts"}
    cloud.answer("get jobset", {"status": 1, "err": "NotFound"}, over, {"out": '{"status": {}}'}, over)
    cloud.answer("get pods", {"out": '{"items": []}'})
    make = lifecycle._make

    def made(*arguments) -> None:
        make(*arguments)
        leave(tmp_path, 4) if cloud.count("kubectl create") == 1 else None

    monkeypatch.setattr(lifecycle, "_make", made)
    assert launch("jobset") == 1  # the second one brought nothing newer
    said = capsys.readouterr().err
    assert "run-1: starts again from step 4, after no more" in said and said.count("starts again") == 1
    assert cloud.count("kubectl create") == 2 and cloud.count("delete --ignore-not-found jobset/run-1") == 2
    cloud.answer("get jobset", {"out": ended % "FailJobSetFailurePolicyAction"})
    asked = [["kubectl", "get", "jobset"], ["kubectl", "get", "pods"]]
    record.Record("run-1", "jobset", pathlib.Path("out/launches/run-1"), questions=asked).write(stage=record.MADE)
    assert main.main(["launch", "status", "run-1"]) == 1 and "run-1: failed (no more)" in capsys.readouterr().out
    cloud.answer("get jobset", over)
    assert main.main(["launch", "status", "run-1"]) == 1


def test_an_image_that_is_missing(cloud, capsys):
    cloud.answer("get jobset", {"status": 1, "err": "NotFound"}, {"out": '{"status": {}}'})
    waiting = '{"status": {"containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff"}}}]}}'
    cloud.answer("get pods", {"out": f'{{"items": [{waiting}]}}'})
    assert launch("jobset") == 1
    assert "ImagePullBackOff: the image cannot be pulled; make it with --build" in capsys.readouterr().err
    assert cloud.count("delete --ignore-not-found") == 1
    cloud.answer("images describe", {"status": 1, "err": "NOT_FOUND"})
    assert launch("jobset", "--image=us-docker.pkg.dev/p/r/f:1") == 2  # where the registry can be asked, before
    assert "no image us-docker.pkg.dev/p/r/f:1" in capsys.readouterr().err


def test_a_log_that_is_cut_is_opened_again_where_it_was(cloud):
    cloud.answer("squeue --noheader --jobs", *[{"out": "RUNNING\n"}] * 8, {"out": "COMPLETED\n"})
    cloud.answer("sbatch", {"out": "77;cluster\n"})
    (cloud.folder / "tail").write_text((cloud.folder / "git").read_text())
    (cloud.folder / "tail").chmod(0o755)
    assert launch("slurm") == 0
    starts = [words[2] for words in cloud.calls if words[0] == "tail"]
    assert starts[:2] == ["+1", "0"]


@pytest.mark.parametrize(("word", "status"), [("COMPLETED", 0), ("TIMEOUT", 1), ("CANCELLED+", 1)])
def test_a_slurm_job_that_has_left_the_queue(cloud, word, status):
    cloud.answer("sbatch", {"out": "77\n"})
    cloud.answer("squeue --noheader --jobs", {"status": 1, "err": "slurm_load_jobs error: Invalid job id\n"})
    cloud.answer("sacct", {"out": f"{word}\n"})
    assert launch("slurm") == status


def test_a_job_of_skypilot_recovers_and_ends(cloud, capsys):
    job = '[{"job_name": "run-1", "job_id": 3, "status": "%s"}, {"job_name": "run-1", "job_id": 2, "status": "FAILED"}]'
    cloud.answer("jobs queue", *[{"out": job % word} for word in ("STARTING", "RUNNING", "RECOVERING", "SUCCEEDED")])
    assert launch("skypilot") == 0
    assert "waiting (RECOVERING)" in capsys.readouterr().err


def test_detached_a_launch_stays_until_it_is_stopped(cloud, capsys):
    cloud.answer("jobs queue", {"out": '[{"job_name": "run-1", "job_id": 3, "status": "RUNNING"}]'})
    cloud.answer("jobs logs", {"out": "step 5\n"})
    assert launch("skypilot", "--detach") == 0
    assert stage() == record.MADE and not cloud.count("jobs cancel")
    assert main.main(["launch", "status", "run-1"]) == 0
    assert main.main(["launch", "logs", "run-1"]) == 0
    assert main.main(["launch", "list"]) == 0
    said = capsys.readouterr().out
    assert "run-1: running (RUNNING)" in said and "step 5" in said and "h100:16" in said
    assert main.main(["launch", "stop", "run-1"]) == 0
    assert cloud.count("jobs cancel") == 1 and stage() == record.ENDED
    assert launch("tpu-vm", "--detach") == 2


# ---- no shell --------------------------------------------------------------------------------------------------------

HOSTILE = [
    "a b",
    "it's",
    'say "x"',
    "; touch OWNED",
    "$(touch OWNED)",
    "`touch OWNED`",
    "é漢",
    "* ? [x]",
    "\\",
    "&& exit 3",
]


def test_hostile_words_reach_no_shell(cloud, tmp_path):
    """The words of a run, and of its environment, come through the shells of a TPU VM's ssh and of SLURM's script."""
    words = [f"--gin.X={value!r}" for value in HOSTILE]
    variables = [f"--env=V{i}={value}" for i, value in enumerate(HOSTILE)]
    tpu_vm(cloud, ACTIVE)
    assert launch("tpu-vm", *words, *variables) == 0
    command = next(call for call in cloud.calls if "docker run" in " ".join(call))[-1].removeprefix("--command=")
    spied = tmp_path / "bin" / "sudo"
    spied.write_text(
        f'#!{sys.executable}\nimport json, sys\nopen("said.jsonl", "a").write(json.dumps(sys.argv) + "\\n")\n'
    )
    spied.chmod(0o755)
    subprocess.run(["bash", "-c", command], check=True)
    said = json.loads(pathlib.Path("said.jsonl").read_text().splitlines()[-1])
    assert [f"--env={pair.removeprefix('--env=')}" for pair in variables] == [
        w for w in said if w.startswith("--env=V")
    ]
    assert said[-3:] == ["flanx", "train", "--gin_file=/opt/flanx/config.gin"]  # the words are in the shipped config
    launch("slurm", *words, *variables, "--image=r/f:1", "--dry_run", "--name=run-2")
    assert not list(tmp_path.rglob("OWNED"))


def test_the_words_of_a_batch_script_are_quoted(cloud, tmp_path):
    cloud.answer("sbatch", {"out": "77\n"})
    cloud.answer("squeue --noheader --jobs", {"out": "COMPLETED\n"})
    variables = [f"--env=V{i}={value}" for i, value in enumerate(HOSTILE)]
    assert launch("slurm", *variables) == 0
    spied = tmp_path / "bin" / "srun"
    spied.write_text('#!/bin/bash\nfor i in {0..9}; do v=V$i; printf "%s\\n" "${!v}"; done\nexit 75\n')
    spied.chmod(0o755)
    (cloud.folder / "scontrol").write_text((cloud.folder / "git").read_text())
    (cloud.folder / "scontrol").chmod(0o755)
    script = "out/launches/run-1/files/job.sbatch"
    requeued = 0
    # (its restarts so far, the checkpoint that it leaves, whether it goes on): --restarts=3 without a newer one
    ends = [(0, 0, 1), (1, 0, 1), (2, 4, 1), (3, 0, 1), (4, 0, 1), (5, 0, 1), (6, 0, 0), (0, 0, 1), (1, 12, 1)]
    for count, step, goes_on in ends:
        if step:
            leave(tmp_path, step)
        env = {**os.environ, "SLURM_JOB_ID": "77", "SLURM_RESTART_COUNT": str(count)}
        done = subprocess.run(["bash", script], env=env, capture_output=True, text=True, check=False)
        assert done.stdout.splitlines() == HOSTILE and done.returncode == 75 and not done.stderr
        requeued += goes_on
        assert cloud.count("scontrol requeue 77") == requeued, (count, step)
    assert not list(tmp_path.rglob("OWNED"))


# ---- this machine ----------------------------------------------------------------------------------------------------


def stand_in(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A shell script in place of `flanx`; $FOLDER is the test's, the process's number is its last argument's."""
    monkeypatch.setattr(local, "PROGRAM", ("bash", "-c", f'i="${{!#}}"; i="${{i##*=}}"; {script}', "flanx"))


def run_local(*more: str) -> int:
    return launch("local", *more)


def test_processes_side_by_side_with_their_logs(cloud, monkeypatch, capsys):
    stand_in(monkeypatch, "echo process $i")
    assert run_local("--processes=3") == 0
    assert sorted(capsys.readouterr().out.splitlines()[-3:]) == [f"[{i}] process {i}" for i in range(3)]
    assert len({child["pid"] for child in record.read(pathlib.Path("out/launches/run-1")).children}) == 3
    assert main.main(["launch", "logs", "run-1"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"[{i}] process {i}" for i in range(3)]


def test_one_that_is_killed_stops_all_and_all_start_again(cloud, monkeypatch):
    kill_once = "if mkdir first-$i 2>/dev/null; then if [ $i = 1 ]; then kill -KILL $$; fi; sleep 60; fi"
    stand_in(monkeypatch, f"echo $i >> starts; {kill_once}")
    assert run_local("--processes=4") == 0
    assert sorted(pathlib.Path("starts").read_text().split()) == sorted("01230123")


def test_the_first_bad_end_decides_and_not_what_follows_from_it(cloud, monkeypatch, capsys):
    """A collective that lost a process raises an error of its own, status 1, in the others."""
    script = "if mkdir first-$i 2>/dev/null; then [ $i = 1 ] && kill -KILL $$; sleep 0.4; exit 1; fi"
    stand_in(monkeypatch, script)
    assert run_local("--processes=3") == 0
    assert "after 1 ended with -9" in capsys.readouterr().err


def test_nothing_outlives_the_launcher(cloud, monkeypatch):
    stand_in(monkeypatch, "echo $$ >> pids; sleep 60")
    thread = interrupt_when(lambda: len(pathlib.Path("pids").read_text().split()) == 2 if os.path.exists("pids") else 0)
    assert run_local("--processes=2") == 130
    thread.join()
    for pid in pathlib.Path("pids").read_text().split():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def test_stop_touches_no_process_that_has_the_number_of_a_gone_launcher(cloud, tmp_path, capsys):
    folder = pathlib.Path("out/launches/run-1")
    record.Record("run-1", "local", folder).write(stage=record.MADE)
    kept = json.loads((folder / record.FILE).read_text())
    with subprocess.Popen(["sleep", "60"]) as innocent:
        reused = process.describe(innocent.pid) | {"started": "1"}
        (folder / record.FILE).write_text(json.dumps(kept | {"process": reused, "children": [reused]}))
        assert main.main(["launch", "stop", "run-1"]) == 0
        assert innocent.poll() is None and stage() == record.ENDED
        innocent.kill()


def test_stop_ends_what_a_killed_launcher_left_running(cloud, monkeypatch, tmp_path, capsys):
    folder = pathlib.Path("out/launches/run-1")
    stubborn = ["bash", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"]
    with subprocess.Popen(stubborn, stdout=subprocess.PIPE, start_new_session=True) as child:
        assert child.stdout and child.stdout.readline() == b"ready\n"
        record.Record("run-1", "local", folder).write(stage=record.MADE, children=[process.describe(child.pid)])
        cleanup.stop(record.read(folder), limit=0.3)
        assert child.wait(10) == -signal.SIGKILL and stage() == record.ENDED
    assert f"ends process {child.pid}, which outlived its launcher" in capsys.readouterr().err


def test_stop_ends_a_launch_through_the_process_that_drives_it(cloud, monkeypatch, tmp_path):
    """Of another process: it is told, gives back and ends."""
    script = (
        "import sys, pathlib\nfrom flanx.launch import job, lifecycle, local, record\n"
        "local.PROGRAM = ('sleep', '60')\nfolder = pathlib.Path('out/launches/run-1')\n"
        "one = local.Local(job.Job('run-1', [], folder))\n"
        "sys.exit(lifecycle.launch(one, record.Record('run-1', 'local', folder)))\n"
    )
    driver = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    limit = time.monotonic() + 30
    while time.monotonic() < limit:
        if os.path.exists("out/launches/run-1/launch.json") and stage() == record.MADE:
            break
        time.sleep(0.05)
    reaper = threading.Thread(target=driver.wait)
    reaper.start()
    assert main.main(["launch", "stop", "run-1"]) == 0
    reaper.join(30)
    assert driver.returncode and stage() == record.ENDED
