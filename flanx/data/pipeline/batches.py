"""The batch of a step: a pure function of (store, mixture, lengths, batch size, packing, seed, step).

Rows are numbered from 0 without end; batch k is rows k B to (k + 1) B - 1, and a host reads only its own rows. With
packing, chunk c of the draws (see `sampling`) is rows c R to (c + 1) R - 1 with R fixed for the mixture (see
`packing`); without it, row n is draw n. So what a row holds depends neither on the step nor on the number of hosts, and
any step is found directly.
"""

import dataclasses
import functools
import hashlib
import json
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from flanx.data import vocabulary as vocabularies
from flanx.data.pipeline import features, sampling
from flanx.data.pipeline import packing as packer
from flanx.data.pipeline.mixture import Mixture
from flanx.data.store import Store, open_store
from flanx.errors import UserError

ALGORITHM = 2  # increment when the same arguments would give different batches
KEPT = 3  # plans kept in memory: a few MB each
PAGE = 4096  # roughly the bytes touched by reading one example


@dataclasses.dataclass(frozen=True)
class DatasetConfig:
    """Where a run's batches come from: T5X's `DatasetConfig` over a token store.

    Attributes:
      vocabulary: what the store must have been built with: "byte", or the path or URL of a SentencePiece model.
      task_feature_lengths: tokens per packed row, {"inputs": I, "targets": T}.
      batch_size: packed rows per step, over all hosts.
      warn_epochs: a run names the tasks whose every example it will draw more often than this, in whatever style. Up
        to four epochs are worth about as much as new data (Muennighoff et al. 2023, arXiv 2305.16264).
    """

    mixture: Mixture
    store_dir: str
    vocabulary: str
    task_feature_lengths: Mapping[str, int]
    batch_size: int
    warn_epochs: float = 4.0

    def open(self, vocab_size: int, packing: str, seed: int) -> "Batches":
        """The batches for a model's vocabulary and packing, in the order of `seed`. Raises UserError on a mismatch."""
        opened = open_store(self.store_dir)
        opened.check_vocabulary(vocabularies.load(self.vocabulary).fingerprint)
        if opened.vocabulary_size > vocab_size:
            raise UserError(
                f"the store at {self.store_dir} has {opened.vocabulary_size} pieces ({opened.vocabulary}), the model "
                f"only {vocab_size}; set VOCAB_SIZE or build the store with the model's vocabulary"
            )
        lengths = dict(self.task_feature_lengths)
        return Batches(opened, self.mixture, lengths, self.batch_size, seed, packing=packing)


class Plan(NamedTuple):
    """Some rows, ready to copy: where the trimmed tokens of their n examples are, in row order.

    volume i64[n], offset i64[n, 2] first token of inputs and of targets, length i64[n, 2] after trimming, cut
    bool[n, 2] whether trimmed, source i64[n]; row r holds examples starts[r]:starts[r + 1], starts i64[R + 1].
    """

    volume: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    cut: np.ndarray
    source: np.ndarray
    starts: np.ndarray


