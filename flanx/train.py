"""`flanx train`: one training run, in order.

mesh -> store, mixture -> state (resumed, from a parent, or fresh) -> loop of steps -> save -> held-out evaluation.
A run is a folder: config.gin, run.json (what it is), metrics.jsonl, checkpoints/, evals/, done.json (written last).
"""

import contextlib
import dataclasses
import json
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import optax

from flanx import checkpoint, cluster
from flanx.config import write_atomic
from flanx.data import loader, mixture, store
from flanx.data import vocabulary as vocabularies
from flanx.errors import Preempted, UserError
from flanx.models import Model, first_nonfinite
from flanx.partition import Partitioner, cache_compilations, explain_exhausted
from flanx.report import MetricsLog, Progress
from flanx.train_step import TrainState, abstract_state, init_state, jit_train_step, make_train_step

Evaluator = Callable[..., Any]


def train(
    *,
    model: Model,
    mixture: mixture.Mixture,
    store_dir: str,
    vocabulary: str,
    task_feature_lengths: Mapping[str, int],
    batch_size: int,
    train_steps: int,
    model_dir: str,
    optimizer: optax.GradientTransformation,
    partitioner: Partitioner | None = None,
    seed: int = 0,
    dropout: bool = True,
    z_loss: float = 1e-4,
    label_smoothing: float = 0.0,
    loss_normalizing_factor: float | str | None = None,
    num_microbatches: int = 1,
    initial_checkpoint_path: str | None = None,
    initial_checkpoint_fingerprint: str | None = None,
    checkpoint_period: int = 1000,
    keep_checkpoints: int | None = 1,
    keep_period: int | None = None,
    log_period: int = 10,
    evaluator: Evaluator | None = None,
    eval_period: int | None = None,
    label: str | None = None,
    fork: bool = False,
    compilation_cache: str | None = "auto",
    save_timeout: float = 3600.0,
) -> None:
    """Trains `model` on `mixture` up to step `train_steps`, then evaluates.

    Started again with the same arguments it goes on from the newest checkpoint, with the same batches and the same
    randomness, so that the losses of a stopped and resumed run equal those of an undisturbed one to the last bit.

    Args:
      vocabulary: what the store must have been built with: "byte", or the path or URL of a SentencePiece model.
      task_feature_lengths: tokens per packed row, {"inputs": I, "targets": T}.
      batch_size: packed rows per step, over all hosts.
      optimizer: see `flanx.optim`.
      initial_checkpoint_path: parameters to start from (a run, a step folder, what `flanx convert` wrote or reads).
      initial_checkpoint_fingerprint: the only parent that will do, as `flanx convert` prints it; None for any.
      checkpoint_period, keep_checkpoints, keep_period: steps between saves; how many newest are kept; every multiple of
        keep_period is kept for ever.
      evaluator: called as evaluator(model=, params=, step=, out_dir=) every `eval_period` steps and at the end.
      compilation_cache: folder of compiled programs; see `flanx.partition.cache_compilations`.
      save_timeout: seconds after which a save that hangs is named and the process ends.
      fork: resume although the run's store, mixture, model or seed changed since.

    Raises:
      UserError: for bad input, a changed run without `fork`, a loss that is not finite.
      Preempted: after SIGTERM, with the state saved.
    """
    folder = pathlib.Path(model_dir)
    partitioner = partitioner or Partitioner()
    label = label or folder.name
    if is_done(folder, train_steps):
        print(f"{label}: done already (step {train_steps}); delete {folder / 'done.json'} to run it again")
        return
    batches = (
        open_batches(store_dir, vocabulary, mixture, task_feature_lengths, batch_size, seed, model)
        if train_steps
        else None
    )
    parent = parent_of(folder, initial_checkpoint_path, initial_checkpoint_fingerprint)
    claim(folder, identity(model, batches, seed) | parent, fork)
    cluster.agree("what is trained", identity(model, batches, seed) | parent)
    cache_compilations(compilation_cache)
    if partitioner.num_partitions == "auto":
        from flanx.plan import choose  # reads this module's parameters, so it cannot be imported above

        partitioner = choose.settle(partitioner, model, optimizer, batch_size, task_feature_lengths, num_microbatches)

    train_step = make_train_step(
        model,
        optimizer,
        seed=seed,
        dropout=dropout,
        z_loss=z_loss,
        label_smoothing=label_smoothing,
        loss_normalizing_factor=loss_normalizing_factor,
        num_microbatches=num_microbatches,
    )
    checkpoints = checkpoint.Checkpoints(folder, keep_checkpoints, keep_period, save_timeout)
    with partitioner.scope(), on_sigterm() as stopping, contextlib.closing(checkpoints):
        state, target = make_state(model, optimizer, partitioner, checkpoints, seed, initial_checkpoint_path)
        step_fn = jit_train_step(train_step, target)
        tell_replicated(partitioner, target.params, label)

        def evaluate(state: TrainState) -> None:
            if evaluator:
                evaluator(model=model, params=state.params, step=int(state.step), out_dir=folder / "evals")

        if batches is not None:
            first = int(state.step)
            watch = Watch(folder, model, checkpoints, first, train_steps, log_period, label)
            rows = loader.Loader(batches, first, partitioner.host_rows(batch_size))
            with contextlib.closing(watch), contextlib.closing(rows):
                for step in range(first + 1, train_steps + 1):
                    host_batch = next(rows)
                    batch = partitioner.global_batch(host_batch, batch_size)
                    with jax.transfer_guard("disallow"), explain_exhausted(target.params, partitioner):
                        state, metrics = step_fn(state, batch)
                    watch.take(step, metrics, host_batch, state)
                    evaluates = bool(eval_period) and step % eval_period == 0 and step < train_steps
                    stops = cluster.stops(stopping.is_set(), step)
                    if stops or evaluates or step % checkpoint_period == 0 or step == train_steps:
                        watch.flush(state)
                        checkpoints.save(state)
                    if stops:
                        checkpoints.wait()
                        raise Preempted(f"{label}: stopped and saved at step {step}; the same command goes on")
                    if evaluates:
                        evaluate(state)
        checkpoints.save(state)
        checkpoints.wait()
        evaluate(state)
    if jax.process_index() == 0:
        write_atomic(folder / "done.json", json.dumps({"step": int(state.step)}) + "\n")


