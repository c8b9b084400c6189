"""`flanx train`: one training run, in order.

store, mixture -> mesh -> state (resumed, from a parent, or fresh) -> loop of steps -> save -> held-out evaluation.
A run is a folder: config.gin, run.json (what it is), metrics.jsonl, checkpoints/, evals/, done.json (written last).
"""

import contextlib
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from flanx import cluster
from flanx.checkpoint import Checkpoints, RestoreCheckpointConfig, SaveCheckpointConfig, load_params
from flanx.data.dataset import DatasetConfig
from flanx.data.pipeline import mixture, prefetch
from flanx.errors import Preempted, UserError
from flanx.files import local_folder, write_atomic
from flanx.partition import Partitioner, cache_compilations, explain_exhausted
from flanx.train_metrics import Watch
from flanx.train_step import Trainer, TrainState


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
    evaluator: Callable[..., Any] | None = None,
    eval_period: int | None = None,
    fork: bool = False,
    compilation_cache: str | None = "auto",
) -> None:
    """Trains up to step `train_steps`, then evaluates.

    Started again with the same arguments it goes on from the newest checkpoint, with the same batches and the same
    randomness, so that the losses of a stopped and resumed run equal those of an undisturbed one to the last bit.

    Args:
      evaluator: called as evaluator(model=, params=, step=, out_dir=) every `eval_period` steps and at the end.
      fork: resume although the run's store, mixture, model or seed changed since.
      compilation_cache: folder of compiled programs; see `flanx.partition.cache_compilations`.

    Raises:
      UserError: for bad input, a changed run without `fork`, a loss that is not finite.
      Preempted: after SIGTERM, with the state saved.
    """
    folder = local_folder(model_dir)
    if is_done(folder, train_steps):
        print(f"{folder.name}: done already (step {train_steps}); delete {folder / 'done.json'} to run it again")
        return
    batches = dataset.open(trainer.model, trainer.seed) if train_steps else None
    claim(folder, identity(trainer, batches) | parent_of(folder, initial_checkpoint), fork)
    cache_compilations(compilation_cache)
    partitioner = settle(partitioner, trainer, dataset)

    def evaluate(state: TrainState) -> None:
        if evaluator:
            evaluator(model=trainer.model, params=state.params, step=int(state.step), out_dir=folder / "evals")

    with partitioner.scope(), cluster.on_sigterm() as told, contextlib.closing(checkpoints.open(folder)) as saved:
        state, target = make_state(trainer, partitioner, saved, initial_checkpoint.path)
        tell_replicated(partitioner, target.params, folder.name)
        step_fn, done = trainer.jit(target), int(state.step)
        watch = Watch(folder, trainer.model, done, train_steps, log_period, saved.latest)
        stream = placed(batches, partitioner, done, train_steps)
        with contextlib.closing(watch), contextlib.closing(stream), explain_exhausted(target, partitioner):
            for step, batch in stream:
                with jax.transfer_guard("disallow"):
                    state, metrics = step_fn(state, batch)
                watch.take(step, metrics, batch, state.params)
                stops = cluster.stops(told.is_set(), step)
                evaluates = bool(eval_period) and step % eval_period == 0 and step < train_steps
                if stops or evaluates or step % checkpoints.period == 0:
                    watch.settle(state.params)
                    saved.save(state)
                if stops:
                    saved.wait()
                    raise Preempted(f"{folder.name}: stopped and saved at step {step}; the same command goes on")
                if evaluates:
                    evaluate(state)
            watch.settle(state.params)
        if train_steps:  # else the state is the parent's, which has its own checkpoint
            saved.save(state)
            saved.wait()
        evaluate(state)
    if cluster.is_first():
        write_atomic(folder / "done.json", json.dumps({"step": int(state.step)}) + "\n")


def is_done(folder: pathlib.Path, train_steps: int) -> bool:
    """Whether the run in `folder` reached `train_steps` and was evaluated."""
    done = folder / "done.json"
    return done.exists() and json.loads(done.read_text())["step"] >= train_steps


def identity(trainer: Trainer, batches: mixture.Batches | None) -> dict[str, Any]:
    """What makes a run the run it is: these must not change between a stop and a resume."""
    return {
        "model": repr(trainer.model),
        "num_params": trainer.model.num_params(),
        "batches": batches.fingerprint if batches is not None else None,
        "data": batches.describe() if batches is not None else None,
        "seed": trainer.seed,
    }


def parent_of(folder: pathlib.Path, parent: RestoreCheckpointConfig) -> dict[str, str | None]:
    """The parent's path and fingerprint: as the run wrote them down when it began, or else read.

    Raises UserError where the parent is not the one whose fingerprint is wanted.
    """
    record = folder / "run.json"
    there = json.loads(record.read_text()) if record.exists() else {}
    same_path = there.get("initial_checkpoint_path") == parent.path
    known = there.get("initial_checkpoint_fingerprint") if same_path else None
    if parent.path is not None and (known is None or parent.fingerprint not in (None, known)):
        from flanx import convert  # not at the top: most runs have no parent

        known = convert.expect_parent(parent.path, parent.fingerprint)
    return {"initial_checkpoint_path": parent.path, "initial_checkpoint_fingerprint": known}


def claim(folder: pathlib.Path, wanted: Mapping[str, Any], fork: bool) -> None:
    """Writes run.json, or holds it against `wanted`, which all hosts must bring alike.

    Raises UserError naming the field that changed.
    """
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
    cluster.agree("what is trained", wanted)
    folder.mkdir(parents=True, exist_ok=True)
    if cluster.is_first():
        write_atomic(path, json.dumps(wanted, indent=1) + "\n")


def settle(partitioner: Partitioner, trainer: Trainer, dataset: DatasetConfig) -> Partitioner:
    """The partitioner, its layout picked for the devices at hand where num_partitions is "auto"."""
    if partitioner.num_partitions != "auto":
        return partitioner
    from flanx.plan import search  # reads this module's configuration, so it cannot be imported above

    return search.resolve_partitioner(partitioner, trainer, dataset.batch_size, dataset.task_feature_lengths)


def make_state(
    trainer: Trainer, partitioner: Partitioner, saved: Checkpoints, parent: str | None
) -> tuple[TrainState, TrainState]:
    """The state to start from, and its abstract form: the newest checkpoint, else the parent, else a fresh one."""
    target = trainer.abstract_state(partitioner)
    shardings = jax.tree.map(lambda s: s.sharding, target)
    with explain_exhausted(target, partitioner):
        if saved.latest() is not None:
            return saved.restore(target), target
        if parent is not None:
            begin = jax.jit(trainer.begin, out_shardings=shardings, donate_argnums=0)
            return begin(load_params(parent, target.params)), target
        return jax.jit(trainer.fresh, out_shardings=shardings)(), target


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


def placed(
    batches: mixture.Batches | None, partitioner: Partitioner, done: int, train_steps: int
) -> Iterator[tuple[int, Mapping[str, jax.Array]]]:
    """(step, batch on the mesh) of the steps after `done`, each host giving its rows; nothing where there are none."""
    if batches is None:
        return
    rows = partitioner.host_rows(batches.batch_size)
    with contextlib.closing(prefetch.Loader(batches, done, rows)) as stream:
        for step in range(done + 1, train_steps + 1):
            yield step, partitioner.global_batch(next(stream), batches.batch_size)
