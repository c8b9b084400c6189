"""The metrics of a run as JSON lines and TensorBoard events, and a progress line on the terminal.

metrics.jsonl     {"step", "loss", ..., "sources": {collection: {"loss", "tokens", "examples"}}}, every `log_period`
                  steps and at the end, over the steps since the record before. A source's loss is its cross-entropy
                  per target token; `cross_ent_loss` is that of all of them
                  A validation has its own record, {"step", "validation": see `flanx.validation`}
tasks.jsonl       {"step", "total": sums, "tasks": {task: sums}}, every `task_period` steps and at the end, over the
                  steps since the line before. Sums: {"loss_sum": of cross-entropy, "tokens": of targets,
                  "examples"}; the total is the `math.fsum` of the tasks
unlogged.jsonl    what was not yet in a record when the state was saved, for a run that resumes there; gone at the end
sessions.jsonl    {"step", "started": Unix time, "start_seconds": from there to the loop, "processor_seconds": of the
                  process up to the loop, its imports among them, "hosts", "chips"} for every start, {"step", "ended"}
                  at the last step

Speeds in a record are over the steps since the previous one, and its "performance" holds

tokens_per_second_per_chip   filled positions, as in `tokens_per_second`
mfu                          model FLOPs utilisation: see `flanx.plan.utilisation`; absent if no peak is known
goodput                      share of the time since the run's first start, including restarts and what they lost, that
                             was spent in steps that count; absent if the clock was seen to go back
input_seconds, step_seconds, checkpoint_seconds, evaluation_seconds, compile_seconds
                             the record's time, split: waiting for a batch, the step, handing a state to the writer,
                             validation and evaluation, lowering and XLA. The remainder counts as the step
programs, cache_hits         compiled since the process reached its loop, and those of them found in JAX's cache
device_memory_peak, host_memory_peak
                             bytes: of this process's fullest device, absent if not reported; of the process

"hosts" of a run of several processes: see `flanx.coordination.slowest`.
"""

import collections
import contextlib
import datetime
import itertools
import json
import math
import os
import pathlib
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from rich.console import Console

from flanx import coordination, files, probe, run_record
from flanx.errors import UserError
from flanx.files import write_atomic
from flanx.models import Model, first_nonfinite

TAIL = 1 << 16  # bytes at the end of a metrics file, enough to contain its newest record
STAGES = ("input", "step", "checkpoint", "evaluation", "compile")
# JAX's names for what it measures (jax._src.dispatch, compiler); a cached compilation counts the time to read it
COMPILED = "/jax/core/compile/backend_compile_duration"
COMPILING = (COMPILED, "/jax/core/compile/jaxpr_to_mlir_module_duration")
CACHE_HIT = "/jax/compilation_cache/cache_hits"
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes, of getrusage


