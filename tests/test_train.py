"""One run from the command line: it trains, resumes to the last bit after a kill, refuses to become another run."""

import json
import pathlib
import random
import re
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from flanx import optim, train
from flanx.checkpoint import RestoreCheckpointConfig, SaveCheckpointConfig
from flanx.cli import main
from flanx.data import vocabulary
from flanx.data.pipeline.batches import Batches, DatasetConfig
from flanx.data.pipeline.mixture import Mixture
from flanx.data.store import open_store
from flanx.data.store.assemble import write_store
from flanx.files import read_jsonl
from flanx.models import t5
from flanx.partition import Partitioner
from flanx.train_metrics import STAGES, read_metrics
from flanx.train_step import Trainer
from tests import plan_case, run_case
from tests.run_case import STEPS, losses


def test_a_run_leaves_its_config_its_identity_its_metrics_and_its_checkpoint():
    folder = run_case.undisturbed()
    found = losses(folder)
    assert list(found) == list(range(1, STEPS + 1))
    assert found[STEPS] < found[1]
    tables = [json.loads(line) for line in (folder / "tasks.jsonl").read_text().splitlines()]
    assert [table["step"] for table in tables] == [3, 6, STEPS]
    sources = [record["sources"]["own"] for record in read_metrics(folder)]
    for key in ("tokens", "examples"):
        assert sum(table["tasks"]["own_a"][key] for table in tables) == sum(source[key] for source in sources) > 100
    first, records = tables[0]["tasks"]["own_a"]["loss_sum"], read_metrics(folder)[:3]
    assert first == pytest.approx(sum(source["loss"] * source["tokens"] for source in sources[:3]), rel=1e-12)
    assert [record["cross_ent_loss"] for record in records] == [source["loss"] for source in sources[:3]]
    assert run_case.done(folder) == STEPS
    assert json.loads((folder / "run.json").read_text())["data"]["mixture"]["tasks"] == 1
    assert [p.name for p in (folder / "checkpoints").iterdir()] == [f"checkpoint_{STEPS}"]
    assert "TRAIN_STEPS" in (folder / "config.gin").read_text()
    assert "batch_size" in (folder / "operative_config.gin").read_text()


def test_a_run_killed_at_a_random_step_and_then_told_to_stop_has_the_same_losses_to_the_last_bit(
    tmp_path: pathlib.Path,
):
    wanted, draw = losses(run_case.undisturbed()), random.Random(time.time_ns())
    first, second = sorted(draw.sample(range(1, STEPS), 2))
    killed = run_case.signalled(run_case.command(tmp_path), first, signal.SIGKILL)
    ((status, said),) = run_case.finish([run_case.launch(killed)])
    assert status == -signal.SIGKILL, said
    assert run_case.done(tmp_path) is None
    assert run_case.newest(tmp_path) <= first

    # without a period: what is saved is saved because of SIGTERM; the recipe may change where the run stays the same
    stopped = run_case.signalled(run_case.command(tmp_path, CHECKPOINT_PERIOD=1000), second, signal.SIGTERM)
    ((status, said),) = run_case.finish([run_case.launch(stopped)])
    assert status == 75, said
    assert "stopping: the state is saved after this step" in said and f"saved at step {second}" in said
    assert run_case.newest(tmp_path) == second
    assert f"step {STEPS}/{STEPS}" in run_case.run(run_case.command(tmp_path))
    assert losses(tmp_path) == wanted, f"killed after step {first}, stopped after step {second}"
    files = [(folder / "tasks.jsonl").read_text() for folder in (tmp_path, run_case.undisturbed())]
    assert files[0] == files[1], f"killed after step {first}, stopped after step {second}"


