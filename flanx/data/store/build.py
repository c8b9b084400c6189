"""Builds the token store: every (task, style, rendering), rendered and tokenized once, in parallel, resumably.

    report = build_store("out/store", "cot", vocabulary="byte", data_dir="data")

Rerunning it does only what is left: shards finished before a crash, and parts of the store whose key is unchanged, are
kept. A task whose row, templates or files changed gets a new key, and only it is rebuilt. A task that fails is recorded
and left out, without affecting the others; its traceback is kept in `<store>/failed/`. Tasks that are in the store but
not named by this build stay as they are.
"""

import collections
import contextlib
import dataclasses
import functools
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from flanx import bucket, settings
from flanx.data import vocabulary as vocabularies
from flanx.data.store import assemble, beam_runner, build_worker
from flanx.data.store.build_job import RENDERING_VERSION, Job
from flanx.data.store.format import MANIFEST, MIXTURE, VALIDATION, Store, read_manifest
from flanx.data.store.selection import AS_IS, KEPT, PlannedTask, find, plan, plan_validation
from flanx.data.store.shard import PARTS, Shard, read_metadata, written_part
from flanx.data.task import select, sources
from flanx.errors import UserError, nearest
from flanx.files import local_folder, local_path, lock, shown
from flanx.progress import Progress
from flanx.storage import BUCKETS, local_tree, open_storage

OF_SUITES = ("sample", "hub", "tfds")  # DATA_DIRs that only suites read; a sweep passes the same one to its stores
RUNNERS = ("processes", "beam")
FAILED = "failed"
MARKER = ".flanx_store"  # written before anything else: marks the folder as the build's own to write and delete in


@dataclasses.dataclass
class Report:
    """What a build did. `failed` and `missing`: {task: one-line reason}."""

    path: str
    hash: str = ""
    built: int = 0  # shards written by this build
    kept: int = 0  # shards that existed already
    examples: int = 0  # written by this build
    seconds: float = 0.0
    failed: dict[str, str] = dataclasses.field(default_factory=dict)
    missing: dict[str, str] = dataclasses.field(default_factory=dict)
    stale: list[str] = dataclasses.field(default_factory=list)  # tasks not named, rendered by another version
    validation: "Report | None" = None  # of the store of validation splits

    @property
    def status(self) -> int:
        """Exit status: 1 if a task failed. Missing data is not a failure: it is reported and recorded."""
        return 1 if self.failed else 0


def build_store(
    store_dir: str | os.PathLike[str],
    tasks: select.Names,
    vocabulary: str = "byte",
    extra_ids: int | None = None,
    data_dir: str | None = None,
    styles: Sequence[str] | None = None,
    renderings: int = 1,
    workers: int | None = None,
    runner: str = "processes",
    runner_options: Sequence[str] = (),
    imports: str | Sequence[str] | None = (),
    max_bad_rows: int = sources.MAX_BAD_ROWS,
    validation: str | Sequence[str] | None = MIXTURE,
    validation_examples: int = 100,
    quiet: bool = False,
) -> Report:
    """Builds or completes the store in `store_dir`, a folder or a bucket URL.

    Args:
      tasks: names of tasks, collections, named mixtures, patterns (`niv2_*`), or the user's own SeqIO tasks.
      vocabulary, extra_ids: see `flanx.data.vocabulary.load`.
      data_dir: where file sources lie; else FLANX_DATA_DIR.
      styles: prompt styles to render; None: all that each task has.
      renderings: how often every example is rendered, with other templates and exemplars each time: one per epoch.
      workers: processes; None: one per core; 0: none, in this process.
      runner: "processes", or "beam" with `runner_options` as Beam's own command-line options.
      imports: modules that register the user's own SeqIO tasks.
      max_bad_rows: malformed rows of a task that are skipped before it fails.
      validation: what `flanx train` may validate on: "mixture" for the validation splits of the tasks, names of tasks,
        `TASK:SPLIT`, or None. They become a store of their own in `store_dir`/validation, each in one prompt style.
      validation_examples: of each of these splits at most, the same ones always.

    Raises:
      UserError: for bad input, or if no task could be built.
    """
    settings.checked(build_store, tasks=tasks, styles=styles, vocabulary=vocabulary, validation=validation)
    if runner not in RUNNERS:
        raise UserError(f"runner '{runner}': one of {', '.join(RUNNERS)}{nearest(runner, RUNNERS)}")
    if runner_options and runner != "beam":
        raise UserError("runner_options are Beam's: add --runner=beam, or leave them out")
    data_dir = data_dir and local_tree(data_dir)
    if data_dir and data_dir not in OF_SUITES and not os.path.isdir(data_dir):
        raise UserError(f"DATA_DIR {data_dir}: no such folder; give the one that holds the task files")
    if renderings < 1:
        raise UserError(f"renderings {renderings}: 1 or more")
    started = time.monotonic()
    loaded = vocabularies.load(vocabulary, extra_ids)
    names = [tasks] if isinstance(tasks, str) else [name if isinstance(name, str) else name[0] for name in tasks]
    imports = [imports] if isinstance(imports, str) else list(imports or ())

    def complete(
        folder: pathlib.Path,
        planned: dict[str, PlannedTask],
        absent: dict[str, dict[str, Any]],
        old: Store | None,
        report: Report,
        limit: int = 0,
    ) -> None:
        intact = assemble.intact_volumes(old) if old else set()
        kept, todo = _divide(folder, planned, old, intact)
        report.kept = sum(len(shards) for task in planned.values() for shards in task.shards.values()) - len(todo)
        options = (vocabulary, loaded.extra_ids, data_dir, max_bad_rows, tuple(imports), limit)
        jobs = [Job(shard, str(folder / PARTS), *options) for shard in todo]
        _run(folder, jobs, runner, runner_options, workers, planned, report, quiet)
        for name, task in list(planned.items()) if limit else ():
            found = [read_metadata(folder / PARTS, shard) for shards in task.shards.values() for shard in shards]
            if name not in kept and all(part and not part["examples"] for part in found):
                absent[name] = planned.pop(name).metadata | {"reason": "its split is empty"}
        if limit and not planned and not old:
            return
        _finish(folder, planned, absent, kept, old, intact, loaded, report)

    with _opened(store_dir, runner) as folder, _locked(folder):
        old = _open_old(folder, loaded)
        rows, own = find(names, imports)
        planned, absent = plan(rows, own, loaded, data_dir, styles, renderings, imports)
        report = Report(shown(folder), missing={name: metadata["reason"] for name, metadata in absent.items()})
        splits: dict[str, PlannedTask] = {}
        without: dict[str, dict[str, Any]] = {}
        if validation:
            splits, without = plan_validation(
                validation, validation_examples, rows, own, loaded, data_dir, styles, imports
            )
        if validation != MIXTURE and without:
            name, metadata = next(iter(without.items()))
            raise UserError(f"VALIDATION: task {name}: {metadata['reason']}")
        complete(folder, planned, absent, old, report)
        if splits:
            with _locked(folder / VALIDATION):
                report.validation = Report(shown(folder / VALIDATION))
                old = _open_old(folder / VALIDATION, loaded)
                complete(folder / VALIDATION, splits, without, old, report.validation, validation_examples)
            report.failed |= report.validation.failed
    report.seconds = time.monotonic() - started
    return report