class Batches:
    """Batches of a mixture over a store.

    lengths: {"inputs": I, "targets": T}, tokens per side and example; rows are I and T long (encoder_decoder) or I + T
    (decoder_only). A longer side is trimmed to its length, keeping the end of sequence as its last token.

    Attributes:
      resolved: the mixture's sources in this store.
      tasks: {task: its collection}; batches number the tasks from 1 in this order.
      capacities: capacity in tokens of each side of a row; `sides` i64[2, sides of a row]: lengths @ sides is what an
        example takes of them.
      examples_per_row: the mean number of examples in a row.
    """

    def __init__(
        self,
        store: Store,
        mixture: Mixture,
        lengths: Mapping[str, int],
        batch_size: int,
        seed: int = 0,
        packing: str = "encoder_decoder",
        pack: bool = True,
    ) -> None:
        if packing not in features.FEATURES:
            raise UserError(f"packing '{packing}': one of {', '.join(features.FEATURES)}")
        if set(lengths) != {"inputs", "targets"} or min(lengths.values()) < 2:
            raise UserError(f"TASK_FEATURE_LENGTHS {dict(lengths)}: give 'inputs' and 'targets', each 2 or more")
        if batch_size < 1:
            raise UserError(f"BATCH_SIZE {batch_size}: give 1 or more")
        self.store, self.batch_size, self.seed, self.packing = store, batch_size, seed, packing
        self.limits = (int(lengths["inputs"]), int(lengths["targets"]))
        self.resolved = mixture.resolve(store)
        self.tasks = {source.task.name: source.task.collection for source in self.resolved.sources}
        numbers = {task: number for number, task in enumerate(self.tasks, start=1)}
        self._task_of = np.array([numbers[source.task.name] for source in self.resolved.sources], np.int32)
        self.order = sampling.Order(self.resolved.arrays(seed), sampling.key(seed, "order"))
        is_joined = packing == "decoder_only"  # inputs and targets in one row
        self.capacities = (sum(self.limits),) if is_joined else self.limits
        self.sides = np.ones((2, 1), np.int64) if is_joined else np.eye(2, dtype=np.int64)  # lengths @ sides = sizes
        self._plans: dict[int, Plan] = {}
        self._planning = threading.Lock()
        self._recipe: packer.Recipe | None = None
        self.examples_per_row = 1.0
        if pack:
            draws, epoch = self._draws(self.order.chunk(0)), self.order.sources.examples.sum(axis=1)
            self._recipe, fit = packer.plan(draws.length @ self.sides, draws.source, epoch, self.capacities)
            self._plans[0] = self._pack(draws, 0, fit)
            self.examples_per_row = self.order.draws / self._recipe.rows

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything the batches depend on: equal fingerprints, equal batches."""
        parts = {
            "algorithm": ALGORITHM,
            "sources": [
                [source.name, float(source.weight).hex(), *(part.metadata["content"] for part in source.parts)]
                for source in self.resolved.sources
            ],
            "lengths": self.limits,
            "batch_size": self.batch_size,
            "packing": self.packing if self._recipe else f"{self.packing}, unpacked",
            "seed": self.seed,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def batch(self, step: int, rows: range | None = None) -> dict[str, np.ndarray]:
        """The batch of a step, {feature: i32[rows, length]}; `rows`: the rows of the batch that this host reads.

        `decoder_task_ids` is not a model feature: it has the task number of each position, 0 on padding."""
        rows = range(self.batch_size) if rows is None else rows
        if rows.step != 1 or rows.start < 0 or rows.stop > self.batch_size:
            raise UserError(f"rows {rows} of a batch of {self.batch_size}")
        plan = self.plan(step * self.batch_size + rows.start, len(rows))
        self.store.check("tokens", np.repeat(plan.volume, 2), plan.offset.ravel(), (plan.offset + plan.length).ravel())
        self.store.touch(len(plan.volume) * PAGE)
        fill = features.encoder_decoder if self.packing == "encoder_decoder" else features.decoder_only
        return fill(plan, self.limits, lambda volume: self.store.volume(volume).tokens, self._task_of[plan.source])

    def plan(self, first: int, count: int) -> Plan:
        """The plan of rows first, ..., first + count - 1."""
        parts: list[Plan] = []
        while count:
            chunk, row, rows_of_chunk = self._find(first)
            taken = min(count, rows_of_chunk - row)
            plan = self.chunk_plan(chunk)
            a, b = plan.starts[row], plan.starts[row + taken]
            parts.append(Plan._make([*(c[a:b] for c in plan[:-1]), plan.starts[row : row + taken + 1] - a]))
            first, count = first + taken, count - taken
        return parts[0] if len(parts) == 1 else _join(parts)

    def chunk_of(self, step: int) -> int:
        """The chunk that holds the first row of a step."""
        return self._find(step * self.batch_size)[0]

    def chunk_plan(self, chunk: int) -> Plan:
        """The plan of a chunk's rows; threads may request chunks ahead, so that no step waits for one."""
        plan = self._plans.get(chunk)
        if plan is None:
            with self._planning:
                plan = self._plans.get(chunk)
                if plan is None:
                    draws = self._draws(self.order.chunk(chunk))
                    plan = self._plans[chunk] = self._pack(draws, chunk) if self._recipe else draws
                    if len(self._plans) > KEPT:
                        del self._plans[next(iter(self._plans))]
        return plan

    def describe(self) -> dict[str, Any]:
        """A JSON-serializable description for a run's metadata. `content`: a digest for each task read."""
        content: dict[str, list[str]] = {}
        for source in self.resolved.sources:
            content.setdefault(source.task.name, []).extend(part.metadata["content"] for part in source.parts)
        return {
            "fingerprint": self.fingerprint,
            "store": {"hash": self.store.hash, "vocabulary": self.store.vocabulary},
            "mixture": self.resolved.describe(),
            "lengths": {"inputs": self.limits[0], "targets": self.limits[1]},
            "batch_size": self.batch_size,
            "seed": self.seed,
            "packing": self.packing if self._recipe else "none",
            "examples_per_row": round(self.examples_per_row, 4),
            "content": {task: hashlib.sha256("".join(each).encode()).hexdigest()[:8] for task, each in content.items()},
        }

    def epochs(self, steps: int) -> dict[str, float]:
        """How often `steps` steps draw each example of a task, over all styles."""
        drawn = steps * self.batch_size * self.examples_per_row
        sizes = {source.task.name: source.task.examples for source in self.resolved.sources}
        return {name: drawn * share / sizes[name] for name, share in self.resolved.tasks.items()}

    def _find(self, row: int) -> tuple[int, int, int]:
        """(chunk, row within the chunk, rows in the chunk) of a row."""
        if self._recipe:
            return *divmod(row, self._recipe.rows), self._recipe.rows
        chunk = self.order.chunk_of(row)
        first = self.order.drawn(chunk)
        return chunk, row - first, self.order.drawn(chunk + 1) - first

    def _draws(self, draws: sampling.Draws) -> Plan:
        """The draws of a chunk in order, one per row."""
        n = len(draws.source)
        offset, length = np.empty((n, 2), np.int64), np.empty((n, 2), np.int64)
        for number in np.unique(draws.volume):
            here = np.flatnonzero(draws.volume == number)
            self.store.check("index", draws.volume[here], draws.record[here], draws.record[here] + 1)
            record = self.store.volume(int(number)).index[draws.record[here]]
            offset[here, 0] = record["offset"]
            length[here, 0], length[here, 1] = record["inputs"], record["targets"]
        self.store.touch(n * PAGE)
        offset[:, 1] = offset[:, 0] + length[:, 0]
        trimmed = np.minimum(length, self.limits)
        return Plan(draws.volume, offset, trimmed, length > self.limits, draws.source, np.arange(n + 1))

    def _pack(self, draws: Plan, chunk: int, fit: packer.Fit | None = None) -> Plan:
        assert self._recipe is not None
        seed = sampling.key(self.seed, "rows", chunk)
        rows = packer.pack(draws.length @ self.sides, self.capacities, self._recipe, seed, fit)
        return Plan._make([*(column[rows.order] for column in draws[:-1]), rows.starts])


def _join(plans: list[Plan]) -> Plan:
    columns = (np.concatenate(columns) for columns in zip(*(plan[:-1] for plan in plans), strict=True))
    shifts = np.cumsum([0, *(len(plan.volume) for plan in plans)])
    starts = [plan.starts[:-1] + shift for plan, shift in zip(plans, shifts, strict=False)]
    return Plan._make([*columns, np.concatenate([*starts, shifts[-1:]])])
