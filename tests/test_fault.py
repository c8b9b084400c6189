"""Faults: kills at any moment, a save that hangs, memory that runs out."""

import pathlib
import random
import signal
import threading
import time

import jax
import numpy as np
import pytest

from flanx import checkpoint, partition
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
    saved = checkpoint.Checkpoints(tmp_path, timeout=0.2)
    monkeypatch.setattr(saved._manager, "is_saving_in_progress", lambda: not gone.is_set())
    saved.save(TrainState(np.int32(3), {"a": jax.numpy.ones(4)}, ()))
    assert gone.wait(10)
    assert ended == [checkpoint.HUNG]
    assert "the save of step 3 to" in capsys.readouterr().err
    saved.close()


def test_a_finished_save_is_not_watched(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(checkpoint.os, "_exit", ended.append)
    saved = checkpoint.Checkpoints(tmp_path, timeout=2.0)
    saved.save(TrainState(np.int32(3), {"a": jax.numpy.ones(4)}, ()))
    saved.wait()
    limit = time.monotonic() + 10
    while any(t.name == "flanx-save-watch" for t in threading.enumerate()) and time.monotonic() < limit:
        time.sleep(0.05)
    saved.close()
    assert ended == []
    assert saved.latest() == 3


def test_out_of_memory_names_the_largest_arrays_and_the_next_layout() -> None:
    partitioner = partition.Partitioner(2)
    shape = jax.ShapeDtypeStruct((1024, 1024), np.float32, sharding=partitioner.everywhere())
    with (
        pytest.raises(UserError, match=r"out of memory on replica 1 x data 4 x model 2: .*wi 0\.00 GB.*parameters = 2"),
        partition.explain_exhausted({"wi": shape}, partitioner),
    ):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")
    other = jax.errors.JaxRuntimeError("INTERNAL: something else")
    with (
        pytest.raises(jax.errors.JaxRuntimeError, match="something else"),
        partition.explain_exhausted({}, partitioner),
    ):
        raise other


@pytest.mark.slow
def test_a_hundred_kills_change_nothing(tmp_path: pathlib.Path) -> None:
    """SIGKILL at random moments, saves among them: the run ends with the parameters of an undisturbed one."""
    store_dir = run_case.make_store(tmp_path / "store")
    options = {"TRAIN_STEPS": 400, "CHECKPOINT_PERIOD": 2, "DROPOUT_RATE": 0.1}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    ((status, said),) = run_case.finish([run_case.launch(run_case.command(store_dir, whole, **options))])
    assert status == 0, said
    rng, kills = random.Random(0), 0
    while kills < 100 and not (cut / "done.json").exists():
        process = run_case.launch(run_case.command(store_dir, cut, **options))
        before = newest(cut)
        limit = time.monotonic() + 120
        while newest(cut) == before and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.02)
        time.sleep(rng.random() * 0.5)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
    ((status, said),) = run_case.finish([run_case.launch(run_case.command(store_dir, cut, **options))])
    assert status == 0, said
    assert kills == 100
    assert run_case.losses(cut) == run_case.losses(whole)
    for one, other in zip(parameters(whole), parameters(cut), strict=True):
        np.testing.assert_array_equal(one, other)


def newest(folder: pathlib.Path) -> int:
    """The step of the newest whole checkpoint, 0 for none."""
    return max((int(p.name.split("_")[1]) for p in folder.glob("checkpoints/checkpoint_*[0-9]")), default=0)


def parameters(folder: pathlib.Path) -> list[np.ndarray]:
    """Every array of the newest checkpoint's parameters."""
    import orbax.checkpoint as ocp

    path = folder / "checkpoints" / f"checkpoint_{newest(folder)}" / "default"
    with ocp.PyTreeCheckpointer() as reader:
        return [np.asarray(leaf) for leaf in jax.tree.leaves(reader.restore(path)["params"])]
