"""What a build is asked for: tasks by the names that a user gives, and the pieces that each of them needs."""

import dataclasses
import fnmatch
from collections.abc import Sequence
from typing import Any

from flanx.data import vocabulary
from flanx.data.pipeline import mixture
from flanx.data.store import build_job as jobs
from flanx.data.store.shard import Piece
from flanx.data.task import sources, spec
from flanx.errors import UserError, nearest

SHARD = 100_000  # examples of a task that one job renders
FACTS = ("collection", "group", "category", "dataset", "source", "cap", "held_out", "cot", "licence", "num_examples")


@dataclasses.dataclass
class Wanted:
    """One task to be in the store: what mixtures read of it, and its pieces by (style, rendering)."""

    name: str
    facts: dict[str, Any]
    pieces: dict[tuple[str, int], list[Piece]]
    size: int  # examples, as far as known


def select(names: Sequence[str], imports: Sequence[str] = ()) -> tuple[list[spec.TaskSpec], list[str]]:
    """(rows of the tables, names of the user's own SeqIO tasks) that names, collections, mixtures or patterns name.

    Held-out tasks belong to no store; naming one is an error.
    """
    rows = spec.load_tables()
    collections: dict[str, list[str]] = {}
    for row in rows.values():
        for home in filter(None, (row.collection, row.group)):
            collections.setdefault(home, []).append(row.name)
    chosen: dict[str, None] = {}
    own: list[str] = []
    for name in names:
        definition = mixture.named().get(name)
        if definition or name in collections:
            found = [n for c in (definition or {}).get("collections", [name]) for n in collections.get(c, [])]
        else:
            found = [n for n in rows if n == name or fnmatch.fnmatchcase(n, name)]
            if name in rows and rows[name].held_out:
                raise UserError(f"task {name} is held out for evaluation: it belongs to no store")
        if not found and imports:
            found_own = _own_tasks(name, imports)
            own += found_own
            if found_own:
                continue
        if not found:
            known = [*mixture.named(), *collections, *rows]
            raise UserError(f"no task, collection or mixture '{name}'{nearest(name, known)}")
        chosen |= dict.fromkeys(n for n in found if not rows[n].held_out)
    return [rows[name] for name in chosen], own


def _own_tasks(pattern: str, imports: Sequence[str]) -> list[str]:
    import importlib

    import seqio

    for module in imports:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(f"cannot import '{module}': {error}") from error
    return [name for name in sorted(seqio.TaskRegistry.names()) if fnmatch.fnmatchcase(name, pattern)]


def want(
    rows: Sequence[spec.TaskSpec],
    own: Sequence[str],
    words: vocabulary.Vocabulary,
    data_dir: str | None,
    styles: Sequence[str] | None,
    renderings: int,
    imports: Sequence[str],
) -> tuple[dict[str, Wanted], dict[str, dict[str, Any]]]:
    """The tasks to be in the store, and those whose data is absent: what mixtures read of them, and the reason."""
    wanted: dict[str, Wanted] = {}
    absent: dict[str, dict[str, Any]] = {}
    for row in rows:
        facts = {key: getattr(row, key) for key in FACTS}
        try:
            reason = sources.missing(row, data_dir) or ("" if "train" in row.splits else "it has no training split")
            source_hash = "" if reason else jobs.hash_source(row, data_dir)
        except UserError as error:
            reason = str(error)
        if reason:
            absent[row.name] = facts | {"reason": reason.removeprefix(f"task {row.name}: ")}
            continue
        shards = max(1, -(-(row.num_examples or 0) // SHARD))
        pieces = {}
        for style in [s for s in row.styles if styles is None or s in styles]:
            for rendering in range(renderings):
                made_of = jobs.hash_row(row, style, rendering, words.fingerprint, source_hash)
                pieces[style, rendering] = [
                    Piece(row.name, style, rendering, shard, shards, made_of) for shard in range(shards)
                ]
        if not pieces:
            raise UserError(
                f"task {row.name} has the styles {', '.join(row.styles)}, none of {', '.join(styles or ())}"
            )
        wanted[row.name] = Wanted(row.name, facts | {"source_hash": source_hash}, pieces, row.num_examples or 0)
    for name in own:
        task = jobs.find_seqio_task(name, imports)
        made_of = jobs.hash_seqio_task(task, words.fingerprint)
        facts = dict.fromkeys(FACTS) | {"collection": "user", "source": type(task.source).__name__, "held_out": False}
        pieces = {(jobs.AS_IS, 0): [Piece(name, jobs.AS_IS, 0, 0, 1, made_of)]}
        wanted[name] = Wanted(name, facts | {"source_hash": made_of}, pieces, task.num_input_examples("train") or 0)
    return wanted, absent