# ---- the existing store ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(store_dir: str | os.PathLike, runner: str) -> Iterator[pathlib.Path]:
    """The folder a build works in: for a bucket a local copy, uploaded as it is written, the manifest last."""
    if not (url := str(store_dir)).startswith(BUCKETS):
        yield local_path(store_dir)
        return
    if runner == "beam":
        raise UserError(f"STORE_DIR {url}: Beam's workers share a disk; build it there and copy it (docs/buckets.md)")
    # before its contents are copied
    _check_own(url, {name for name in open_storage(url).children() if not name.startswith(".flanx.")})
    with bucket.opened(url):
        yield local_folder(url)


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    """Holds the folder's lock, as concurrent builds would undo each other. A refused build leaves nothing behind."""
    is_new = not folder.exists()
    try:
        names = set(os.listdir(folder)) if folder.is_dir() else set()
        _check_own(folder, names)
        folder.mkdir(parents=True, exist_ok=True)
        held = lock(folder / ".lock", busy=f"{folder}: another build of this store is running; wait for it")
        held.__enter__()
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from error
    try:
        (folder / MARKER).touch()
        yield
    finally:
        if not names and {file.name for file in folder.iterdir()} <= {".lock", MARKER}:
            shutil.rmtree(folder) if is_new else (folder / MARKER).unlink()
        held.__exit__(None, None, None)


def _check_own(folder: object, names: set[str]) -> None:
    """Raises UserError for a non-empty folder that is not a store: a build writes and deletes only in its own."""
    if not names & {MARKER, MANIFEST} and (others := sorted(names - {".lock"})):
        raise UserError(f"{folder} is no token store and not empty (it holds {others[0]}); give another STORE_DIR")


def _open_old(folder: pathlib.Path, loaded: vocabularies.Vocabulary) -> Store | None:
    """The existing store, if any; only the intact volumes of a damaged one are used."""
    try:
        old = Store(folder, read_manifest(folder))
    except UserError:
        return None
    old.check_vocabulary(loaded.fingerprint)
    return old


def _divide(
    folder: pathlib.Path, planned: dict[str, PlannedTask], old: Store | None, intact: set[int]
) -> tuple[dict[str, list[assemble.StoredPart]], list[Shard]]:
    """(parts of the old store to keep, by task; shards to write), largest tasks first."""
    kept: dict[str, list[assemble.StoredPart]] = {}
    todo: list[Shard] = []
    for task in sorted(planned.values(), key=lambda t: (-t.examples, t.name)):
        for (style, rendering), shards in task.shards.items():
            part = assemble.stored_part(old, intact, task.name, style, rendering, shards[0].key) if old else None
            if part:
                kept.setdefault(task.name, []).append(part)
            else:
                todo += [shard for shard in shards if read_metadata(folder / PARTS, shard) is None]
    return kept, todo


