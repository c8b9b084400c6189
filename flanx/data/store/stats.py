"""What a store holds, as plain data for tables and JSON."""

from typing import Any

from flanx.data.store.format import Part, Store, Task


def describe_store(store: Store, lengths: tuple[int, int] = (512, 128)) -> dict[str, Any]:
    """Counts, token totals, unknown and truncation shares of a store, by collection and by task.

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
    """Examples longer than a length, or than the next shorter one that the manifest counts."""
    counted = [int(k) for k in part.metadata[key] if int(k) <= length]
    return part.metadata[key][str(max(counted))] if counted else part.examples


def _share(row: dict[str, Any]) -> None:
    """Adds shares to the counts: unknown tokens, truncated examples."""
    tokens = max(row["input_tokens"] + row["target_tokens"], 1)
    row["unknown_share"] = row["unknown"] / tokens
    for side in ("inputs", "targets"):
        row[f"cut_{side}_share"] = row[f"cut_{side}"] / max(row["rendered"], 1)
