"""Parameters and batches drawn with numpy, whose streams do not change between versions as those of jax do."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Pairs = Sequence[tuple[Sequence[int], Sequence[int]]]


def params(model: Any, seed: int = 0) -> Any:
    """Parameters of a model: norms near 1, embeddings of size 1, products that keep the size of their input."""
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0)))
    draws = np.random.default_rng(seed)

    def draw(path: tuple[Any, ...], leaf: Any) -> jax.Array:
        noise = draws.standard_normal(leaf.shape)
        scale = {"scale": 0.1, "embedding": 1.0, "rel_embedding": 0.5}.get(path[-1].key, leaf.shape[-2:][0] ** -0.5)
        return jnp.asarray(noise * scale + (path[-1].key == "scale"), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def pairs(count: int, inputs: int, targets: int, vocab_size: int, seed: int = 0) -> list[tuple[list[int], list[int]]]:
    """Examples of 2..inputs and 2..targets tokens."""
    draws = np.random.default_rng(seed)

    def tokens(longest: int) -> list[int]:
        return draws.integers(1, vocab_size, draws.integers(2, longest + 1)).tolist()

    return [(tokens(inputs), tokens(targets)) for _ in range(count)]


def encoder_decoder(rows: Sequence[Pairs], inputs: int, targets: int) -> dict[str, jax.Array]:
    """A batch of packed rows, each a list of (inputs, targets)."""
    batch = _zeros("encoder", ("input_tokens", "segment_ids", "positions"), len(rows), inputs)
    batch |= _zeros("decoder", DECODER, len(rows), targets)
    for r, row in enumerate(rows):
        at, to = 0, 0
        for segment, (given, wanted) in enumerate(row, start=1):
            _fill(batch, "encoder", r, at, segment, input_tokens=given)
            weights = [1] * len(wanted)
            _fill(batch, "decoder", r, to, segment, input_tokens=[0, *wanted[:-1]], target_tokens=wanted)
            batch["decoder_loss_weights"][r, to : to + len(wanted)] = weights
            at, to = at + len(given), to + len(wanted)
    return {name: jnp.asarray(array) for name, array in batch.items()}


def decoder_only(rows: Sequence[Pairs], length: int) -> dict[str, jax.Array]:
    """A batch of packed rows, each a list of (inputs, targets) written one behind the other."""
    batch = _zeros("decoder", (*DECODER, "causal_attention"), len(rows), length)
    for r, row in enumerate(rows):
        at = 0
        for segment, (given, wanted) in enumerate(row, start=1):
            both = [*given, *wanted]
            _fill(batch, "decoder", r, at, segment, input_tokens=[0, *both[:-1]], target_tokens=both)
            batch["decoder_loss_weights"][r, at + len(given) : at + len(both)] = 1
            batch["decoder_causal_attention"][r, at : at + len(given) + 1] = 1
            at += len(both)
    return {name: jnp.asarray(array) for name, array in batch.items()}


DECODER = ("input_tokens", "target_tokens", "loss_weights", "segment_ids", "positions")


def _zeros(side: str, names: Sequence[str], rows: int, length: int) -> dict[str, np.ndarray]:
    return {f"{side}_{name}": np.zeros((rows, length), np.int32) for name in names}


def _fill(batch: dict[str, Any], side: str, row: int, at: int, segment: int, **features: Sequence[int]) -> None:
    count = len(next(iter(features.values())))
    here = (row, slice(at, at + count))
    for name, tokens in features.items():
        batch[f"{side}_{name}"][here] = tokens
    batch[f"{side}_segment_ids"][here] = segment
    batch[f"{side}_positions"][here] = np.arange(count)
