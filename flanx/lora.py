"""Runs with an adapter (`ADAPTER = @lora.Adapter()`): the state at the start and on a resume, and what is saved.

The base is read from INITIAL_CHECKPOINT_PATH at every start and never saved: a checkpoint holds the pairs and their
optimizer state. Readers of checkpoints (`evaluate`, `infer`, `convert`, `flanx.load`) see an adapter's as its base with
the pairs merged.
"""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
from flax.traverse_util import unflatten_dict

from flanx import convert
from flanx.checkpoint import Checkpoints, RestoreCheckpointConfig
from flanx.convert import adapter_merge
from flanx.convert.lazy_tensor import TARGET
from flanx.errors import UserError
from flanx.models.adapter import MARK, Adapter, column_norm, restored
from flanx.train_step import Trainer, TrainState
from flanx.trainable import OF_ADAPTERS, flat, join, split

__all__ = ["Adapter", "begin", "expect_base", "resume"]


def expect_base(parent: RestoreCheckpointConfig) -> None:
    """Raises UserError if a run with an adapter has no parent, or asks for the parent's optimizer state."""
    if parent.path is None:
        raise UserError("ADAPTER is trained on a frozen parent: give INITIAL_CHECKPOINT_PATH, or unset ADAPTER")
    if parent.restore_optimizer:
        raise UserError(
            "restore_optimizer continues the parent's training; ADAPTER freezes the parent: unset one of them"
        )


def load_base(trainer: Trainer, target: TrainState, path: str) -> Any:
    """The frozen parameters, from a checkpoint of any format, kept and placed as `target` says."""
    assert trainer.adapter is not None
    convert.expect_model(path, trainer.model)
    source = convert.open_checkpoint(path, optimizer=False)
    source = dataclasses.replace(source, tensors=adapter_merge.stored(source.tensors, trainer.adapter.base))
    return convert.restore(source, split(target.params, OF_ADAPTERS)[1])


def load_pairs(adapter: Adapter, start: str, target: TrainState, path: str) -> Any:
    """The pairs of `start`, an adapter to train further, placed as `target` says.

    Raises UserError if it is not an adapter, has other settings or layers, or a base other than the checkpoint `path`.
    """
    source = convert.open_checkpoint(start, optimizer=False, base=path)
    if source.pairs is None:
        raise UserError(f"LORA_START {start} is not an adapter; a whole model is what INITIAL_CHECKPOINT_PATH takes")
    for name in ("rank", "alpha", "rs", "dora"):
        theirs, ours = (getattr(each, name) for each in (source.pairs.adapter, adapter))
        if theirs != ours:
            raise UserError(f"LORA_START {start} has {name} {theirs}, here {ours}: bind lora.Adapter.{name} = {theirs}")
    wanted = split(target.params, OF_ADAPTERS)[0]
    theirs, ours = _kinds(source.pairs.of_layers), _kinds(name.rpartition("/")[0] for name in flat(wanted))
    if theirs != ours:
        raise UserError(f"LORA_START {start} has other layers than LORA_TARGETS: bind LORA_TARGETS = {theirs}")
    layers = source.pairs.of_layers.items()
    pairs = {f"{TARGET}{layer}/{MARK}{part}": tensor for layer, parts in layers for part, tensor in parts.items()}
    return convert.restore(dataclasses.replace(source, tensors=pairs), wanted)


def _kinds(layers: Iterable[str]) -> list[str]:
    """Layer names without their numbers."""
    return sorted({re.sub(r"\blayers_[0-9]+", "layers", layer) for layer in layers})


def begin(trainer: Trainer, target: TrainState, path: str, step: int) -> TrainState:
    """The initial state, at step `step` of the parent: a checkpoint's base, another adapter's pairs or new ones, and a
    new optimizer state."""
    assert trainer.adapter is not None
    start = trainer.adapter.start
    pairs = None if start is None else load_pairs(trainer.adapter, start, target, path)

    def init(base: Any, pairs: Any) -> TrainState:
        if pairs is not None:
            return trainer.init_from_params(join(pairs, base), step)
        new = split(nn.unbox(trainer.model.init(jax.random.key(trainer.seed))), OF_ADAPTERS)[0]
        return trainer.init_from_params(with_magnitudes(join(new, base), trainer.adapter), step)

    shardings = jax.tree.map(lambda leaf: leaf.sharding, target)
    made = jax.jit(init, out_shardings=shardings, donate_argnums=(0, 1))
    return made(load_base(trainer, target, path), pairs)


def with_magnitudes(params: Any, adapter: Any) -> Any:
    """The parameters with DoRA's initial magnitudes: the norms of the base's columns."""
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
    """The state of the newest checkpoint of the pairs, together with the base."""
    state = saved.restore(target.replace(params=split(target.params, OF_ADAPTERS)[0]))
    return state.replace(params=join(state.params, load_base(trainer, target, path)))
