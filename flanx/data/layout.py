"""Rows of packed segments as arrays: tokens, segment ids and positions."""

import functools

import numpy as np


class Layout:
    """Where the segments of some rows lie: row r holds the segments starts[r]:starts[r + 1], one after the other from
    column 0, of the given lengths; the rest of the row is padding.

    starts i64[R + 1], lengths i64[n], length L of the rows. Segments count from 1, positions from 0; padding is 0.
    """

    def __init__(self, starts: np.ndarray, lengths: np.ndarray, length: int) -> None:
        self.shape = (len(starts) - 1, length)
        ends = np.concatenate([[0], np.cumsum(lengths)])
        self._padding = length - (ends[starts[1:]] - ends[starts[:-1]])  # i64[R]
        # Pieces: every row's segments and then its padding as one more piece, so that pieces tile the rows.
        row = np.repeat(np.arange(self.shape[0]), np.diff(starts))
        self._piece = np.arange(len(lengths)) + row  # the piece of each segment
        self._sizes = np.zeros(len(lengths) + self.shape[0], np.int64)
        self._sizes[self._piece] = lengths
        self._pad_piece = starts[1:] + np.arange(self.shape[0])
        self._sizes[self._pad_piece] = self._padding
        self._numbers = np.zeros(len(self._sizes), np.int32)
        self._numbers[self._piece] = np.arange(len(lengths)) - np.repeat(starts[:-1], np.diff(starts)) + 1
        self._first = np.cumsum(self._sizes) - self._sizes  # flat place of each piece
        self._lengths = lengths

    def _repeat(self, per_piece: np.ndarray) -> np.ndarray:
        return np.repeat(per_piece, self._sizes).reshape(self.shape)

    @functools.cached_property
    def segments(self) -> np.ndarray:
        """i32[R, L]"""
        return self._repeat(self._numbers)

    @functools.cached_property
    def positions(self) -> np.ndarray:
        """i32[R, L]"""
        places = np.arange(self.shape[0] * self.shape[1], dtype=np.int32).reshape(self.shape)
        places -= self._repeat(self._first.astype(np.int32))
        places *= self.segments > 0
        return places

    def spread(self, values: np.ndarray) -> np.ndarray:
        """One value per segment -> [R, L], 0 on padding."""
        per_piece = np.zeros(len(self._sizes), np.int32)
        per_piece[self._piece] = values
        return self._repeat(per_piece)

    def fill(self, tokens: list[np.ndarray], per_example: int = 1) -> np.ndarray:
        """Token arrays, `per_example` for each segment in order -> i32[R, L]."""
        if not tokens:
            return np.zeros(self.shape, np.int32)
        zeros = np.zeros(int(self._padding.max(initial=0)), tokens[0].dtype)
        pieces: list[np.ndarray] = []
        at = 0
        for end, padding in zip(
            (self._pad_piece - np.arange(self.shape[0])).tolist(), self._padding.tolist(), strict=True
        ):
            pieces += tokens[at * per_example : end * per_example]
            pieces.append(zeros[:padding])
            at = end
        return np.concatenate(pieces).astype(np.int32).reshape(self.shape)

    def put_at(self, array: np.ndarray, position: np.ndarray, chosen: np.ndarray, value: int) -> None:
        """Sets `position` (one per segment) of the chosen segments."""
        array.reshape(-1)[self._first[self._piece[chosen]] + position[chosen]] = value

    def put_last(self, array: np.ndarray, chosen: np.ndarray, value: int) -> None:
        self.put_at(array, self._lengths - 1, chosen, value)

    def shift(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens one to the right inside their segments, each starting with 0; 0 on padding."""
        shifted = np.zeros(self.shape, np.int32)
        shifted[:, 1:] = tokens[:, :-1]
        shifted *= self.positions > 0
        return shifted
