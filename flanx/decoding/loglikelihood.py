"""Log-probabilities of given continuations: each prompt is encoded once for all of its options.

Letters: B prompts, O options per prompt, L tokens of the longest option, V vocabulary.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flanx.decoding import kv_cache, row_block
from flanx.decoding import prefix as prefixes
from flanx.decoding.length_buckets import DEFAULT_BATCHING, Batching, Prompt, fetch, pad_rows
from flanx.errors import UserError
from flanx.models import Cache, Model, Params


@functools.partial(jax.jit, static_argnames=("model", "shared", "matches"))
def _score(
    model: Model,
    params: Params,
    inputs: jax.Array,
    options: jax.Array,
    prefix: Cache | None,
    *,
    shared: tuple[bool, ...],
    matches: bool,
) -> tuple[jax.Array, jax.Array | None]:
    """i32[B, S], i32[B, O, L] (0 after each option) -> f32[B, O], sums of log-probabilities; with `matches` also
    bool[B, O], whether every token is the most likely one."""
    rows, count, length = options.shape
    filled, token = row_block.prefill(model, params, inputs, length, prefix)
    start = jnp.broadcast_to(token[:, None], (rows, count)).astype(jnp.int32)
    fed = jnp.concatenate([start[None], jnp.moveaxis(options, 2, 0)[:-1]])  # L steps of i32[B, O]

    def body(before: Any, tokens: tuple[jax.Array, jax.Array]) -> tuple[Any, Any]:
        token, target = tokens
        logits, after = kv_cache.step(model, params, before, token, shared)
        logp = jax.nn.log_softmax(logits.astype(jnp.float32))
        chosen = jnp.take_along_axis(logp, target[..., None], axis=-1)[..., 0]
        best = (logp.argmax(axis=-1) == target) | (target == 0) if matches else None
        return after, (jnp.where(target > 0, chosen, 0.0), best)

    _, (steps, best) = jax.lax.scan(body, kv_cache.widen(filled, count, shared), (fed, jnp.moveaxis(options, 2, 0)))
    return steps.sum(axis=0), None if best is None else best.all(axis=0)


def score(
    model: Model,
    params: Params,
    prompts: Sequence[Prompt],
    options: Sequence[Sequence[Prompt]],
    *,
    batching: Batching = DEFAULT_BATCHING,
) -> list[np.ndarray]:
    """For each prompt, the log-probability (f64[O], natural logarithm) of each of its options as a continuation.

    Raises UserError for a prompt without options or an empty one; NaN logits give NaN.
    """
    return [sums for sums, _ in _scores(model, params, prompts, options, batching, matches=False)]


def score_and_match(
    model: Model,
    params: Params,
    prompts: Sequence[Prompt],
    options: Sequence[Sequence[Prompt]],
    *,
    batching: Batching = DEFAULT_BATCHING,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """`score`, and for each option (bool[O]) whether greedy decoding would produce it."""
    return _scores(model, params, prompts, options, batching, matches=True)


def _scores(
    model: Model,
    params: Params,
    prompts: Sequence[Prompt],
    options: Sequence[Sequence[Prompt]],
    batching: Batching,
    matches: bool,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(log-probabilities, matches, which are zeros if not requested) of each prompt's options.

    One-token options (the letters of a multiple-choice question) cost one decoding step. Prompts may differ in their
    number of options.
    """
    for number, each in enumerate(options):
        if not each or not all(each):
            raise UserError(f"prompt {number} has {'an empty option' if each else 'no options'}: nothing to rank")
    if len(options) != len(prompts):
        raise UserError(f"{len(prompts)} prompts and {len(options)} lists of options: give one list for each prompt")
    if not prompts:
        return []
    width = max(len(each) for each in options)
    longest = max(len(option) for each in options for option in each)
    shared = kv_cache.shared_leaves(model, params, longest) if width > 1 else ()
    scores: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for group in prefixes.groups_of(model, prompts):
        known = prefixes.read(model, params, group.prefix, batching.device_put)
        rest = [prompts[number][len(group.prefix) :] for number in group.numbers]
        for places, inputs in batching.batches(rest):
            block = np.zeros((len(inputs), width, longest), np.int32)
            numbers = [group.numbers[place] for place in places]
            for row, number in enumerate(numbers):
                block[row, : len(options[number])] = pad_rows(options[number], len(options[number]), longest)
            given = map(batching.device_put, (inputs, block))
            summed, best = _score(model, params, *given, known, shared=shared, matches=matches)
            sums, found = fetch(summed), np.zeros(summed.shape, bool) if best is None else fetch(best)
            for row, number in enumerate(numbers):
                count = len(options[number])
                scores[number] = sums[row, :count].astype(np.float64), found[row, :count]
    return [scores[number] for number in range(len(prompts))]