def test_a_finished_run_says_so_and_a_changed_one_is_refused(capsys):
    folder = run_case.undisturbed()
    assert main.main(run_case.command(folder)[3:]) == 0
    assert "already done" in capsys.readouterr().out
    assert main.main(run_case.command(folder, TRAIN_STEPS=STEPS + 1, SEED=1)[3:]) == 2
    assert "is another run" in capsys.readouterr().err
    for name, value in (("BATCH_SIZE", 1), ("INITIAL_CHECKPOINT_PATH", str(folder))):
        said = refused(capsys, folder, **{name: value})
        assert "is another run" in said and name.lower() in said.replace("data.batch", "batch"), said


@pytest.mark.slow
def test_a_parent_that_was_trained_on_before_its_child_began_is_named(tmp_path, capsys):
    parent, child = tmp_path / "parent", tmp_path / "child"
    shutil.copytree(run_case.undisturbed(), parent)
    bound = {"INITIAL_CHECKPOINT_PATH": str(parent), "TRAIN_STEPS": 1}
    assert main.main(run_case.command(child, **bound)[3:]) == 0
    for name in ("checkpoints", "evals"):  # as if it was killed before its first checkpoint
        shutil.rmtree(child / name, ignore_errors=True)
    (child / "done.json").unlink()
    assert main.main(run_case.command(parent, TRAIN_STEPS=STEPS + 1)[3:]) == 0
    assert "initial_checkpoint_fingerprint was" in refused(capsys, child, **bound)


