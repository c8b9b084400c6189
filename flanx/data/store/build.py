"""Builds the token store: every (task, style, rendering), rendered and tokenized once, in parallel, resumably.

    report = build_store("out/store", "cot", vocabulary="byte", data_dir="data")

Run again, it does what is left: pieces that were finished before a crash, and parts of the store whose hash still
stands, are kept. A task whose row, templates, code or files changed has another hash and is made again, alone. A task
that fails is left out and recorded, with the others intact; its traceback is kept in `<store>/failed/`. Tasks that the
store holds and this build does not name stay as they are.
"""

import contextlib
import dataclasses
import fcntl
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from flanx.data import store, vocabulary
from flanx.data.store import assemble, build_worker
from flanx.data.store import build_job as jobs
from flanx.data.store.progress import Progress
from flanx.data.store.selection import FACTS, Wanted, select, want
from flanx.data.store.shard import PARTS, Piece, piece_facts, written_parts
from flanx.data.task import sources
from flanx.errors import UserError, nearest

RUNNERS = ("processes", "beam")
FAILED = "failed"


@dataclasses.dataclass
class Report:
    """What a build did. `failed` and `missing`: {task: one line}."""

    path: str
    hash: str = ""
    built: int = 0  # pieces made by this build
    kept: int = 0  # pieces that were there
    examples: int = 0  # made by this build
    seconds: float = 0.0
    failed: dict[str, str] = dataclasses.field(default_factory=dict)
    missing: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def status(self) -> int:
        """Exit status: 1 when a task failed. Absent data is no failure: it is named and recorded."""
        return 1 if self.failed else 0


def build_store(
    store_dir: str | os.PathLike[str],
    tasks: str | Sequence[str],
    vocabulary: str = "byte",
    extra_ids: int | None = None,
    data_dir: str | None = None,
    styles: Sequence[str] | None = None,
    renderings: int = 1,
    workers: int | None = None,
    runner: str = "processes",
    runner_options: Sequence[str] = (),
    imports: Sequence[str] = (),
    max_bad_rows: int = sources.MAX_BAD_ROWS,
    quiet: bool = False,
) -> Report:
    """Builds or completes the store in `store_dir`.

    Args:
      tasks: names of tasks, collections, named mixtures, patterns (`niv2_*`), or the user's own SeqIO tasks.
      vocabulary, extra_ids: see `flanx.data.vocabulary.load`.
      data_dir: where file sources lie; else FLANX_DATA_DIR.
      styles: prompt styles to make; None: all that each task has.
      renderings: how often every example is rendered, with other templates and exemplars each time: epochs to come.
      workers: processes; None: one per core; 0: none, in this process.
      runner: "processes", or "beam" with `runner_options` as Beam's own command-line options.
      imports: modules that register the user's own SeqIO tasks.
      max_bad_rows: malformed rows of a task that are skipped before it fails.

    Raises:
      UserError: for bad input, or when not one task could be built.
    """
    from flanx.data.vocabulary import load

    if runner not in RUNNERS:
        raise UserError(f"runner '{runner}': one of {', '.join(RUNNERS)}{nearest(runner, RUNNERS)}")
    if renderings < 1:
        raise UserError(f"renderings {renderings}: 1 or more")
    started = time.monotonic()
    folder = pathlib.Path(store_dir).expanduser()
    words = load(vocabulary, extra_ids)
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    imports = [imports] if isinstance(imports, str) else list(imports)
    with _locked(folder):
        old = _open_old(folder, words)
        rows, own = select(names, imports)
        wanted, absent = want(rows, own, words, data_dir, styles, renderings, imports)
        report = Report(str(folder), missing={name: facts["reason"] for name, facts in absent.items()})
        sound = assemble.sound_volumes(old) if old else set()
        kept, todo = _divide(folder, wanted, old, sound)
        report.kept = sum(len(pieces) for task in wanted.values() for pieces in task.pieces.values()) - len(todo)
        template = jobs.Job(
            Piece("", "", 0, 0, 1, ""), str(folder / PARTS), vocabulary, words.extra_ids, data_dir,
            max_bad_rows, tuple(imports),
        )  # fmt: skip
        todo_jobs = [dataclasses.replace(template, piece=piece) for piece in todo]
        _run(todo_jobs, runner, runner_options, workers, wanted, report, quiet)
        _finish(folder, wanted, absent, kept, old, sound, words, report)
    report.seconds = time.monotonic() - started
    return report


# ---- what is there ---------------------------------------------------------------------------------------------------


def _open_old(folder: pathlib.Path, words: vocabulary.Vocabulary) -> store.Store | None:
    """The store as it is, if one is there; a damaged one is built again from what is sound."""
    if not (folder / store.MANIFEST).exists():
        return None
    try:
        manifest = store.read_manifest(folder)
    except UserError:
        return None
    old = store.Store(folder, manifest)
    old.check_vocabulary(words.fingerprint)
    return old


