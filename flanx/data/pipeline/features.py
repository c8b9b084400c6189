"""The features of a batch: T5X's names and lengths, and packed rows as arrays of tokens, segment ids and positions."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from flanx.data.vocabulary import EOS_ID

_TARGETS = ("target_tokens", "input_tokens", "loss_weights", "segment_ids", "positions")
# packing -> {feature: the sides of an example in its rows}; each is i32[rows, sum of the lengths of those sides]
FEATURES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "encoder_decoder": {f"encoder_{name}": ("inputs",) for name in ("input_tokens", "segment_ids", "positions")}
    | {f"decoder_{name}": ("targets",) for name in _TARGETS},
    "decoder_only": {f"decoder_{name}": ("inputs", "targets") for name in (*_TARGETS, "causal_attention")},
}

_COUNT = [np.arange(1 << 16, dtype=np.int32)]


def _arange(n: int) -> np.ndarray:
    """i32[n] 0, 1, ..., n - 1, read-only: a view of an array that grows when needed."""
    if n > len(_COUNT[0]):
        _COUNT[0] = np.arange(2 * n, dtype=np.int32)
    return _COUNT[0][:n]


class PackedRows:
    """Rows of segments: row r holds segments starts[r]:starts[r + 1] of the given lengths, back to back from column 0;
    the rest of the row is padding.

    starts i64[R + 1], lengths i64[n], length L of the rows. Segments count from 1, positions from 0; padding is 0.

    Attributes:
      first: i64[n], index of each segment's first token in the flattened rows.
      segments, positions: i32[R, L].
    """

    def __init__(self, starts: np.ndarray, lengths: np.ndarray, length: int) -> None:
        self.shape = (len(starts) - 1, length)
        rows, n = self.shape[0], len(lengths)
        row = np.repeat(_arange(rows), starts[1:] - starts[:-1])
        # Runs tile the rows: the segments of a row, then its padding as another run.
        self._run = _arange(n) + row
        before = np.zeros(n + 1, np.int64)
        np.cumsum(lengths, out=before[1:])
        self._sizes = np.empty(n + rows, np.int64)
        self._sizes[self._run] = lengths
        self._sizes[starts[1:] + _arange(rows)] = length - (before[starts[1:]] - before[starts[:-1]])
        self.first = row * length + (before[:-1] - before[starts[row]])
        self.segments = self.spread(_arange(n) - starts[row] + 1)
        self.positions = _arange(rows * length).reshape(self.shape) - self.spread(self.first)
        self.positions *= self.segments > 0

    def spread(self, values: np.ndarray) -> np.ndarray:
        """One value per segment -> i32[R, L], 0 on padding."""
        per_run = np.zeros(len(self._sizes), np.int32)
        per_run[self._run] = values
        return np.repeat(per_run, self._sizes).reshape(self.shape)

    def shift(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens [R, L] shifted right by one within their segments, each starting with 0; 0 on padding."""
        shifted = np.zeros(self.shape, np.int32)
        np.multiply(tokens[:, :-1], self.positions[:, 1:] > 0, out=shifted[:, 1:])
        return shifted


def encoder_decoder(
    plan: Any, limits: tuple[int, int], tokens: Callable[[int], np.ndarray], tasks: np.ndarray
) -> dict[str, np.ndarray]:
    """The features of a `batches.Plan` for rows of inputs and rows of targets.

    tokens(v): all tokens of volume v. tasks i32[n]: the number of each example's task, for `decoder_task_ids`."""
    inputs, targets = (PackedRows(plan.starts, plan.length[:, side], limits[side]) for side in (0, 1))
    input_tokens, target_tokens = np.zeros(inputs.shape, np.int32), np.zeros(targets.shape, np.int32)
    _copy(input_tokens, inputs.first, plan, 0, tokens)
    _copy(target_tokens, targets.first, plan, 1, tokens)
    return {
        "encoder_input_tokens": input_tokens,
        "decoder_target_tokens": target_tokens,
        "decoder_input_tokens": targets.shift(target_tokens),
        "decoder_loss_weights": (targets.segments > 0).astype(np.int32),
        "encoder_segment_ids": inputs.segments,
        "encoder_positions": inputs.positions,
        "decoder_segment_ids": targets.segments,
        "decoder_positions": targets.positions,
        "decoder_task_ids": targets.spread(tasks),
    }


def decoder_only(
    plan: Any, limits: tuple[int, int], tokens: Callable[[int], np.ndarray], tasks: np.ndarray
) -> dict[str, np.ndarray]:
    """The features of a `batches.Plan` for rows that hold inputs followed by targets; see `encoder_decoder`."""
    rows = PackedRows(plan.starts, plan.length.sum(axis=1), sum(limits))
    target_tokens = np.zeros(rows.shape, np.int32)
    _copy(target_tokens, rows.first, plan, 0, tokens)
    _copy(target_tokens, rows.first + plan.length[:, 0], plan, 1, tokens)
    is_token, widths = rows.segments > 0, rows.spread(plan.length[:, 0])
    return {
        "decoder_target_tokens": target_tokens,
        "decoder_input_tokens": rows.shift(target_tokens),
        "decoder_loss_weights": (is_token & (rows.positions >= widths)).astype(np.int32),
        "decoder_segment_ids": rows.segments,
        "decoder_positions": rows.positions,
        "decoder_task_ids": rows.spread(tasks),
        # One more than the inputs: the position of the last input token predicts the first target.
        "decoder_causal_attention": (is_token & (rows.positions <= widths)).astype(np.int32),
    }


def _copy(out: np.ndarray, first: np.ndarray, plan: Any, side: int, tokens: Callable[[int], np.ndarray]) -> None:
    """Copies one side of every example of a plan to out i32[R, L], at flat positions first i64[n]; a truncated side
    ends with the end of sequence."""
    flat, offset, length = out.reshape(-1), plan.offset[:, side], plan.length[:, side]
    volumes = {int(number): tokens(int(number)) for number in np.unique(plan.volume)}
    # One copy per segment: at the usual hundred tokens, three times as fast as one gather over all of them.
    columns = (plan.volume, offset, offset + length, first, first + length)
    for volume, begin, end, to, until in zip(*(column.tolist() for column in columns), strict=True):
        flat[to:until] = volumes[volume][begin:end]
    cut = plan.cut[:, side]
    flat[first[cut] + length[cut] - 1] = EOS_ID