def tell_replicated(partitioner: Partitioner, params: Any, label: str) -> None:
    """Says which large arrays the rules leave whole on every device."""
    shardings = jax.tree.map(lambda p: p.sharding, params)
    if (whole := partitioner.replicated(params, shardings)) and cluster.is_first():
        name, size = whole[0]
        total = sum(size for _, size in whole) / 1e9
        print(
            f"{label}: every device holds {len(whole)} large arrays whole ({total:.2f} GB, the largest {name}, "
            f"{size / 1e9:.2f} GB); partition.rules.parameters = 2 would divide them"
        )


def is_done(folder: pathlib.Path, train_steps: int) -> bool:
    """Whether the run in `folder` reached `train_steps` and was evaluated."""
    done = folder / "done.json"
    return done.exists() and json.loads(done.read_text())["step"] >= train_steps


def open_batches(
    store_dir: str,
    vocabulary: str,
    mix: mixture.Mixture,
    lengths: Mapping[str, int],
    batch_size: int,
    seed: int,
    model: Model,
) -> mixture.Batches:
    """The run's batches: a pure function of (store, mixture, seed, step). Raises UserError where they do not fit."""
    opened = store.open_store(store_dir)
    opened.check_vocabulary(vocabularies.load(vocabulary).fingerprint)
    if opened.vocabulary_size > model.vocab_size:
        raise UserError(
            f"the store at {store_dir} has {opened.vocabulary_size} pieces ({opened.vocabulary}), the model only "
            f"{model.vocab_size}; set VOCAB_SIZE or build the store with the model's vocabulary"
        )
    return mixture.Batches(opened, mix, dict(lengths), batch_size, seed, packing=model.packing)


def parent_of(folder: pathlib.Path, path: str | None, wanted: str | None) -> dict[str, str | None]:
    """The parent's path and fingerprint: as the run wrote them down when it began, or else read.

    Raises UserError where the parent is not the one whose fingerprint is `wanted`.
    """
    record = folder / "run.json"
    there = json.loads(record.read_text()) if record.exists() else {}
    known = there.get("initial_checkpoint_fingerprint") if there.get("initial_checkpoint_path") == path else None
    if path is not None and (known is None or wanted not in (None, known)):
        from flanx import convert  # not at the top: most runs have no parent

        known = convert.expect_parent(path, wanted)
    return {"initial_checkpoint_path": path, "initial_checkpoint_fingerprint": known}


def identity(model: Model, batches: mixture.Batches | None, seed: int) -> dict[str, Any]:
    """What makes a run the run it is: these must not change between a stop and a resume."""
    return {
        "model": repr(model),
        "num_params": model.num_params(),
        "batches": batches.fingerprint if batches is not None else None,
        "data": batches.describe() if batches is not None else None,
        "seed": seed,
    }