# ---- running and assembling ------------------------------------------------------------------------------------------


def _run(
    folder: pathlib.Path,
    jobs: list[Job],
    runner: str,
    options: Sequence[str],
    workers: int | None,
    planned: dict[str, PlannedTask],
    report: Report,
    quiet: bool,
) -> None:
    """Runs the jobs; counts what was written, and records the tasks of failed jobs in the report."""
    if not jobs:
        return
    workers = min(os.cpu_count() or 1 if workers is None else workers, len(jobs))
    started = time.monotonic()
    totals = collections.Counter(planned[job.shard.task].metadata["collection"] for job in jobs)
    done: collections.Counter[str] = collections.Counter()
    written: collections.Counter[str] = collections.Counter()
    with Progress(quiet) as progress, contextlib.nullcontext() if quiet else build_worker.warnings_to(progress.note):

        def count(job: Job, examples: int, jobs: int = 0) -> None:
            name = planned[job.shard.task].metadata["collection"]
            done[name] += jobs
            written[name] += examples
            rate = written[name] / max(time.monotonic() - started, 1e-3)
            progress.update(name, f"{written[name]:,} examples, {rate:,.0f}/s", done[name], totals[name])

        for outcome in _outcomes(jobs, runner, options, workers, count):
            name = outcome.job.shard.task
            count(outcome.job, 0, jobs=1)
            if outcome.metadata is None:
                reason = outcome.reason.removeprefix(f"task {name}: ")
                report.failed.setdefault(name, f"{outcome.job.shard.style}: {reason}")
                (folder / FAILED).mkdir(exist_ok=True)
                details = f"{reason}\n\n{outcome.details}"
                (folder / FAILED / f"{name}.txt").write_text(details, encoding="utf-8")
                progress.note(f"failed: task {name}: {reason}")
            else:
                report.built += 1
                report.examples += outcome.metadata["examples"]


def _outcomes(
    jobs: list[Job], runner: str, options: Sequence[str], workers: int, count: Callable[[Job, int], None]
) -> Iterable[build_worker.Outcome]:
    if runner == "beam":
        return beam_runner.run(jobs, options)
    if workers == 0:
        build_worker.quiet_tensorflow()
        return (build_worker.run_here(job, functools.partial(count, job)) for job in jobs)
    return build_worker.run_in_processes(jobs, workers, count)


def _finish(
    folder: pathlib.Path,
    planned: dict[str, PlannedTask],
    absent: dict[str, dict[str, Any]],
    kept: dict[str, list[assemble.StoredPart]],
    old: Store | None,
    intact: set[int],
    loaded: vocabularies.Vocabulary,
    report: Report,
) -> None:
    """Assembles the parts, including those of tasks that this build did not name, and writes the manifest."""
    parts: list[assemble.Part] = []
    metadata: dict[str, dict[str, Any]] = {}
    for task in planned.values():
        own: list[assemble.Part] = list(kept.get(task.name, []))
        there = {(part.style, part.rendering) for part in own}
        for key, shards in task.shards.items():
            if key not in there and task.name not in report.failed and (part := written_part(folder / PARTS, shards)):
                own.append(part)
        if task.name not in report.failed and not sum(part.metadata["examples"] for part in own):
            report.failed[task.name] = "it gave no examples"
        if task.name not in report.failed:
            parts += own
            metadata[task.name] = task.metadata
    missing = absent | {name: {**planned[name].metadata, "reason": reason} for name, reason in report.failed.items()}
    if old:
        named = {*planned, *missing}
        for name in [name for name in old.tasks if name not in named]:
            task_metadata = old.tasks[name].metadata
            renderings = old.tasks[name].parts
            if not {part.volume for of_style in renderings.values() for part in of_style} <= intact:
                report.failed[name] = "its volume is damaged; name it in a build to write it again"
                missing[name] = {key: task_metadata.get(key) for key in KEPT} | {"reason": report.failed[name]}
                continue
            metadata[name] = {key: value for key, value in task_metadata.items() if key != "parts"}
            if AS_IS not in renderings and task_metadata.get("rendering_version") != RENDERING_VERSION:
                report.stale.append(name)
            parts += [
                assemble.StoredPart(old, name, style, r) for style in renderings for r in range(len(renderings[style]))
            ]
        missing |= {name: entry for name, entry in old.missing.items() if name not in named}
    report.hash = assemble.assemble(folder, metadata, parts, missing, loaded)["hash"]
    shutil.rmtree(folder / PARTS, ignore_errors=True)
    if not report.failed:
        shutil.rmtree(folder / FAILED, ignore_errors=True)
