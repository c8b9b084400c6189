"""Prompts with a common prefix, such as few-shot prompts of one task: a decoder-only model reads the prefix once.

Letters: B rows, P tokens of a prefix.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from flanx.decoding.length_buckets import COMPILATION, DevicePut, Prompt
from flanx.models import Cache, Model, Params

STEP = 64  # prefix lengths are multiples of this, so that few lengths are compiled


class Group(NamedTuple):
    """Prompts with a common prefix: their numbers, and the prefix tokens, empty if sharing a prefix does not pay."""

    numbers: list[int]
    prefix: tuple[int, ...]


def groups_of(model: Model, prompts: Sequence[Prompt]) -> list[Group]:
    """Groups of prompts that share at least half of each prompt, if that saves more tokens than a compilation costs;
    the ungrouped ones come last. With a model that reads inputs bidirectionally, no prompts are grouped."""
    if not model.shares_prefix:
        return [Group(list(range(len(prompts))), ())]
    arrays = [np.asarray(prompt, np.int32) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda number: arrays[number].tolist())
    groups, alone = list[Group](), list[int]()
    for numbers, shared in _runs(arrays, order):
        length = shared // STEP * STEP
        if length * (len(numbers) - 1) > COMPILATION:
            groups.append(Group(sorted(numbers), tuple(arrays[numbers[0]][:length].tolist())))
        else:
            alone += numbers
    return [*groups, Group(sorted(alone), ())] if alone or not groups else groups


def _runs(arrays: Sequence[np.ndarray], order: Sequence[int]) -> Iterator[tuple[list[int], int]]:
    """Runs of neighbours in sorted order that share at least half of each prompt, and how many tokens they share; each
    keeps at least one token of its own."""
    run, shared, longest = list(order[:1]), 0, 0
    for before, number in itertools.pairwise(order):
        both = min(len(arrays[before]), len(arrays[number]))
        differ = np.flatnonzero(arrays[before][:both] != arrays[number][:both])
        common = min(int(differ[0]) if differ.size else both, both - 1)
        least = common if len(run) == 1 else min(shared, common)
        most = max(longest, len(arrays[before]), len(arrays[number]))
        if 2 * least >= most:
            run.append(number)
            shared, longest = least, most
        else:
            yield run, shared
            run, shared, longest = [number], 0, 0
    if run:
        yield run, shared


@functools.partial(jax.jit, static_argnames="model")
def _read(model: Model, params: Params, tokens: jax.Array) -> Cache:
    return model.prefill(params, tokens, 0)[0]


def read(model: Model, params: Params, prefix: Sequence[int], device_put: DevicePut) -> Cache | None:
    """The cache of a prefix, one row of P tokens; None if the prefix is empty."""
    return _read(model, params, device_put(np.asarray([prefix], np.int32))) if prefix else None
