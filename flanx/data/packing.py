"""Packs a chunk of examples into a fixed number of rows, and rows into arrays.

First fit decreasing, in windows of WINDOW draws: the examples of a window, largest first, each into the first row where
both of its sides fit. Windows keep the order of draws (nothing moves further than its window) and are packed side by
side in numpy. A chunk must give the same number of rows whatever its lengths, or no step could be found without packing
all before it; so the number is set a little above what a chunk needs (`rows_for`), and the few rows to spare are filled
by dividing rows in two. Every example of the chunk stands in exactly one row.
"""

import dataclasses

import numpy as np

from flanx.data import order
from flanx.errors import UserError

WINDOW = 1024
MARGIN = 7.0  # standard deviations of reserve: a chunk that needs more comes once in 10^12


@dataclasses.dataclass(frozen=True)
class Rows:
    """Which example of a chunk stands in which row.

    `order` i64[n]: examples sorted by row, inside a row as drawn; `starts` i64[R + 1]: row r holds
    order[starts[r]:starts[r + 1]].
    """

    order: np.ndarray
    starts: np.ndarray


def fit(sizes: np.ndarray, limits: tuple[int, ...], window: int = WINDOW) -> tuple[np.ndarray, np.ndarray]:
    """First fit decreasing in windows: sizes i64[n, sides], none above its limit -> (row inside its window i64[n], rows
    of each window i64[windows])."""
    n, sides = sizes.shape
    lanes = -(-n // window)
    padded = np.zeros((lanes * window, sides), np.int64)
    padded[:n] = sizes
    scale = np.asarray([max(limits) * 4096 // limit for limit in limits])  # sides compared as shares of their limits
    largest = (padded * scale).max(axis=1).reshape(lanes, window)
    by_size = np.argsort(-largest, axis=1, kind="stable")
    small = np.int16 if max(limits) < 1 << 15 else np.int32
    sorted_sizes = np.take_along_axis(padded.reshape(lanes, window, sides), by_size[:, :, None], axis=1).astype(small)
    free = [np.full((lanes, window + 1), limit, small) for limit in limits]
    rows = np.empty((lanes, window), np.int64)
    lane, opened = np.arange(lanes), 1
    for i in range(window):
        fits = free[0][:, :opened] >= sorted_sizes[:, i, 0, None]
        for side in range(1, sides):
            fits &= free[side][:, :opened] >= sorted_sizes[:, i, side, None]
        row = fits.argmax(axis=1)  # a row past the last used one is always among them
        rows[:, i] = row
        for side in range(sides):
            free[side][lane, row] -= sorted_sizes[:, i, side]
        opened = min(max(opened, int(row.max()) + 2), window)
    result = np.empty((lanes, window), np.int64)
    np.put_along_axis(result, by_size, rows, axis=1)
    result = result.reshape(-1)[:n]
    used = np.zeros(lanes, np.int64)
    np.maximum.at(used, np.arange(n) // window, result + 1)
    return result, used


def rows_for(chunks: list[tuple[np.ndarray, np.ndarray]], limits: tuple[int, ...]) -> int:
    """The number of rows that every chunk gets, from some chunks given as (sizes i64[n, sides], source i64[n]).

    The mean of what they need, and MARGIN standard deviations: the number of draws per source is fixed, so only lengths
    inside each source vary, and the count of each source by one draw.
    """
    needed = [int(fit(sizes, limits)[1].sum()) for sizes, _ in chunks]
    variances = []
    for (sizes, source), rows in zip(chunks, needed, strict=True):
        share = (sizes / np.asarray(limits)).max(axis=1)
        count = np.maximum(np.bincount(source), 1)
        mean = np.bincount(source, share) / count
        inside = np.bincount(source, (share - mean[source]) ** 2) * count / np.maximum(count - 1, 1)
        alone = (count == 1) & (mean > 0)  # one draw tells nothing: take the spread over everything
        spread = inside.sum() + alone.sum() * share.var() + 0.25 * (mean**2).sum()
        windows = -(-len(sizes) // WINDOW)
        variances.append(spread * (rows / max(share.sum(), 1e-9)) ** 2 + windows)
    deviation = np.sqrt(np.mean(variances) * (1 + 1 / len(chunks)))
    return int(np.ceil(np.mean(needed) + MARGIN * deviation))


def pack(sizes: np.ndarray, limits: tuple[int, ...], rows: int, seed: int) -> Rows:
    """Packs a chunk into exactly `rows` rows; the rows of a window come in seeded random order."""
    row, used = fit(sizes, limits)
    windows = np.arange(len(row)) // WINDOW
    first = np.cumsum(used) - used
    total = int(used.sum())
    if total > rows:
        raise UserError(
            f"packing: a chunk of {len(sizes):,} examples needs {total:,} rows of {limits}, {rows:,} were reserved; "
            "its lengths are not those of other chunks: use another seed"
        )
    window_of_row = np.repeat(np.arange(len(used)), used)
    shuffled = np.lexsort((order.noise(seed, total), window_of_row))
    place = np.empty(total, np.int64)
    place[shuffled] = np.arange(total)
    row = place[first[windows] + row]
    row = _divide(row, total, rows - total)
    by_row = np.argsort(row, kind="stable")
    return Rows(by_row, np.concatenate([[0], np.cumsum(np.bincount(row, minlength=rows))]))


def _divide(row: np.ndarray, total: int, spare: int) -> np.ndarray:
    """Spreads examples over `spare` more rows: rows at even distances give the later half of their examples to a new
    row after them. Rows of one example cannot; where only such are left, the new row stays empty."""
    if not spare:
        return row
    by_row = np.argsort(row, kind="stable")
    count = np.bincount(row, minlength=total)
    starts = np.cumsum(count) - count
    several, single = np.flatnonzero(count > 1), np.flatnonzero(count <= 1)
    cut = (
        several[np.arange(min(spare, len(several))) * len(several) // min(spare, len(several))]
        if len(several)
        else several
    )
    rest = spare - len(cut)
    if rest > len(single):
        raise UserError(f"packing: {spare} rows to spare after {total}: the chunk is too small")
    cut = np.sort(np.concatenate([cut, single[np.arange(rest) * len(single) // max(rest, 1)]]))
    moved = row + np.searchsorted(cut, row, side="left")
    rank = np.empty(len(row), np.int64)
    rank[by_row] = np.arange(len(row)) - np.repeat(starts, count)
    halved = np.zeros(total, bool)
    halved[cut] = True
    return moved + (halved[row] & (rank >= (count[row] + 1) // 2) & (count[row] > 1))