class MetricsLog:
    """Appends JSON objects to the files of `folder`, and the numbers of metrics.jsonl to TensorBoard's event file.

    A run that resumes at step k first drops what an earlier process wrote beyond k, so that the files read as if the
    run had never stopped.

    Attributes:
      validated: {step: loss} of the validations that have a record.
      sessions: the lines of sessions.jsonl.
      step_seconds: those of all records since the first of these sessions.
      unlogged: the line of unlogged.jsonl at `resume_step`, {} if there is none.
    """

    def __init__(self, folder: str | os.PathLike, resume_step: int = 0) -> None:
        # TensorBoard's protocol buffers and writer, without TensorFlow; only for writing a run, not reading one
        from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[attr-defined]  # noqa: PLC0415
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[attr-defined]  # noqa: PLC0415
        from tensorboard.summary.writer.record_writer import RecordWriter  # noqa: PLC0415

        self._folder, self.unlogged = pathlib.Path(folder), {}
        board = self._folder / "tensorboard"
        board.mkdir(parents=True, exist_ok=True)
        for name in ("sessions", "metrics", "tasks", "unlogged"):
            path = self._folder / f"{name}.jsonl"
            found = [run_record.check(path, number, r) for number, r in enumerate(files.read_jsonl(path), 1)]
            kept = [r for r in found if name == "sessions" or r["step"] <= resume_step]
            if path.exists():
                write_atomic(path, "".join(map(files.json_line, kept)))
            if name == "sessions":
                self.sessions = kept
            if name == "metrics":
                self.validated = {r["step"]: float(r["validation"]["loss"]) for r in kept if "validation" in r}
                first = self.sessions[0]["step"] if self.sessions else resume_step  # the time before is unknown
                timed = [r["performance"] for r in kept if "performance" in r and r["step"] > first]
                self.step_seconds = math.fsum(each.get("step_seconds", 0.0) for each in timed)
            if name == "unlogged" and kept and kept[-1]["step"] == resume_step:
                self.unlogged = kept[-1]
        self._event, self._summary = Event, Summary
        self._events = open(board / f"events.out.tfevents.{time.time_ns()}.flanx", "wb")  # noqa: SIM115
        self._board = RecordWriter(self._events)
        self._board.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())

    def write(self, step: int, values: Mapping[str, Any], name: str = "metrics") -> None:
        """Appends and flushes a record {"step": step, **values}; for metrics, also an event with its `scalars`."""
        with open(self._folder / f"{name}.jsonl", "a", encoding="utf-8") as file:
            file.write(files.json_line({"step": step, **values}))
        if name != "metrics":
            return
        tags = [self._summary.Value(tag=tag, simple_value=value) for tag, value in scalars(values).items()]
        event = self._event(wall_time=time.time(), step=step, summary=self._summary(value=tags))
        self._board.write(event.SerializeToString())
        self._board.flush()

    def close(self) -> None:
        """Closes the TensorBoard file."""
        self._board.flush()
        self._events.close()


