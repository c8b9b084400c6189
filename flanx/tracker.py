"""Trackers: a separate process sends the records of a run to Weights & Biases, Trackio or MLflow.

Training itself only writes metrics.jsonl and TensorBoard's events. `following` starts `flanx track` next to it, which
reads that file as it grows, so that a tracker that fails or hangs neither stops nor slows the steps. What was not sent
is sent at the next start, or by `flanx track RUN --to NAME`; steps that a resumed run repeats are not sent twice.

<run>/tracking/NAME.json   {"id": the run's at the tracker, "train", "validation": the last steps sent}
<run>/tracking/NAME.log    the output of the tracker's library
"""

import contextlib
import importlib.util
import json
import os
import pathlib
import re
import secrets
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from flanx import files, run_record
from flanx.errors import UserError, nearest
from flanx.files import write_atomic

FOLDER, PROJECT = "tracking", "flanx"
PERIOD = 2.0  # seconds between polls of metrics.jsonl
PATIENCE = 10.0  # seconds that the end of a run waits for a tracker, which then continues on its own for LONGEST
LONGEST = 600.0
STATE = {"id": str | None, "train": int, "validation": int}


class Tracked(NamedTuple):
    """What a tracker is told about a run: its label, its folder there, what identifies it, and its id if it has one."""

    name: str
    folder: pathlib.Path
    config: Mapping[str, Any]
    id: str | None


class Tracker(Protocol):
    """One run at a tracker; reopened under the same id after a restart.

    Attributes:
      id: of the run.
    """

    id: str

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Writes the numbers of a step; a step may be written more than once, with other names."""
        ...

    def close(self) -> None:
        """Sends what is left."""
        ...


class Wandb:
    """Weights & Biases. WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE=offline and the like have their usual meaning."""

    def __init__(self, run: Tracked) -> None:
        import wandb  # noqa: PLC0415  (of an extra)

        self.id = run.id or secrets.token_hex(4)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=self.id,
            resume="allow",
            config=dict(run.config),
            dir=run.folder,
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("*", step_metric="step")  # its own counter never goes back and counts calls

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._run.log({"step": step, **numbers})

    def close(self) -> None:
        """See `Tracker`."""
        self._run.finish()


class Trackio:
    """Trackio, which identifies runs by name. TRACKIO_DIR, TRACKIO_SPACE_ID and the like have their usual meaning."""

    def __init__(self, run: Tracked) -> None:
        import trackio  # noqa: PLC0415  (of an extra)

        self.id = run.id or f"{run.name}-{secrets.token_hex(4)}"
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        self._run = trackio.init(
            project, name=self.id, config=dict(run.config), resume="allow", embed=False, auto_log_gpu=False
        )

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        """See `Tracker`."""
        self._run.finish()


class Mlflow:
    """MLflow. Its server or folder is MLFLOW_TRACKING_URI, the experiment MLFLOW_EXPERIMENT_NAME."""

    def __init__(self, run: Tracked) -> None:
        from mlflow import MlflowClient, entities  # noqa: PLC0415  (of an extra)

        self._client, self._entities, name = MlflowClient(), entities, os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        self.id = run.id or self._client.create_run(experiment, run_name=run.name).info.run_id
        self._client.update_run(self.id, status="RUNNING")
        if run.id is None:  # MLflow's parameters cannot change
            settings = [entities.Param(key, str(value)[:500]) for key, value in run.config.items()]
            for first in range(0, len(settings), 100):  # the limit per request
                self._client.log_batch(self.id, params=settings[first : first + 100])

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """See `Tracker`."""
        now = int(1000 * time.time())
        metrics = [self._entities.Metric(name, float(value), now, step) for name, value in numbers.items()]
        self._client.log_batch(self.id, metrics=metrics)

    def close(self) -> None:
        """See `Tracker`."""
        self._client.set_terminated(self.id)


TRACKERS: Mapping[str, Callable[[Tracked], Tracker]] = {"wandb": Wandb, "trackio": Trackio, "mlflow": Mlflow}


def expect_known(names: Sequence[str]) -> None:
    """Raises UserError for an unknown tracker, and for one whose package is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"no tracker '{name}'{nearest(name, TRACKERS)} (known: {', '.join(TRACKERS)})")
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:  # a folder of that name, such as W&B creates, is not a package
            raise UserError(f"tracker '{name}' is not installed: pip install 'flanx[{name}]'")


# ---- next to a training ---------------------------------------------------------------------------------------------


def following(run: pathlib.Path, names: Sequence[str]) -> contextlib.AbstractContextManager[None]:
    """Lets trackers follow the run in `run` for the duration of the context; at its end they have PATIENCE to finish.

    Their failures are not errors here: a line says what was not sent. Raises UserError at once for a tracker that is
    unknown or not installed.
    """
    expect_known(names)
    return _following(run, names)


@contextlib.contextmanager
def _following(run: pathlib.Path, names: Sequence[str]) -> Iterator[None]:
    started = {name: process for name in dict.fromkeys(names) if (process := _start(run, name))}
    try:
        yield
    finally:
        for process in started.values():
            with contextlib.suppress(OSError):
                process.stdin.close()  # type: ignore[union-attr]
        limit = time.monotonic() + PATIENCE
        for name, process in started.items():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(0.0, limit - time.monotonic()))
            if process.returncode != 0:
                what = "has not sent all yet" if process.returncode is None else "failed"
                log = files.shown(run / FOLDER / f"{name}.log")
                print(f"{run.name}: {name} {what} ({log}); later: {_later(run, name)}", flush=True)


