"""Faults: kills at any moment, a save that hangs, memory that runs out."""

import pathlib
import random
import shutil
import signal
import threading
import time
import types

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from flanx import checkpoint, partition, train
from flanx.checkpoint import Checkpoints, RestoreCheckpointConfig, SaveCheckpointConfig
from flanx.errors import UserError
from flanx.train_step import TrainState
from tests import run_case


def test_a_hung_save_is_named_and_ends_the_process(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    ended, gone = [], threading.Event()

    def leave(status: int) -> None:
        ended.append(status)
        gone.set()

    monkeypatch.setattr(checkpoint.os, "_exit", leave)
    saved = Checkpoints(tmp_path, SaveCheckpointConfig(timeout=0.2))
    monkeypatch.setattr(saved._manager, "is_saving_in_progress", lambda: not gone.is_set())
    saved.save(TrainState(np.int32(3), {"a": jax.numpy.ones(4)}, ()))
    assert gone.wait(10)
    assert ended == [checkpoint.HUNG]
    assert "the save of step 3 to" in capsys.readouterr().err
    saved.close()


def test_a_finished_save_is_not_watched(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(checkpoint.os, "_exit", ended.append)
    saved = Checkpoints(tmp_path, SaveCheckpointConfig(timeout=2.0))
    saved.save(TrainState(np.int32(3), {"a": jax.numpy.ones(4)}, ()))
    saved.wait()
    limit = time.monotonic() + 10
    while any(t.name == "flanx-save-watch" for t in threading.enumerate()) and time.monotonic() < limit:
        time.sleep(0.05)
    saved.close()
    assert ended == []
    assert saved.latest() == 3


def exhausted(partitioner: partition.Partitioner, error: str = "RESOURCE_EXHAUSTED: Out of memory") -> None:
    """What a device that is full says, where a state of two arrays lies."""
    shape = jax.ShapeDtypeStruct((4096, 4096), np.float32, sharding=partitioner.everywhere())
    state = TrainState((), {"wi": shape}, {"m": {"wi": shape}})
    with partition.explain_exhausted(state, partitioner):
        raise jax.errors.JaxRuntimeError(error)


@pytest.mark.parametrize(
    ("partitioner", "advice"),
    [
        (partition.Partitioner(2), "partition.rules.parameters = 2"),
        (partition.Partitioner(2, partition.rules(1, 2)), "NUM_PARTITIONS = 4"),
        (partition.Partitioner(8, partition.rules(1, 2)), "more devices"),
        (partition.Partitioner(1, partition.rules(preset="fsdp"), jax.devices()[:3]), "NUM_PARTITIONS = 3"),
    ],
)
def test_out_of_memory_names_the_largest_arrays_and_the_next_layout(
    partitioner: partition.Partitioner, advice: str
) -> None:
    with pytest.raises(UserError) as caught:
        exhausted(partitioner)
    said = str(caught.value)
    assert f"data {partitioner.mesh.shape['data']} x model {partitioner.mesh.shape['model']}: " in said
    assert "the state takes 0.134 GB a device (largest: params/wi 0.0671 GB, opt_state/m/wi 0.0671 GB)" in said
    assert f"next: {advice}" in said


def test_memory_that_runs_out_while_the_state_is_made_is_explained_too(tmp_path: pathlib.Path) -> None:
    def fresh() -> TrainState:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    partitioner = partition.Partitioner(2)
    whole = jax.ShapeDtypeStruct((4,), np.float32, sharding=partitioner.everywhere())
    trainer = types.SimpleNamespace(init=fresh, abstract_state=lambda _: TrainState(whole, {"wi": whole}, ()))
    nothing_saved = types.SimpleNamespace(latest=lambda: None)
    with pytest.raises(UserError, match="out of memory on replica 1 x data 4 x model 2"):
        train.init_state(tmp_path, trainer, partitioner, nothing_saved, RestoreCheckpointConfig(), 0, 1)


def test_another_error_of_a_device_stays_itself() -> None:
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        exhausted(partition.Partitioner(2), "INTERNAL: something else")


def state(step: int) -> TrainState:
    return TrainState(np.int32(step), {"a": jax.numpy.full(4, step)}, ())


def test_n_checkpoints_are_kept_and_every_kth_for_ever(tmp_path: pathlib.Path) -> None:
    saved = Checkpoints(tmp_path, SaveCheckpointConfig(keep=2, keep_period=4))
    for step in range(1, 12):
        saved.save(state(step))
    saved.close()
    kept = sorted(int(p.name.split("_")[1]) for p in (tmp_path / "checkpoints").iterdir())
    assert kept == [4, 8, 10, 11]


def test_a_half_written_save_is_never_picked(tmp_path: pathlib.Path) -> None:
    saved = Checkpoints(tmp_path, SaveCheckpointConfig(keep=None))
    saved.save(state(3))
    saved.close()
    whole = tmp_path / "checkpoints" / "checkpoint_3"
    shutil.copytree(whole, whole.with_name("checkpoint_7.orbax-checkpoint-tmp-1234"))  # as a killed save leaves it
    again = Checkpoints(tmp_path, SaveCheckpointConfig(keep=None))
    assert again.latest() == 3
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state(0))
    assert int(again.restore(target).params["a"][0]) == 3
    with pytest.raises(UserError, match=r"no checkpoint of step 7 in .* \(there: 3\)"):
        again.restore(target, 7)
    again.close()


@pytest.mark.slow
def test_a_hundred_kills_change_nothing(tmp_path: pathlib.Path) -> None:
    """SIGKILL at random moments, saves among them: the run ends with the parameters of an undisturbed one."""
    options = {"TRAIN_STEPS": 400}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_case.run(run_case.command(whole, **options))
    rng, kills = random.Random(0), 0
    while kills < 100 and run_case.done(cut) is None:
        before = run_case.newest(cut)
        process = run_case.launch(run_case.command(cut, **options))
        run_case.wait_until(lambda before=before: run_case.newest(cut) != before, process, 120)
        time.sleep(rng.random() * 0.2)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
    run_case.run(run_case.command(cut, **options))
    assert kills == 100
    assert run_case.losses(cut) == run_case.losses(whole)
    assert_same_bits(cut, whole)


def assert_same_bits(one: pathlib.Path, other: pathlib.Path) -> None:
    """Both runs ended with the same parameters and moments, bit for bit."""
    pairs = list(zip(arrays(one), arrays(other), strict=True))
    assert len(pairs) > 40
    for a, b in pairs:
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def arrays(folder: pathlib.Path) -> list[np.ndarray]:
    """Every array of the newest checkpoint: the step, parameters and the optimizer's state."""
    path = folder / "checkpoints" / f"checkpoint_{run_case.newest(folder)}" / "default"
    with ocp.PyTreeCheckpointer() as reader:
        there = reader.metadata(path).item_metadata.tree
        plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), there)
        return jax.tree.leaves(reader.restore(path, restore_args=plain))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_closed_terminal_and_ctrl_c_save_as_sigterm_does(number: int, tmp_path: pathlib.Path) -> None:
    """The signal itself, after step 3 of 8: status 75, a checkpoint of that step, the losses of an undisturbed run."""
    command = run_case.command(tmp_path / "cut")
    ((status, said),) = run_case.finish([run_case.launch(run_case.signalled(command, 3, number))])
    assert status == 75 and "stopped and saved at step 3; the same command resumes it" in said
    assert run_case.newest(tmp_path / "cut") == 3
    run_case.run(command)
    assert run_case.losses(tmp_path / "cut") == run_case.losses(run_case.undisturbed())


