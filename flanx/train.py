"""`flanx train`: one training run, in order.

store, mixture -> mesh -> state (resumed, from a parent, or new) -> loop of steps -> save -> held-out evaluation.
A run is a folder: config.gin, run.json (its metadata), metrics.jsonl, checkpoints/, evals/, done.json (written last).
"""

import contextlib
import dataclasses
import functools
import inspect
import json
import os
import pathlib
import re
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.experimental import multihost_utils

import flanx
from flanx import cluster, convert, files, hub, lora, run_record, tracker, trainable, xprof
from flanx.checkpoint import Checkpoints, RestoreCheckpointConfig, SaveCheckpointConfig, load_params
from flanx.data.pipeline.batches import Batches, DatasetConfig
from flanx.data.pipeline.prefetch import Loader
from flanx.errors import Preempted, UserError
from flanx.files import local_folder, read_json, write_atomic
from flanx.models.t5 import YOUNGER
from flanx.optim import AdafactorState
from flanx.partition import Partitioner, cache_compilations, explain_exhausted
from flanx.plan import search, utilisation
from flanx.train_metrics import Watch
from flanx.train_step import Trainer, TrainState
from flanx.validation import ValidationConfig

# derived from other values of a record: reported only if nothing else differs
FOLLOWS = re.compile(r"num_params|data\.(seed|examples_per_row|mixture\.(?!asked\.).*)")
ORIGIN = "initial_checkpoint_source"  # revision and files of a parent on the Hugging Face hub
STOPPING = b"stopping: the state is saved after this step, which the first time is compiled; the same again: at once\n"
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # on which a run saves its state and ends


