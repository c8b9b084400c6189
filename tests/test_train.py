"""One run from the command line: it trains, resumes to the last bit after a kill, refuses to become another run."""

import json
import pathlib
import random
import shutil
import signal
import time

import pytest

from flanx import train
from flanx.cli import main
from flanx.data.pipeline.batches import Batches
from flanx.data.pipeline.mixture import Mixture
from flanx.data.store import open_store
from tests import run_case
from tests.run_case import STEPS, losses


def test_a_run_leaves_its_config_its_identity_its_metrics_and_its_checkpoint():
    folder = run_case.undisturbed()
    found = losses(folder)
    assert list(found) == list(range(1, STEPS + 1))
    assert found[STEPS] < found[1]
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
    assert f"saved at step {second}" in said
    assert run_case.newest(tmp_path) == second
    assert f"step {STEPS}/{STEPS}" in run_case.run(run_case.command(tmp_path))
    assert losses(tmp_path) == wanted, f"killed after step {first}, stopped after step {second}"


def test_a_finished_run_says_so_and_a_changed_one_is_refused(capsys):
    folder = run_case.undisturbed()
    assert main.main(run_case.command(folder)[3:]) == 0
    assert "already done" in capsys.readouterr().out
    assert main.main(run_case.command(folder, TRAIN_STEPS=STEPS + 1, SEED=1)[3:]) == 2
    assert "is another run" in capsys.readouterr().err


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
    assert "mount the bucket" in refused(capsys, tmp_path / "c", MODEL_DIR="gs://bucket/run")
    assert not (tmp_path / "a").exists() or not list((tmp_path / "a").glob("run.json"))


def test_a_loss_that_is_not_finite_stops_with_its_step_and_the_last_good_checkpoint(tmp_path: pathlib.Path, capsys):
    folder = shutil.copytree(run_case.undisturbed(), tmp_path / "run")
    (folder / "done.json").unlink()
    said = refused(capsys, folder, TRAIN_STEPS=STEPS + 5, LEARNING_RATE=1e38)
    assert f"the loss of step {STEPS + 2} is" in said  # the first step after the one that broke the parameters
    assert "its gradient's norm nan; first non-finite layer: parameter decoder/decoder_norm/scale" in said
    assert f"last good checkpoint: step {STEPS}" in said
    assert run_case.newest(folder) == STEPS


def test_a_task_that_the_steps_draw_many_times_over_is_named(capsys):
    """200 examples; a row of 32/16 holds about two."""
    opened = Batches(open_store(run_case.store_dir()), Mixture("own"), {"inputs": 32, "targets": 16}, 8)
    epochs = opened.epochs(400)
    assert epochs == {"own_a": pytest.approx(400 * 8 * opened.examples_per_row / 200)}
    train.report_repeated(opened, 400, epochs["own_a"] + 0.1)
    assert capsys.readouterr().out == ""
    train.report_repeated(opened, 400, 4.0)
    said = capsys.readouterr().out
    assert f"note: 400 steps draw 1 of 1 tasks more than 4 times, own_a {epochs['own_a']:.3g} times;" in said
    assert "warn_epochs" in said
