"""Decoding over the Model protocol: prefill, then cached steps under jit; greedy, sampling, n samples of one prompt.

Letters: B rows (prompts in flight), n samples of a prompt, S prompt length, M new tokens at most, V vocabulary.

The cache is a pytree with B on axis 0; n samples share one encoding of their prompt, in memory as well as in time
(`flanx/decoding/kv_cache.py`).

What is drawn for a prompt depends on (prompt, seed, sample number) alone, never on its row, batch, bucket or mesh.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from flanx.decoding.kv_cache import shared_leaves, step, widen
from flanx.decoding.length_buckets import DEFAULT_BATCHING, Batching, DevicePut, Prompt, fetch, pad_rows, rows_of
from flanx.errors import UserError
from flanx.models import Model, Params

Stop = Callable[[list[int]], bool]
STOP_PERIOD = 8  # steps between two checks for stop texts


class Method(Protocol):
    """How the next token is chosen: a pytree, of no leaves where it is the same for all rows."""

    @property
    def draws(self) -> bool:
        """Whether `pick` needs keys."""
        ...

    def pick(self, logits: jax.Array, keys: jax.Array) -> jax.Array:
        """One token of each sample: f32[B, n, V], keys [B, n] -> i32[B, n]."""
        ...


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Sample:
    """How the next token is drawn. temperature 0 is greedy; top_k 0 and top_p 1 keep the whole vocabulary."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise UserError(f"{self}: needs temperature >= 0, top_k >= 0 and 0 < top_p <= 1")

    @property
    def draws(self) -> bool:
        return self.temperature > 0

    def pick(self, logits: jax.Array, keys: jax.Array) -> jax.Array:
        if self.temperature == 0:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        width = self.top_k if 0 < self.top_k < logits.shape[-1] else logits.shape[-1]
        if width == logits.shape[-1] and self.top_p == 1:
            values, tokens = logits / self.temperature, None
        else:  # sorted from the likeliest down, as nucleus sampling needs it
            values, tokens = jax.lax.top_k(logits / self.temperature, width)
        if self.top_p < 1:  # keep tokens until the nucleus is full; the first always stays
            share = jax.nn.softmax(values, axis=-1)
            values = jnp.where(jnp.cumsum(share, axis=-1) - share < self.top_p, values, -jnp.inf)
        noise = jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, (values.shape[-1],))))(keys)
        choice = jnp.argmax(values + noise, axis=-1)
        if tokens is None:
            return choice.astype(jnp.int32)
        return jnp.take_along_axis(tokens, choice[..., None], axis=-1)[..., 0].astype(jnp.int32)


GREEDY = Sample()


@dataclasses.dataclass(frozen=True)
class Output:
    """The result of one prompt.

    Attributes:
      tokens: the new tokens of each sample (or beam, best first), end-of-sequence left out.
      ended: whether each sample reached its end-of-sequence token or a stop text; False: truncated at max_new.
      non_finite: the logits held a NaN or an infinity; the tokens mean nothing.
      scores: log-probabilities (natural logarithm): of beams, length-normalized; of samples where they are asked for,
        the sum over the tokens, the end of sequence included, at temperature 1 whatever they were drawn at.
    """

    tokens: list[list[int]]
    ended: list[bool]
    non_finite: bool = False
    scores: list[float] = dataclasses.field(default_factory=list)


# --- the loop --------------------------------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    """B rows in flight. A row is free when all its samples are done."""

    cache: Any
    token: jax.Array  # i32[B, n], what the next step takes
    out: jax.Array  # i32[B, n, M]
    length: jax.Array  # i32[B, n], new tokens so far
    done: jax.Array  # bool[B, n]
    non_finite: jax.Array  # bool[B]
    key: jax.Array  # u32[B, 2], from the prompt and the seed
    sample: jax.Array  # i32[B, n], the number of each sample, from which its noise comes, too
    logp: jax.Array  # f32[B, n, M], log-probabilities of the new tokens; f32[B, n, 0] where nobody asks for them


@functools.partial(jax.jit, static_argnames=("model", "max_new", "shared", "scored"))
def start_rows(
    model: Model,
    params: Params,
    inputs: jax.Array,
    key: jax.Array,
    used: jax.Array,
    sample: jax.Array,
    *,
    max_new: int,
    shared: Any,
    scored: bool = False,
) -> State:
    """Encodes i32[B, S] and starts the samples i32[B, n] of every used row (bool[B]); `scored`: `logp` is kept."""
    cache, token = model.prefill(params, inputs, max_new)
    wide = sample.shape
    return State(
        cache=widen(cache, wide[1], shared),
        token=jnp.broadcast_to(token[:, None], wide).astype(jnp.int32),
        out=jnp.zeros((*wide, max_new), jnp.int32),
        length=jnp.zeros(wide, jnp.int32),
        done=jnp.broadcast_to(~used[:, None], wide),
        non_finite=jnp.zeros(wide[:1], bool),
        key=key,
        sample=sample,
        logp=jnp.zeros((*wide, max_new if scored else 0), jnp.float32),
    )


