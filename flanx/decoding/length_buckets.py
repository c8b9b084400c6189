"""Prompts of any length as batches of few shapes: buckets by length, rows of a batch, padding, and back to the host.

Letters: B rows of a batch, S prompt length of a bucket.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from flanx.errors import UserError

Prompt = Sequence[int]
DevicePut = Callable[[np.ndarray], jax.Array]

SHORTEST = 128
FULL_LENGTH = 512  # a batch size is meant for prompts of this length; longer ones go in smaller batches


def bucket_lengths(longest: int, parts: int = 0) -> tuple[int, ...]:
    """Prompt lengths to compile for: from 128 on `parts` to an octave, and `longest` itself.

    By default four on a CPU, where compiling costs less than encoding padding; elsewhere powers of two.
    """
    parts = parts or (4 if jax.default_backend() == "cpu" else 1)
    octaves = itertools.takewhile(lambda base: base < longest, (SHORTEST << n for n in itertools.count()))
    steps = (base + base * part // parts for base in octaves for part in range(parts))
    return (*(length for length in steps if length < longest), longest)


def buckets_of(prompts: Sequence[Prompt], lengths: Sequence[int], batch_size: int = 0) -> dict[int, list[int]]:
    """Prompt numbers by the smallest length that holds them, longest first, so that a lack of memory shows at once.

    A bucket whose prompts would save less padding than an eighth of a full batch of the next longer one in use joins
    that: it is not worth a compilation.
    """
    buckets: dict[int, list[int]] = {}
    for number, prompt in enumerate(prompts):
        fit = [length for length in sorted(lengths) if length >= len(prompt)]
        if not fit:
            longest = max(lengths)
            raise UserError(f"prompt {number} has {len(prompt)} tokens, the longest allowed is {longest}: shorten it")
        buckets.setdefault(fit[0], []).append(number)
    for length, longer in itertools.pairwise(sorted(buckets)):
        if 8 * len(buckets[length]) * (longer - length) < batch_size * longer:
            buckets[longer] += buckets.pop(length)
    return {length: buckets[length] for length in sorted(buckets, reverse=True)}


def rows_of(count: int, batch_size: int, length: int) -> int:
    """Rows of a batch for `count` prompts: `batch_size` at most, so many fewer as prompts are longer than 512 tokens.

    As few batches as that allows, of equal size, so that the last one is not half empty; a multiple of 8.
    """
    rows = min(batch_size, max(8, batch_size * FULL_LENGTH // length // 8 * 8))
    batches = -(-max(count, 1) // rows)
    return min(rows, -(-max(count, 1) // batches // 8) * 8)


def pad_rows(prompts: Sequence[Prompt], rows: int, length: int) -> np.ndarray:
    """i32[rows, length], prompts from the left, zeros after them and in the rows left over."""
    array = np.zeros((rows, length), np.int32)
    for row, prompt in enumerate(prompts):
        array[row, : len(prompt)] = prompt
    return array


@dataclasses.dataclass(frozen=True)
class Batching:
    """How prompts are decoded together.

    Attributes:
      size: prompts of a batch; fewer where they have more than 512 tokens.
      lengths: prompt lengths to compile for; none given: those of `bucket_lengths` up to the longest prompt.
      refill: rows that finish before waiting prompts take them; 0: a quarter of the batch, and only where outputs may
        be long (64 new tokens or more), since a refill costs one more compilation and a copy of the rows.
      device_put: puts a host array with rows on axis 0 on the devices (a mesh: over its data axis).
    """

    size: int = 64
    lengths: Sequence[int] = ()
    refill: int = 0
    device_put: DevicePut = jnp.asarray

    def buckets(self, prompts: Sequence[Prompt]) -> dict[int, list[int]]:
        """Prompt numbers by the length that they are padded to; see `buckets_of`."""
        lengths = self.lengths or bucket_lengths(max((len(prompt) for prompt in prompts), default=1))
        return buckets_of(prompts, lengths, self.size)

    def batches(self, prompts: Sequence[Prompt]) -> Iterator[tuple[list[int], np.ndarray]]:
        """Prompt numbers and i32[B, S] of every batch; rows beyond the numbers are zeros."""
        for length, numbers in self.buckets(prompts).items():
            rows = rows_of(len(numbers), self.size, length)
            for first in range(0, len(numbers), rows):
                chosen = numbers[first : first + rows]
                yield chosen, pad_rows([prompts[i] for i in chosen], rows, length)


DEFAULT_BATCHING = Batching()


def fetch(x: jax.Array) -> np.ndarray:
    """The whole array on this host, whichever devices hold its shards."""
    if x.is_fully_addressable:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
