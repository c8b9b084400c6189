"""`flanx launch`: what it prints before it does it, what it refuses, and a sweep as an array."""

import json
import os
import pathlib
import re
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from flanx import process
from flanx.cli import launch as cli
from flanx.cli import main
from flanx.errors import UserError
from flanx.launch import code, estimate, local, record
from tests import bucket_case
from tests.recorded import Recorder

GOLDEN = pathlib.Path(__file__).parent / "golden" / "launch"
PLACE = ["--project=p-1", "--zone=us-west4-a", "--bucket=gs://b-1"]
GKE = [*PLACE, "--cluster=c-1", "--image=us-docker.pkg.dev/p-1/r/flanx"]
CASES = {
    "tpu_vm_spot": ["tpu-vm", *PLACE, "--topology=v5e:4x4", "--spot", "--env=A=b c"],
    "tpu_vm_slices": ["tpu-vm", *PLACE, "--topology=v4:2x2x1", "--slices=2", "--reservation=any", "--image=r/f:1"],
    "xpk": ["xpk", *GKE, "--topology=v5e:4x4", "--slices=2", "--spot", "--env=A=b c"],
    "jobset": ["xpk", "--without_xpk", *GKE, "--topology=v6e:4x4", "--spot", "--queue=q-1", "--quota=32", "--build"],
    "skypilot": ["skypilot", "--topology=h100:16", "--spot", "--infra=aws", "--image=r/f:1"],
    "slurm": ["slurm", "--topology=h100:16", "--partition=gpu", "--account=me", "--image=/f.sqsh", "--mounts=/shared"],
    "local": ["local", "--processes=2"],
}  # fmt: skip


@pytest.fixture
def here(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """An empty folder, recorded programs, gin files that are not read."""
    recorder = Recorder(tmp_path / "bin", ("gcloud", "kubectl", "xpk", "sky", "sbatch", "squeue", "scancel"))
    monkeypatch.setenv("PATH", f"{recorder.folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(estimate, "operative_config", lambda *_: ("SEED = 1\n", "/bucket/run"))
    monkeypatch.setattr(estimate, "own_files", lambda _: [])
    planned = estimate.Estimate("x", 16, "data 16", 8e9, 16e9, 1000, 2.5)
    monkeypatch.setattr(estimate, "plan", lambda *_: planned)
    monkeypatch.setattr(code, "find", lambda *_: code.Code("0123456789abcdef"))
    monkeypatch.setattr(local, "free_port", lambda: 20000)
    return recorder


def launch(*words: str) -> int:
    program, *more = words
    return main.main(["launch", program, "train", "--gin_file=recipes/flan_t5_xl.gin", "--gin.SEED='it''s'", *more])


@pytest.mark.parametrize("case", CASES)
def test_what_will_be_done(here, case, capsys, tmp_path):
    """Exact command lines and files. To accept a change: remove the file of golden/launch, and read the new one."""
    assert launch(*CASES[case], "--dry_run", "--name=run-1") == 0
    parser = main.Parser()
    cli.add_arguments(parser)
    parsed = parser.parse_args([CASES[case][0], "train", *CASES[case][1:], "--gin_file=a.gin", "--name=run-1"])
    parsed.bindings = []
    job, _ = cli.make_job(parsed)
    kind = cli.BACKENDS["jobset" if parsed.without_xpk else parsed.program]
    files = {name: text for name, text in kind(job).files().items() if not name.endswith(".lock")}
    text = capsys.readouterr().out + "".join(f"\n==> {name}\n{content}" for name, content in files.items())
    for old, new in ((sys.executable, "PYTHON"), (str(tmp_path), "HERE"), (str(code.ROOT), "ROOT")):
        text = text.replace(old, new)
    text = re.sub(r"\.lock: \d+ lines", ".lock: N lines", text)
    path = GOLDEN / f"{case}.txt"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        pytest.fail(f"{path} was not there and has been written: read it, and run the test again")
    assert text == path.read_text(encoding="utf-8")
    assert not here.calls and not pathlib.Path("out").exists()


def test_nothing_is_spent_unasked(here, capsys, monkeypatch):
    assert launch(*CASES["skypilot"]) == 2
    assert "there is nobody to ask here: give --yes" in capsys.readouterr().err
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    for answer, status in (("n", 2), ("", 2), ("y", 0)):
        monkeypatch.setattr("builtins.input", lambda _, answer=answer: answer)
        assert launch(*CASES["skypilot"], "--detach") == status
        assert here.count("jobs launch") == (answer == "y")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tpu-vm", "--topology=v5e:4x4"], "no project and no zone and no bucket: set project, zone, bucket in"),
        (["tpu-vm", *PLACE], "no --topology"),
        (["tpu-vm", *PLACE, "--topology=v5f:4x4"], "no chip 'v5f'; did you mean 'v5p'?"),
        (["tpu-vm", *PLACE, "--topology=v5e:3x3"], "nearest are"),
        (["tpu-vm", *PLACE, "--topology=v4:4x4x12"], "an accelerator type does not say the shape"),
        (["tpu-vm", *PLACE, "--topology=v5e:4x4", "--spot", "--reservation=any"], "--spot and a reservation"),
        (["tpu-vm", *PLACE, "--topology=2x v5e:4x4", "--slices=2"], "give slices of one TPU shape, once"),
        (["xpk", *PLACE, "--topology=v5e:4x4"], "no cluster and no image"),
        (["slurm", "--topology=v5e:4x4"], "SLURM has GPUs"),
        (["local", "--topology=v5e:4x4"], "--topology and --spot belong to other programs"),
        (["tpuvm", "--topology=v5e:4x4"], "no program 'tpuvm'; did you mean 'tpu-vm'?"),
        (["local", "--name=A b"], "lower-case letters, digits and hyphens"),
        (["local", "--env=HF_TOKEN=x"], "looks like a secret"),
        (["local", "--gin.X='hf_ABCDEFGHIJKLMNOPQRSTUVWX'"], "looks like a secret"),
        (["local", "--target=nosuch"], "no target 'nosuch': there is no file launch/targets.toml here; name"),
        (["local", "--zone=; id"], "is not a valid zone"),
        (["local", "--build"], "the target has no image"),
        ([*CASES["tpu_vm_spot"], "--import=mine"], "a module of your own is not shipped"),
        (["local", "--detach"], "has no one who keeps the run"),
    ],
)
def test_what_is_refused_before_anything_is_asked(here, capsys, words, message):
    assert launch(*words, "--yes") == 2
    said = capsys.readouterr()
    assert message in said.err and 1 <= len(said.err.splitlines()) <= 5
    assert "hf_ABC" not in said.out + said.err
    assert not here.calls and not pathlib.Path("out").exists()