def claim(folder: pathlib.Path, wanted: Mapping[str, Any], fork: bool) -> None:
    """Writes run.json, or holds it against `wanted`: raises UserError naming the field that changed."""
    path, wanted = folder / "run.json", json.loads(json.dumps(wanted))  # as it reads when it comes back
    if path.exists() and not fork:
        there = json.loads(path.read_text())
        changed = [key for key in wanted if there.get(key) != wanted[key]]
        if changed:
            key = changed[0]
            raise UserError(
                f"{folder} is another run: its {key} was {there.get(key)}, now {wanted[key]}; "
                "choose another MODEL_DIR, or bind train.fork = True to go on all the same"
            )
    folder.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        write_atomic(path, json.dumps(wanted, indent=1) + "\n")


def make_state(
    model: Model,
    optimizer: optax.GradientTransformation,
    partitioner: Partitioner,
    checkpoints: checkpoint.Checkpoints,
    seed: int,
    parent: str | None,
) -> tuple[TrainState, TrainState]:
    """The state to start from, and its abstract form: the newest checkpoint, else the parent, else a fresh one."""
    target = abstract_state(model, optimizer, partitioner)
    shardings = jax.tree.map(lambda s: s.sharding, target)
    if checkpoints.latest() is not None:
        return checkpoints.restore(target), target
    if parent is not None:
        start = checkpoint.load_params(parent, target.params)
        state = TrainState(np.int32(0), start, jax.jit(optimizer.init, out_shardings=shardings.opt_state)(start))
        return jax.device_put(state, shardings), target
    fresh = jax.jit(lambda: init_state(model, optimizer, jax.random.key(seed)), out_shardings=shardings)
    return fresh(), target


@dataclasses.dataclass
class Watch:
    """Looks at each step's metrics one step late, so that the device never waits for the host."""

    folder: pathlib.Path
    model: Model
    checkpoints: checkpoint.Checkpoints
    start_step: int
    train_steps: int
    log_period: int
    label: str

    def __post_init__(self) -> None:
        self._log = MetricsLog(self.folder, self.start_step) if jax.process_index() == 0 else None
        self._progress = Progress(self.train_steps, self.label)
        self._pending: tuple[int, Any, Mapping[str, np.ndarray]] | None = None
        self._sums: dict[str, float] = {}
        self._since = (time.monotonic(), self.start_step)

    def take(self, step: int, metrics: Any, batch: Mapping[str, np.ndarray], state: TrainState) -> None:
        """Accepts the metrics of `step` and settles those of the step before."""
        earlier, self._pending = self._pending, (step, metrics, batch)
        if earlier is not None:
            self._settle(*earlier, state)

    def flush(self, state: TrainState) -> None:
        """Settles the last step too."""
        earlier, self._pending = self._pending, None
        if earlier is not None:
            self._settle(*earlier, state)

    def _settle(self, step: int, metrics: Any, batch: Mapping[str, np.ndarray], state: TrainState) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not np.isfinite(values["loss"]):
            where = first_nonfinite(self.model, state.params, batch) or "not found again"
            raise UserError(
                f"{self.label}: the loss of step {step} is {values['loss']}; first bad layer: {where}; "
                f"last good checkpoint: step {self.checkpoints.latest()}"
            )
        segments = [array > 0 for name, array in batch.items() if name.endswith("segment_ids")]
        values["filled"] = float(sum(s.sum() for s in segments))
        values["positions"] = float(sum(s.size for s in segments))
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        if step % self.log_period == 0 or step == self.train_steps:
            self._write(step)

    def _write(self, step: int) -> None:
        """One record over the steps since the last: per-token means, and speeds. The first process writes for all."""
        if self._log is None:
            self._sums = {}
            return
        now = time.monotonic()
        steps, seconds = step - self._since[1], max(now - self._since[0], 1e-9)
        tokens = max(self._sums["tokens"], 1.0)
        record = {
            "loss": self._sums["loss"] / tokens,
            "cross_ent_loss": self._sums["cross_ent_loss"] / tokens,
            "z_loss": self._sums["z_loss"] / tokens,
            "accuracy": self._sums["correct"] / tokens,
            "grad_norm": self._sums["grad_norm"] / steps,
            "padding": 1.0 - self._sums["filled"] / self._sums["positions"],
            "tokens_per_second": self._sums["filled"] / seconds,
            "steps_per_second": steps / seconds,
        }
        self._log.write(step, record)
        self._progress.show(step, record)
        self._sums, self._since = {}, (now, step)

    def close(self) -> None:
        """Closes the logs."""
        if self._log is not None:
            self._log.close()


@contextlib.contextmanager
def on_sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, so that the loop can save and leave; only in the main thread, as signals demand."""
    stopping = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    try:
        yield stopping
    finally:
        signal.signal(signal.SIGTERM, previous)
