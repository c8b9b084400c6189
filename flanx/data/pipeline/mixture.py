"""Mixtures: which tasks of a store are drawn, and how often. Nothing is copied; one store serves every mixture.

    mixture = Mixture("paper", num_tasks=282, cot_ratio=0.1)
    batches = Batches(open_store(path), mixture, {"inputs": 512, "targets": 128}, batch_size=64)

A name is a mixture of `tasks/tables/mixtures.toml` (or of a folder of FLANX_TABLES), a collection of the store, a group
of one (`dialog`, a part of Muffin: where a mixture names it, its tasks count there alone), or a task. The weight of a
task is min(examples, cap); `rates` then say what part of all draws each collection gets, `styles` how the draws of a
task are divided over its prompt styles, `inversion` how often an inverted example (the answer asks for the question) is
drawn against 1 for a plain one. Held-out tasks are never drawn.
"""

import copy
import dataclasses
import functools
import importlib.util
import math
import os
import pathlib
import tomllib
from collections.abc import Mapping
from typing import Any

import numpy as np

from flanx.data.pipeline import rates as share
from flanx.data.pipeline import sampling
from flanx.data.pipeline.batches import Batches
from flanx.data.store import Store
from flanx.data.task import licence
from flanx.errors import UserError, nearest

__all__ = ["Batches", "Mixture", "Resolved", "named"]

INVERSION = 0.3  # rate of inverted examples against 1: the paper's mixtures (FLAN's own code, 2022)
KEYS = {"collections", "rates", "caps", "styles", "inversion", "balance", "note"}


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A mixture as a user names it; what is None comes from the named mixture, else from the store.

    name: a named mixture, a collection or a task (all its styles, or `task_style` for one).
    num_tasks: how many tasks, of a fixed order in which n tasks are always among n + 1; None: all.
    cot_ratio: the share of draws that chain-of-thought tasks get, 0 to 1; the others keep their proportions.
    rates: {collection: rate}, in parts of 1 or of 100; caps: {collection or task: examples that count at most}.
    styles: {style: rate}, among the styles that a task has; inversion: rate of inverted examples against 1.
    seed: of the order in which tasks are taken by `num_tasks`.
    allow_missing: go on without collections or tasks that are asked for and not in the store; they are recorded.
    licence: classes and licences of the data to train on, as "permissive" (flanx/data/task/licence.py); other tasks are
      left out, before `num_tasks` counts, and recorded as missing. None: all.
    """

    name: str
    num_tasks: int | None = None
    cot_ratio: float | None = None
    rates: Mapping[str, float] | None = None
    caps: Mapping[str, int] | None = None
    styles: Mapping[str, float] | None = None
    inversion: float | None = None
    seed: int = 0
    allow_missing: bool = False
    licence: str | None = None

    def resolve(self, store: Store) -> "Resolved":
        """The sources of this mixture in a store. Raises UserError where the store cannot give what is asked."""
        return _resolve(self, store)


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A mixture over a store: its sources, sorted by name, and what was asked for and is not there."""

    mixture: Mixture
    sources: tuple[share.Source, ...]
    rates: dict[str, float] | None  # asked for, by collection, sum 1
    missing: dict[str, str]  # task or collection -> reason
    dropped: tuple[str, ...]  # held-out tasks of the collections

    @functools.cached_property
    def tasks(self) -> dict[str, float]:
        """Share of all draws by task."""
        shares: dict[str, float] = {}
        for source in self.sources:
            shares[source.task.name] = shares.get(source.task.name, 0.0) + source.weight
        return shares

    @functools.cached_property
    def collections(self) -> dict[str, float]:
        """Share of all draws by collection."""
        shares: dict[str, float] = {}
        for source in self.sources:
            shares[source.task.collection] = shares.get(source.task.collection, 0.0) + source.weight
        return dict(sorted(shares.items()))

    def arrays(self, seed: int) -> sampling.Sources:
        """The sources as arrays for `order.Order`."""
        if not self.sources:
            raise UserError(f"mixture '{self.mixture.name}' with NUM_TASKS 0 has no examples: evaluate, do not train")
        renderings = max(len(source.parts) for source in self.sources)
        columns = np.zeros((3, len(self.sources), renderings), np.int64)
        for i, source in enumerate(self.sources):
            for r, part in enumerate(source.parts):
                columns[:, i, r] = part.examples, part.start, part.volume
        weights = np.array([source.weight for source in self.sources])
        keys = np.array([sampling.key(seed, source.name) for source in self.sources], np.uint64)
        return sampling.Sources(weights, keys, *columns)

    def identity(self) -> list[Any]:
        """What the draws depend on, beside the store and the seed."""
        return [[source.name, float(source.weight).hex()] for source in self.sources]

    def describe(self) -> dict[str, Any]:
        """For a run's record, JSON-able: the rates asked for, the shares that collections get, what is missing.

        They are not the same where something is missing, NUM_TASKS or a licence leaves some out, or COT_RATIO is set.
        """
        asked = {k: v for k, v in dataclasses.asdict(self.mixture).items() if v is not None}
        return {
            "asked": asked,
            "tasks": len(self.tasks),
            "sources": len(self.sources),
            "rates": self.rates and {name: round(rate, 6) for name, rate in self.rates.items()},
            "collections": {name: round(share, 6) for name, share in self.collections.items()},
            "cot_share": round(sum(s.weight for s in self.sources if s.task.metadata.get("cot")), 6),
            "missing": self.missing,
            "held_out": list(self.dropped),
        }


