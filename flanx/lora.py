"""Adapters of a run (`ADAPTER = @lora.Adapter()`): its state at the start, at a resume, and what it saves of it.

The base is read from INITIAL_CHECKPOINT_PATH at every start and never saved: a checkpoint holds the pairs and their
optimizer's state. Where a checkpoint is read (`evaluate`, `infer`, `convert`, `flanx.load`), one of an adapter is its
base with the pairs merged.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
from flax.traverse_util import unflatten_dict

from flanx import convert
from flanx.checkpoint import Checkpoints, RestoreCheckpointConfig
from flanx.convert import adapter_merge
from flanx.errors import UserError
from flanx.models.adapter import Adapter, column_norm, restored
from flanx.train_step import Trainer, TrainState
from flanx.trainable import OF_ADAPTERS, flat, join, split

__all__ = ["Adapter", "begin", "expect_base", "resume"]


def expect_base(parent: RestoreCheckpointConfig) -> None:
    """Raises UserError where a run with an adapter has no parent, or asks for the parent's optimizer state."""
    if parent.path is None:
        raise UserError("ADAPTER is trained beside a frozen parent: give INITIAL_CHECKPOINT_PATH, or unset ADAPTER")
    if parent.restore_optimizer:
        raise UserError("restore_optimizer is of a parent that is trained on; ADAPTER freezes it: unset one of them")


def load_base(trainer: Trainer, target: TrainState, path: str) -> Any:
    """The frozen parameters, from a checkpoint of any format, kept and placed as `target` says."""
    assert trainer.adapter is not None
    convert.expect_model(path, trainer.model)
    source = convert.open_checkpoint(path, optimizer=False)
    source = dataclasses.replace(source, tensors=adapter_merge.stored(source.tensors, trainer.adapter.base))
    return convert.restore(source, split(target.params, OF_ADAPTERS)[1])


def begin(trainer: Trainer, target: TrainState, path: str, step: int) -> TrainState:
    """The state after `step` steps of others: the base of a checkpoint, new pairs, a new optimizer's state."""

    def init(base: Any) -> TrainState:
        new = split(nn.unbox(trainer.model.init(jax.random.key(trainer.seed))), OF_ADAPTERS)[0]
        return trainer.init_from_params(with_magnitudes(join(new, base), trainer.adapter), step)

    shardings = jax.tree.map(lambda leaf: leaf.sharding, target)
    return jax.jit(init, out_shardings=shardings, donate_argnums=0)(load_base(trainer, target, path))


def with_magnitudes(params: Any, adapter: Any) -> Any:
    """The parameters with DoRA's magnitudes as they are at the start: the norms of the base's columns."""
    leaves = flat(params)
    for name in [name for name in leaves if name.endswith("/lora_magnitude")]:
        layer = name.removesuffix("/lora_magnitude")
        suffixes = ("",) if f"{layer}/kernel" in leaves else (f"_{adapter.base}", "_scale")
        kernel = tuple(leaves[f"{layer}/kernel{suffix}"] for suffix in suffixes)

        def norm(*kernel: jax.Array) -> jax.Array:
            return column_norm(restored(adapter.base, *kernel))

        leaves[name] = (jax.vmap(norm) if "/layers/" in name else norm)(*kernel)
    return unflatten_dict(leaves, sep="/")


def resume(trainer: Trainer, target: TrainState, path: str, saved: Checkpoints) -> TrainState:
    """The state of the newest checkpoint of pairs, with the base."""
    state = saved.restore(target.replace(params=split(target.params, OF_ADAPTERS)[0]))
    return state.replace(params=join(state.params, load_base(trainer, target, path)))
