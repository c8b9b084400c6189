"""The metrics of a run: metrics.jsonl always, TensorBoard next to it, one progress line on the terminal."""

import collections
import datetime
import json
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from rich.console import Console

from flanx import files
from flanx.errors import UserError
from flanx.files import write_atomic
from flanx.models import Model, first_nonfinite

TAIL = 1 << 16  # bytes at the end of a metrics file that contain its newest record


class MetricsLog:
    """Appends one JSON object per logged step to `folder/metrics.jsonl`, and the numbers to TensorBoard's event file.

    A run that resumes at step k first drops what an earlier process wrote beyond k, so that the file reads as if the
    run had never stopped.
    """

    def __init__(self, folder: str | os.PathLike, resume_step: int = 0) -> None:
        # TensorBoard's protocol buffers and writer, without TensorFlow; only where a run writes, not where one is read
        from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[attr-defined]  # noqa: PLC0415
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[attr-defined]  # noqa: PLC0415
        from tensorboard.summary.writer.record_writer import RecordWriter  # noqa: PLC0415

        folder = pathlib.Path(folder)
        path, board = folder / "metrics.jsonl", folder / "tensorboard"
        board.mkdir(parents=True, exist_ok=True)
        kept = [record for record in files.read_jsonl(path) if record["step"] <= resume_step]
        write_atomic(path, "".join(map(files.json_line, kept)))
        self._event, self._summary = Event, Summary
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed in close)
        self._events = open(board / f"events.out.tfevents.{time.time_ns()}.flanx", "wb")  # noqa: SIM115
        self._board = RecordWriter(self._events)
        self._board.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One record {"step": step, **values} and one event of as many scalars, flushed."""
        self._file.write(files.json_line({"step": step, **values}))
        self._file.flush()
        scalars = [self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        event = self._event(wall_time=time.time(), step=step, summary=self._summary(value=scalars))
        self._board.write(event.SerializeToString())
        self._board.flush()

    def close(self) -> None:
        """Closes both files."""
        self._file.close()
        self._board.flush()
        self._events.close()


def read_metrics(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """The records of a run's metrics.jsonl, in order; empty where there is no file."""
    return files.read_jsonl(pathlib.Path(folder) / "metrics.jsonl")


def last_metrics(folder: str | os.PathLike) -> dict[str, Any] | None:
    """The newest record of a run, read from the end of its metrics.jsonl; None where there is none."""
    path = pathlib.Path(folder) / "metrics.jsonl"
    if not path.exists():
        return None
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        lines = file.read().rpartition(b"\n")[0].splitlines()
    return json.loads(lines[-1]) if lines else None


class Watch:
    """Reads each step's metrics one step late, so that the device never waits for the host; the first process logs.

    Args:
      folder: the run's.
      model: searched for the layer where a loss became non-finite.
      start_step, train_steps: the run trains from the first to the second.
      log_period: steps that one record covers.
      last_good: the step of the newest checkpoint, or None.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        model: Model,
        start_step: int,
        train_steps: int,
        log_period: int,
        last_good: Callable[[], int | None],
    ) -> None:
        self._model, self._label, self._last_good = model, folder.name, last_good
        self._train_steps, self._log_period = train_steps, log_period
        self._log = MetricsLog(folder, start_step) if jax.process_index() == 0 else None
        self._console, self._began = Console(highlight=False), (time.monotonic(), start_step)
        self._pending: tuple[int, Any, Any] | None = None
        self._sums: collections.Counter[str] = collections.Counter()
        self._since = self._began

    def record(self, step: int, metrics: Any, batch: Any, params: Any) -> None:
        """Keeps the metrics of `step` and reads those of the step before."""
        self.flush(params)
        self._pending = (step, metrics, batch)

    def flush(self, params: Any) -> None:
        """Waits for the kept metrics and reads them; when due, logs and prints a record over the steps since the last:
        means per token, and speeds per second. Raises UserError where a metric is not finite."""
        if self._pending is None:
            return
        (step, metrics, batch), self._pending = self._pending, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not np.isfinite(values["loss"] + values["grad_norm"]):
            where = first_nonfinite(self._model, params, batch) or "none on a second pass"
            raise UserError(
                f"{self._label}: the loss of step {step} is {values['loss']}, its gradient's norm {values['grad_norm']}"
                f"; first non-finite layer: {where}; last good checkpoint: step {self._last_good()}"
            )
        self._sums.update(values)
        if step % self._log_period and step != self._train_steps:
            return
        sums, self._sums = self._sums, collections.Counter()
        if self._log is None:
            return
        now = time.monotonic()
        steps, seconds = step - self._since[1], max(now - self._since[0], 1e-9)
        tokens = max(sums["tokens"], 1.0)
        record = {
            "loss": sums["loss"] / tokens,
            "cross_ent_loss": sums["cross_ent_loss"] / tokens,
            "z_loss": sums["z_loss"] / tokens,
            "accuracy": sums["correct"] / tokens,
            "grad_norm": sums["grad_norm"] / steps,
            "padding": 1.0 - sums["filled"] / sums["positions"],
            "tokens_per_second": sums["filled"] / seconds,
            "steps_per_second": steps / seconds,
        }
        self._log.write(step, record)
        left = (self._train_steps - step) * (now - self._began[0]) / (step - self._began[1])
        line = (
            f"{self._label}  step {step}/{self._train_steps}  loss {record['loss']:.4f}  "
            f"{record['tokens_per_second']:,.0f} tokens/s  padding {record['padding']:.1%}  "
            f"{datetime.timedelta(seconds=round(left))} left"
        )
        end = "\r" if self._console.is_terminal and step < self._train_steps else "\n"
        self._console.print(line, end=end, soft_wrap=True, markup=False)
        self._since = (now, step)

    def close(self) -> None:
        """Closes the log."""
        if self._log is not None:
            self._log.close()