# ---- named mixtures --------------------------------------------------------------------------------------------------


@functools.cache
def _tables(folders: str) -> dict[str, dict[str, Any]]:
    """The sections of mixtures.toml of our tables and of the folders of FLANX_TABLES, a later one replacing."""
    spec = importlib.util.find_spec("flanx.tasks")  # found, not imported: its import registers with SeqIO
    own = list(spec.submodule_search_locations or []) if spec else []
    found: dict[str, dict[str, Any]] = {}
    for root in [*own, *(f for f in folders.split(os.pathsep) if f)]:
        file = pathlib.Path(root).expanduser() / "tables" / "mixtures.toml"
        if not file.is_file():
            continue
        try:
            sections = tomllib.loads(file.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise UserError(f"{file}: {error}") from error
        for name, section in sections.items():
            unknown = sorted(set(section) - KEYS)
            if unknown:
                raise UserError(f"{file}: mixture '{name}' has unknown key '{unknown[0]}'{nearest(unknown[0], KEYS)}")
        found |= sections
    return found


def named() -> dict[str, dict[str, Any]]:
    """The named mixtures: {name: {collections, rates, caps, styles, inversion, balance, note}}."""
    return _tables(os.environ.get("FLANX_TABLES", ""))


# ---- resolving -------------------------------------------------------------------------------------------------------


def _resolve(mixture: Mixture, store: Store) -> Resolved:
    _check(mixture)
    definition = named().get(mixture.name, {})
    setting = {
        key: value if (value := getattr(mixture, key)) is not None else definition.get(key)
        for key in ("rates", "caps", "styles", "inversion")
    }
    store, definition = _with_groups(mixture, definition, setting["rates"] or {}, store)
    names, style, missing = _names(mixture, definition, store)
    names, dropped = _without_held_out(mixture, names, store)
    names, missing, refused = _licensed(mixture, names, missing, store)
    names, lost = _subset(mixture, definition, names, missing, store)
    styles = {style: 1.0} if style else setting["styles"]
    inversion = INVERSION if setting["inversion"] is None else setting["inversion"]
    weights = {name: share.size(store.tasks[name], setting["caps"] or {}) for name in names}
    rates = share.rates_of_one(mixture.name, setting["rates"]) if weights else None
    if rates is not None:
        weights = share.rated(mixture.name, weights, rates, store)
        lost |= _unbuilt(mixture, rates, store)
    if weights and mixture.cot_ratio is not None:
        weights = share.with_cot(mixture.name, weights, mixture.cot_ratio, store)
    sources = [
        source
        for name in sorted(weights)
        for source in share.sources(store.tasks[name], weights[name], styles, inversion)
    ]
    return Resolved(mixture, share.whole(sources), rates, lost | refused, dropped)


def _with_groups(
    mixture: Mixture, definition: dict[str, Any], rates: Mapping[str, float], store: Store
) -> tuple[Store, dict[str, Any]]:
    """The store and the definition with the groups that the mixture names (`dialog`, of Muffin) as own collections."""
    homes = {
        facts["group"]: facts["collection"]
        for facts in [*store.manifest["tasks"].values(), *store.missing.values()]
        if facts.get("group")
    }
    listed = list(definition.get("collections", []))
    groups = {name for name in (mixture.name, *listed, *rates) if name in homes}
    if not groups:
        return store, definition
    listed += [name for name in rates if name in groups and name not in listed and homes[name] in listed]
    view = copy.copy(store)
    view.tasks = {
        name: dataclasses.replace(task, collection=group, metadata=task.metadata | {"collection": group})
        if (group := task.metadata.get("group")) in groups
        else task
        for name, task in store.tasks.items()
    }
    view.missing = {
        name: facts | {"collection": facts["group"]} if facts.get("group") in groups else facts
        for name, facts in store.missing.items()
    }
    return view, definition | ({"collections": listed} if listed else {})


def _check(mixture: Mixture) -> None:
    if mixture.cot_ratio is not None and not 0 <= mixture.cot_ratio <= 1:
        raise UserError(f"COT_RATIO {mixture.cot_ratio}: a share of the draws, from 0 to 1")
    if mixture.num_tasks is not None and mixture.num_tasks < 0:
        raise UserError(f"NUM_TASKS {mixture.num_tasks}: 0 or more")
    for what in ("rates", "caps", "styles"):
        for key, value in (getattr(mixture, what) or {}).items():
            if not (value >= 0 and math.isfinite(value)):
                raise UserError(f"mixture '{mixture.name}': {what} of '{key}' is {value}; give 0 or more")
    if mixture.inversion is not None and not mixture.inversion >= 0:
        raise UserError(f"mixture '{mixture.name}': inversion is {mixture.inversion}; give 0 or more")


def _names(mixture: Mixture, definition: dict[str, Any], store: Store) -> tuple[list[str], str | None, dict[str, str]]:
    """(tasks in the store, the one style or None, {task or collection that is not there: reason})."""
    absent = {name: facts.get("collection", "") for name, facts in store.missing.items()}
    present = store.collections()
    if definition or mixture.name in present or mixture.name in absent.values():
        wanted = definition.get("collections") or [mixture.name]
        tasks = [name for collection in wanted for name in present.get(collection, [])]
        missing = {name: store.missing[name].get("reason", "") for name, c in absent.items() if c in wanted}
        known = {*present, *absent.values()}
        missing |= {collection: "not in the store" for collection in wanted if collection not in known}
        return tasks, None, missing
    if mixture.name in store.tasks:
        return [mixture.name], None, {}
    for name, task in store.tasks.items():
        if mixture.name.startswith(f"{name}_") and (style := mixture.name[len(name) + 1 :]) in task.parts:
            return [name], style, {}
    if mixture.name in absent:
        raise UserError(
            f"task {mixture.name} is not in the store {store.path}: {store.missing[mixture.name]['reason']}"
        )
    known = [*named(), *present, *store.tasks]
    raise UserError(
        f"no mixture, collection or task '{mixture.name}' in the store {store.path}{nearest(mixture.name, known)}"
    )


def _without_held_out(mixture: Mixture, names: list[str], store: Store) -> tuple[list[str], tuple[str, ...]]:
    held_out = tuple(name for name in names if store.tasks[name].metadata.get("held_out"))
    if names and held_out == tuple(names):
        raise UserError(f"'{mixture.name}': held out for evaluation, never trained on ({', '.join(held_out[:3])})")
    return [name for name in names if name not in set(held_out)], held_out


def _licensed(
    mixture: Mixture, names: list[str], missing: dict[str, str], store: Store
) -> tuple[list[str], dict[str, str], dict[str, str]]:
    """(tasks, missing ones) that the licence filter leaves, and {task that it refuses: reason}."""
    facts = {name: task.metadata for name, task in store.tasks.items()} | store.missing
    refused = licence.refused(mixture.licence, facts, [*names, *(name for name in missing if name in facts)])
    kept = [name for name in names if name not in refused]
    if names and not kept:
        first = next(iter(refused))
        raise UserError(f"mixture '{mixture.name}': no task is left; {first}: {refused[first]}")
    return kept, {name: reason for name, reason in missing.items() if name not in refused}, refused


def task_order(mixture: Mixture, definition: Mapping[str, Any], facts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The order in which NUM_TASKS takes tasks: collection by collection as the mixture lists them, in each by a seeded
    hash of the name, so that a task's place hangs on no other; with balance = "category", one of each category in turn.
    """
    listed = list(definition.get("collections") or [])

    def place(name: str) -> tuple[int, str, int]:
        collection = str(facts[name]["collection"])
        rank = listed.index(collection) if collection in listed else len(listed)
        return rank, collection, sampling.key(mixture.seed, "task", name)

    ranked = sorted(facts, key=place)
    if definition.get("balance") != "category":
        return ranked
    turns: dict[tuple[str, str], int] = {}
    round_of = {}
    for name in ranked:
        group = (str(facts[name]["collection"]), str(facts[name].get("category", "")))
        round_of[name] = turns[group] = turns.get(group, -1) + 1
    return sorted(ranked, key=lambda name: (place(name)[:2], round_of[name], place(name)[2]))


def _subset(
    mixture: Mixture, definition: dict[str, Any], names: list[str], missing: dict[str, str], store: Store
) -> tuple[list[str], dict[str, str]]:
    """The first NUM_TASKS tasks, and those among them that are recorded as missing."""
    recorded = {name: store.missing[name] for name in missing if name in store.missing}
    unknown = {name: reason for name, reason in missing.items() if name not in recorded}
    ranked = task_order(mixture, definition, {name: store.tasks[name].metadata for name in names} | recorded)
    count = len(ranked) if mixture.num_tasks is None else mixture.num_tasks
    if count > len(ranked) and not mixture.allow_missing:
        raise UserError(
            f"NUM_TASKS {count}: the store {store.path} holds {len(names)} tasks of '{mixture.name}'"
            + (f" and records {len(recorded)} as missing" if recorded else "")
            + "; build more, or set allow_missing"
        )
    if unknown and mixture.num_tasks is None and not mixture.allow_missing:
        raise UserError(
            f"mixture '{mixture.name}': the store {store.path} has no collection {', '.join(unknown)}; build it, lower "
            "NUM_TASKS, or set allow_missing"
        )
    taken = ranked[:count]
    lost = {name: missing[name] for name in taken if name in recorded}
    chosen = [name for name in taken if name not in recorded]
    if count and not chosen:
        raise UserError(f"mixture '{mixture.name}': none of its tasks is in the store {store.path}")
    if count > len(ranked) or mixture.num_tasks is None:
        lost |= unknown
    return chosen, lost


def _unbuilt(mixture: Mixture, rates: Mapping[str, float], store: Store) -> dict[str, str]:
    """{collection with a rate that the store does not have: reason}; an error unless that is allowed."""
    if mixture.num_tasks is not None:
        return {}
    known = {*store.collections(), *(facts.get("collection") for facts in store.missing.values())}
    unbuilt = {name: "has a rate, is not in the store" for name, rate in rates.items() if rate and name not in known}
    if unbuilt and not mixture.allow_missing:
        raise UserError(
            f"mixture '{mixture.name}': rate for collection '{next(iter(unbuilt))}', which the store {store.path} does "
            "not have; build it, or set allow_missing"
        )
    return unbuilt