def train(
    *,
    trainer: Trainer,
    dataset: DatasetConfig,
    train_steps: int,
    model_dir: str,
    partitioner: Partitioner,
    checkpoints: SaveCheckpointConfig,
    initial_checkpoint: RestoreCheckpointConfig,
    log_period: int = 10,
    task_loss_period: int = 200,
    evaluator: Callable[..., Any] | None = None,
    eval_period: int | None = None,
    validation: ValidationConfig | None = None,
    fork: bool = False,
    compilation_cache: str | None = "auto",
    peak_flops: float | str | None = None,
    profile: str | None = None,
    trackers: Sequence[str] | None = None,
) -> None:
    """Trains up to step `train_steps`, then evaluates.

    When started again with the same arguments, it resumes from the newest checkpoint with the same batches and the same
    randomness, so that the losses of a stopped and resumed run equal those of an uninterrupted one bit for bit.

    Args:
      log_period, task_loss_period: steps that a record of metrics.jsonl and a line of tasks.jsonl cover; see
        `flanx.train_metrics`.
      evaluator: called as evaluator(model=, params=, step=, out_dir=) every `eval_period` steps and at the end, and
        when a run resumes from such a step, whose evaluation may have been interrupted; with `checks_only=True` also
        before the first step, if it takes that argument, to refuse what is wrong with it.
      validation: what the run validates on every `eval_period` steps, or as often as it says, and at the end.
      fork: resume even if settings, model, examples or parent have changed; the metadata are then the new ones.
      compilation_cache: folder of compiled programs; see `flanx.partition.cache_compilations`.
      peak_flops: of a device, for the MFU; see `flanx.plan.utilisation`.
      profile: steps to trace, "10:13"; see `flanx.xprof`.
      trackers: trackers that follow the run in addition to metrics.jsonl and TensorBoard; see `flanx.tracker`.

    Raises:
      UserError: for bad input, a changed run without `fork`, a loss that is not finite.
      Preempted: after SIGTERM, with the state saved.
    """
    folder, began = local_folder(model_dir), time.time()
    if is_done(folder, train_steps):
        is_there = train_steps and pathlib.Path(dataset.store_dir, "manifest.json").exists()  # else it is not compared
        batches = dataset.open(trainer.model.vocab_size, trainer.model.packing, trainer.seed) if is_there else None
        metadata = identity(trainer, batches) | parent_metadata(folder, initial_checkpoint, trainer)
        check_run_metadata(folder, metadata, fork)
        step = read_json(folder / "done.json").get("step", train_steps)
        print(f"{folder.name}: already done (step {step}); delete {files.shown(folder / 'done.json')} to run it again")
        return
    model, evals = trainer.model, folder / "evals"
    traced = None if profile is None else xprof.steps_of(profile, train_steps)
    tracked = tracker.following(folder, trackers) if trackers and jax.process_index() == 0 else contextlib.nullcontext()
    if evaluator and "checks_only" in inspect.signature(evaluator).parameters:
        evaluator(model=model, step=0, out_dir=evals, checks_only=True)
    batches = dataset.open(model.vocab_size, model.packing, trainer.seed) if train_steps else None
    tasks = batches.tasks if batches else {}
    trainer = dataclasses.replace(trainer, num_tasks=len(tasks))
    metadata = identity(trainer, batches) | parent_metadata(folder, initial_checkpoint, trainer)
    check_run_metadata(folder, metadata, fork)
    cache_compilations(compilation_cache)
    if partitioner.num_partitions == "auto":
        lengths = dataset.task_feature_lengths
        partitioner = search.resolve_partitioner(partitioner, trainer, dataset.batch_size, lengths)

    of_run = (folder, dataset, batches, trainer, partitioner, train_steps, eval_period)
    validate = (validation or ValidationConfig(None)).open(*of_run)
    evaluations = range(eval_period, train_steps, eval_period) if eval_period else ()

    with partitioner.scope(), preemption() as stops, contextlib.closing(Checkpoints(folder, checkpoints)) as saved:
        parents = metadata["initial_checkpoint_step"] or 0
        state, target = init_state(folder, trainer, partitioner, saved, initial_checkpoint, parents, train_steps)
        write(folder / "run.json", metadata)  # not earlier: a rejected run leaves the folder to the next one
        step_fn, done = trainer.jit(target), int(state.step)
        report(folder.name, partitioner, target.params, batches, train_steps - done, dataset.warn_epochs, trainer)
        devices, of_peak = partitioner.mesh.devices, (trainer, dataset.batch_size, dataset.task_feature_lengths)
        is_known = peak_flops or devices.flat[0].platform != "cpu"  # a CPU has no published peak
        full_speed = utilisation.full_speed(*of_peak, devices, peak_flops) if is_known else None
        of_time = (devices.size, full_speed, began)
        watch = Watch(folder, model, done, train_steps, log_period, saved.latest, tasks, task_loss_period, *of_time)
        stream = device_batches(batches, partitioner, done, train_steps, watch)
        stream = xprof.traced(stream, traced, folder) if traced else stream
        with tracked, contextlib.closing(watch), contextlib.closing(stream), explain_exhausted(target, partitioner):
            # what a run that ended after its save has missed
            steps = () if validate(done, state, watch) else stream
            if steps and evaluator and done in evaluations and saved.latest() is not None:
                with watch.during("evaluation"):
                    evaluator(model=model, params=state.params, step=done, out_dir=evals)
            for step, batch in steps:
                with jax.transfer_guard("disallow"):
                    state, metrics = step_fn(state, batch)
                watch.record(step, metrics, batch, state.params)
                is_last = stops(step)
                if is_last or step in evaluations or step % checkpoints.period == 0:
                    watch.flush(state.params, saves=True)
                    with watch.during("checkpoint"):
                        saved.save(state, trainer.saved)
                if is_last:
                    saved.wait()
                    raise Preempted(f"{folder.name}: stopped and saved at step {step}; the same command resumes it")
                if validate(step, state, watch):
                    break
                if evaluator and step in evaluations:
                    with watch.during("evaluation"):
                        evaluator(model=model, params=state.params, step=step, out_dir=evals)
            watch.flush(state.params)
            if train_steps:  # else the state is the parent's, which has its own checkpoint
                saved.save(state, trainer.saved)
                saved.wait()
        if evaluator:
            evaluator(model=model, params=state.params, step=int(state.step), out_dir=evals)
    write(folder / "done.json", {"step": int(state.step), "train_steps": train_steps})