@pytest.fixture(scope="module")
def of_t5x(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The undisturbed run as a checkpoint of T5X, at its last step."""
    folder = tmp_path_factory.mktemp("parent") / "t5x"
    assert main.main(["convert", "--to", "t5x", str(run_case.undisturbed()), str(folder)]) == 0
    return folder


@pytest.mark.slow  # 14 s; how steps are counted from a parent is in every run
def test_a_parent_of_t5x_with_its_optimizer_goes_on_as_the_run_itself(of_t5x, tmp_path, capsys):
    shutil.copytree(run_case.undisturbed(), tmp_path / "resumed")
    assert main.main(run_case.command(tmp_path / "resumed", TRAIN_STEPS=STEPS + 3)[3:]) == 0
    capsys.readouterr()
    bound = {"INITIAL_CHECKPOINT_PATH": str(of_t5x), "RESTORE_OPTIMIZER": True, "TRAIN_STEPS": STEPS + 3}
    assert main.main(run_case.command(tmp_path / "child", **bound)[3:]) == 0
    said = capsys.readouterr().out
    assert f"trains 3 steps, {STEPS + 1} to {STEPS + 3} (TRAIN_STEPS counts the parent's, as in T5X)" in said
    resumed = losses(tmp_path / "resumed")
    assert losses(tmp_path / "child") == {step: resumed[step] for step in range(STEPS + 1, STEPS + 4)}
    bound |= {"TRAIN_STEPS": STEPS}
    assert "TRAIN_STEPS 8 is not above the step of the parent" in refused(capsys, tmp_path / "none", **bound)
    assert not (tmp_path / "none" / "run.json").exists()


def test_train_steps_count_the_parents_where_they_are_above_them(of_t5x, tmp_path, capsys):
    for steps, said in ((STEPS + 1, f"trains 1 steps, {STEPS + 1} to {STEPS + 1} ("), (2, "trains 2 steps, 1 to 2\n")):
        folder = tmp_path / str(steps)
        bound = {"INITIAL_CHECKPOINT_PATH": str(of_t5x), "TRAIN_STEPS": steps}
        assert main.main(run_case.command(folder, **bound)[3:]) == 0
        assert said in capsys.readouterr().out
        assert max(losses(folder)) == steps and run_case.newest(folder) == steps
    above = {"INITIAL_CHECKPOINT_PATH": str(of_t5x), "TRAIN_STEPS": STEPS + 2}
    assert "counts steps of its own and is at 2; TRAIN_STEPS 10 is above" in refused(capsys, tmp_path / "2", **above)
    said = refused(capsys, tmp_path / "2", **bound, RESTORE_OPTIMIZER=True)
    assert "restore_optimizer was False, now True" in said
    shutil.rmtree(tmp_path / "2" / "checkpoints")
    (tmp_path / "2" / "done.json").unlink()
    assert main.main(run_case.command(tmp_path / "2", **bound)[3:]) == 0
    assert "has records and no checkpoint, so it starts again" in capsys.readouterr().out


def test_restoring_an_optimizer_needs_a_parent(tmp_path, capsys):
    assert "give INITIAL_CHECKPOINT_PATH" in refused(capsys, tmp_path / "run", RESTORE_OPTIMIZER=True)


def refused(capsys, *arguments, **bound) -> str:
    """The one line with which a run is refused."""
    assert main.main(run_case.command(*arguments, **bound)[3:]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said


def test_bad_input_is_one_line(tmp_path: pathlib.Path, capsys):
    said = refused(capsys, tmp_path / "a", MIXTURE_OR_TASK_NAME="owm")
    assert "'owm'" in said and "'own'" in said
    assert "nowhere" in refused(capsys, tmp_path / "b", STORE_DIR=str(tmp_path / "nowhere"))
    assert "gs://BUCKET" in refused(capsys, tmp_path / "c", MODEL_DIR="http://bucket/run")
    assert not (tmp_path / "a").exists() or not list((tmp_path / "a").glob("run.json"))


def test_a_loss_that_is_not_finite_stops_with_its_step_and_the_last_good_checkpoint(tmp_path: pathlib.Path, capsys):
    folder = shutil.copytree(run_case.undisturbed(), tmp_path / "run")
    (folder / "done.json").unlink()
    said = refused(capsys, folder, TRAIN_STEPS=STEPS + 5, LEARNING_RATE=1e38, **{"train.fork": True})
    assert f"the loss of step {STEPS + 2} is" in said  # the first step after the one that broke the parameters
    assert "its gradient's norm nan; first non-finite layer: parameter decoder/decoder_norm/scale" in said
    assert f"last good checkpoint: step {STEPS}" in said
    assert run_case.newest(folder) == STEPS


def test_every_record_says_where_its_time_went():
    figures = [record["performance"] for record in read_metrics(run_case.undisturbed())]
    spent = {stage: [each[f"{stage}_seconds"] for each in figures] for stage in STAGES}
    assert len(figures) == STEPS and all(min(each) >= 0 for each in spent.values())
    assert spent["compile"][0] > 0.01 and figures[-1]["programs"] >= 1
    assert [n + 1 for n, seconds in enumerate(spent["checkpoint"]) if seconds > 0] == [3, 5, 7]  # saved at 2, 4, 6
    assert sum(spent["input"]) > 0 and min(spent["step"]) > 0
    goodput, (session, ended) = figures[-1]["goodput"], read_jsonl(run_case.undisturbed() / "sessions.jsonl")
    assert session["processor_seconds"] > 0.5 and session["start_seconds"] > 0.01  # imports take more
    assert session["hosts"] == session["chips"] == 1
    assert goodput == pytest.approx(sum(spent["step"]) / (ended["ended"] - session["started"]), rel=0.05)


def test_a_task_that_the_steps_draw_many_times_over_is_named(capsys):
    """200 examples; a row of 32/16 holds about two."""
    opened = Batches(open_store(run_case.store_dir()), Mixture("own"), {"inputs": 32, "targets": 16}, 8)
    epochs = opened.epochs(400)
    assert epochs == {"own_a": pytest.approx(400 * 8 * opened.examples_per_row / 200)}
    trainer = Trainer(plan_case.SMALL, optim.adafactor(1e-3))
    train.report("run", Partitioner(), {}, opened, 400, epochs["own_a"] + 0.1, trainer)
    assert capsys.readouterr().out == ""
    train.report("run", Partitioner(), {}, opened, 400, 4.0, trainer)
    said = capsys.readouterr().out
    assert f"note: 400 steps draw 1 of 1 tasks more than 4 times, own_a {epochs['own_a']:.3g} times;" in said
    assert "warn_epochs" in said


# ---- what may change between a stop and a resume ---------------------------------------------------------------------


def resumed(tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of the undisturbed run that has not been evaluated yet."""
    folder = shutil.copytree(run_case.undisturbed(), tmp_path / "run")
    (folder / "done.json").unlink()
    return folder


def store_with(folder: pathlib.Path, **more: list) -> str:
    """The store of `run_case` with more tasks, {name: pairs}; `own_a` may be another one."""
    words = vocabulary.load("byte")
    opened = open_store(run_case.store_dir())
    part = opened.tasks["own_a"].parts["zsopt"][0]
    pairs = {"own_a": [opened.example(part, i) for i in range(part.examples)]} | more
    facts = {"cap": 1000, "held_out": False, "cot": False}
    tasks = {name: {"collection": name.split("_")[0], **facts} for name in pairs}
    write_store(folder, tasks, {(name, "zsopt"): [each] for name, each in pairs.items()}, words)
    return str(folder)


def test_an_unrelated_task_in_the_store_and_other_periods_steps_and_paths_are_free(tmp_path, capsys):
    folder = resumed(tmp_path)
    other = store_with(tmp_path / "moved", other_b=[(np.array([5, 6, 1]), np.array([7, 1]))] * 30)
    assert open_store(other).hash != open_store(run_case.store_dir()).hash
    more = {"CHECKPOINT_PERIOD": 3, "train.log_period": 2, "NUM_MICROBATCHES": 2, "STORE_DIR": other}
    assert main.main(run_case.command(folder, TRAIN_STEPS=STEPS + 1, **more)[3:]) == 0, capsys.readouterr().err
    assert run_case.done(folder) == STEPS + 1


def test_a_changed_setting_is_listed_with_the_choices(tmp_path, capsys):
    folder = resumed(tmp_path)
    said = refused(capsys, folder, TRAIN_STEPS=STEPS + 1, LEARNING_RATE=0.01, DROPOUT_RATE=0.2)
    assert (
        "is another run: t5.T5.dropout_rate was 0.1, now 0.2; optim.adafactor.learning_rate was 0.02, now 0.01." in said
    )
    assert "choose another MODEL_DIR, or bind train.fork = True" in said
    lengths = {"inputs": 32, "targets": 12}
    said = refused(capsys, folder, TRAIN_STEPS=STEPS + 1, BATCH_SIZE=4, TASK_FEATURE_LENGTHS=lengths)
    assert (
        "data.lengths.targets was 16, now 12; data.batch_size was 8, now 4." in said and "examples_per_row" not in said
    )
    changed = store_with(tmp_path / "changed", own_a=[(np.array([5, 6, 1]), np.array([7, 1]))] * 200)
    said = refused(capsys, folder, TRAIN_STEPS=STEPS + 1, STORE_DIR=changed)
    assert re.search(r"another run: data.content.own_a was [0-9a-f]{8}, now [0-9a-f]{8}\. Give", said)
    assert main.main(run_case.command(folder, LEARNING_RATE=0.01, **{"train.fork": True})[3:]) == 0
    assert "resumes as another run: optim.adafactor.learning_rate was 0.02, now 0.01" in capsys.readouterr().out
    assert json.loads((folder / "run.json").read_text())["settings"]["optim.adafactor.learning_rate"] == 0.01


def test_a_finished_run_is_not_called_done_under_other_settings(capsys):
    said = refused(capsys, run_case.undisturbed(), LEARNING_RATE=0.01)
    assert "optim.adafactor.learning_rate was 0.02, now 0.01" in said


def test_a_record_of_an_earlier_version_is_compared_as_far_as_it_goes():
    """It has no settings, and the hash of the whole store for what the mixture reads."""
    trainer = Trainer(t5.T5(), optim.adafactor(optim.cosine(1e-3, 100)))
    batches = Batches(open_store(run_case.store_dir()), Mixture("own"), {"inputs": 32, "targets": 16}, 8)
    now = json.loads(json.dumps(train.identity(trainer, batches) | {"initial_checkpoint_path": None}))
    assert now["settings"]["optim.adafactor.learning_rate"] == "cosine"
    assert now["settings"]["optim.cosine.total_steps"] == 100
    older = {k: v for k, v in now.items() if k != "settings"} | {"model": "T5(...)", "seed": 0, "batches": "04e4"}
    older["data"] = {k: v for k, v in now["data"].items() if k != "content"} | {"fingerprint": "04e4"}
    assert train.changes(older, now) == [] == train.changes(now, now)
    of_old_store = {**older, "data": older["data"] | {"store": {"hash": "5707", "vocabulary": "byte"}}}
    assert train.changes(of_old_store, now) == [f"data.store.hash was 5707, now {now['data']['store']['hash']}"]
    moved = {"initial_checkpoint_fingerprint": "ab", "initial_checkpoint_path": "here"}
    assert train.changes(now | moved, now | moved | {"initial_checkpoint_path": "there"}) == []
    of_no_steps = now | {"data": None, "batches": None}
    assert train.changes(of_no_steps, now) == [] == train.changes(now, of_no_steps)  # TRAIN_STEPS is free, from 0 on
    assert train.changes(now | {"batches": "04e4"}, now) == [f"batches was 04e4, now {now['batches']}"]


def test_a_changed_byte_of_the_store_ends_a_run_that_reads_it(tmp_path, capsys):
    other = pathlib.Path(store_with(tmp_path / "store"))
    file = next(other.glob("own-*.tokens.npy"))
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    said = refused(capsys, tmp_path / "run", STORE_DIR=str(other))
    assert f"{file}: bytes 0 to " in said and "have changed since they were written" in said
    assert main.main([*run_case.command(tmp_path / "run", STORE_DIR=str(other))[3:], "--no_verify"]) == 0


def test_what_the_evaluation_will_need_is_looked_at_before_the_first_step(tmp_path: pathlib.Path) -> None:
    for wrong, said in (("['x']", "no evaluation suite 'x'"), ("['gsm8k_cot']", "gsm8k_cot: no ")):
        more = ["--gin_file=evals/suite.gin", f"--gin.SUITES={wrong}", f"--gin.DATA_DIR='{tmp_path}'"]
        command = [*run_case.command(tmp_path / "run"), *more]
        ((status, printed),) = run_case.finish([run_case.launch(command)])
        assert status == 2 and said in printed, printed
        assert not (tmp_path / "run").exists()


def test_an_evaluation_that_was_interrupted_is_done_when_the_run_resumes(tmp_path: pathlib.Path) -> None:
    model = t5.T5(
        vocab_size=384, emb_dim=8, num_heads=1, head_dim=8, mlp_dim=8, num_encoder_layers=1, num_decoder_layers=1
    )
    mixture, lengths = Mixture("own"), {"inputs": 32, "targets": 16}
    calls: list[int] = []

    def evaluator(*, step: int, **_: object) -> None:
        calls.append(step)
        if calls == [2]:
            raise InterruptedError

    def run(folder: pathlib.Path, parent: str | None = None, steps: int = 6) -> None:
        train.train(
            trainer=Trainer(model, optim.adafactor(1e-3), dropout=False),
            dataset=DatasetConfig(mixture, str(run_case.store_dir()), "byte", lengths, batch_size=2),
            train_steps=steps,
            model_dir=str(folder),
            partitioner=Partitioner(devices=jax.devices()[:1]),
            checkpoints=SaveCheckpointConfig(period=2),
            initial_checkpoint=RestoreCheckpointConfig(parent),
            evaluator=evaluator,
            eval_period=2,
        )

    with pytest.raises(InterruptedError):
        run(tmp_path / "run")
    run(tmp_path / "run")
    assert calls == [2, 2, 4, 6]
    calls.clear()
    run(tmp_path / "child", str(tmp_path / "run"), steps=8)  # from step 6, which is the parent's
    assert calls == [8]
