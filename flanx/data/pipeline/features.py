"""Rows of packed segments as arrays: tokens, segment ids and positions."""

import functools
from collections.abc import Callable

import numpy as np

_COUNT = [np.arange(1 << 16, dtype=np.int32)]


def _places(n: int) -> np.ndarray:
    """0, 1, ..., n - 1 as a view of an array that grows when needed; i32, read only by agreement."""
    if n > len(_COUNT[0]):
        _COUNT[0] = np.arange(2 * n, dtype=np.int32)
    return _COUNT[0][:n]


class Layout:
    """Where the segments of some rows lie: row r holds the segments starts[r]:starts[r + 1], one after the other from
    column 0, of the given lengths; the rest of the row is padding.

    starts i64[R + 1], lengths i64[n], length L of the rows. Segments count from 1, positions from 0; padding is 0.
    """

    def __init__(self, starts: np.ndarray, lengths: np.ndarray, length: int) -> None:
        self.shape = (len(starts) - 1, length)
        self.lengths = lengths
        rows, n = self.shape[0], len(lengths)
        counts = starts[1:] - starts[:-1]
        row = np.repeat(_places(rows), counts)
        # Pieces tile the rows: the segments of a row, then its padding as one more piece.
        piece = _places(n) + row
        padding = starts[1:] + _places(rows)
        before = np.zeros(n + 1, np.int64)
        np.cumsum(lengths, out=before[1:])
        self._sizes = np.empty(n + rows, np.int64)
        self._sizes[piece] = lengths
        self._sizes[padding] = length - (before[starts[1:]] - before[starts[:-1]])
        self._numbers = np.zeros(n + rows, np.int32)
        self._numbers[piece] = _places(n) - starts[row] + 1
        self._piece = piece
        self.first = row * length + (before[:-1] - before[starts[row]])  # flat place of each segment's first token

    def spread(self, values: np.ndarray) -> np.ndarray:
        """One value per segment -> i32[R, L], 0 on padding."""
        per_piece = np.zeros(len(self._sizes), np.int32)
        per_piece[self._piece] = values
        return np.repeat(per_piece, self._sizes).reshape(self.shape)

    @functools.cached_property
    def segments(self) -> np.ndarray:
        """i32[R, L]"""
        return np.repeat(self._numbers, self._sizes).reshape(self.shape)

    @functools.cached_property
    def is_token(self) -> np.ndarray:
        """bool[R, L]: not padding."""
        return self.segments > 0

    @functools.cached_property
    def positions(self) -> np.ndarray:
        """i32[R, L]"""
        places = _places(self.shape[0] * self.shape[1]).reshape(self.shape) - self.spread(self.first)
        places *= self.is_token
        return places

    def fill(self, volume: np.ndarray, offsets: np.ndarray, tokens: Callable[[int], np.ndarray]) -> np.ndarray:
        """Tokens i32[R, L].

        volume i64[n], offsets i64[n]: in which volume, and from where on in it, the tokens of each segment stand;
        tokens(v): all tokens of volume v, i32[*].
        """
        array = np.zeros(self.shape[0] * self.shape[1], np.int32)
        known = {int(number): tokens(int(number)) for number in np.unique(volume)}
        # A copy per segment: at the usual hundred tokens it takes a third of the time of one gather over all of them.
        columns = (volume, offsets, offsets + self.lengths, self.first, self.first + self.lengths)
        for number, begin, end, to, until in zip(*(column.tolist() for column in columns), strict=True):
            array[to:until] = known[number][begin:end]
        return array.reshape(self.shape)

    def put(self, array: np.ndarray, position: np.ndarray, chosen: np.ndarray, value: int) -> None:
        """Sets `position` (one per segment) of the chosen segments."""
        array.reshape(-1)[self.first[chosen] + position[chosen]] = value

    def shift(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens one to the right inside their segments, each starting with 0; 0 on padding."""
        shifted = np.zeros(self.shape, np.int32)
        np.multiply(tokens[:, :-1], self.positions[:, 1:] > 0, out=shifted[:, 1:])
        return shifted