@pytest.mark.slow
def test_a_second_training_in_a_folder_is_refused_while_the_first_writes_there(tmp_path: pathlib.Path) -> None:
    command = run_case.command(tmp_path / "both", TRAIN_STEPS=400)
    first = run_case.launch(command)
    run_case.wait_until(lambda: run_case.newest(tmp_path / "both"), first)
    ((status, said),) = run_case.finish([run_case.launch(command)])
    assert status == 2 and "another flanx command is writing there" in said
    first.send_signal(signal.SIGTERM)
    ((status, said),) = run_case.finish([first])
    assert status == 75, said


ODD_NAMES = ("with space", "[lr=1e-3]", "c#1", "{a}", "100%41", "ü", "a*b?", "it's")


@pytest.mark.slow
def test_a_run_folder_may_have_any_name(tmp_path: pathlib.Path) -> None:
    """A run in it resumes, converts, and is another run's parent."""
    right = 0
    for name in ODD_NAMES:
        run_case.run(run_case.command(tmp_path / name, TRAIN_STEPS=2))
        run_case.run(run_case.command(tmp_path / name, TRAIN_STEPS=3))
        child = run_case.command(tmp_path / f"of {name}", TRAIN_STEPS=1, INITIAL_CHECKPOINT_PATH=str(tmp_path / name))
        run_case.run(child)
        converted = [*run_case.command(tmp_path)[:3], "convert", str(tmp_path / name), str(tmp_path / f"t5x {name}")]
        run_case.run([*converted, "--to=t5x"])
        right += run_case.newest(tmp_path / name) == 3
    print(f"{right} of {len(ODD_NAMES)} odd names right")
    assert right == len(ODD_NAMES)


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond it is an error, as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, resource.RLIM_INFINITY))
from flanx.cli import main
sys.argv = ["flanx", *sys.argv[1:]]
main.entry()
"""


@pytest.mark.slow
def test_a_full_disk_is_a_line_and_what_was_there_stays(tmp_path: pathlib.Path) -> None:
    """Files of at most so many bytes, at sizes that end in the config, a record, the checkpoint, its metadata."""
    command = run_case.command(tmp_path / "run", TRAIN_STEPS=4)
    run_case.run(command)
    before, right, sizes = run_case.losses(tmp_path / "run"), 0, (10, 200, 1000, 3000, 6000, 9000)
    longer = run_case.command(tmp_path / "run", TRAIN_STEPS=run_case.STEPS)
    for size in sizes:
        limited = [longer[0], "-c", LIMITED.format(size=size), *longer[3:]]
        ((status, said),) = run_case.finish([run_case.launch(limited)])
        lines = [line for line in said.splitlines() if line.startswith("flanx train:")]
        good = status in (1, 74) and lines and "File too large" in lines[-1]  # after what Orbax logs of its own
        right += bool(good)
        print(size, status, said[-300:] if not good else "")
    print(f"{right} of {len(sizes)} full disks right")
    assert right == len(sizes)
    run_case.run(longer)
    assert {step: loss for step, loss in run_case.losses(tmp_path / "run").items() if step <= 4} == before
    assert run_case.losses(tmp_path / "run") == run_case.losses(run_case.undisturbed())
