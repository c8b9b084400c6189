"""What a store holds and what a mixture gives, as plain data for tables, JSON and plots."""

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from flanx.data.pipeline.batches import Batches
from flanx.data.pipeline.mixture import Mixture
from flanx.data.store.format import Part, Store, Task, open_store


def describe_store(store: Store, lengths: tuple[int, int] = (512, 128)) -> dict[str, Any]:
    """Counts, tokens, unknown and truncation shares of a store by collection and by task.

    `lengths`: (inputs, targets) at which truncation is reported.
    """
    tasks = {name: _task(task, lengths) for name, task in store.tasks.items()}
    collections: dict[str, dict[str, Any]] = {}
    for name, names in store.collections().items():
        rows = [tasks[n] for n in names]
        total = {key: sum(row[key] for row in rows) for key in _SUMS}
        collections[name] = {"tasks": len(names)} | total
    for row in [*tasks.values(), *collections.values()]:
        _share(row)
    return {
        "path": str(store.path),
        "hash": store.hash,
        "vocabulary": store.manifest["vocabulary"],
        "volumes": len(store.manifest["volumes"]),
        "lengths": {"inputs": lengths[0], "targets": lengths[1]},
        "collections": collections,
        "tasks": tasks,
        "missing": {name: entry.get("reason", "") for name, entry in store.missing.items()},
    }


_SUMS = ("examples", "rendered", "input_tokens", "target_tokens", "unknown", "cut_inputs", "cut_targets")


def _task(task: Task, lengths: tuple[int, int]) -> dict[str, Any]:
    parts = [part for renderings in task.parts.values() for part in renderings]
    keys = ("input_tokens", "target_tokens", "unknown")
    return {
        "collection": task.collection,
        "styles": sorted(task.parts),
        "renderings": max(len(renderings) for renderings in task.parts.values()),
        "examples": task.examples,
        "rendered": sum(part.examples for part in parts),
        **{key: sum(part.metadata[key] for part in parts) for key in keys},
        "cut_inputs": sum(_longer(part, "longer_inputs", lengths[0]) for part in parts),
        "cut_targets": sum(_longer(part, "longer_targets", lengths[1]) for part in parts),
        "licence": task.metadata.get("licence") or "",
        "source": task.metadata.get("source") or "",
        "source_hash": task.metadata.get("source_hash") or "",
    }


def _longer(part: Part, key: str, length: int) -> float:
    """Examples longer than a length; where the manifest does not count it, longer than the next shorter one."""
    counted = [int(k) for k in part.metadata[key] if int(k) <= length]
    return part.metadata[key][str(max(counted))] if counted else part.examples


def _share(row: dict[str, Any]) -> None:
    """Adds shares next to the counts: unknown tokens, truncated examples."""
    tokens = max(row["input_tokens"] + row["target_tokens"], 1)
    row["unknown_share"] = row["unknown"] / tokens
    for side in ("inputs", "targets"):
        row[f"cut_{side}_share"] = row[f"cut_{side}"] / max(row["rendered"], 1)


def describe_mixture(
    store_dir: str | os.PathLike[str],
    mixture: Mixture,
    task_feature_lengths: Mapping[str, int],
    batch_size: int,
    train_steps: int,
    packing: str = "encoder_decoder",
) -> dict[str, Any]:
    """What the batches of `train_steps` steps hold: shares, examples and epochs by task and collection, padding.

    Shares are exact; examples and epochs follow from them and from the mean number of examples in a row; padding and
    truncation are those of the first chunk of rows (about 130,000 examples).
    """
    batches = Batches(open_store(store_dir), mixture, task_feature_lengths, batch_size, packing=packing)
    resolved = batches.resolved
    plan = batches.chunk_plan(0)
    drawn = train_steps * batches.batch_size * batches.examples_per_row
    cut = {side: np.bincount(plan.source, plan.cut[:, i], len(resolved.sources)) for i, side in enumerate(_SIDES)}
    seen = np.bincount(plan.source, minlength=len(resolved.sources))
    tasks: dict[str, dict[str, Any]] = {}
    for i, source in enumerate(resolved.sources):
        row = tasks.setdefault(
            source.task.name,
            {"collection": source.collection, "share": 0.0, "examples": source.task.examples, "epochs": 0.0,
             "styles": {}, "seen": 0, **{f"cut_{side}": 0.0 for side in _SIDES}},
        )  # fmt: skip
        examples = sum(part.examples for part in source.parts)
        row["share"] += source.weight
        row["styles"][source.style] = source.weight
        row["epochs"] = max(row["epochs"], drawn * source.weight / examples * len(source.parts))
        row["seen"] += int(seen[i])
        for side in _SIDES:
            row[f"cut_{side}"] += float(cut[side][i])
    for row in tasks.values():
        row["drawn"] = drawn * row["share"]
        for side in _SIDES:
            row[f"cut_{side}"] = row[f"cut_{side}"] / row["seen"] if row["seen"] else math.nan
        del row["seen"]
    collections = {}
    for name, share in resolved.collections.items():
        rows = [row for row in tasks.values() if row["collection"] == name]
        most = max(row["epochs"] for row in rows)
        collections[name] = {"tasks": len(rows), "share": share, "drawn": drawn * share, "most_epochs": most}
    used = plan.length.sum(axis=0)
    num_rows = len(plan.starts) - 1
    if batches.packing == "decoder_only":
        padding = {"rows": 1 - used.sum() / (num_rows * sum(batches.limits))}
    else:
        padding = {side: 1 - used[i] / (num_rows * batches.limits[i]) for i, side in enumerate(_SIDES)}
    of_row = np.add.reduceat(plan.length, np.minimum(plan.starts[:-1], len(plan.source) - 1), axis=0)
    if batches.packing == "encoder_decoder":  # of the side that fills first, row by row
        padding["first_full"] = 1 - (of_row / batches.limits).max(axis=1).mean()
    return batches.describe() | {
        "steps": train_steps,
        "examples": drawn,
        "padding": {name: float(share) for name, share in padding.items()},
        "cut": {side: float(plan.cut[:, i].mean()) for i, side in enumerate(_SIDES)},
        "collections": collections,
        "tasks": tasks,
    }


_SIDES = ("inputs", "targets")
