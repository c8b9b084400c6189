"""Which example is drawn when: in closed form, so that any draw of any step is found without those before it.

A source is one (task, style) with its weight. The draws are divided into chunks of about DRAWS. Before chunk c, source
s has been drawn floor(w_s c DRAWS + u_s) times, u_s a seeded offset in [0, 1): its share is exact to within one draw at
every chunk, and its position is known without state. Within a chunk the draws of all sources are shuffled, and each
source keeps its own order. That order is a keyed permutation of its examples, different in every epoch, computed
pointwise.

Random numbers come from a 64-bit hash defined here, not from numpy's generators, whose streams may change.
"""

import dataclasses

import numpy as np

from flanx.data.task.select import hash_of as key

DRAWS = 1 << 17
ROUNDS = 6
LEAST_SIDE = 8  # smaller networks reach only some of the permutations of a handful of examples
MASK = (1 << 64) - 1
ROUND_STEP = 0xD1342543DE82EF95  # any odd number: makes the network's rounds differ
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: splitmix64's increment


def mix(x: np.ndarray) -> np.ndarray:
    """The splitmix64 finalizer (Steele, Lea, Flood 2014): u64 -> u64, a bijection that mixes all bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def noise(seed: int, n: int) -> np.ndarray:
    """u64[n] of pseudorandom bits."""
    return mix(np.uint64(seed) + np.arange(1, n + 1, dtype=np.uint64) * GOLDEN)


def permute(place: np.ndarray, size: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Place -> example number, a permutation of range(size) for every key. All i64[n] / i64[n] / u64[n] -> i64[n].

    A Feistel network over pairs (left, right) below side = ceil(sqrt(size)); results outside `size` are passed through
    again until they fall inside (cycle walking; on average side^2 / size < 1 + 2 / side + ... passes).
    """
    side = np.maximum(np.ceil(np.sqrt(size.astype(np.float64))).astype(np.int64), LEAST_SIDE)
    result = np.asarray(place, np.int64).copy()
    todo = np.arange(len(result))
    while len(todo):
        width, key_of = side[todo], keys[todo]
        left, right = np.divmod(result[todo], width)
        for number in range(ROUNDS):
            bits = mix(key_of + right.astype(np.uint64) * GOLDEN + np.uint64(number * ROUND_STEP & MASK))
            # The upper 32 bits scaled to range(width): a multiply and shift instead of a division.
            step = ((bits >> np.uint64(32)) * width.astype(np.uint64)) >> np.uint64(32)
            total = left + step.astype(np.int64)
            left, right = right, np.where(total >= width, total - width, total)
        result[todo] = left * width + right
        todo = todo[result[todo] >= size[todo]]
    return result


@dataclasses.dataclass(frozen=True)
class Sources:
    """The sources of a mixture as arrays over S sources and R renderings (short ones padded with zero examples)."""

    weights: np.ndarray  # f64[S], sum 1
    keys: np.ndarray  # u64[S], from source name and seed
    examples: np.ndarray  # i64[S, R] examples of each rendering
    starts: np.ndarray  # i64[S, R] first record in the volume's index
    volumes: np.ndarray  # i64[S, R]


@dataclasses.dataclass(frozen=True)
class Draws:
    """The draws of one chunk, in order: source i64[n], volume i64[n], record i64[n] of the volume's index."""

    source: np.ndarray
    volume: np.ndarray
    record: np.ndarray


class Order:
    """The endless sequence of a mixture's draws."""

    def __init__(self, sources: Sources, seed: int, draws: int = DRAWS) -> None:
        self.sources, self.seed, self.draws = sources, seed, draws
        self._offsets = (mix(sources.keys) >> np.uint64(11)).astype(np.float64) / 2.0**53
        self._cycle = sources.examples.sum(axis=1)
        self._ends = np.cumsum(sources.examples, axis=1)

    def cursors(self, chunk: int) -> np.ndarray:
        """i64[S]: how many times each source is drawn before a chunk."""
        return np.floor(self.sources.weights * float(chunk * self.draws) + self._offsets).astype(np.int64)

    def drawn(self, chunk: int) -> int:
        """Number of draws before a chunk; within one per source of chunk x draws."""
        return int(self.cursors(chunk).sum() - self.cursors(0).sum())

    def chunk_of(self, draw: int) -> int:
        """The chunk containing a draw."""
        chunk = draw // self.draws
        while self.drawn(chunk) > draw:
            chunk -= 1
        while self.drawn(chunk + 1) <= draw:
            chunk += 1
        return chunk

    def chunk(self, number: int) -> Draws:
        """The draws of a chunk."""
        first = self.cursors(number)
        counts = self.cursors(number + 1) - first
        n = int(counts.sum())
        shuffle = np.argsort(noise(key(self.seed, "chunk", number), n), kind="stable")
        source = np.repeat(np.arange(len(counts)), counts)[shuffle]
        # The k-th draw of a source in this chunk, wherever the shuffle put it, is at cursor + k.
        by_source = np.argsort(source.astype(np.uint16) if len(counts) < 1 << 16 else source, kind="stable")
        cursor = np.empty(n, np.int64)
        cursor[by_source] = np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(first, counts)
        # Cursors -> records. One cycle of a source is one epoch over each of its renderings, one after another.
        cycle, place = np.divmod(cursor, self._cycle[source])
        rendering = np.zeros(len(cursor), np.int64)
        for ends in self._ends.T[:-1]:
            rendering += place >= ends[source]
        before = np.where(rendering > 0, self._ends[source, np.maximum(rendering - 1, 0)], 0)
        epoch = cycle * self._ends.shape[1] + rendering
        keys = mix(self.sources.keys[source] + (epoch.astype(np.uint64) + np.uint64(1)) * GOLDEN)
        example = permute(place - before, self.sources.examples[source, rendering], keys)
        return Draws(source, self.sources.volumes[source, rendering], self.sources.starts[source, rendering] + example)