def _start(run: pathlib.Path, name: str) -> subprocess.Popen | None:
    """A process that follows a run until its standard input closes, which happens however this process ends."""
    try:
        (run / FOLDER).mkdir(parents=True, exist_ok=True)
        with open(run / FOLDER / f"{name}.log", "ab") as log:
            return subprocess.Popen(
                _command(run, name), stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )
    except OSError as error:
        print(f"{run.name}: {name} does not follow ({error}); later: {_later(run, name)}", flush=True)
        return None


def _later(run: pathlib.Path, name: str) -> str:
    return f"flanx track {shlex.quote(files.shown(run))} --to {name}"


def _command(run: pathlib.Path, name: str) -> list[str]:
    return [sys.executable, "-m", "flanx", "track", str(run), "--to", name, "--follow"]


# ---- the process of a tracker ----------------------------------------------------------------------------------------


def send(run: pathlib.Path, name: str, follows: bool = False) -> int:
    """Sends the records of a run that a tracker does not have yet; with `follows`, also new ones until standard input
    closes. Returns how many were sent. One process sends at a time; another that follows waits for it.

    Raises UserError if another process is sending, for a damaged file, for a run that is deleted meanwhile, and for
    anything that the tracker's library rejects.
    """
    tail, is_over = _Tail(run / "metrics.jsonl"), _end_of_input() if follows else threading.Event()
    if not follows:
        is_over.set()
    while not tail.path.exists():
        if is_over.wait(PERIOD) and not tail.path.exists():  # a short run may have begun and ended meanwhile
            return 0
    busy = f"{run}: another process sends its records to {name}, as a training with TRACKERS does; wait for its end"
    with files.lock(run / FOLDER / f"{name}.lock", None if follows else busy):
        return _send(run, name, tail, is_over)


def _send(run: pathlib.Path, name: str, tail: "_Tail", is_over: threading.Event) -> int:
    path, sent, is_last = run / FOLDER / f"{name}.json", 0, False
    state: dict[str, Any] = {"id": None, "train": -1, "validation": -1}
    state |= files.check_types(path, files.read_json(path), STATE)
    record = run_record.read_run(run / "run.json")
    config = {"num_params": record.get("num_params"), **record.get("settings", {})}
    with _explained(run, name):
        tracker = TRACKERS[name](Tracked(run.name, path.parent, config, state["id"]))
    state["id"] = tracker.id
    write_atomic(path, json.dumps(state) + "\n")
    while not is_last and run.is_dir():
        is_last = is_over.wait(PERIOD)  # checked first, so that what the run wrote before its end is still read
        for each in tail.read():
            kind = "validation" if "validation" in each else "train"
            if each["step"] > state[kind]:
                with _explained(run, name):
                    tracker.write(each["step"], _numbers(each))
                state[kind], sent = each["step"], sent + 1
        if run.is_dir():  # else it would be recreated with only this file
            write_atomic(path, json.dumps(state) + "\n", durable=False)
    with _explained(run, name):
        tracker.close()
    if not is_last:
        raise UserError(f"{run} was deleted while its records were sent to {name}")
    return sent


@contextlib.contextmanager
def _explained(run: pathlib.Path, name: str) -> Iterator[None]:
    """Turns anything that a tracker's library raises into a UserError, without the passwords in its URLs."""
    try:
        yield
    except Exception as error:
        text = (str(error).strip().splitlines() or [""])[0]
        said = re.sub(r"://[^/@\s]+@", "://", f"{type(error).__name__}: {text}")[:300]
        raise UserError(
            f"{name} failed ({said}); look at its credentials, its address and the network; then: {_later(run, name)}"
        ) from error


def _end_of_input() -> threading.Event:
    """Set when standard input closes; LONGEST later the process ends, even if the tracker hangs."""
    is_over = threading.Event()

    def wait() -> None:
        sys.stdin.buffer.read()
        is_over.set()
        time.sleep(LONGEST)
        os._exit(1)

    threading.Thread(target=wait, name="flanx-end-of-input", daemon=True).start()
    return is_over


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    from flanx.train_metrics import scalars  # noqa: PLC0415  (jax)

    return scalars({name: value for name, value in record.items() if name != "step"})


class _Tail:
    """The complete lines of a file that grows, or is replaced by a shorter one, as when a run resumes."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path, self._read, self._inode, self._lines = path, 0, 0, 0

    def read(self) -> list[dict[str, Any]]:
        """The records since the last call; all of them if the file was replaced."""
        with contextlib.suppress(FileNotFoundError), files.open_regular(self.path) as file:
            status = os.fstat(file.fileno())
            if status.st_ino != self._inode or status.st_size < self._read:
                self._inode, self._read, self._lines = status.st_ino, 0, 0
            file.seek(self._read)
            text, end, _ = file.read().rpartition(b"\n")
            lines, first = text.split(b"\n") if end else [], self._lines + 1
            self._read, self._lines = self._read + len(text) + len(end), self._lines + len(lines)
            return [run_record.parse(self.path, number, line) for number, line in enumerate(lines, first)]
        return []