@functools.partial(jax.jit, donate_argnums=0)
def replace_rows(state: State, new: State, rows: jax.Array) -> State:
    """Puts the rows of `new` at `rows` (i32[R]; a row beyond the end is dropped)."""
    return jax.tree.map(lambda old, x: old.at[rows].set(x, mode="drop"), state, new)


@functools.partial(jax.jit, donate_argnums=0)
def finish_samples(state: State, done: jax.Array) -> State:
    """Ends the samples that are marked in bool[B, n]."""
    return dataclasses.replace(state, done=state.done | done)


@functools.partial(jax.jit, static_argnames=("model", "eos_id", "shared"), donate_argnums=2)
def advance_rows(
    model: Model,
    params: Params,
    state: State,
    until: jax.Array,
    steps: jax.Array,
    *,
    method: Method,
    eos_id: int,
    shared: Any,
) -> State:
    """Steps until `until` rows are free, `steps` times at most."""
    rows, samples, limit = state.out.shape

    def more(carry: tuple[State, jax.Array]) -> jax.Array:
        state, taken = carry
        return (jnp.sum(state.done.all(axis=1)) < until) & (taken < steps)

    def body(carry: tuple[State, jax.Array]) -> tuple[State, jax.Array]:
        state, taken = carry
        logits, cache = step(model, params, state.cache, state.token, shared)
        token = method.pick(logits, _keys(state) if method.draws else state.key)
        token = jnp.where(state.done, 0, token)
        at = jnp.where(state.done, limit, state.length)  # done samples write beyond the end, which drops it
        place = jnp.arange(rows)[:, None], jnp.arange(samples)[None], at
        out, logp = state.out.at[place].set(token, mode="drop"), state.logp
        if logp.size:
            logp = logp.at[place].set(_logp(logits, token), mode="drop")
        length = state.length + ~state.done
        finite = jnp.isfinite(logits.max(axis=-1))  # the maximum of a row with a NaN is NaN
        non_finite = state.non_finite | (~finite & ~state.done).any(axis=1)
        done = state.done | (token == eos_id) | (length >= limit) | non_finite[:, None]
        return State(cache, token, out, length, done, non_finite, state.key, state.sample, logp), taken + 1

    return jax.lax.while_loop(more, body, (state, jnp.int32(0)))[0]


def _logp(logits: jax.Array, token: jax.Array) -> jax.Array:
    """The log-probability of each token: f32[B, n, V], i32[B, n] -> f32[B, n]."""
    return jnp.take_along_axis(jax.nn.log_softmax(logits.astype(jnp.float32)), token[..., None], axis=-1)[..., 0]


def _keys(state: State) -> jax.Array:
    """A key for every (row, sample, position): keys [B, n]."""

    def one(key: jax.Array, sample: jax.Array, position: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.wrap_key_data(key), sample), position)

    return jax.vmap(jax.vmap(one, in_axes=(None, 0, 0)))(state.key, state.sample, state.length)


# --- prompts ---------------------------------------------------------------------------------------------------------


def prompt_key(prompt: Prompt, seed: int) -> np.ndarray:
    """u32[2] from the prompt's tokens and the seed."""
    digest = hashlib.sha256(np.asarray([seed, *prompt], np.int64).tobytes()).digest()
    return np.frombuffer(digest[:8], "<u4")


class Slots:
    """The rows of one batch, the prompts that they decode, and those that wait for a free row.

    Attributes:
      prompt: the number of the prompt in each row; None: the row is free.
      state: of all rows, on the devices.
    """

    state: State

    def __init__(self, start: Callable[[Sequence[int], int], State], numbers: Sequence[int], rows: int, refill: int):
        """Fills the first rows.

        Args:
          start: (prompt numbers, rows) -> the state of a batch of so many rows, the prompts in the first of them.
          refill: how many rows must be free before waiting prompts take them.
        """
        self._start, self._refill = start, refill
        self._waiting = list(reversed(numbers))
        self.prompt: list[int | None] = [None] * rows
        self.fill()

    @property
    def busy(self) -> bool:
        """Whether any row decodes a prompt."""
        return any(number is not None for number in self.prompt)

    @property
    def until(self) -> int:
        """How many rows must be free for the host to have something to do."""
        return self._refill if self._waiting else len(self.prompt)

    def fill(self) -> None:
        """Gives free rows to waiting prompts: all rows at once where all are free, else `refill` of them."""
        free, rows = [row for row, number in enumerate(self.prompt) if number is None], len(self.prompt)
        if not self._waiting or len(free) < self._refill:
            return
        count = rows if len(free) == rows else self._refill
        taken = free[: min(count, len(self._waiting))]
        for row in taken:
            self.prompt[row] = self._waiting.pop()
        new = self._start([number for row in taken if (number := self.prompt[row]) is not None], count)
        if count == rows:
            self.state = new
        else:
            self.state = replace_rows(self.state, new, np.asarray(taken + [rows] * (count - len(taken)), np.int32))

    def free(self, eos_id: int, stop: Stop | None, device_put: DevicePut) -> list[tuple[int, Output]]:
        """Frees the rows that are done, by themselves or by a stop text: (prompt number, its output) of each."""
        state = self.state
        done, out, length, non_finite = map(fetch, (state.done, state.out, state.length, state.non_finite))
        logp = fetch(state.logp) if state.logp.size else np.zeros(state.logp.shape)
        if stop and (stopped := _stopped(done, out, length, stop)).any():
            self.state, done = finish_samples(state, device_put(stopped)), done | stopped
        outputs = []
        for row, number in enumerate(self.prompt):
            if number is not None and done[row].all():
                outputs.append((number, _output(out[row], length[row], logp[row], bool(non_finite[row]), eos_id, stop)))
                self.prompt[row] = None
        return outputs


