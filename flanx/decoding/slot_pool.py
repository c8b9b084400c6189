"""Continuous batching: rows whose prompts come and go, each with its own sampling settings, in one program.

Letters: B rows, S prompt length, M maximum new tokens, V vocabulary; n, the samples per row, is 1.

A row decodes what `decode.stream` decodes for its prompt, method, seed and sample number, whatever is in the other
rows.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flanx.decoding import largest
from flanx.decoding.decode import Sample, prompt_key
from flanx.decoding.length_buckets import DevicePut, Prompt, fetch
from flanx.decoding.state import State, advance_rows, finish_samples, start_rows
from flanx.models import Model, Params

NARROW = 64  # largest top-k that avoids sorting the whole vocabulary; the paper samples from 40


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SampleByRow:
    """`Sample` with per-row settings, in one program for all of them; each row picks what its own `Sample` would."""

    temperature: jax.typing.ArrayLike  # f32[B]
    top_k: jax.typing.ArrayLike  # i32[B]
    top_p: jax.typing.ArrayLike  # f32[B]

    draws: ClassVar[bool] = True

    def pick(self, logits: jax.Array, keys: jax.Array) -> jax.Array:
        """Samples one token per row: f32[B, n, V], keys [B, n] -> i32[B, n]. A greedy batch draws no noise, one that
        keeps the whole vocabulary does not sort, and one with small top-k in every row sorts only that many."""
        size = logits.shape[-1]
        temperature, top_k, top_p = (jnp.asarray(x)[:, None, None] for x in (self.temperature, self.top_k, self.top_p))
        is_drawn = temperature > 0
        is_cut = is_drawn & (((top_k > 0) & (top_k < size)) | (top_p < 1))
        greedy = largest.argmax(logits)

        def draw() -> jax.Array:
            values = logits / jnp.where(is_drawn, temperature, 1.0)
            noise = jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, (size,))))(keys)
            whole = largest.argmax(values + noise)
            narrow, wide = (functools.partial(draw_cut, values, noise, width) for width in (min(NARROW, size), size))
            is_narrow = (~is_cut | ((top_k > 0) & (top_k <= NARROW))).all()
            cut = jax.lax.cond(is_cut.any(), lambda: jax.lax.cond(is_narrow, narrow, wide), lambda: whole)
            return jnp.where(is_cut[..., 0], cut, whole)

        def draw_cut(values: jax.Array, noise: jax.Array, width: int) -> jax.Array:
            values, tokens = largest.top_k(values, width)
            rank = jnp.arange(width)[None, None]
            values = jnp.where((top_k == 0) | (rank < top_k), values, -jnp.inf)
            share = jax.nn.softmax(values, axis=-1)
            in_nucleus = (top_p == 1) | (jnp.cumsum(share, axis=-1) - share < top_p)
            choice = jnp.argmax(jnp.where(in_nucleus, values, -jnp.inf) + noise[..., :width], axis=-1)
            return jnp.take_along_axis(tokens, choice[..., None], axis=-1)[..., 0]

        drawn = jax.lax.cond(is_drawn.any(), draw, lambda: greedy)
        return jnp.where(is_drawn[..., 0], drawn, greedy)


class Progress(NamedTuple):
    """What a row has decoded so far.

    Attributes:
      tokens: without the end of sequence.
      ended: the end of sequence was reached; done: nothing follows, also true after M tokens.
      non_finite: the logits contained a NaN or an infinity; the tokens are meaningless.
    """

    tokens: list[int]
    ended: bool
    done: bool
    non_finite: bool


@functools.partial(jax.jit, donate_argnums=0)
def place_row(state: State, new: State, row: jax.Array, sample: jax.Array) -> State:
    """Puts the one row of `new` at `row` (i32[]) as sample number `sample` (i32[]).

    A prompt padded to less than S has a shorter cache, which is filled up with zeros that no step reads.
    """

    def put(old: jax.Array, x: jax.Array) -> jax.Array:
        longer = [(0, a - b) for a, b in zip(old.shape[1:], x.shape[1:], strict=True)]
        return old.at[row].set(jnp.pad(x, [(0, 0), *longer])[0])

    return jax.tree.map(put, state, dataclasses.replace(new, sample=jnp.broadcast_to(sample, new.sample.shape)))


class SlotPool:
    """B rows for prompts of at most S tokens and answers of at most M.

    Each prompt is encoded by itself, padded to the shortest of `lengths` that fits it, and its encoding is put in a
    free row: only one program per length and one for the steps are compiled. The rows are created with the first
    prompt. The last encoding is cached, so that samples of a prompt share it.

    Attributes:
      lengths: prompt lengths, the longest last: S.
    """

    def __init__(
        self,
        model: Model,
        params: Params,
        *,
        rows: int,
        lengths: Sequence[int],
        max_new: int,
        eos_id: int = 1,
        device_put: DevicePut = jnp.asarray,
    ) -> None:
        self.lengths = tuple(sorted(lengths))
        self._eos_id, self._device_put = eos_id, device_put
        self._start = functools.partial(start_rows, model, params, max_new=max_new, shared=())
        self._advance = functools.partial(advance_rows, model, params, eos_id=eos_id, shared=())
        self._methods: list[Sample | None] = [None] * rows  # None: the row is free
        self._state: State | None = None
        self._encoded: tuple[tuple[tuple[int, ...], int], State] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether any row is decoding a prompt."""
        return any(self._methods)

    @property
    def has_room(self) -> bool:
        """Whether a row is free."""
        return not all(self._methods)

    def add(self, prompt: Prompt, method: Sample, seed: int = 0, sample: int = 0) -> int:
        """Encodes a prompt and puts it in a free row, of which there must be one; returns the row's number."""
        row = self._methods.index(None)
        new = self._encode(tuple(prompt), seed)
        self._state = place_row(self._state or self._empty(), new, np.int32(row), np.int32(sample))
        self._methods[row] = method
        return row

    def _encode(self, prompt: tuple[int, ...], seed: int) -> State:
        """The state of one row after reading the prompt."""
        if self._encoded is None or self._encoded[0] != (prompt, seed):
            arrays = self._arrays(1, next(length for length in self.lengths if length >= len(prompt)))
            arrays[0][0, : len(prompt)] = prompt
            arrays[1][:], arrays[2][:] = prompt_key(prompt, seed), True
            self._encoded = (prompt, seed), self._start(*map(self._device_put, arrays))
        return self._encoded[1]

    def step(self, steps: int) -> dict[int, Progress]:
        """Decodes `steps` more tokens in every unfinished row; returns {row: its progress} for all rows in use."""
        if self._state is None:
            return {}
        methods = [method or Sample() for method in self._methods]
        method = SampleByRow(
            np.asarray([each.temperature for each in methods], np.float32),
            np.asarray([each.top_k for each in methods], np.int32),
            np.asarray([each.top_p for each in methods], np.float32),
        )
        state = self._advance(self._state, np.int32(len(methods)), np.int32(steps), method=method)
        self._state = state
        done, out, length, non_finite = map(fetch, (state.done, state.out, state.length, state.non_finite))
        found = {}
        for row in (row for row, each in enumerate(self._methods) if each is not None):
            tokens = out[row, 0, : length[row, 0]].tolist()
            ended = bool(tokens) and tokens[-1] == self._eos_id
            tokens = tokens[:-1] if ended else tokens
            found[row] = Progress(tokens, ended, bool(done[row, 0]), bool(non_finite[row]))
        return found

    def release(self, rows: Iterable[int]) -> None:
        """Frees rows, whether done or not."""
        freed = np.zeros((len(self._methods), 1), bool)
        for row in rows:
            freed[row], self._methods[row] = True, None
        if self._state is not None and freed.any():
            self._state = finish_samples(self._state, self._device_put(freed))

    def _arrays(self, rows: int, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Arguments of `start_rows`: prompts, keys, which rows are used, the sample numbers."""
        wide = np.zeros((rows, length), np.int32), np.zeros((rows, 2), np.uint32)
        return *wide, np.zeros(rows, bool), np.zeros((rows, 1), np.int32)

    def _empty(self) -> State:
        """The state with all rows free."""
        shapes = jax.eval_shape(self._start, *self._arrays(len(self._methods), self.lengths[-1]))
        state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return dataclasses.replace(state, done=jnp.ones(state.done.shape, bool))
