"""Worker processes of a store build: `python -m flanx.data.store.build_worker`, jobs and answers as JSON lines.

A worker is a program of its own, not a fork: TensorFlow does not survive forks, a worker that runs out of memory takes
one task with it and not the build, and none outlives the build, however that ends.
"""

import contextlib
import dataclasses
import json
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

from flanx.data.store.build_job import Job, quiet_tensorflow, run
from flanx.errors import UserError

LARGEST = 2 << 30  # bytes of memory after which a worker is replaced between two jobs: TensorFlow keeps every graph


@dataclasses.dataclass
class Outcome:
    """What became of a job: its facts, or one line and the details of why it failed."""

    job: Job
    facts: dict[str, Any] | None = None
    reason: str = ""
    details: str = ""


def run_here(job: Job, tell: Callable[[int], None]) -> Outcome:
    """Runs a job in this process."""
    try:
        return Outcome(job, run(job, tell))
    except UserError as error:
        return Outcome(job, reason=str(error))
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return Outcome(job, reason=f"{type(error).__name__}: {lines[0][:300]}", details=traceback.format_exc())


class _Worker:
    """One process and the job that it has; a thread of ours puts its answers into `answers`, at the end None."""

    def __init__(self, answers: "queue.Queue[tuple[_Worker, dict[str, Any] | None]]") -> None:
        self.job: Job | None = None
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the process)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flanx.data.store.build_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self._listener = threading.Thread(target=self._listen, args=(answers,), daemon=True)
        self._listener.start()

    def _listen(self, answers: "queue.Queue[tuple[_Worker, dict[str, Any] | None]]") -> None:
        for line in self.process.stdout:
            if line.endswith(b"\n"):
                answers.put((self, json.loads(line)))
        answers.put((self, None))

    def give(self, job: Job) -> None:
        self.job = job
        with contextlib.suppress(BrokenPipeError):  # it died: its answers end, and the job is found lost
            self.process.stdin.write(job.to_json().encode() + b"\n")
            self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self._listener.join()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self._log):
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    def last_words(self) -> str:
        self._log.seek(0)
        return self._log.read()[-4000:].decode(errors="replace")


def run_in_processes(jobs: Iterable[Job], workers: int, tell: Callable[[Job, int], None]) -> Iterator[Outcome]:
    """Runs jobs in `workers` processes; yields outcomes as they come. Ends every process it started."""
    waiting = deque(jobs)
    answers: queue.Queue[tuple[_Worker, dict[str, Any] | None]] = queue.Queue()
    busy: set[_Worker] = set()

    def start() -> None:
        worker = _Worker(answers)
        busy.add(worker)
        worker.give(waiting.popleft())

    try:
        for _ in range(min(workers, len(waiting))):
            start()
        while busy:
            worker, message = answers.get()
            if worker not in busy:
                continue  # the end of one that we ended
            if message is not None and "count" in message:
                tell(worker.job, message["count"])
                continue
            if message is None:
                reason = _death(worker.process.wait())
                yield Outcome(worker.job, reason=reason, details=worker.last_words())
            else:
                yield Outcome(worker.job, message["facts"], message["reason"], message["details"])
            if waiting and message is not None and message["bytes"] <= LARGEST:
                worker.give(waiting.popleft())
                continue
            busy.remove(worker)
            worker.end()
            if waiting:
                start()
    finally:
        for worker in busy:
            worker.end()


def _death(status: int) -> str:
    if status == -9:
        return "its process was killed (signal 9), as happens when memory runs out"
    return f"its process ended with {'signal' if status < 0 else 'status'} {abs(status)}"


def main() -> None:
    """The loop of a worker process: a job in, counts and an outcome out, until standard input ends."""
    quiet_tensorflow()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever prints, prints into the log
    jobs: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            jobs.put(line)
        os._exit(0)  # the build is over, or dead: so is this process, at once

    threading.Thread(target=listen, daemon=True).start()
    while True:
        outcome = run_here(Job.from_json(jobs.get()), lambda n: print(json.dumps({"count": n}), file=answers))
        fields = {"facts": outcome.facts, "reason": outcome.reason, "details": outcome.details, "bytes": _resident()}
        print(json.dumps(fields), file=answers)


def _resident() -> int:
    """Peak memory of this process in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    main()
