"""The batch of a step: a pure function of (store, mixture, lengths, batch size, packing, seed, step).

Rows are numbered from 0 for ever; batch k is rows k B to (k + 1) B - 1, and a host reads only its own of them. Packed,
chunk c of the draws (see `order`) is rows c R to (c + 1) R - 1 with R fixed for the mixture (see `packing`); unpacked,
row n is draw n. So neither the step nor the number of hosts changes what a row holds, and any step is found at once.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from flanx.data.pipeline import packing as packer
from flanx.data.pipeline import sampling
from flanx.data.pipeline.features import Layout
from flanx.data.store import Store
from flanx.data.vocabulary import EOS_ID
from flanx.errors import UserError

ALGORITHM = 2  # raise it when the same arguments would give other batches
KEPT = 3  # plans held in memory: a few MB each
PACKINGS = ("encoder_decoder", "decoder_only")


@dataclasses.dataclass(frozen=True)
class Plan:
    """One chunk, ready to copy: where the trimmed tokens of its examples lie, in the order of its rows.

    volume i64[n], offset i64[n, 2] first token of inputs and of targets, length i64[n, 2] trimmed, cut bool[n, 2]
    whether trimmed, source i64[n]; row r holds starts[r]:starts[r + 1] of them, starts i64[R + 1].
    """

    volume: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    cut: np.ndarray
    source: np.ndarray
    starts: np.ndarray

    def rows(self, first: int, last: int) -> "Plan":
        a, b = self.starts[first], self.starts[last]
        columns = (column[a:b] for column in (self.volume, self.offset, self.length, self.cut, self.source))
        return Plan(*columns, self.starts[first : last + 1] - a)


class _Draws(NamedTuple):
    """The draws of a chunk in order; see Plan."""

    volume: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    cut: np.ndarray
    source: np.ndarray


class Batches:
    """Batches of a mixture over a store; `mixture` is a `flanx.data.pipeline.mixture.Mixture`.

    lengths: {"inputs": I, "targets": T}, tokens per side and example; rows are I and T long (encoder_decoder) or I + T
    (decoder_only). An example longer than its side is cut to it, its last token being the end of sequence.
    """

    def __init__(
        self,
        store: Store,
        mixture: Any,
        lengths: Mapping[str, int],
        batch_size: int,
        seed: int = 0,
        packing: str = "encoder_decoder",
        pack: bool = True,
    ) -> None:
        if packing not in PACKINGS:
            raise UserError(f"packing '{packing}': one of {', '.join(PACKINGS)}")
        if set(lengths) != {"inputs", "targets"} or min(lengths.values()) < 2:
            raise UserError(f"TASK_FEATURE_LENGTHS {dict(lengths)}: give 'inputs' and 'targets', each 2 or more")
        if batch_size < 1:
            raise UserError(f"BATCH_SIZE {batch_size}: give 1 or more")
        self.store, self.batch_size, self.seed, self.packing, self.is_packed = store, batch_size, seed, packing, pack
        self.limits = (int(lengths["inputs"]), int(lengths["targets"]))
        self.resolved = mixture.resolve(store)
        self.order = sampling.Order(self.resolved.arrays(seed), sampling.key(seed, "order"))
        self._plans: collections.OrderedDict[int, Plan] = collections.OrderedDict()
        self._lock = threading.Lock()
        self._busy: dict[int, threading.Lock] = {}

    @property
    def _bins(self) -> tuple[int, ...]:
        """Capacities of a row as the packer sees them."""
        return self.limits if self.packing == "encoder_decoder" else (sum(self.limits),)

    @property
    def rows_per_chunk(self) -> int:
        """Packed rows that every chunk gives."""
        return self.recipe.rows

    @property
    def recipe(self) -> packer.Recipe:
        """How chunks are packed, found from the first of them."""
        return self._first[1]

    @functools.cached_property
    def _first(self) -> tuple["_Draws", packer.Recipe, packer.Fit]:
        draws = self._draws(0)
        epoch = self.order.sources.examples.sum(axis=1)
        return draws, *packer.plan(self._sizes(draws.length), draws.source, epoch, self._bins)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that the batches are a function of: equal fingerprints, equal batches."""
        parts = {
            "algorithm": ALGORITHM,
            "store": self.store.hash,
            "sources": self.resolved.identity(),
            "lengths": self.limits,
            "batch_size": self.batch_size,
            "packing": self.packing if self.is_packed else f"{self.packing}, unpacked",
            "seed": self.seed,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def batch(self, step: int, rows: range | None = None) -> dict[str, np.ndarray]:
        """The batch of a step, {feature: i32[rows, length]}; `rows` are those of the batch that this host reads."""
        rows = range(self.batch_size) if rows is None else rows
        if rows.step != 1 or rows.start < 0 or rows.stop > self.batch_size:
            raise UserError(f"rows {rows} of a batch of {self.batch_size}")
        plan = self.plan(step * self.batch_size + rows.start, len(rows))
        self.store.touch(len(plan.volume) * 4096)  # a page or so each
        return self._encoder_decoder(plan) if self.packing == "encoder_decoder" else self._decoder_only(plan)

    def plan(self, first: int, count: int) -> Plan:
        """What stands in rows first, ..., first + count - 1 of all rows."""
        pieces: list[Plan] = []
        while count:
            chunk, row, size = self._find(first)
            taken = min(count, size - row)
            pieces.append(self._plan(chunk).rows(row, row + taken))
            first, count = first + taken, count - taken
        return pieces[0] if len(pieces) == 1 else _join(pieces)

    def prepare(self, chunk: int) -> None:
        """Plans a chunk ahead (in another thread, so that no step waits for it)."""
        self._plan(chunk)

    def rows_in_chunk(self, chunk: int) -> int:
        """How many rows a chunk gives."""
        return self.rows_per_chunk if self.is_packed else self.order.drawn(chunk + 1) - self.order.drawn(chunk)

    def chunk_of(self, step: int) -> int:
        """The chunk that holds the first row of a step."""
        return self._find(step * self.batch_size)[0]

    def examples_per_row(self) -> float:
        return self.order.draws / self.rows_per_chunk if self.is_packed else 1.0

    def describe(self) -> dict[str, Any]:
        """What these batches are, for a run's record: JSON-able."""
        return {
            "fingerprint": self.fingerprint,
            "store": {"hash": self.store.hash, "vocabulary": self.store.vocabulary},
            "mixture": self.resolved.describe(),
            "lengths": {"inputs": self.limits[0], "targets": self.limits[1]},
            "batch_size": self.batch_size,
            "seed": self.seed,
            "packing": self.packing if self.is_packed else "none",
            "examples_per_row": round(self.examples_per_row(), 4),
        }

    # ---- plans -------------------------------------------------------------------------------------------------------

    def _find(self, row: int) -> tuple[int, int, int]:
        """(chunk, row of the chunk, rows of the chunk) of a row."""
        if self.is_packed:
            return *divmod(row, self.rows_per_chunk), self.rows_per_chunk
        chunk = self.order.chunk_of(row)
        return chunk, row - self.order.drawn(chunk), self.rows_in_chunk(chunk)

    def _plan(self, chunk: int) -> Plan:
        with self._lock:
            if chunk in self._plans:
                self._plans.move_to_end(chunk)
                return self._plans[chunk]
            busy = self._busy.setdefault(chunk, threading.Lock())
        with busy:
            if chunk not in self._plans:
                plan = self._make_plan(chunk)
                with self._lock:
                    self._plans[chunk] = plan
                    if len(self._plans) > KEPT:
                        self._plans.popitem(last=False)
                    self._busy.pop(chunk, None)
                return plan
        return self._plan(chunk)

    def _draws(self, chunk: int) -> _Draws:
        draws = self.order.chunk(chunk)
        n = len(draws.source)
        offset, length = np.empty((n, 2), np.int64), np.empty((n, 2), np.int64)
        for number in np.unique(draws.volume):
            here = np.flatnonzero(draws.volume == number)
            record = self.store.volume(int(number)).index[draws.record[here]]
            offset[here, 0] = record["offset"]
            length[here, 0], length[here, 1] = record["inputs"], record["targets"]
        self.store.touch(n * 4096)
        offset[:, 1] = offset[:, 0] + length[:, 0]
        return _Draws(draws.volume, offset, np.minimum(length, self.limits), length > self.limits, draws.source)

    def _sizes(self, length: np.ndarray) -> np.ndarray:
        return length if self.packing == "encoder_decoder" else length.sum(axis=1, keepdims=True)

    def _make_plan(self, chunk: int) -> Plan:
        if not self.is_packed:
            draws = self._draws(chunk)
            return Plan(*draws, np.arange(len(draws.source) + 1))
        draws, fit = (self._first[0], self._first[2]) if chunk == 0 else (self._draws(chunk), None)
        seed = sampling.key(self.seed, "rows", chunk)
        rows = packer.pack(self._sizes(draws.length), self._bins, self.recipe, seed, fit)
        return Plan(*(column[rows.order] for column in draws), rows.starts)

    # ---- tokens ------------------------------------------------------------------------------------------------------

    def _tokens(self, volume: int) -> np.ndarray:
        return self.store.volume(volume).tokens

    def _encoder_decoder(self, plan: Plan) -> dict[str, np.ndarray]:
        inputs = Layout(plan.starts, plan.length[:, 0], self.limits[0])
        targets = Layout(plan.starts, plan.length[:, 1], self.limits[1])
        input_tokens = inputs.fill(plan.volume, plan.offset[:, 0], self._tokens)
        target_tokens = targets.fill(plan.volume, plan.offset[:, 1], self._tokens)
        inputs.put(input_tokens, inputs.lengths - 1, plan.cut[:, 0], EOS_ID)
        targets.put(target_tokens, targets.lengths - 1, plan.cut[:, 1], EOS_ID)
        return {
            "encoder_input_tokens": input_tokens,
            "decoder_target_tokens": target_tokens,
            "decoder_input_tokens": targets.shift(target_tokens),
            "decoder_loss_weights": targets.is_token.astype(np.int32),
            "encoder_segment_ids": inputs.segments,
            "encoder_positions": inputs.positions,
            "decoder_segment_ids": targets.segments,
            "decoder_positions": targets.positions,
        }

    def _decoder_only(self, plan: Plan) -> dict[str, np.ndarray]:
        width, total = plan.length[:, 0], plan.length.sum(axis=1)
        layout = Layout(plan.starts, total, sum(self.limits))
        # Inputs and targets as two segments of one row each, to be read; `layout` joins them into one.
        pairs = Layout(plan.starts * 2, plan.length.reshape(-1), sum(self.limits))
        tokens = pairs.fill(plan.volume.repeat(2), plan.offset.reshape(-1), self._tokens)
        layout.put(tokens, width - 1, plan.cut[:, 0], EOS_ID)
        layout.put(tokens, total - 1, plan.cut[:, 1], EOS_ID)
        widths = layout.spread(width)
        return {
            "decoder_target_tokens": tokens,
            "decoder_input_tokens": layout.shift(tokens),
            "decoder_loss_weights": (layout.is_token & (layout.positions >= widths)).astype(np.int32),
            "decoder_segment_ids": layout.segments,
            "decoder_positions": layout.positions,
            # One more than the inputs: the position that reads the last of them predicts the first target.
            "decoder_causal_attention": (layout.is_token & (layout.positions <= widths)).astype(np.int32),
        }


def _join(pieces: list[Plan]) -> Plan:
    names = ("volume", "offset", "length", "cut", "source")
    columns = (np.concatenate([getattr(piece, name) for piece in pieces]) for name in names)
    shifts = np.cumsum([0, *(len(piece.volume) for piece in pieces)])
    starts = [piece.starts[:-1] + shift for piece, shift in zip(pieces, shifts, strict=False)]
    return Plan(*columns, np.concatenate([*starts, shifts[-1:]]))