def is_done(folder: pathlib.Path, train_steps: int) -> bool:
    """Whether the run in `folder` reached `train_steps` and was evaluated."""
    record = read_json(folder / "done.json")
    step = record.get(
        "train_steps", record.get("step", -1)
    )  # for a run that stopped early, the steps that were requested
    if not isinstance(step, int):
        raise UserError(
            f"{folder / 'done.json'} is damaged: its step is {step!r}; remove it to run the last part again"
        )
    return step >= train_steps


def identity(trainer: Trainer, batches: Batches | None) -> dict[str, Any]:
    """What identifies a run: it must not change between a stop and a resume.

    Settings have the names gin binds them by. Those that change no result, such as layout and memory, are left out."""
    model = trainer.model
    name = f"{type(model).__module__.split('.')[-1]}.{type(model).__name__}"
    fields: tuple[Any, ...] = dataclasses.fields(model) if dataclasses.is_dataclass(model) else ()
    settings = {
        f"{name}.{f.name}": getattr(model, f.name) for f in fields if f.name not in ("remat", "kernels", "adapter")
    }
    settings = settings or {name: repr(model)}
    of_trainer: tuple[str, ...] = ("seed", "dropout", "z_loss", "label_smoothing", "loss_normalizing_factor")
    of_trainer += tuple(name for name in ("trainable", "rate_multipliers") if getattr(trainer, name) is not None)
    settings |= {f"train_step.Trainer.{name}": getattr(trainer, name) for name in of_trainer}
    return {
        "num_params": model.num_params(),
        "adapter": None if trainer.adapter is None else dataclasses.asdict(trainer.adapter),
        "settings": json.loads(json.dumps(settings | getattr(trainer.optimizer, "settings", {}), default=repr)),
        "batches": batches.fingerprint if batches is not None else None,
        "data": batches.describe() if batches is not None else None,
    }


def parent_metadata(
    folder: pathlib.Path, parent: RestoreCheckpointConfig, trainer: Trainer | None = None
) -> dict[str, Any]:
    """The parent's path, fingerprint and step: from run.json if the run has already started, else the checkpoint.

    Raises UserError if the parent does not have the required fingerprint, or has moved on the hub.
    """
    if trainer is not None and trainer.adapter is not None:
        lora.expect_base(parent)
    if recorded := read_json(folder / "run.json"):
        files.check_types(folder / "run.json", recorded, run_record.RUN)
    has_begun = (folder / "done.json").exists() or any((folder / "checkpoints").glob("checkpoint_*"))
    is_same = has_begun and recorded.get("initial_checkpoint_path") == parent.path
    names = ("initial_checkpoint_fingerprint", "initial_checkpoint_step")
    fingerprint, step = [recorded.get(name) if is_same else None for name in names]
    origin = recorded.get(ORIGIN) if is_same else None
    if origin and parent.path is not None:
        hub.expect_unmoved(parent.path, origin)
    if parent.path is not None and (fingerprint is None or parent.fingerprint not in (None, fingerprint)):
        source = convert.open_checkpoint(parent.path, optimizer=False)
        fingerprint, step = convert.expect_parent(source, parent.fingerprint), source.step
    restores = parent.restore_optimizer if parent.path is not None else None
    found: dict[str, Any] = {"initial_checkpoint_path": parent.path, "restore_optimizer": restores}
    if parent.path is not None and parent.path.startswith(hub.PREFIX):
        found[ORIGIN] = origin or hub.record(parent.path)
    return found | dict(zip(names, (fingerprint, step), strict=True))


def check_run_metadata(folder: pathlib.Path, metadata: Mapping[str, Any], fork: bool) -> None:
    """Checks run.json, if there is one, against `metadata`, which must be the same on all hosts.

    Raises UserError naming what changed, or prints it if the run is to `fork`.
    """
    if (folder / "manifest.json").exists():
        raise UserError(f"MODEL_DIR {folder} is a token store (it has manifest.json); give the run a folder of its own")
    path, metadata = folder / "run.json", json.loads(json.dumps(metadata))  # as it will be when read
    if path.exists() and (found := changes(read_json(path), metadata)):
        few = "; ".join(found[:4]) + (f"; and {len(found) - 4} more" if len(found) > 4 else "")
        if not fork:
            raise UserError(
                f"{folder} is another run: {few}. Give the old values again, choose another MODEL_DIR, or bind "
                "train.fork = True to continue with the new ones"
            )
        print(f"{folder.name}: resumes as another run: {few}")
    if jax.process_count() > 1:
        cluster.agree("the run", metadata)