@pytest.mark.parametrize(
    ("program", "asked", "answer", "message"),
    [
        ("tpu_vm_spot", "buckets describe", {"status": 1, "err": "404"}, "the bucket gs://b-1 is not there"),
        ("tpu_vm_spot", "resources describe", {"out": "{}"}, "the name run-1 is taken"),
        ("xpk", "images describe", {"status": 1, "err": "NOT_FOUND"}, "no image us-docker.pkg.dev/p-1/r/flanx:0123"),
        ("xpk", "get-credentials", {"status": 1, "err": "no"}, "the cluster c-1 is not in us-west4-a of p-1"),
        ("xpk", "get jobset", {"out": "{}"}, "the name run-1 is taken"),
        ("slurm", "squeue", {"out": "5\n"}, "the name run-1 is taken"),
    ],
)  # fmt: skip
def test_what_is_refused_before_anything_is_made(here, capsys, program, asked, answer, message):
    here.answer("resources describe|get jobset", {"status": 1, "err": "NOT_FOUND"})
    here.answer(asked, answer)
    assert launch(*CASES[program], "--yes", "--name=run-1", "--wheel=x.whl") == 2
    assert message in capsys.readouterr().err
    assert not pathlib.Path("out").exists() and not here.count("create") and not here.count("sbatch")