def _divide(
    folder: pathlib.Path, wanted: dict[str, Wanted], old: store.Store | None, sound: set[int]
) -> tuple[dict[str, list[assemble.StoredPart]], list[Piece]]:
    """(parts of the old store that stay, by task; pieces to make), the largest tasks first."""
    kept: dict[str, list[assemble.StoredPart]] = {}
    todo: list[Piece] = []
    for task in sorted(wanted.values(), key=lambda t: (-t.size, t.name)):
        for (style, rendering), pieces in task.pieces.items():
            parts = assemble.stored_parts(old, sound, task.name, style, rendering, pieces[0].hash) if old else []
            if parts:
                kept.setdefault(task.name, []).extend(parts)
            else:
                todo += [piece for piece in pieces if piece_facts(folder / PARTS, piece) is None]
    return kept, todo


# ---- running and putting together ------------------------------------------------------------------------------------


def _run(
    todo: list[jobs.Job],
    runner: str,
    options: Sequence[str],
    workers: int | None,
    wanted: dict[str, Wanted],
    report: Report,
    quiet: bool,
) -> None:
    """Runs the jobs; counts what was made, and names tasks of failed jobs in the report."""
    if not todo:
        return
    workers = min(os.cpu_count() or 1 if workers is None else workers, len(todo))
    failures = pathlib.Path(todo[0].folder).parent / FAILED
    with Progress(quiet) as progress:
        for job in todo:
            task = wanted[job.piece.task]
            progress.expect(task.facts["collection"], task.size // job.piece.shards, task.name)

        def tell(job: jobs.Job, examples: int) -> None:
            progress.count(wanted[job.piece.task].facts["collection"], examples)

        for outcome in _outcomes(todo, runner, options, workers, tell):
            name = outcome.job.piece.task
            progress.finish(wanted[name].facts["collection"])
            if outcome.facts is None:
                report.failed.setdefault(name, f"{outcome.job.piece.style}: {outcome.reason}")
                failures.mkdir(parents=True, exist_ok=True)
                (failures / f"{name}.txt").write_text(f"{outcome.reason}\n\n{outcome.details}", encoding="utf-8")
                progress.say(f"failed: task {name}: {outcome.reason}")
            else:
                report.built += 1
                report.examples += sum(half["examples"] for half in outcome.facts.values())


def _outcomes(
    todo: list[jobs.Job], runner: str, options: Sequence[str], workers: int, tell: Callable[[jobs.Job, int], None]
) -> Iterable[build_worker.Outcome]:
    if runner == "beam":
        from flanx.data.store import beam_runner

        return beam_runner.run(todo, options)
    if workers == 0:
        jobs.quiet_tensorflow()
        return (build_worker.run_here(job, lambda n, job=job: tell(job, n)) for job in todo)
    return build_worker.run_in_processes(todo, workers, tell)


def _finish(
    folder: pathlib.Path,
    wanted: dict[str, Wanted],
    absent: dict[str, dict[str, Any]],
    kept: dict[str, list[assemble.StoredPart]],
    old: store.Store | None,
    sound: set[int],
    words: vocabulary.Vocabulary,
    report: Report,
) -> None:
    """Puts the parts together, with those of tasks that this build did not name, and writes the manifest."""
    parts: list[assemble.Part] = []
    facts: dict[str, dict[str, Any]] = {}
    for task in wanted.values():
        own = list(kept.get(task.name, []))
        there = {(part.style.removesuffix(store.INVERTED), part.rendering) for part in own}
        for key, pieces in task.pieces.items():
            if key not in there and task.name not in report.failed:
                own += written_parts(folder / PARTS, pieces)
        if task.name not in report.failed and not sum(part.facts["examples"] for part in own):
            report.failed[task.name] = "it gave no examples"
        if task.name not in report.failed:
            parts += own
            facts[task.name] = task.facts
    missing = absent | {name: {**wanted[name].facts, "reason": reason} for name, reason in report.failed.items()}
    named = {*wanted, *missing}
    for name, task in (old.tasks if old else {}).items():
        if name in named:
            continue
        volumes = {part.volume for renderings in task.parts.values() for part in renderings}
        if not volumes <= sound:
            report.failed[name] = "its volume is damaged; name it in a build to make it again"
            missing[name] = {key: task.facts.get(key) for key in FACTS} | {"reason": report.failed[name]}
            continue
        facts[name] = {key: value for key, value in task.facts.items() if key != "parts"}
        parts += [
            assemble.StoredPart(old, name, style, r) for style, found in task.parts.items() for r in range(len(found))
        ]
    for name, entry in (old.missing if old else {}).items():
        if name not in named:
            missing[name] = entry
    report.hash = assemble.assemble(folder, facts, parts, missing, words)["hash"]
    shutil.rmtree(folder / PARTS, ignore_errors=True)
    if not report.failed:
        shutil.rmtree(folder / FAILED, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    """Holds the folder's lock: two builds of one store would undo each other. The lock dies with the process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{folder}: another build is at work on this store") from error
        yield
