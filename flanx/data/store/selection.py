"""What to build: the tasks that a user names, and the shards that each of them needs."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from flanx.data import vocabulary
from flanx.data.store import build_job
from flanx.data.store.format import MIXTURE
from flanx.data.store.shard import Shard
from flanx.data.task import select, sources, spec, tables
from flanx.errors import UserError, nearest

SHARD = 100_000  # examples of a task rendered by one job
AS_IS = "as_is"  # the only style of a user's own SeqIO task
KEPT = ("collection", "group", "category", "dataset", "source", "cap", "held_out", "cot", "licence", "num_examples")


@dataclasses.dataclass
class PlannedTask:
    """One task to store: the metadata that mixtures read, and its shards by (style, rendering)."""

    name: str
    metadata: dict[str, Any]
    shards: dict[tuple[str, int], list[Shard]]
    examples: int  # 0 if unknown


def find(names: Sequence[str], imports: Sequence[str] = ()) -> tuple[list[spec.TaskSpec], list[str]]:
    """(rows of the tables, names of the user's own SeqIO tasks) matching names, collections, mixtures or patterns.

    Held-out tasks are never stored; naming only those is an error.
    """
    rows = tables.load_tables()
    tasks, mixtures = select.of_tables(rows), tables.load_mixtures()
    chosen: dict[str, None] = {}
    own: list[str] = []
    for name in names:
        try:
            found = select.find(name, tasks, mixtures)
        except UserError:
            if not imports:
                raise
            from flanx.seqio import user_tasks  # noqa: PLC0415  (imports TensorFlow)

            matched = user_tasks.matching(name, imports)
            if not matched:
                raise
            own += matched
        else:
            chosen |= dict.fromkeys(select.training(name, found, tasks)[0])
    return [rows[name] for name in chosen], own


def plan_validation(
    asked: str | Sequence[str],
    examples: int,
    rows: Sequence[spec.TaskSpec],
    own: Sequence[str],
    loaded: vocabulary.Vocabulary,
    data_dir: str | None,
    styles: Sequence[str] | None,
    imports: Sequence[str],
) -> tuple[dict[str, PlannedTask], dict[str, dict[str, Any]]]:
    """Like `plan`, for validation splits: tasks TASK:SPLIT, each in one prompt style, with at most `examples` each.

    asked: "mixture" for the validation splits of `rows` and `own`, the tasks to train on; or names, each with a split
    (`muffin_rte:test`) or else `validation`. A task without the split is among the absent ones, with a reason.
    """
    planned: dict[str, PlannedTask] = {}
    absent: dict[str, dict[str, Any]] = {}
    wanted = [(row, "validation") for row in rows] if asked == MIXTURE else []
    of_user = [(name, "validation") for name in own] if asked == MIXTURE else []
    for name in [] if asked == MIXTURE else [asked] if isinstance(asked, str) else asked:
        task, _, split = name.partition(":")
        found, users = find([task], imports)
        wanted += [(row, split or "validation") for row in found]
        of_user += [(each, split or "validation") for each in users]
    for row, split in wanted:
        name, metadata, hashes = f"{row.name}:{split}", {key: getattr(row, key) for key in KEPT}, []
        known = [style for style in row.styles if styles is None or style in styles]
        style = "zsopt" if "zsopt" in known else next(iter(known or row.styles))
        try:
            reason = f"it has no split '{split}'" if split not in row.splits else ""
            read = [split, *(["train"] if style.startswith("fs") and "train" in row.splits else [])]  # with exemplars
            for each in [] if reason else read:
                reason = reason or sources.missing(sources.of_split(row, each), data_dir, each) or ""
                hashes += [] if reason else [build_job.hash_source(row, data_dir, each)]
        except UserError as error:
            reason = str(error)
        if reason:
            absent[name] = metadata | {"reason": reason.removeprefix(f"task {row.name}: ")}
            continue
        key = build_job.shard_key(row, style, 0, loaded.fingerprint, " ".join([split, str(examples), *hashes]))
        shards = {(style, 0): [Shard(name, style, 0, 0, 1, key)]}
        planned[name] = PlannedTask(name, metadata | {"source_hash": hashes[0]}, shards, examples)
    for task_name, split in of_user:
        from flanx.seqio import user_tasks  # noqa: PLC0415  (imports TensorFlow)

        name, task = f"{task_name}:{split}", user_tasks.find(task_name, imports)
        key = f"{user_tasks.hash_task(task, loaded.fingerprint)} {split} {examples}"
        metadata = dict.fromkeys(KEPT) | {"collection": "user", "source": type(task.source).__name__}
        metadata |= {"held_out": False, "source_hash": key}
        if split in (task.splits or ()):
            planned[name] = PlannedTask(name, metadata, {(AS_IS, 0): [Shard(name, AS_IS, 0, 0, 1, key)]}, examples)
        else:
            absent[name] = metadata | {"reason": f"it has no split '{split}'"}
    return planned, absent


def plan(
    rows: Sequence[spec.TaskSpec],
    own: Sequence[str],
    loaded: vocabulary.Vocabulary,
    data_dir: str | None,
    styles: Sequence[str] | None,
    renderings: int,
    imports: Sequence[str],
) -> tuple[dict[str, PlannedTask], dict[str, dict[str, Any]]]:
    """The tasks to store, and the metadata of those whose data is missing, with the reason."""
    planned: dict[str, PlannedTask] = {}
    absent: dict[str, dict[str, Any]] = {}
    for style in styles or ():
        if style not in spec.STYLES:
            raise UserError(
                f"STYLES: no prompt style '{style}'{nearest(style, spec.STYLES)} ({', '.join(spec.STYLES)})"
            )
    for row in rows:
        metadata = {key: getattr(row, key) for key in KEPT}
        source_hash = ""
        try:
            reason = sources.missing(row, data_dir) or ("" if "train" in row.splits else "it has no training split")
            source_hash = "" if reason else build_job.hash_source(row, data_dir)
        except UserError as error:
            reason = str(error)
        if reason:
            absent[row.name] = metadata | {"reason": reason.removeprefix(f"task {row.name}: ")}
            continue
        chosen = [name for name in row.versions if styles is None or name.removesuffix(spec.INVERTED) in styles]
        if not chosen:
            raise UserError(
                f"task {row.name} has the styles {', '.join(row.styles)}, none of {', '.join(styles or ())}"
            )
        count = max(1, -(-(row.num_examples or 0) // SHARD))
        shards = {}
        for style in chosen:
            for rendering in range(renderings):
                key = build_job.shard_key(row, style, rendering, loaded.fingerprint, source_hash)
                shards[style, rendering] = [Shard(row.name, style, rendering, i, count, key) for i in range(count)]
        metadata |= {"source_hash": source_hash, "rendering_version": build_job.RENDERING_VERSION}
        planned[row.name] = PlannedTask(row.name, metadata, shards, row.num_examples or 0)
    if own:
        from flanx.seqio import user_tasks  # noqa: PLC0415  (imports TensorFlow)

        for name in own:
            task = user_tasks.find(name, imports)
            key = user_tasks.hash_task(task, loaded.fingerprint)
            metadata = dict.fromkeys(KEPT) | {"collection": "user", "source": type(task.source).__name__}
            metadata |= {"held_out": False, "source_hash": key}
            shards = {(AS_IS, 0): [Shard(name, AS_IS, 0, 0, 1, key)]}
            planned[name] = PlannedTask(name, metadata, shards, task.num_input_examples("train") or 0)
    return planned, absent
