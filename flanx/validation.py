"""Validation while training: teacher-forced loss, bits per byte and accuracy on splits that the run does not train on.

`flanx store build` writes the splits to STORE_DIR/validation; `flanx train` packs their examples once, in a fixed
order, and evaluates all of them with the run's mesh, lengths and model. The result is a record in metrics.jsonl:

    {"step", "validation": {"loss", "macro_loss", "bits_per_byte", "accuracy", "macro_accuracy", "tokens", "examples",
                            "seconds", "collections": {name: numbers}, "tasks": {name: numbers}}}

numbers: {"loss": cross-entropy per target token in nats, "bits_per_byte": of the targets' text in UTF-8, "accuracy":
share of target tokens that are the argmax, "tokens"}. No dropout, no z-loss, no label smoothing; the end of sequence is
a target token, as in training. The plain numbers are over all tokens, the macro ones are means over tasks.
"""

import contextlib
import dataclasses
import fnmatch
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from flanx import cluster, storage
from flanx.checkpoint import Checkpoints
from flanx.data import vocabulary as vocabularies
from flanx.data.pipeline import packing, sampling
from flanx.data.pipeline.batches import Batches, DatasetConfig, Plan
from flanx.data.store import MANIFEST, MIXTURE, VALIDATION, Store, open_store
from flanx.errors import UserError, nearest
from flanx.files import write_atomic
from flanx.partition import Partitioner
from flanx.train_metrics import Watch
from flanx.train_step import Trainer, TrainState

SHARE = 0.02  # of a run's training time: that of validation by default
LEAST = 512  # total examples evaluated in any case
NOTHING: Callable[..., bool] = lambda *_: False  # noqa: E731
BEST, STOP = "best", "stop"
VERDICTS = (None, BEST, STOP)
FORWARD = 3  # rows evaluated by a forward pass in the time of a training step on one