def scalars(values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record by TensorBoard's names: its own, performance/NAME, train/COLLECTION/loss for a
    collection, and validation/loss and validation/COLLECTION/loss for a validation."""
    numbers = {tag: value for tag, value in values.items() if not isinstance(value, Mapping)}
    numbers |= {f"train/{source}/loss": each["loss"] for source, each in values.get("sources", {}).items()}
    numbers |= {f"performance/{name}": value for name, value in values.get("performance", {}).items()}
    if validation := values.get("validation"):
        numbers["validation/loss"] = validation["loss"]
        numbers |= {f"validation/{home}/loss": each["loss"] for home, each in validation["collections"].items()}
    return numbers


def read_metrics(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """The records of a run's metrics.jsonl, in order; empty if there is no file."""
    return files.read_jsonl(pathlib.Path(folder) / "metrics.jsonl")


def last_metrics(folder: str | os.PathLike) -> dict[str, Any] | None:
    """A run's newest training record, read from the end of its metrics.jsonl; None if there is none."""
    path, tail = pathlib.Path(folder) / "metrics.jsonl", TAIL
    if not path.exists():
        return None
    while True:
        size = path.stat().st_size
        with files.open_regular(path) as file:
            file.seek(max(0, size - tail))
            lines = file.read().rpartition(b"\n")[0].splitlines()
        lines = lines if tail >= size else lines[1:]  # else the first is cut
        for line in reversed(lines):
            with contextlib.suppress(ValueError, RecursionError):  # `read_metrics` reports a damaged line
                record = json.loads(line)
                if isinstance(record, dict) and "loss" in record:  # a validation has its own record
                    return record
        if tail >= size:
            return None
        tail *= 8


class Watch:
    """Reads each step's metrics one step late, so that the device never waits for the host; the first process logs.

    Args:
      folder: the run's.
      model: searched for the layer where a loss became non-finite.
      start_step, train_steps: the run trains from the first to the second.
      log_period: steps that one record covers.
      last_good: the step of the newest checkpoint, or None.
      tasks: {task: its collection}, in the order of the metric `tasks` of a step.
      task_period: steps that one line of tasks.jsonl covers.
      chips: of the mesh.
      full_speed: steps per second at the chips' peak, None if unknown.
      began: the Unix time at which the process started on this run; None: now.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        model: Model,
        start_step: int,
        train_steps: int,
        log_period: int,
        last_good: Callable[[], int | None],
        tasks: Mapping[str, str] | None = None,
        task_period: int = 200,
        chips: int = 1,
        full_speed: float | None = None,
        began: float | None = None,
    ) -> None:
        self._model, self._folder, self._label, self._last_good = model, folder, folder.name, last_good
        self._train_steps, self._log_period = train_steps, log_period
        self._tasks, self._task_period = list(tasks or {}), task_period
        homes = np.array(list((tasks or {}).values()), object)
        self._members = {home: np.flatnonzero(homes == home) for home in dict.fromkeys(homes)}
        self._log = MetricsLog(folder, start_step) if jax.process_index() == 0 else None
        self._console, self._began = Console(highlight=False), (time.monotonic(), start_step)
        self._pending: tuple[int, Any, Any] | None = None
        kept = self._log.unlogged if self._log else {}
        if kept.get("tasks") != self._tasks:  # a fork with other tasks starts new records
            kept = {}
        self._sums: dict[str, float] = kept.get("sums", {})
        self._since = (self._began[0] - kept.get("seconds", 0.0), kept.get("since", start_step))
        self._seconds = collections.defaultdict(float, kept.get("stages", {}))  # since the last record, by stage
        # per task, since the last record and since the last line: loss, tokens, examples; float64 [3, tasks]
        zero = np.zeros((3, len(self._tasks)))
        self._by_task = {name: np.array(kept.get(name, zero)).reshape(zero.shape) for name in ("record", "line")}
        self._waited, self._compared = 0.0, (start_step, 0.0, self._began[0])  # for input; as of the last comparison
        coordination.position.update(step=start_step, stage="start")
        coordination.slowest.clear()
        self._chips, self._full_speed, self._programs, self._cache_hits = chips, full_speed, 0, 0
        self._events: list[tuple[str, str, float]] = []  # stage, JAX's event name, seconds
        self._stage, now = "step", time.time()
        self._on_event = lambda event, **_: self._events.append((self._stage, event, 0.0))
        self._on_duration = lambda event, duration_secs, **_: self._events.append((self._stage, event, duration_secs))
        jax.monitoring.register_event_listener(self._on_event)
        jax.monitoring.register_event_duration_secs_listener(self._on_duration)
        if self._log is not None:
            began = now if began is None else began
            session = {"started": began, "start_seconds": now - began, "processor_seconds": time.process_time()}
            session |= {"hosts": jax.process_count(), "chips": chips}
            self._log.write(start_step, session, "sessions")
            sessions = [*self._log.sessions, session]
            pairs = [
                (a["ended"], b["started"]) for a, b in itertools.pairwise(sessions) if "ended" in a and "started" in b
            ]
            pauses = math.fsum(max(0.0, start - end) for end, start in pairs)  # a run that was done lost nothing
            first = next(each["started"] for each in sessions if "started" in each) + pauses
            self._before = max(0.0, began - first) + session["start_seconds"]  # since the run's first start

    @contextlib.contextmanager
    def during(self, stage: str) -> Iterator[None]:
        """Counts the time of a block towards the stage, except what JAX compiles in it."""
        outer, began = self._stage, time.monotonic()
        self._stage = coordination.position["stage"] = stage
        try:
            yield
        finally:
            took = time.monotonic() - began
            self._seconds[stage] += took
            self._waited += took if stage == "input" else 0.0
            self._stage = coordination.position["stage"] = outer

    def record(self, step: int, metrics: Any, batch: Any, params: Any) -> None:
        """Keeps the metrics of `step` and reads those of the previous step."""
        self.flush(params)
        self._pending = (step, metrics, batch)
        coordination.position["step"] = step
        if jax.process_count() > 1 and step % self._task_period == 0:
            self._compare(step)

    def _compare(self, step: int) -> None:
        """Measures this process's own work since the last time: its waits for input, and a product on its devices."""
        jax.block_until_ready(self._pending)  # otherwise the product would wait for the step
        (then, waited, since), now = self._compared, time.monotonic()
        self._compared, steps = (step, self._waited, now), max(step - then, 1)
        figures = {"seconds": (now - since) / steps, "input": (self._waited - waited) / steps}
        coordination.position.update(figures, product=probe.time_product().seconds, compared=step)

    def flush(self, params: Any, saves: bool = False) -> None:
        """Waits for the kept metrics and reads them; when due, logs and prints a record over the steps since the last:
        means per token, and speeds per second. Raises UserError if a metric is not finite.

        saves: the state will be saved, so what is not yet due is written for a run that resumes from it."""
        if self._pending is None:
            return
        (step, metrics, batch), self._pending = self._pending, None
        values = dict(jax.device_get(metrics))
        by_task = values.pop("tasks", np.zeros((3, 0)))[:3]
        values = {name: float(value) for name, value in values.items()}
        if not np.isfinite(values["loss"] + values["grad_norm"]):
            where = first_nonfinite(self._model, params, batch) or "none on a second pass"
            raise UserError(
                f"{self._label}: the loss of step {step} is {values['loss']}, its gradient's norm {values['grad_norm']}"
                f"; first non-finite layer: {where}; last good checkpoint: step {self._last_good()}"
            )
        if self._log is None:
            return
        self._sums = {name: self._sums.get(name, 0.0) + value for name, value in values.items()}
        for each in self._by_task.values():
            each += by_task
        is_last = step == self._train_steps
        self._write_due(step, is_last)
        if not is_last and saves and (self._sums or self._by_task["line"].any()):
            kept = {name: each.tolist() for name, each in self._by_task.items()} | {"tasks": self._tasks}
            since = {"seconds": time.monotonic() - self._since[0], "since": self._since[1], "stages": self._seconds}
            self._log.write(step, {"sums": self._sums, **since, **kept}, "unlogged")

    def write_validation(self, step: int, values: Mapping[str, Any]) -> None:
        """Logs and prints the record of a validation, unless the step already has one."""
        if self._log is None or step in self._log.validated:
            return
        self._log.write(step, {"validation": values})
        self._log.validated[step] = values["loss"]
        self._console.print(
            f"{self._label}  step {step}/{self._train_steps}  validation loss {values['loss']:.4f}  bits per byte "
            f"{values['bits_per_byte']:.3f}  accuracy {values['accuracy']:.1%}  ({values['seconds']:.1f} s)",
            soft_wrap=True, markup=False,
        )  # fmt: skip

    def validation_losses(self) -> dict[int, float]:
        """{step: loss} of all validations of the run so far; only in the first process."""
        return {} if self._log is None else self._log.validated

    def end(self, step: int) -> None:
        """Logs the last record of a run that ends at `step` before its last one."""
        if self._log is not None and step < self._train_steps:
            self._write_due(step, is_last=True)

    def _write_due(self, step: int, is_last: bool) -> None:
        """Logs what is due after a step: a line of tasks.jsonl, and the means and speeds since the last record, which
        are also printed."""
        assert self._log is not None
        if is_last:
            (self._folder / "unlogged.jsonl").unlink(missing_ok=True)
            self._log.write(step, {"ended": time.time()}, "sessions")
        if self._by_task["line"].any() and (is_last or step % self._task_period == 0):
            rows = self._by_task["line"]
            rows = np.column_stack([rows, [math.fsum(row) for row in rows]])  # the total last
            lines = [{"loss_sum": a, "tokens": int(b), "examples": int(c)} for a, b, c in rows.T.tolist()]
            seen = {task: each for task, each in zip(self._tasks, lines, strict=False) if each["examples"]}
            self._log.write(step, {"total": lines[-1], "tasks": seen}, "tasks")
            self._by_task["line"][:] = 0.0
        if not self._sums or not (is_last or step % self._log_period == 0):
            return
        sums, self._sums = self._sums, {}
        by_task, self._by_task["record"] = self._by_task["record"], np.zeros_like(self._by_task["record"])
        sources: dict[str, dict[str, Any]] = {}
        for name, members in self._members.items():
            loss, count, examples = (math.fsum(row) for row in by_task[:, members])
            sources[name] = {"loss": loss / max(count, 1.0), "tokens": int(count), "examples": int(examples)}
        if sources:
            sums["cross_ent_loss"] = math.fsum(by_task[0])
        now = time.monotonic()
        spent, self._seconds = self._seconds, collections.defaultdict(float)
        elapsed = now - self._since[0]
        steps, seconds = step - self._since[1], max(elapsed - spent["evaluation"], 1e-9)  # speeds are of the steps only
        events, self._events = self._events, []
        for stage, event, took in events:
            self._programs += event == COMPILED
            self._cache_hits += event == CACHE_HIT
            if event in COMPILING:
                spent["compile"] += took
                spent[stage] -= took
        spent["step"] = elapsed - math.fsum(spent[stage] for stage in STAGES if stage != "step")
        self._log.step_seconds += spent["step"]
        tokens = max(sums["tokens"], 1.0)
        record: dict[str, Any] = {
            "loss": sums["loss"] / tokens,
            "cross_ent_loss": sums["cross_ent_loss"] / tokens,
            "z_loss": sums["z_loss"] / tokens,
            "accuracy": sums["correct"] / tokens,
            "grad_norm": sums["grad_norm"] / steps,
            "padding": 1.0 - sums["filled"] / sums["positions"],
            "tokens_per_second": sums["filled"] / seconds,
            "steps_per_second": steps / seconds,
        }
        speeds = {"tokens_per_second_per_chip": record["tokens_per_second"] / self._chips}
        speeds |= {"mfu": record["steps_per_second"] / self._full_speed} if self._full_speed else {}
        peaks = [(each.memory_stats() or {}).get("peak_bytes_in_use", 0) for each in jax.local_devices()]
        whole = self._before + now - self._began[0]
        if self._log.step_seconds <= 1.001 * whole:  # otherwise the clock was set back between two starts
            speeds["goodput"] = min(1.0, self._log.step_seconds / max(whole, 1e-9))
        record["performance"] = {
            **speeds,
            **{f"{stage}_seconds": spent[stage] for stage in STAGES},
            "programs": self._programs,
            "cache_hits": self._cache_hits,
            **({"device_memory_peak": max(peaks)} if any(peaks) else {}),
            "host_memory_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT,
        }
        record |= {"sources": sources} if sources else {}
        record |= {"hosts": dict(coordination.slowest)} if coordination.slowest else {}
        self._log.write(step, record)
        left = (self._train_steps - step) * (now - self._began[0]) / (step - self._began[1])
        line = (
            f"{self._label}  step {step}/{self._train_steps}  loss {record['loss']:.4f}  "
            f"{record['tokens_per_second']:,.0f} tokens/s  "
            + (f"MFU {speeds['mfu']:.1%}  " if "mfu" in speeds else "")
            + f"padding {record['padding']:.1%}  "
            f"{datetime.timedelta(seconds=round(left))} left"
        )
        end = "\r" if self._console.is_terminal and step < self._train_steps else "\n"
        self._console.print(line, end=end, soft_wrap=True, markup=False)
        self._since = (now, step)

    def close(self) -> None:
        """Closes the log."""
        coordination.position.clear()
        jax.monitoring.unregister_event_listener(self._on_event)
        jax.monitoring.unregister_event_duration_listener(self._on_duration)
        if self._log is not None:
            self._log.close()