def changes(recorded: Mapping[str, Any], metadata: Mapping[str, Any]) -> list[str]:
    """The differences between a run's record and what it would be now, ["NAME was 1, now 2", ...].

    Only the part of the store that the mixture reads counts, and the parent's parameters, not its path. What an earlier
    version did not record is not compared."""

    def flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in record.items():
            found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
        return found

    old, new = flat({name: recorded[name] for name in metadata if name in recorded}), flat(metadata)
    of_data = {name for name in {**old, **new} if name.startswith("data.")}
    data = recorded.get("data") or {}
    ignored = {name for name in new if name.startswith("settings.") and "settings" not in recorded}
    ignored |= {f"settings.t5.T5.{name}" for name in YOUNGER if f"settings.t5.T5.{name}" not in old}
    ignored |= {name for name in ("initial_checkpoint_step", "restore_optimizer") if name not in old}
    ignored |= {"data.fingerprint", "batches", "data.store.hash" if "content" in data else ""}
    if data and "content" not in data:  # an earlier version counted the whole store as read
        ignored |= {name for name in of_data if name.startswith("data.content.")}
    elif old.get("batches") == new.get("batches") or not data or not metadata.get("data"):  # or a run of no steps
        ignored |= of_data
    if old.get("initial_checkpoint_fingerprint") == new.get("initial_checkpoint_fingerprint") is not None:
        ignored |= {"initial_checkpoint_path", *(name for name in {**old, **new} if name.startswith(f"{ORIGIN}."))}
    names = [n for n in {**new, **old} if old.get(n) != new.get(n) and n not in ignored]
    names = [n for n in names if not FOLLOWS.fullmatch(n)] or names
    if not names and "content" in data and metadata.get("data") and old.get("batches") != new.get("batches"):
        names = ["batches"]
    return [f"{n.removeprefix('settings.')} was {old.get(n)}, now {new.get(n)}" for n in names]


def write(path: pathlib.Path, record: Mapping[str, Any]) -> None:
    """Writes a JSON file of the run in the first process; every process has its own copy of a folder in a bucket."""
    if jax.process_index() == 0 or files.mirrors:
        write_atomic(path, json.dumps(record, indent=1) + "\n")


def init_state(
    folder: pathlib.Path,
    trainer: Trainer,
    partitioner: Partitioner,
    saved: Checkpoints,
    parent: RestoreCheckpointConfig,
    parents: int,
    train_steps: int,
) -> tuple[TrainState, TrainState]:
    """The initial state and its abstract form: from the newest checkpoint, else the parent, else new.

    parents: the parent's steps, 0 if there is none. TRAIN_STEPS includes them if it is larger."""
    target = trainer.abstract_state(partitioner)
    shardings = jax.tree.map(lambda s: s.sharding, target)
    with explain_exhausted(target, partitioner):
        if (latest := saved.latest()) is not None:
            if latest < parents < train_steps:
                raise UserError(
                    f"{folder} counts steps of its own and is at {latest:,}; TRAIN_STEPS {train_steps:,} is above the "
                    f"parent's step, {parents:,}, and would count the parent's: give at most {parents:,}, or another "
                    "MODEL_DIR"
                )
            if trainer.adapter is not None:
                return lora.resume(trainer, target, str(parent.path), saved), target
            return saved.restore(target), target
        if (folder / "metrics.jsonl").exists() and jax.process_index() == 0:
            print(f"{folder.name}: has records and no checkpoint, so it starts again from its first step")
        if parent.path is not None:
            first = parents if parent.restore_optimizer or train_steps > parents else 0
            if parent.restore_optimizer and 0 < train_steps <= parents:
                raise UserError(
                    f"TRAIN_STEPS {train_steps:,} is not above the step of the parent {parent.path}, {parents:,}: with "
                    f"restore_optimizer it counts the parent's; give {parents:,} and as many as are wanted"
                )
            if trainer.adapter is not None:
                state = lora.begin(trainer, target, parent.path, first)
            else:
                init_from_params = jax.jit(
                    functools.partial(trainer.init_from_params, step=first), out_shardings=shardings, donate_argnums=0
                )
                state = init_from_params(load_params(parent.path, target.params, trainer.model))
            if parent.restore_optimizer:
                if not isinstance(target.opt_state, AdafactorState):
                    raise UserError("restore_optimizer takes the state of Adafactor; bind optim.adafactor, or unset it")
                state = state.replace(opt_state=convert.restore_moments(parent.path, target.opt_state))
            if jax.process_index() == 0 and train_steps:
                print(
                    f"{folder.name}: from {parent.path}, trains {train_steps - first:,} steps, {first + 1:,} to "
                    f"{train_steps:,}" + (" (TRAIN_STEPS counts the parent's, as in T5X)" if first else "")
                )
            return state, target
        return jax.jit(trainer.init, out_shardings=shardings)(), target


