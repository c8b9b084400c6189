"""Mixtures over a token store: which tasks are sampled, and how often. One store serves all mixtures, without copies.

    mixture = Mixture("paper", num_tasks=282, cot_ratio=0.1)
    resolved = mixture.resolve(open_store(path))

What a name means and how its draws are divided is defined in flanx/data/task/select.py, also for SeqIO mixtures.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from flanx.data.pipeline import sampling
from flanx.data.store import Part, Store, Task
from flanx.data.task import select
from flanx.data.task.tables import load_mixtures
from flanx.errors import UserError


@dataclasses.dataclass(frozen=True)
class Mixture(select.MixtureSpec):
    """A mixture named by the user, over a store; see `MixtureSpec` for the fields.

    module: a module, or a list of them, that registers a SeqIO mixture of that name, whose tasks and rates are used.
    """

    module: str | Sequence[str] | None = None

    def resolve(self, store: Store) -> "Resolved":
        """The sources of this mixture in a store. Raises UserError if the store cannot provide what it asks for."""
        if self.module and isinstance(self.name, str):
            from flanx.seqio import user_tasks  # noqa: PLC0415  (imports TensorFlow, not needed for other mixtures)

            modules = [self.module] if isinstance(self.module, str) else self.module
            if rates := user_tasks.rates(self.name, modules):
                named = dataclasses.replace(self, name=[*rates.items()], module=None).resolve(store)
                return dataclasses.replace(named, mixture=self)
        selection = select.resolve(self, metadata(store), load_mixtures(), f"the store {store.path}")
        sources = []
        for share in selection.shares:
            task = store.tasks[share.task]
            sources.append(Source(task, share.collection, share.style, share.weight, task.parts[share.style]))
        return Resolved(self, tuple(sources), selection.rates, selection.missing, selection.held_out)


def metadata(store: Store) -> dict[str, dict[str, Any]]:
    """Metadata that `select` reads, for the tasks of a store and those recorded as missing."""
    tasks = {}
    for name, task in store.tasks.items():
        styles = {style: sum(part.examples for part in parts) for style, parts in task.parts.items()}
        tasks[name] = {**task.metadata, "examples": task.examples, "styles": styles}
    for name, entry in store.missing.items():
        tasks[name] = {"collection": "", **entry, "missing": entry.get("reason", "")}
    return tasks


@dataclasses.dataclass(frozen=True)
class Source:
    """One (task, style) with its renderings and its share of all draws."""

    task: Task
    collection: str  # or the mixture's own group
    style: str
    weight: float
    parts: tuple[Part, ...]

    @property
    def name(self) -> str:
        return f"{self.task.name}_{self.style}"


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A mixture over a store: its sources, sorted by name, and what was requested but is missing."""

    mixture: Mixture
    sources: tuple[Source, ...]
    rates: dict[str, float] | None  # requested, by collection, sum 1
    missing: dict[str, str]  # task or collection -> reason
    dropped: tuple[str, ...]  # held-out tasks of the collections

    @functools.cached_property
    def tasks(self) -> dict[str, float]:
        """Share of all draws by task."""
        return select.total_by((source.task.name, source.weight) for source in self.sources)

    @functools.cached_property
    def collections(self) -> dict[str, float]:
        """Share of all draws by collection."""
        return dict(sorted(select.total_by((source.collection, source.weight) for source in self.sources).items()))

    def arrays(self, seed: int) -> sampling.Sources:
        """The sources as arrays for `sampling.Order`."""
        if not self.sources:
            raise UserError(f"mixture '{self.mixture.title}' with NUM_TASKS 0 has no examples: evaluate, do not train")
        renderings = max(len(source.parts) for source in self.sources)
        columns = np.zeros((3, len(self.sources), renderings), np.int64)
        for i, source in enumerate(self.sources):
            for r, part in enumerate(source.parts):
                columns[:, i, r] = part.examples, part.start, part.volume
        weights = np.array([source.weight for source in self.sources])
        keys = np.array([sampling.key(seed, source.name) for source in self.sources], np.uint64)
        return sampling.Sources(weights, keys, *columns)

    def describe(self) -> dict[str, Any]:
        """A JSON-serializable record for a run: the requested rates, the actual collection shares, what is missing.

        Rates and shares differ if something is missing, NUM_TASKS or a licence leaves tasks out, or COT_RATIO is set.
        """
        asked = {k: v for k, v in dataclasses.asdict(self.mixture).items() if v is not None}
        return {
            "asked": asked,
            "tasks": len({source.task.name for source in self.sources}),
            "sources": len(self.sources),
            "rates": self.rates and {name: round(rate, 6) for name, rate in self.rates.items()},
            "collections": {name: round(share, 6) for name, share in self.collections.items()},
            "cot_share": round(sum(s.weight for s in self.sources if s.task.metadata.get("cot")), 6),
            "missing": self.missing,
            "held_out": list(self.dropped),
        }
