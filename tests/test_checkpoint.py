"""Checkpoints: the newest is restored, bit for bit, and one of another model is refused by the name of an array."""

import contextlib
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flanx import checkpoint, partition
from flanx.checkpoint import Checkpoints, SaveCheckpointConfig
from flanx.errors import UserError
from flanx.train_step import TrainState

EVERYWHERE = partition.Partitioner(1).everywhere()


def state(step: int, **shapes: tuple[int, ...]) -> TrainState:
    """A state whose parameters hold the step."""
    params = {name: jnp.full(shape, float(step)) for name, shape in (shapes or {"a": (2, 3), "b": (4,)}).items()}
    return TrainState(jnp.asarray(step, jnp.int32), params, optax.sgd(0.1, momentum=0.9).init(params))


def target(made: TrainState) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=EVERYWHERE), made)


@pytest.fixture
def saved(tmp_path: pathlib.Path) -> Any:
    """The checkpoints of steps 2, 4 and 10."""
    with contextlib.closing(Checkpoints(tmp_path, SaveCheckpointConfig(keep=None))) as made:
        for step in (2, 4, 10):
            made.save(state(step))
            made.wait()
        yield made


def test_the_newest_or_the_named_step_is_restored_bit_for_bit(saved: Checkpoints) -> None:
    assert saved.latest() == 10
    for step, found in ((10, saved.restore(target(state(0)))), (4, saved.restore(target(state(0)), 4))):
        assert int(found.step) == step
        jax.tree.map(np.testing.assert_array_equal, found, state(step))
    with pytest.raises(UserError, match=r"no checkpoint of step 3 in .* \(there: 2, 4, 10\)"):
        saved.restore(target(state(0)), 3)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"a": (2, 5), "b": (4,)}, r"/a' is \[2, 3\], in this model \[2, 5\]"),
        ({"a": (2, 3)}, r"has '\S+/b', which this model or optimizer does not have"),
        ({"a": (2, 3), "b": (4,), "c": (1,)}, r"has no '\S+/c': another model or optimizer wrote it"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_by_the_array(saved: Checkpoints, shapes: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        saved.restore(target(state(0, **shapes)))


def test_parameters_of_a_run_are_those_of_its_newest_checkpoint(saved: Checkpoints) -> None:
    wanted = target(state(0)).params
    folder = pathlib.Path(saved.folder)
    for path, step in ((folder.parent, 10), (folder / "checkpoint_4", 4)):
        found = checkpoint.load_params(path, wanted)
        jax.tree.map(np.testing.assert_array_equal, found, state(step).params)
    wrong = wanted | {"a": jax.ShapeDtypeStruct((2, 5), jnp.float32, sharding=EVERYWHERE)}
    with pytest.raises(UserError, match=r"'a' is \[2, 3\], in this model \[2, 5\]"):
        checkpoint.load_params(folder.parent, wrong)


def test_a_fingerprint_without_a_parent_is_refused():
    with pytest.raises(UserError, match="INITIAL_CHECKPOINT_FINGERPRINT says which parent is wanted"):
        checkpoint.RestoreCheckpointConfig(None, fingerprint="ab12")
