"""Worker processes of a store build: `python -m flanx.data.store.build_worker`, jobs and replies as JSON lines.

A worker is a separate program, not a fork: TensorFlow does not survive forks, a worker that runs out of memory fails
one task rather than the build, and no worker outlives the build, however that ends.
"""

import contextlib
import dataclasses
import gc
import json
import logging
import os
import queue
import resource
import subprocess
import sys
import tempfile
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

from flanx.data.store.build_job import Job, run
from flanx.errors import UserError

_log = logging.getLogger("flanx")  # bad rows are reported there
LARGEST = 2 << 30  # bytes of memory above which a worker is replaced between jobs: TensorFlow never frees graphs
CONTAINERS = 100_000  # gc threshold; rendering creates no cycles, and Python's default of 700 costs a fifth of its time


class Warnings(logging.Handler):
    """Gives each warning's text to `write` once: a task's rows are read for each of its styles and shards."""

    def __init__(self, write: Callable[[str], object]) -> None:
        super().__init__(logging.WARNING)
        self._write, self._written = write, set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        if (text := record.getMessage()) not in self._written:
            self._written.add(text)
            self._write(text)


@contextlib.contextmanager
def warnings_to(write: Callable[[str], object]) -> Iterator[None]:
    """Gives the warnings of flanx to `write` alone, each once."""
    handler, propagate = Warnings(write), _log.propagate
    _log.addHandler(handler)
    _log.propagate = False
    try:
        yield
    finally:
        _log.removeHandler(handler)
        _log.propagate = propagate


@dataclasses.dataclass
class Outcome:
    """The result of a job: its shard's metadata, or why it failed, in one line and in detail."""

    job: Job
    metadata: dict[str, Any] | None = None
    reason: str = ""
    details: str = ""


def run_here(job: Job, report: Callable[[int], None]) -> Outcome:
    """Runs a job in this process."""
    try:
        return Outcome(job, run(job, report))
    except UserError as error:
        return Outcome(job, reason=str(error))
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return Outcome(job, reason=f"{type(error).__name__}: {lines[0][:300]}", details=traceback.format_exc())


class _Worker:
    """One process and its current job; a thread puts the process's replies into `replies`, and None when it ends."""

    def __init__(self, job: Job, replies: "queue.Queue[tuple[_Worker, dict[str, Any] | None]]") -> None:
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the process)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flanx.data.store.build_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert self.process.stdin is not None and self.process.stdout is not None  # both are pipes
        self._jobs, self._output = self.process.stdin, self.process.stdout
        self._listener = threading.Thread(target=self._listen, args=(replies,), daemon=True)
        self._listener.start()
        self.give(job)

    def _listen(self, replies: "queue.Queue[tuple[_Worker, dict[str, Any] | None]]") -> None:
        for line in self._output:
            if line.endswith(b"\n"):
                replies.put((self, json.loads(line)))
        replies.put((self, None))

    def give(self, job: Job) -> None:
        self.job = job
        with contextlib.suppress(BrokenPipeError):  # the process died: the end of its replies fails the job
            self._jobs.write(job.to_json().encode() + b"\n")
            self._jobs.flush()

    def end(self) -> None:
        self.process.kill()
        self._listener.join()
        self.process.wait()
        for stream in (self._jobs, self._output, self._log):
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    def log_tail(self) -> str:
        self._log.seek(0)
        return self._log.read()[-4000:].decode(errors="replace")


def run_in_processes(jobs: Iterable[Job], workers: int, report: Callable[[Job, int], None]) -> Iterator[Outcome]:
    """Runs jobs in `workers` processes; yields outcomes as they arrive. Ends every process it started.

    A process that has used more than LARGEST bytes is replaced before its next job.
    """
    waiting = deque(jobs)
    replies: queue.Queue[tuple[_Worker, dict[str, Any] | None]] = queue.Queue()
    busy: set[_Worker] = set()
    try:
        for _ in range(min(workers, len(waiting))):
            busy.add(_Worker(waiting.popleft(), replies))
        while busy:
            worker, reply = replies.get()
            if worker not in busy:
                continue  # a process that was ended here
            if reply is not None and "count" in reply:
                report(worker.job, reply["count"])
                continue
            if reply is not None and "warning" in reply:
                _log.warning("%s", reply["warning"])
                continue
            if reply is None:
                yield Outcome(worker.job, reason=_exit_reason(worker.process.wait()), details=worker.log_tail())
            else:
                yield Outcome(worker.job, reply["metadata"], reply["reason"], reply["details"])
            if waiting and reply is not None and reply["bytes"] <= LARGEST:
                worker.give(waiting.popleft())
                continue
            busy.remove(worker)
            worker.end()
            if waiting:
                busy.add(_Worker(waiting.popleft(), replies))
    finally:
        for worker in busy:
            worker.end()


def _exit_reason(status: int) -> str:
    if status == -9:
        return "its process was killed (signal 9), as happens when memory runs out"
    return f"its process ended with {'signal' if status < 0 else 'status'} {abs(status)}"


def quiet_tensorflow() -> None:
    """Configures a worker process before it imports TensorFlow: no accelerator and no banners."""
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")


def main() -> None:
    """The main loop of a worker process: a job in, counts and an outcome out, until standard input ends."""
    quiet_tensorflow()
    gc.set_threshold(CONTAINERS)
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # anything printed goes to the log
    _log.addHandler(Warnings(lambda text: print(json.dumps({"warning": text}), file=replies)))
    jobs: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            jobs.put(line)
        os._exit(0)  # the build has ended somehow: exit at once

    threading.Thread(target=listen, daemon=True).start()
    while True:
        outcome = run_here(Job.from_json(jobs.get()), lambda n: print(json.dumps({"count": n}), file=replies))
        fields = {"metadata": outcome.metadata, "reason": outcome.reason, "details": outcome.details}
        print(json.dumps(fields | {"bytes": _peak_memory()}), file=replies)


def _peak_memory() -> int:
    """Peak resident memory of this process in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    main()