def test_a_program_that_is_not_there(here, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert launch(*CASES["skypilot"], "--yes") == 2
    assert "no program 'sky' on PATH" in capsys.readouterr().err


def test_a_plan_that_does_not_fit(here, capsys, monkeypatch):
    def refuse(*_: Any) -> None:
        raise UserError("it does not fit v5e:4x4: 20.0 GB a chip of 15.8; next: more chips")

    monkeypatch.setattr(estimate, "plan", refuse)
    assert launch(*CASES["tpu_vm_spot"], "--yes") == 2
    assert "it does not fit" in capsys.readouterr().err and not here.calls


def test_questions_about_launches_that_are_not_there(here, capsys):
    for question in ("status", "logs", "stop"):
        assert main.main(["launch", question, "nosuch"]) == 2
        assert "no launch 'nosuch' in out/launches" in capsys.readouterr().err
        assert main.main(["launch", question]) == 2
    assert main.main(["launch", "list"]) == 0 and main.main(["launch", "local"]) == 2
    folder = pathlib.Path("out/launches/old")
    record.Record("old", "local", folder).write(stage=record.ENDED)
    text = (folder / record.FILE).read_text()
    for broken, message in ((text.replace('"stage"', '"stege"'), "of another version"), ("[", "damaged")):
        (folder / record.FILE).write_text(broken)
        assert main.main(["launch", "status", "old"]) == 2
        assert message in capsys.readouterr().err


def test_a_damaged_record_hides_no_other_launch(here, capsys):
    for name in ("a", "b", "c"):
        record.Record(name, "local", pathlib.Path("out/launches") / name).write(stage=record.ENDED)
    pathlib.Path("out/launches/b/launch.json").write_text('{"name": 5}')
    for flags in ([], ["--json"]):
        assert main.main(["launch", "list", *flags]) == 1
        out, err = capsys.readouterr()
        assert err.startswith("flanx: out/launches/b/launch.json is damaged: 'name' is 5") and err.count("\n") == 1
        names = [each["name"] for each in json.loads(out)] if flags else [row[0] for row in out.splitlines()[1:]]
        assert names == ["a", "c"]


# ---- sweeps ----------------------------------------------------------------------------------------------------------


def test_a_sweep_is_an_array_with_a_limit(here, monkeypatch, capsys):
    """`flanx sweep` with this program as its launcher, after its dry run on the topology."""
    ran: list[list[str]] = []
    answer = SimpleNamespace(returncode=0)
    monkeypatch.setattr(cli.subprocess, "run", lambda words, **_: ran.append(words) or answer)
    flags = ["--topology=v5e:2x4", "--slices=2", "--spot", "--jobs=3", "--yes", "--env=A=b c", "--gin.OUT_DIR='out/x'"]
    assert main.main(["launch", "tpu-vm", "sweeps/demo.gin", *PLACE, *flags]) == 0
    dry, real = ([word for word in words if word not in (sys.executable, "-m", "flanx")] for words in ran)
    sweep = ["sweep", "--gin_file=sweeps/demo.gin", "--gin.OUT_DIR='out/x'"]
    assert dry == [*sweep, "--dry_run", "--topology=2x v5e:2x4"]
    assert real[:-1] == [*sweep, "--jobs=3"]
    from flanx.sweep.scheduler import parse_launcher

    point = SimpleNamespace(name="T5_8", job="flanx-t5-8")
    command = parse_launcher(real[-1].removeprefix("--launcher="), 0, 0.0).command(point, ["train", "--gin.A='b c'"])
    assert command[3:6] == ["launch", "tpu-vm", "--topology=v5e:2x4"] and "--slices=2" in command
    assert {"--spot", "--yes", "--name=flanx-t5-8", "--env=A=b c", "--project=p-1"} <= set(command)
    assert command[-2:] == ["train", "--gin.A='b c'"]
    record.Record("flanx-t5-9", "tpu-vm", pathlib.Path("out/launches/flanx-t5-9")).write(
        stage=record.MADE, text="running"
    )
    main.main(["launch", "tpu-vm", "sweeps/demo.gin", *PLACE, *flags])
    assert "flanx-t5-9 is not ended (running): flanx launch stop flanx-t5-9" in capsys.readouterr().err


def test_a_launch_that_another_process_begins_is_refused(here, capsys):
    own = pathlib.Path("out/launches/one")
    record.Record("one", "local", own).write(stage=record.MAKING, text="ships code and files")
    kept = json.loads((own / record.FILE).read_text())
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        (own / record.FILE).write_text(json.dumps(kept | {"process": process.describe(other.pid)}))
        words = ["launch", "local", "train", "--gin_file=runs/train.gin", "--name=one", "--yes"]
        assert main.main(words) == 2
        assert "the launch one has not ended (ships code and files)" in capsys.readouterr().err


def test_a_sweeps_folder_of_another_version(here, capsys):
    folder = pathlib.Path("out/x")
    (folder / "runs").mkdir(parents=True)
    (folder / "sweep.json").write_text('{"out_dir": "out/x", "axis": {}}')
    assert main.main(["launch", "local", "sweeps/demo.gin", "--yes", "--gin.OUT_DIR='out/x'"]) == 2
    assert "out/x holds a sweep of another version" in capsys.readouterr().err
    with bucket_case.service() as service:
        for name, message in (
            ("bucket", "gs://bucket/x holds a sweep of another"),
            ("nobody", "there is no bucket gs://"),
        ):
            service.objects["x/runs/a/run.json"] = b"{}", 5
            flags = ["--yes", f"--gin.OUT_DIR='gs://{name}/x'"]
            assert main.main(["launch", "local", "sweeps/demo.gin", *flags]) == 2
            assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_recipe_is_planned_and_its_config_shipped(tmp_path):
    """Nothing replaced: the plan of Flan-T5-Small, on a slice that it fits and on one that it does not."""
    bound = ["--gin.STORE_DIR='/bucket/store'", "--gin.MODEL_DIR='/bucket/run'", "--gin.BATCH_SIZE=64"]
    words = [*GKE, "--without_xpk", "--dry_run", "--dirty", *bound]
    command = [sys.executable, "-m", "flanx", "launch", "xpk"]
    done = subprocess.run(
        [*command, "flan_t5_small", *words, "--topology=v5e:4x4"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "16 chips, layout" in done.stdout and "chip-hours" in done.stdout and "config.gin: " in done.stdout
    assert "name: flanx-flan-t5-small" not in done.stdout and "flanx-flan-t5-small" in done.stdout
    done = subprocess.run(
        [
            *command,
            "flan_palm_540b",
            *words,
            "--gin.VOCABULARY='byte'",
            "--gin.INITIAL_CHECKPOINT_PATH=None",
            "--topology=v5e:4x4",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "does not fit v5e:4x4" in done.stderr, done.stderr
