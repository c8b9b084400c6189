"""The rows that decode together, on the devices, and the programs that start, advance, refill and end them.

Letters: B rows (prompts in flight), n concurrent samples per prompt, S prompt length, M maximum new tokens, V
vocabulary.
"""

import dataclasses
import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from flanx.decoding import kv_cache, product_library, row_block
from flanx.models import Model, Params


class Method(Protocol):
    """How the next token is chosen: a pytree, without leaves if it is the same for all rows."""

    @property
    def draws(self) -> bool:
        """Whether `pick` needs keys."""
        ...

    def pick(self, logits: jax.Array, keys: jax.Array) -> jax.Array:
        """One token per sample: f32[B, n, V], keys [B, n] -> i32[B, n]."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    """B rows in flight. A row is free when all its samples are done."""

    cache: Any
    token: jax.Array  # i32[B, n], fed to the next step
    out: jax.Array  # i32[B, n, M]
    length: jax.Array  # i32[B, n], new tokens so far
    done: jax.Array  # bool[B, n]
    non_finite: jax.Array  # bool[B]
    key: jax.Array  # u32[B, 2], from the prompt and the seed
    sample: jax.Array  # i32[B, n], the number of each sample, which also seeds its noise
    logp: jax.Array  # f32[B, n, M], log-probabilities of the new tokens; f32[B, n, 0] if not requested
    fresh: Any = ()  # what every sample of a row starts from: (token [B], the cache leaves that change)


@functools.partial(jax.jit, static_argnames=("model", "max_new", "shared", "scored", "restarts"))
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
    prefix: Any = None,
    restarts: bool = False,
) -> State:
    """Encodes i32[B, S], after the cached prefix if any, and starts the samples i32[B, n] of every used row (bool[B]);
    `scored`: keep `logp`; `restarts`: keep what `restart_samples` needs."""
    cache, token = row_block.prefill(model, params, inputs, max_new, prefix)
    wide = sample.shape
    return State(
        cache=kv_cache.widen(cache, wide[1], shared),
        token=jnp.broadcast_to(token[:, None], wide).astype(jnp.int32),
        out=jnp.zeros((*wide, max_new), jnp.int32),
        length=jnp.zeros(wide, jnp.int32),
        done=jnp.broadcast_to(~used[:, None], wide),
        non_finite=jnp.zeros(wide[:1], bool),
        key=key,
        sample=sample,
        logp=jnp.zeros((*wide, max_new if scored else 0), jnp.float32),
        fresh=(token.astype(jnp.int32), kv_cache.changing(cache, shared)) if restarts else (),
    )


@functools.partial(jax.jit, static_argnames="shared", donate_argnums=0)
def replace_rows(state: State, new: State, rows: jax.Array, *, shared: Any) -> State:
    """Puts the rows of `new` at `rows` (i32[R]; out-of-range rows are dropped)."""
    rest = jax.tree.map(lambda old, x: old.at[rows].set(x, mode="drop"), _without_cache(state), _without_cache(new))
    return dataclasses.replace(rest, cache=kv_cache.replace(state.cache, new.cache, rows, shared))


def _without_cache(state: State) -> State:
    return dataclasses.replace(state, cache=())


@functools.partial(jax.jit, donate_argnums=0)
def finish_samples(state: State, done: jax.Array) -> State:
    """Ends the samples where `done` (bool[B, n]) is set."""
    return dataclasses.replace(state, done=state.done | done)


@functools.partial(jax.jit, static_argnames="shared", donate_argnums=0)
def restart_samples(state: State, begins: jax.Array, sample: jax.Array, *, shared: Any) -> State:
    """Starts new samples, numbered `sample` (i32[B, n]), where `begins` (bool[B, n]) is set, on their row's prompt."""
    token, leaves = state.fresh
    open_ = begins[..., None]
    return dataclasses.replace(
        state,
        cache=kv_cache.restart(state.cache, leaves, begins, shared),
        token=jnp.where(begins, token[:, None], state.token),
        out=jnp.where(open_, 0, state.out),
        length=jnp.where(begins, 0, state.length),
        done=state.done & ~begins,
        sample=jnp.where(begins, sample, state.sample),
        logp=jnp.where(open_, 0, state.logp),
    )


def advance_rows(model: Model, params: Params, state: State, until: Any, steps: Any, **how: Any) -> State:
    """Steps until `until` rows are free, at most `steps` times (i32[] each); donates the state. `how`: the `method`,
    the number `eos_id`, and the leaves of the cache that are `shared`."""
    return _compiled(product_library.has_eigen_steps(params))(model, params, state, until, steps, **how)


@functools.cache
def _compiled(with_eigen: bool) -> Any:
    """`_advance` as a program."""
    options, static = product_library.EIGEN if with_eigen else None, ("model", "eos_id", "shared")
    return jax.jit(_advance, static_argnames=static, donate_argnums=2, compiler_options=options)


def _advance(
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
    rows, samples, limit = state.out.shape

    def more(carry: tuple[State, jax.Array]) -> jax.Array:
        state, taken = carry
        return (jnp.sum(state.done.all(axis=1)) < until) & (taken < steps)

    def body(carry: tuple[State, jax.Array]) -> tuple[State, jax.Array]:
        state, taken = carry
        logits, cache = kv_cache.step(model, params, state.cache, state.token, shared)
        token = method.pick(logits, _keys(state) if method.draws else state.key)
        token = jnp.where(state.done, 0, token)
        at = jnp.where(state.done, limit, state.length)  # done samples write out of range, which is dropped
        place = jnp.arange(rows)[:, None], jnp.arange(samples)[None], at
        out, logp = state.out.at[place].set(token, mode="drop"), state.logp
        if logp.size:
            logp = logp.at[place].set(_logp(logits, token), mode="drop")
        length = state.length + ~state.done
        finite = jnp.isfinite(logits.sum(axis=-1))  # on a CPU a maximum may lose a NaN, a sum does not
        non_finite = state.non_finite | (~finite & ~state.done).any(axis=1)
        done = state.done | (token == eos_id) | (length >= limit) | non_finite[:, None]
        changed = State(cache, token, out, length, done, non_finite, state.key, state.sample, logp, state.fresh)
        return changed, taken + 1

    return jax.lax.while_loop(more, body, (state, jnp.int32(0)))[0]


def _logp(logits: jax.Array, token: jax.Array) -> jax.Array:
    """The log-probability of each token: f32[B, n, V], i32[B, n] -> f32[B, n]."""
    return jnp.take_along_axis(jax.nn.log_softmax(logits.astype(jnp.float32)), token[..., None], axis=-1)[..., 0]


def _keys(state: State) -> jax.Array:
    """A key for every (row, sample, position): keys [B, n]."""

    def one(key: jax.Array, sample: jax.Array, position: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.wrap_key_data(key), sample), position)

    return jax.vmap(jax.vmap(one, in_axes=(None, 0, 0)))(state.key, state.sample, state.length)
