"""What a run tells: metrics.jsonl always, TensorBoard beside it, one progress line on the terminal."""

import json
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console

TAIL = 1 << 16  # bytes at the end of a metrics file in which its newest record lies


class MetricsLog:
    """Appends one JSON object per logged step to `folder/metrics.jsonl`, and the numbers to TensorBoard.

    A run that resumes at step k first drops what an earlier process wrote beyond k, so that the file reads as if the
    run had never stopped.
    """

    def __init__(self, folder: str | os.PathLike, resume_step: int = 0) -> None:
        self.path = pathlib.Path(folder) / "metrics.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in _whole_lines(self.path) if json.loads(line)["step"] <= resume_step]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        temporary.replace(self.path)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed in close)
        self._board = TensorBoard(pathlib.Path(folder) / "tensorboard")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One record {"step": step, **values}, flushed."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        self._board.write(step, values)

    def close(self) -> None:
        """Closes both files."""
        self._file.close()
        self._board.close()


def _whole_lines(path: pathlib.Path) -> list[str]:
    """The lines of `path` that ended with a newline; a killed process may leave half of one."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return text[: text.rfind("\n") + 1].splitlines()


def read_metrics(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """The records of a run's metrics.jsonl, in order; empty where there is none."""
    return [json.loads(line) for line in _whole_lines(pathlib.Path(folder) / "metrics.jsonl")]


def last_metrics(folder: str | os.PathLike) -> dict[str, Any] | None:
    """The newest record of a run, read from the end of its metrics.jsonl; None where there is none."""
    path = pathlib.Path(folder) / "metrics.jsonl"
    if not path.exists():
        return None
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        lines = file.read().rpartition(b"\n")[0].splitlines()
    return json.loads(lines[-1]) if lines else None


class TensorBoard:
    """Scalar events in TensorBoard's file format, written without TensorFlow."""

    def __init__(self, folder: pathlib.Path) -> None:
        # imported here: a metric log is also read where nothing is written
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        folder.mkdir(parents=True, exist_ok=True)
        self._file = open(folder / f"events.out.tfevents.{time.time_ns()}.flanx", "wb")  # noqa: SIM115 (closed in close)
        self._writer = RecordWriter(self._file)
        self._writer.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One scalar event per value."""
        scalars = [self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        event = self._event(wall_time=time.time(), step=step, summary=self._summary(value=scalars))
        self._writer.write(event.SerializeToString())
        self._writer.flush()

    def close(self) -> None:
        """Flushes and closes the event file."""
        self._writer.flush()
        self._file.close()


class Progress:
    """A progress line: step, loss, tokens per second, padding share, time left; off a terminal a line per call."""

    def __init__(self, total_steps: int, label: str) -> None:
        self.total, self.label = total_steps, label
        self._console = Console(highlight=False)
        self._began: tuple[float, int] | None = None

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Shows `values` (loss, tokens_per_second, padding) at `step`."""
        now = time.monotonic()
        if self._began is None:
            self._began = (now, step)
        seconds, steps = now - self._began[0], step - self._began[1]
        left = f"{_duration((self.total - step) * seconds / steps)} left" if steps else ""
        line = (
            f"{self.label}  step {step}/{self.total}  loss {values['loss']:.4f}  "
            f"{values['tokens_per_second']:,.0f} tokens/s  padding {values['padding']:.1%}  {left}"
        )
        end = "\r" if self._console.is_terminal and step < self.total else "\n"
        self._console.print(line, end=end, soft_wrap=True)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