def stream(
    model: Model,
    params: Params,
    prompts: Sequence[Prompt],
    *,
    max_new: int,
    method: Sample = GREEDY,
    samples: int = 1,
    seed: int = 0,
    eos_id: int = 1,
    stop: Stop | None = None,
    scored: bool = False,
    batching: Batching = DEFAULT_BATCHING,
) -> Iterator[tuple[int, Output]]:
    """Decodes every prompt and yields (prompt number, Output) as prompts finish, in no fixed order.

    Args:
      prompts: token lists, as the model takes them (with their end-of-sequence token where it was trained so).
      max_new: new tokens at most, end-of-sequence included.
      stop: whether an output so far holds a text that ends it; an output is cut to the shortest that does.
      scored: whether outputs carry the log-probabilities of their samples.
    """
    shared = shared_leaves(model, params, max_new) if samples > 1 else ()
    advance = functools.partial(advance_rows, model, params, method=method, eos_id=eos_id, shared=shared)
    steps = np.int32(STOP_PERIOD if stop else max_new)

    def start(length: int, numbers: Sequence[int], rows: int) -> State:
        chosen = [prompts[number] for number in numbers]
        keys = np.zeros((rows, 2), np.uint32)
        keys[: len(chosen)] = [prompt_key(prompt, seed) for prompt in chosen]
        numbered = np.broadcast_to(np.arange(samples, dtype=np.int32), (rows, samples))
        arrays = pad_rows(chosen, rows, length), keys, np.arange(rows) < len(chosen), numbered
        placed = map(batching.device_put, arrays)
        return start_rows(model, params, *placed, max_new=max_new, shared=shared, scored=scored)

    for length, numbers in batching.buckets(prompts).items():
        rows = rows_of(len(numbers), batching.size, length)
        refill = batching.refill or (max(rows // 4, 1) if max_new >= 64 else rows)
        slots = Slots(functools.partial(start, length), numbers, rows, min(refill, rows))
        while slots.busy:
            slots.state = advance(slots.state, np.int32(slots.until), steps)
            yield from slots.free(eos_id, stop, batching.device_put)
            slots.fill()


def _stopped(done: np.ndarray, out: np.ndarray, length: np.ndarray, stop: Stop) -> np.ndarray:
    """Which open samples, bool[B, n], hold a stop text."""
    stopped = np.zeros_like(done)
    for row, sample in np.argwhere(~done):
        stopped[row, sample] = stop(out[row, sample, : length[row, sample]].tolist())
    return stopped


def _output(
    out: np.ndarray, length: np.ndarray, logp: np.ndarray, non_finite: bool, eos_id: int, stop: Stop | None
) -> Output:
    """One row's samples, [n, M], [n] and [n, M or 0], as token lists with the sums of their log-probabilities."""
    lists = [out[i, : length[i]].tolist() for i in range(len(out))]
    ended = [bool(tokens) and tokens[-1] == eos_id for tokens in lists]
    lists = [tokens[:-1] if end else tokens for tokens, end in zip(lists, ended, strict=True)]
    counted = [int(count) for count in length]
    for i, tokens in enumerate(lists):
        if stop and stop(tokens):  # however many tokens it has beyond the stop text
            lists[i] = next((tokens[:n] for n in range(len(tokens)) if stop(tokens[:n])), tokens)
            ended[i], counted[i] = True, len(lists[i])
    scores = [float(logp[i, :count].sum(dtype=np.float64)) for i, count in enumerate(counted)] if logp.size else []
    return Output(lists, ended, non_finite, scores)


def generate(model: Model, params: Params, prompts: Sequence[Prompt], **options: Any) -> list[Output]:
    """`stream`, collected in the order of the prompts."""
    outputs = dict(stream(model, params, prompts, **options))
    return [outputs[number] for number in range(len(prompts))]