def report(
    label: str,
    partitioner: Partitioner,
    params: Any,
    batches: Batches | None,
    steps: int,
    most: float,
    trainer: Trainer,
) -> None:
    """Prints what is trained if not everything, which large arrays the rules replicate, and which tasks are repeated
    more than `most` times in the planned steps."""
    if jax.process_index() != 0:
        return
    if trainer.patterns is not None:
        print(f"{label}: {trainable.describe(trainer.patterns, params)}")
    if replicated := partitioner.replicated(params, jax.tree.map(lambda p: p.sharding, params)):
        name, size = replicated[0]
        total = sum(size for _, size in replicated) / 1e9
        print(
            f"{label}: every device holds all of {len(replicated)} large arrays ({total:.2f} GB, the largest {name}, "
            f"{size / 1e9:.2f} GB); partition.rules.parameters = 2 would shard them"
        )
    epochs = {} if batches is None else batches.epochs(steps)
    if repeated := sorted((times, name) for name, times in epochs.items() if times > most):
        times, name = repeated[-1]
        print(
            f"note: {steps:,} steps draw {len(repeated):,} of {len(epochs):,} tasks more than {most:g} times, "
            f"{name} {times:.3g} times; lower their rates or TRAIN_STEPS, or raise batches.DatasetConfig.warn_epochs"
        )


def device_batches(
    batches: Batches | None, partitioner: Partitioner, done: int, train_steps: int, watch: Watch
) -> Generator[tuple[int, Mapping[str, jax.Array]], None, None]:
    """(step, batch on the mesh) for the steps after `done`, each host providing its rows; none without `batches`."""
    if batches is None:
        return
    rows = partitioner.host_rows(batches.batch_size)
    with contextlib.closing(Loader(batches, done, rows)) as stream:
        for step in range(done + 1, train_steps + 1):
            with watch.during("input"):
                batch = partitioner.global_batch(next(stream), batches.batch_size)
            yield step, batch


@contextlib.contextmanager
def preemption() -> Iterator[Callable[[int], bool]]:
    """A function stops(step) that says whether the run stops after `step`, because a process received SIGTERM.

    It must be called after every step. A single process stops at once; several stop at one common step, so that none
    waits for the others in a collective (JAX's preemption sync point, which has its own SIGTERM handler).
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    received = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield lambda step: False
        return
    kept = {number: signal.getsignal(number) for number in STOPS}

    def stop(number: int, _: object) -> None:
        received.set()
        signal.signal(number, kept[signal.Signals(number)])  # a second Ctrl-C does not wait for the save
        os.write(2, STOPPING)  # print is not reentrant

    for number in STOPS:
        if kept[number] is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, stop)
    try:
        yield lambda step: received.is_set()
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


flanx.call_as_function(__name__)