@dataclasses.dataclass(frozen=True)
class ValidationConfig:
    """What a run validates on.

    Attributes:
      names: "mixture" for the tasks of the run's mixture that have a validation split; or tasks, collections or
        patterns of what the store's folder `validation` holds, each with its split (`muffin_rte:test`) or meaning
        `validation`; None or [] for nothing.
      examples: of each task at most; None: as many as take about 2% of the run's time, but at least 512 in total.
      period: steps between two validations; None: those between two evaluations. There is always one at the end.
      patience: validations in a row without a loss below the best so far, after which the run ends; None: it continues.
      keep_best: keep the state with the lowest loss in MODEL_DIR/best.
    """

    names: str | Sequence[str] | None = MIXTURE
    examples: int | None = None
    period: int | None = None
    patience: int | None = None
    keep_best: bool = False

    def open(
        self,
        run: pathlib.Path,
        dataset: DatasetConfig,
        batches: Batches | None,
        trainer: Trainer,
        partitioner: Partitioner,
        train_steps: int,
        eval_period: int | None,
    ) -> Callable[[int, TrainState, Watch], bool]:
        """A function of (step, state, watch) to call after every step: it validates and writes the record when due, and
        returns whether the run should stop there.

        Prints a line if there is nothing to validate on. Raises UserError if `names` names what is not in the store, or
        if `patience` or `keep_best` have nothing to go by."""
        if self.patience is not None and (self.patience < 1 or not (self.period or eval_period)):
            raise UserError(f"VALIDATION_PATIENCE = {self.patience} counts validations: give 1 or more, and a period")
        if not self.names or batches is None:
            return self._nothing() if self.patience or self.keep_best else NOTHING
        folder = f"{dataset.store_dir.rstrip('/')}/{VALIDATION}"
        if "://" in folder:
            is_there = storage.open_storage(folder).find(MANIFEST) is not None
        else:
            is_there = (pathlib.Path(folder).expanduser() / MANIFEST).is_file()
        if not is_there:
            if self.names != MIXTURE:
                raise UserError(
                    f"VALIDATION: {dataset.store_dir} holds no splits to validate on; build it again with it"
                )
            if jax.process_index() == 0:
                print(f"validation: none, as {dataset.store_dir} holds no validation splits (`flanx store build`)")
            return self._nothing() if self.patience or self.keep_best else NOTHING
        store = open_store(folder)
        store.check_vocabulary(batches.store.vocabulary_fingerprint)
        names = self._find(store, batches)
        absent = len(batches.tasks) - len(names) if self.names == MIXTURE else 0
        if jax.process_count() > 1:
            cluster.agree("what is validated on", {"store": store.hash, "tasks": names})
        if not names:
            if jax.process_index() == 0:
                print("validation: none, as no task of the mixture has a validation split")
            return self._nothing() if self.patience or self.keep_best else NOTHING
        limit, period = self.examples, self.period or eval_period
        if limit is None:
            times = 1 + (train_steps // period if period else 0)
            trained = train_steps * batches.batch_size * batches.examples_per_row
            limit = max(1, int(max(LEAST, SHARE * FORWARD * trained / times) / len(names)))
        parts = trainer.num_microbatches if dataset.batch_size % trainer.num_microbatches == 0 else 1
        rows = dataset.batch_size // parts
        rows = rows if rows % partitioner.batch_shards() == 0 else dataset.batch_size
        chosen = ValidationBatches(store, names, batches, limit, rows)
        if jax.process_index() == 0:
            when = f"every {period:,} steps and at the end" if period else "at the end"
            without = f" ({absent:,} tasks have no such split)" if absent else ""
            print(f"validation: {chosen.examples:,} examples of {len(names):,} tasks{without}, {when}")
        validator = Validator(chosen, trainer, partitioner, dataset.vocabulary, period, train_steps)
        return validator if not (self.patience or self.keep_best) else Judge(validator, self, run, trainer.saved)

    def _nothing(self) -> Callable[..., bool]:
        """Raises UserError: there is no validation loss to stop by, or to keep the best of."""
        raise UserError("VALIDATION_PATIENCE and KEEP_BEST go by the validation loss, and nothing is validated on")

    def _find(self, store: Store, batches: Batches) -> list[str]:
        """The requested tasks of the validation store, TASK:SPLIT."""
        if self.names == MIXTURE:
            return [name for task in batches.tasks if (name := f"{task}:{VALIDATION}") in store.tasks]
        found: dict[str, None] = {}
        for asked in [self.names] if isinstance(self.names, str) else self.names or ():
            task, _, split = asked.partition(":")
            known = {name: each for name, each in store.tasks.items() if name.endswith(f":{split or VALIDATION}")}
            own = [
                name
                for name, each in known.items()
                if each.collection == task or fnmatch.fnmatchcase(name.partition(":")[0], task)
            ]
            if not own:
                raise UserError(
                    f"VALIDATION: '{asked}' is not in {store.path}{nearest(asked, store.tasks)}; to add it, build "
                    f"the store again with --gin.VALIDATION=\"['{asked}']\""
                )
            found |= dict.fromkeys(own)
        return list(found)


class ValidationBatches(Batches):
    """Batches of the tasks' examples, each once, packed in a fixed order; the last is padded with empty rows.

    names: tasks of the store, from each of which `limit` evenly spaced examples are taken. like: the run's batches,
    whose lengths and packing are used.

    Attributes:
      tasks: {task, without `:validation`: its collection}, in the order of the numbers in `decoder_task_ids`.
      examples: how many there are.
      count: the number of batches.
    """

    def __init__(self, store: Store, names: Sequence[str], like: Batches, limit: int, batch_size: int) -> None:
        self.store, self.batch_size, self.packing, self.limits = store, batch_size, like.packing, like.limits
        self.tasks = {name.removesuffix(f":{VALIDATION}"): store.tasks[name].collection for name in names}
        self._task_of = np.arange(1, len(names) + 1, dtype=np.int32)
        columns: list[tuple[np.ndarray, ...]] = []
        for number, name in enumerate(names):
            (part,) = next(iter(store.tasks[name].parts.values()))
            taken = min(limit, part.examples)
            records = part.start + np.arange(taken) * part.examples // max(taken, 1)
            columns.append((np.full(taken, number), np.full(taken, part.volume), records))
        source, volume, record = (np.concatenate(column) for column in zip(*columns, strict=True))
        draws = self._draws(sampling.Draws(source, volume, record))
        row, used = packing.largest_first(draws.length @ like.sides, like.capacities)
        row = (np.cumsum(used) - used)[np.arange(len(row)) // packing.WINDOW] + row
        order = np.argsort(row, kind="stable")
        starts = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=int(used.sum())))])
        self._whole = Plan._make([*(column[order] for column in draws[:-1]), starts])
        self.examples, self.count = len(row), -(-(len(starts) - 1) // batch_size)

    def plan(self, first: int, count: int) -> Plan:
        """The content of rows first, ..., first + count - 1: nothing beyond the last."""
        starts = self._whole.starts[np.minimum(np.arange(first, first + count + 1), len(self._whole.starts) - 1)]
        return Plan._make([*(column[starts[0] : starts[-1]] for column in self._whole[:-1]), starts - starts[0]])

    def count_bytes(self, vocabulary: vocabularies.Vocabulary) -> np.ndarray:
        """UTF-8 bytes of each task's target texts, as far as they are in rows: int64 [tasks]."""
        plan, sums = self._whole, np.zeros(len(self.tasks), np.int64)
        first, last = plan.offset[:, 1], plan.offset[:, 1] + plan.length[:, 1] - plan.cut[:, 1]  # a row includes EOS
        self.store.check("tokens", plan.volume, first, last)
        for volume, begin, end, task in zip(plan.volume, first, last, plan.source, strict=True):
            tokens = self.store.volume(int(volume)).tokens[begin:end]
            sums[task] += len(vocabulary.decode(tokens.tolist()).encode())
        return sums


class Validator:
    """Evaluates parameters on fixed batches, every `period` steps and after `train_steps`."""

    def __init__(
        self,
        batches: ValidationBatches,
        trainer: Trainer,
        partitioner: Partitioner,
        vocabulary: str,
        period: int | None,
        train_steps: int,
    ) -> None:
        self.batches, self._partitioner = batches, partitioner
        self._period, self._train_steps = period, train_steps
        self._bytes = batches.count_bytes(vocabularies.load(vocabulary))
        plain = dataclasses.replace(
            trainer, z_loss=0.0, label_smoothing=0.0, loss_normalizing_factor=None, num_tasks=len(batches.tasks)
        )
        self._sums = jax.jit(
            lambda params, batch: plain.loss(params, batch, None)[1]["tasks"], out_shardings=partitioner.everywhere()
        )

    def __call__(self, step: int, state: TrainState, watch: Watch) -> bool:
        """Validates and writes the record, if due after the step; the run continues."""
        if step == self._train_steps or (self._period and step and step % self._period == 0):
            watch.flush(state.params)
            with watch.during("evaluation"):
                record = self.evaluate(state.params)
            watch.write_validation(step, record)
        return False

    def evaluate(self, params: Any) -> dict[str, Any]:
        """The record of parameters on the mesh; see the module's docstring. All processes call it, inside the scope."""
        began, size = time.monotonic(), self.batches.batch_size
        rows, sums = self._partitioner.host_rows(size), np.zeros((4, len(self.batches.tasks)))
        pending = None
        for number in range(self.batches.count):
            batch = self._partitioner.global_batch(self.batches.batch(number, rows), size)
            last, pending = pending, self._sums(params, batch)  # read one batch late: the device never waits
            sums += 0.0 if last is None else jax.device_get(last)
        sums += 0.0 if pending is None else jax.device_get(pending)
        return summary(self.batches.tasks, sums, self._bytes) | {"seconds": time.monotonic() - began}


class Judge:
    """A validator that ends a run whose loss no longer falls, and keeps its best state in MODEL_DIR/best."""

    def __init__(
        self, validate: Validator, config: ValidationConfig, run: pathlib.Path, saved: Sequence[str] | None
    ) -> None:
        """run: MODEL_DIR. saved: patterns of what a checkpoint holds."""
        self._validate, self._config, self._run, self._saved = validate, config, run, saved

    def __call__(self, step: int, state: TrainState, watch: Watch) -> bool:
        """As `Validator`, and returns whether the run should stop."""
        self._validate(step, state, watch)
        losses = watch.validation_losses()
        verdict = judge(losses, step, self._config.patience) if step in losses else None
        if jax.process_count() > 1:  # the first process has the log
            verdict = VERDICTS[int(multihost_utils.broadcast_one_to_all(np.asarray(VERDICTS.index(verdict))))]
        if verdict == BEST and self._config.keep_best:
            record = (self._run / "run.json").read_text(encoding="utf-8")
            of_kept = self._run / BEST / "run.json"
            is_of_run = of_kept.exists() and of_kept.read_text(encoding="utf-8") == record
            with contextlib.closing(Checkpoints(self._run / BEST)) as kept:
                kept.drop(step + is_of_run)  # later ones, and this one of other settings, predate a `train.fork`
                kept.save(state, self._saved)
                kept.wait()
            if jax.process_index() == 0:  # so that the folder can be read as a run
                write_atomic(of_kept, record)
        if verdict == STOP and jax.process_index() == 0:
            print(f"stops at step {step:,}: {self._config.patience} validations brought no lower loss")
            watch.end(step)
        return verdict == STOP


def judge(losses: Mapping[int, float], step: int, patience: int | None) -> str | None:
    """BEST if the loss {step: loss} after `step` is the lowest, the first of equal ones; STOP if `patience` later ones
    were not lower; else None. A NaN is never the lowest."""
    known = {at: loss for at, loss in losses.items() if at <= step and not math.isnan(loss)}
    best = min(known, key=lambda at: (known[at], at), default=0)
    if best == step:
        return BEST
    return STOP if patience and sum(best < at <= step for at in losses) >= patience else None


def summary(tasks: Mapping[str, str], sums: np.ndarray, nbytes: np.ndarray) -> dict[str, Any]:
    """The record, except its seconds.

    tasks: {task: its collection}. sums: float64 [4, tasks] of cross-entropy, tokens, examples and correct tokens.
    nbytes: int64 [tasks]."""
    homes = list(tasks.values())

    def numbers(members: Sequence[int]) -> dict[str, Any]:
        loss, tokens, _, correct = (math.fsum(row) for row in sums[:, members])
        bits = loss / math.log(2) / max(int(nbytes[members].sum()), 1)
        return {"loss": loss / tokens, "bits_per_byte": bits, "accuracy": correct / tokens, "tokens": int(tokens)}

    of_tasks = {task: numbers([i]) for i, task in enumerate(tasks) if sums[1, i]}
    collections = {
        home: numbers([i for i, each in enumerate(homes) if each == home and sums[1, i]])
        for home in dict.fromkeys(tasks[task] for task in of_tasks)
    }
    macro = {
        f"macro_{name}": math.fsum(each[name] for each in of_tasks.values()) / len(of_tasks)
        for name in ("loss", "accuracy")
    }
    whole = numbers(range(len(homes)))
    return whole | macro | {"examples": int(sums[2].sum()), "collections": collections, "tasks": of_tasks}
