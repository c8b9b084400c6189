"""Beam search over the Model protocol, with a length penalty; beams share the encoding of their prompt.

Letters: B prompts, K beams, M new tokens, V vocabulary.

The rules are those of Hugging Face's `generate(num_beams=K)`, so that both give the same tokens: of the best 2K
continuations of the K beams, those among the first K that end are kept with the score
sum of log-probabilities / length ** length_penalty; a prompt is finished when its best open beam, scored at the current
length, is no better than its worst kept one.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flanx.decoding import kv_cache, row_block
from flanx.decoding.length_buckets import DEFAULT_BATCHING, Batching, Prompt, fetch
from flanx.decoding.slot import Output
from flanx.errors import UserError
from flanx.models import Model, Params

_NEVER = -1e9  # the score of candidates that must not be chosen


@dataclasses.dataclass(frozen=True)
class Beam:
    """Beam search: `beams` open beams, scores divided by length ** length_penalty."""

    beams: int = 4
    length_penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.beams < 2:
            raise UserError(f"{self}: beam search needs at least 2 beams; one beam is greedy decoding")


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class _State:
    """Open and kept beams; every array outside the cache leads with [B, K]."""

    length: jax.Array  # i32, tokens so far, the same for all
    cache: Any
    token: jax.Array  # i32[B, K]
    open: jax.Array  # i32[B, K, M]
    open_score: jax.Array  # f32[B, K], sums of log-probabilities
    kept: jax.Array  # i32[B, K, M]
    kept_score: jax.Array  # f32[B, K], normalized
    kept_length: jax.Array  # i32[B, K], 0: no beam is kept here yet
    active: jax.Array  # bool[B], an open beam may still beat a kept one
    non_finite: jax.Array  # bool[B]


def _along(x: jax.Array, index: jax.Array) -> jax.Array:
    """Gathers `index` (i32[B, J]) along axis 1 of x [B, K, ...]."""
    return jnp.take_along_axis(x, index.reshape(*index.shape, *([1] * (x.ndim - 2))), axis=1)


@functools.partial(jax.jit, static_argnames=("model", "method", "max_new", "eos_id", "shared"))
def _search(
    model: Model,
    params: Params,
    inputs: jax.Array,
    *,
    method: Beam,
    max_new: int,
    eos_id: int,
    shared: tuple[bool, ...],
) -> _State:
    """Runs the search on i32[B, S] until no prompt can improve."""
    rows, beams = inputs.shape[0], method.beams
    filled, token = row_block.prefill(model, params, inputs, max_new)
    scores = jnp.full((rows, beams), _NEVER).at[:, 0].set(0.0)  # all beams are equal at first: extend only one
    state = _State(
        length=jnp.int32(0),
        cache=kv_cache.widen(filled, beams, shared),
        token=jnp.broadcast_to(token[:, None], (rows, beams)).astype(jnp.int32),
        open=jnp.zeros((rows, beams, max_new), jnp.int32),
        open_score=scores,
        kept=jnp.zeros((rows, beams, max_new), jnp.int32),
        kept_score=jnp.full((rows, beams), _NEVER),
        kept_length=jnp.zeros((rows, beams), jnp.int32),
        active=jnp.ones(rows, bool),
        non_finite=jnp.zeros(rows, bool),
    )
    body = functools.partial(_extend, model, params, method=method, eos_id=eos_id, shared=shared)
    return jax.lax.while_loop(lambda s: s.active.any() & (s.length < max_new), body, state)


def _extend(
    model: Model, params: Params, state: _State, *, method: Beam, eos_id: int, shared: tuple[bool, ...]
) -> _State:
    """Extends every open beam by one token."""
    rows, beams, limit = state.open.shape
    logits, after = kv_cache.step(model, params, state.cache, state.token, shared)
    vocab = logits.shape[-1]
    total = jax.nn.log_softmax(logits.astype(jnp.float32)) + state.open_score[..., None]
    score, index = jax.lax.top_k(total.reshape(rows, beams * vocab), 2 * beams)
    parent, token = index // vocab, (index % vocab).astype(jnp.int32)
    text = _along(state.open, parent).at[:, :, state.length].set(token)
    length = state.length + 1
    ends = (token == eos_id) | (length >= limit)

    # Keep finished candidates that are among the first K, if their prompt is still active.
    may = ends & (jnp.arange(2 * beams) < beams)[None] & state.active[:, None]
    new_score = jnp.where(may, score / length.astype(jnp.float32) ** method.length_penalty, _NEVER)
    kept_score, best = jax.lax.top_k(jnp.concatenate([state.kept_score, new_score], axis=1), beams)
    kept = _along(jnp.concatenate([state.kept, text], axis=1), best)
    kept_length = _along(jnp.concatenate([state.kept_length, jnp.where(may, length, 0)], axis=1), best)

    # Continue with the K best candidates that do not end.
    open_score, best = jax.lax.top_k(jnp.where(ends, score + _NEVER, score), beams)
    parent, token, text = _along(parent, best), _along(token, best), _along(text, best)

    ceiling = open_score[:, 0] / length.astype(jnp.float32) ** method.length_penalty
    worst = jnp.where((kept_length > 0).all(axis=1), kept_score.min(axis=1), _NEVER)
    return _State(
        length=length,
        cache=kv_cache.reorder(after, parent, shared),
        token=token,
        open=text,
        open_score=open_score,
        kept=kept,
        kept_score=kept_score,
        kept_length=kept_length,
        active=state.active & (ceiling > worst),
        non_finite=state.non_finite | ~jnp.isfinite(logits.max(axis=(1, 2))),
    )


def stream(
    model: Model,
    params: Params,
    prompts: Sequence[Prompt],
    *,
    max_new: int,
    method: Beam = Beam(),
    eos_id: int = 1,
    batching: Batching = DEFAULT_BATCHING,
) -> Iterator[tuple[int, Output]]:
    """Yields (prompt number, its K best outputs, best first, with their scores), batch by batch."""
    shared = kv_cache.shared_leaves(model, params, max_new)
    search = functools.partial(_search, model, params, method=method, max_new=max_new, eos_id=eos_id, shared=shared)
    for numbers, inputs in batching.batches(prompts):
        state = search(batching.device_put(inputs))
        arrays = state.kept, state.kept_length, state.kept_score, state.non_finite
        kept, counts, scores, non_finite = map(fetch, arrays)
        for row, number in enumerate(numbers):
            yield number, _output(kept[row], counts[row], scores[row], bool(non_finite[row]), eos_id)


def search(model: Model, params: Params, prompts: Sequence[Prompt], **options: Any) -> list[Output]:
    """`stream`, collected in the order of the prompts."""
    outputs = dict(stream(model, params, prompts, **options))
    return [outputs[number] for number in range(len(prompts))]


def _output(kept: np.ndarray, counts: np.ndarray, scores: np.ndarray, non_finite: bool, eos_id: int) -> Output:
    """The kept beams of one prompt, [K, M], [K], [K]."""
    lists = [beam[:count].tolist() for beam, count in zip(kept, counts, strict=True) if count]
    ended = [tokens[-1] == eos_id for tokens in lists]
    tokens = [t[:-1] if e else t for t, e in zip(lists, ended, strict=True)]
    return Output(tokens, ended, non_finite, [float(s) for s in scores[: len(lists)]])
