"""Batches prompts of any length into a few shapes: length buckets, rows per batch, padding, fetching to the host.

Letters: B rows of a batch, S prompt length of a bucket.
"""

import bisect
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from flanx.decoding import row_block
from flanx.errors import UserError

Prompt = Sequence[int]
DevicePut = Callable[[np.ndarray], jax.Array]

SHORTEST = 128
COMPILATION = 4096  # tokens: another length is compiled only if that saves this many
FULL_LENGTH = 512  # the batch size is for prompts of this length; longer ones use smaller batches


def bucket_lengths(longest: int, parts: int = 0) -> tuple[int, ...]:
    """Candidate prompt lengths to compile for, the last one `longest`: from 128 up, `parts` per octave.

    By default powers of two; on one CPU, where compiling costs less than encoding padding, multiples of 8, and above
    512 thirty-two per octave.
    """
    first, parts = (8, 32) if not parts and row_block.on_one_cpu() else (SHORTEST, parts or 1)
    octaves = itertools.takewhile(lambda base: base < longest, (first << n for n in itertools.count()))
    steps = (length for base in octaves for length in range(base, 2 * base, max(8, base // parts)))
    return (*(length for length in steps if length < longest), longest)


def buckets_of(prompts: Sequence[Prompt], lengths: Sequence[int], batch_size: int) -> dict[int, list[int]]:
    """Prompt numbers by the length they are padded to, longest first, so that running out of memory shows at once.

    The lengths used are those that minimize the number of encoded tokens, padding and empty rows included, with each
    length counting as `COMPILATION` tokens.
    """
    ordered, held = sorted(lengths), dict[int, list[int]]()
    for number, prompt in enumerate(prompts):
        place = bisect.bisect_left(ordered, len(prompt))
        if place == len(ordered):
            text = f"prompt {number} has {len(prompt)} tokens, the longest allowed is {ordered[-1]}: shorten it"
            raise UserError(text)
        held.setdefault(ordered[place], []).append(number)
    used = sorted(held)
    # cheapest[n]: the cost of the first n lengths in use, and how many of them are below the bucket that ends there
    cheapest: list[tuple[int, int]] = [(0, 0)]
    for end, length in enumerate(used, 1):
        found, count = [], 0
        for start in range(end - 1, -1, -1):
            count += len(held[used[start]])
            rows = rows_of(count, batch_size, length)
            found.append((cheapest[start][0] + COMPILATION + -(-count // rows) * rows * length, start))
        cheapest.append(min(found))
    buckets, end = {}, len(used)
    while end:
        start = cheapest[end][1]
        buckets[used[end - 1]] = [number for length in reversed(used[start:end]) for number in held[length]]
        end = start
    return buckets


def rows_of(count: int, batch_size: int, length: int) -> int:
    """Rows per batch for `count` prompts: at most `batch_size`, and proportionally fewer for more than 512 tokens.

    As few batches as that allows, of equal size, so that the last one is not half empty; a multiple of 8, or on one
    CPU a multiple of 4 or up to three.
    """
    rows = min(batch_size, max(8, batch_size * FULL_LENGTH // length // 8 * 8))
    batches = -(-max(count, 1) // rows)
    each = -(-max(count, 1) // batches)
    unit = min(each, 4) if row_block.on_one_cpu() else 8
    return min(rows, -(-each // unit) * unit)


def pad_rows(prompts: Sequence[Prompt], rows: int, length: int) -> np.ndarray:
    """i32[rows, length], prompts left-aligned, zeros after them and in unused rows."""
    array = np.zeros((rows, length), np.int32)
    for row, prompt in enumerate(prompts):
        array[row, : len(prompt)] = prompt
    return array


@dataclasses.dataclass(frozen=True)
class Batching:
    """How prompts are decoded together.

    Attributes:
      size: prompts per batch; fewer if they have more than 512 tokens.
      lengths: prompt lengths to compile for; empty: those of `bucket_lengths` up to the longest prompt.
      refill: how many rows must finish before waiting prompts take them; 0: a quarter of the batch, and only if outputs
        may be long (64 new tokens or more), since a refill costs one more compilation and a copy of the rows.
      device_put: puts a host array with rows on axis 0 on the devices (on a mesh, sharded over its data axis).
    """

    size: int = 64
    lengths: Sequence[int] = ()
    refill: int = 0
    device_put: DevicePut = jnp.asarray

    def buckets(self, prompts: Sequence[Prompt]) -> dict[int, list[int]]:
        """Prompt numbers by the length they are padded to; see `buckets_of`."""
        lengths = self.lengths or bucket_lengths(max((len(prompt) for prompt in prompts), default=1))
        return buckets_of(prompts, lengths, self.size)

    def batches(self, prompts: Sequence[Prompt]) -> Iterator[tuple[list[int], np.ndarray]]:
        """Prompt numbers and i32[B, S] of every batch; rows past the last prompt are zeros."""
        for length, numbers in self.buckets(prompts).items():
            rows = rows_of(len(numbers), self.size, length)
            for first in range(0, len(numbers), rows):
                chosen = numbers[first : first + rows]
                yield chosen, pad_rows([prompts[i] for i in chosen], rows, length)


DEFAULT_BATCHING = Batching()


def fetch(x: jax.Array) -> np.ndarray:
    """The whole array on this host, wherever its shards are."""
    if x.is_fully_addressable:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
