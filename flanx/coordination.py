"""Names the process of a run that is missing or was lost, which JAX's own coordination does not.

JAX's initialization aborts without naming the missing process, and a collective waits for a lost one forever. Here
every process, including process 0, keeps a connection to process 0 open: process 0 waits for all at the start, and
tells the others which one failed or died. It listens only on the coordinator's address, one port range above JAX's own,
and believes no report of a failed or lost process from a connection that has not shown the run's token, which process 0
draws and leaves in JAX's key-value store (`admit`).

A heartbeat says where its process is (`position`), so process 0 can tell where all are when none makes progress, and
which host is slow: a step takes equally long on all of them, so hosts compare what each does on its own.
"""

import contextlib
import dataclasses
import json
import os
import queue
import secrets
import socket
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flanx.errors import UserError

PORT_OFFSET = 1000  # the roll call listens this far above JAX's coordinator
BEAT, SILENCE = 5.0, 30.0  # seconds between heartbeats, and without one before a process counts as lost
LONGEST = 65536  # bytes per message
LOST = 70  # exit status of a process that ends because another one did
HUNG = 74  # and of one that would wait forever
HANG_TIMEOUT = 1800.0  # seconds without a step of any process
SLOW = 1.5  # times the median: such a host is named
SHOWN = 8  # processes named in a message

# Where this process is, for process 0: {"step", "stage", of predictions their "batch"}, and the times of what it does
# on its own, {"compared": the step then, "seconds": of a step, "input", "product": seconds}. Training and prediction
# (`count_batch`) update it; heartbeats carry it.
position: dict[str, Any] = {}
ENDED_IN = ("input", "step", "prediction")  # stages in which a step, or a batch, cannot take as long as the patience
# the slowest of the run's processes, {"input" or "product": {"process", "host", "seconds", "median"}}; in process 0
slowest: dict[str, dict[str, Any]] = {}


@dataclasses.dataclass(frozen=True)
class ProcessId:
    """One process among many: JAX's coordinator address (host:port), the number of processes, and its index."""

    address: str
    count: int
    process: int

    @property
    def host(self) -> str:
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port on which process 0 listens for the roll call."""
        return int(self.address.rpartition(":")[2]) + PORT_OFFSET


class Connection:
    """A process's connection to process 0. Creating it is the roll call: it returns once all processes are present.

    Raises UserError naming those missing after `timeout` seconds. If no process has made progress for `patience`
    seconds, each is told where all of them are, and ends if that is a stage in which a step cannot take so long.
    """

    def __init__(self, own: ProcessId, timeout: float, patience: float = HANG_TIMEOUT) -> None:
        self.own = own
        self._timeout = timeout
        self._leaving = False
        self._answers: queue.Queue[str] = queue.Queue()  # of process 0 to the roll call; "": all are present
        self._lock = threading.Lock()
        self._server = _Server(own, timeout, patience) if own.process == 0 else None
        if self._server:
            self._server.start()
        self._socket = self._connect(timeout)
        self._send({"process": own.process, "host": socket.gethostname()})
        threading.Thread(target=self._read, name="flanx-coordination", daemon=True).start()
        threading.Thread(target=self._beat, name="flanx-coordination-beat", daemon=True).start()
        try:
            answer = self._answers.get(timeout=timeout + SILENCE)
        except queue.Empty:
            answer = f"process {own.process}: process 0 at {own.host}:{own.port} did not answer the roll call"
        if answer:
            self._leaving = True
            raise UserError(answer)

    def _connect(self, timeout: float) -> socket.socket:
        limit = time.monotonic() + timeout
        while True:
            try:
                return socket.create_connection((self.own.host, self.own.port), timeout=SILENCE)
            except OSError as error:
                if time.monotonic() > limit:
                    raise UserError(
                        f"process {self.own.process}: process 0 at {self.own.host}:{self.own.port} did not answer "
                        f"within {timeout:.0f} s ({error}); is it running, and is the port open?"
                    ) from error
                time.sleep(0.2)

    def admit(self, store: Any, timeout: float) -> None:
        """Shows the run's token to process 0, once JAX's key-value store `store` connects all processes."""
        if self._server:
            self._server.token = secrets.token_hex(16)
            store.key_value_set("flanx/coordination", self._server.token)
        self._send({"token": store.blocking_key_value_get("flanx/coordination", int(timeout * 1000))})

    def fail(self, reason: str) -> None:
        """Tells every process that this one failed: they would wait for it in a collective forever."""
        if not self._leaving:
            with contextlib.suppress(OSError):
                self._send({"failed": reason})
        self.leave()

    def leave(self) -> None:
        """Closes the connection in order: from now on, all processes may end without counting as lost."""
        self._leaving = True
        with contextlib.suppress(OSError):
            self._send({"bye": True})
            self._socket.shutdown(socket.SHUT_WR)

    def _send(self, message: Mapping[str, Any]) -> None:
        with self._lock:
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def _beat(self) -> None:
        while not self._leaving:
            time.sleep(BEAT)
            with contextlib.suppress(OSError):
                self._send({"at": dict(position)})

    def _read(self) -> None:
        with contextlib.suppress(OSError), self._socket:
            for message in _messages(self._socket):
                if "missing" in message:
                    names = ", ".join(map(str, message["missing"]))
                    late = f"process {names} (of {self.own.count}) did not start within {self._timeout:.0f} s"
                    there = f"there: {message.get('there', '')}"
                    self._answers.put(names and f"{late} ({there}); look at its log, or raise --cluster_timeout")
                elif "taken" in message:
                    self._answers.put(
                        f"process {self.own.process} is there already: give every process its own --process_id"
                    )
                elif "lost" in message:
                    self._end(f"process {message['lost']} ({message['host']}) was lost")
                elif "failed" in message:
                    self._end(f"process {message['process']} failed: {message['failed']}")
                elif "hung" in message and not self._leaving:
                    print(f"flanx: process {self.own.process}: {message['hung']}; here:", file=sys.stderr)
                    traceback.print_stack(sys._current_frames().get(threading.main_thread().ident or 0))
                    if message["ends"]:
                        self._end("none of them makes progress", HUNG)
        self._end("process 0 was lost")

    def _end(self, reason: str, status: int = LOST) -> None:
        if not self._leaving:
            print(
                f"flanx: process {self.own.process} ends because {reason}; the same command resumes from the last "
                "checkpoint",
                file=sys.stderr,
                flush=True,
            )
            os._exit(status)  # a collective may never return, so only this reliably ends the process


class _Server(threading.Thread):
    """Process 0's side: calls the roll, and tells all which process failed or is lost."""

    def __init__(self, own: ProcessId, timeout: float, patience: float) -> None:
        super().__init__(name="flanx-coordination-server", daemon=True)
        try:
            family = socket.getaddrinfo(own.host, own.port, type=socket.SOCK_STREAM)[0][0]
            self._listener = socket.create_server((own.host, own.port), family=family)
        except OSError as error:
            raise UserError(
                f"process 0 cannot listen at {own.host}:{own.port} ({error}): give --coordinator_address an address of "
                "its machine and a port that is free here and 1000 above"
            ) from error
        self._count, self._timeout = own.count, timeout
        self._lock = threading.Lock()
        self._sockets: dict[int, socket.socket] = {}
        self._hosts: dict[int, str] = {}
        self._places: dict[int, dict[str, Any]] = {}
        self._patience, self._still = patience, 0.0  # seconds without a new position, counted in beats
        self._compared: int | None = None
        self._called = False
        self.token = ""  # until `Connection.admit`

    def run(self) -> None:
        """Accepts processes, one thread each."""
        threading.Thread(target=self._beat, daemon=True).start()
        timer = threading.Timer(self._timeout, self._call_roll)
        timer.daemon = True
        timer.start()
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        process, host, is_admitted, is_leaving = None, "", False, False
        with contextlib.suppress(OSError), connection:
            for message in _messages(connection):
                if "host" in message and process is None:
                    process, host = self._enter(message, connection)
                elif "token" in message:
                    is_admitted = bool(self.token) and secrets.compare_digest(str(message["token"]), self.token)
                elif "failed" in message and is_admitted:
                    self._tell({"failed": str(message["failed"]), "process": process}, but=process)
                elif isinstance(message.get("at"), dict) and is_admitted and process is not None:
                    self._place(process, message["at"])
                elif "bye" in message:
                    is_leaving = True
        if process is not None:
            with self._lock:
                self._sockets.pop(process, None)
                self._places.pop(process, None)
            if is_admitted and not is_leaving:
                self._tell({"lost": process, "host": host})

    def _enter(self, message: Mapping[str, Any], connection: socket.socket) -> tuple[int | None, str]:
        """Enters a process into the roll, once; (its index, its host), None for an invalid or already entered one."""
        process = message.get("process")
        with self._lock:
            if not isinstance(process, int) or process not in range(self._count) or process in self._sockets:
                connection.sendall(b'{"taken": true}\n')
                return None, ""
            self._sockets[process], self._hosts[process] = connection, str(message["host"])[:100]
            is_complete = len(self._sockets) == self._count
        if is_complete:
            self._call_roll()
        return process, str(message["host"])[:100]

    def _call_roll(self) -> None:
        """Answers all at once: when the last process has arrived, or when the time is up."""
        with self._lock:
            if self._called:
                return
            self._called = True
            missing = [i for i in range(self._count) if i not in self._sockets]
            there = self._named(list(self._sockets))
        self._tell({"missing": missing, "there": there})

    def _named(self, processes: Sequence[int]) -> str:
        """ "process 0 (h0), 3 (h3)"."""
        names = [f"{i} ({self._hosts.get(i, '?')})" for i in sorted(processes)]
        return f"process {', '.join(names[:SHOWN])}" + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")

    def _place(self, process: int, place: dict[str, Any]) -> None:
        """Records a process's position and, once all have compared themselves at the same step, which one is slow."""
        with self._lock:
            if self._places.get(process) != place:
                self._places[process], self._still = place, 0.0
            steps = {each.get("compared") for each in self._places.values()}
            if len(steps) > 1 or len(self._places) < self._count or steps <= {self._compared, None}:
                return
            (self._compared,) = steps
            for text in compare(self._places, self._hosts):
                print(f"note: {text}", flush=True)

    def _hang(self) -> dict[str, Any]:
        """The message for a run in which no process has made progress: those behind first."""
        at: dict[tuple[int, str, int], list[int]] = {}
        for process, place in self._places.items():
            batch = int(place.get("batch", 0)) if place["stage"] == "prediction" else 0
            at.setdefault((int(place.get("step", 0)), str(place["stage"]), batch), []).append(process)
        order = sorted(at, key=lambda place: (place[0], place[1] != "input", place[2]))
        where = "; ".join(f"{self._named(at[place])}: {_shown(*place)}" for place in order)
        ends = all(stage in ENDED_IN for _, stage, _ in at)
        return {"hung": f"no process has gone on for {self._patience:.0f} s. {where}", "ends": ends}

    def _tell(self, message: Mapping[str, Any], but: int | None = None) -> None:
        with self._lock:
            for connection in [c for number, c in self._sockets.items() if number != but]:
                with contextlib.suppress(OSError):
                    connection.sendall(json.dumps(message).encode() + b"\n")

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT)
            message: dict[str, Any] = {}
            with self._lock:
                if len(self._places) == self._count and all("stage" in place for place in self._places.values()):
                    self._still += BEAT
                    if self._still >= self._patience:
                        message, self._still = self._hang(), 0.0
            self._tell(message)


def count_batch() -> None:
    """Records that this process begins another batch of predictions."""
    position.update(stage="prediction", batch=position.get("batch", 0) + 1)


def _shown(step: int, stage: str, batch: int) -> str:
    of_step = f" of step {step}" if step else ""
    return f"{stage}{of_step}, batch {batch}" if batch else f"{stage}{of_step}"


def compare(places: Mapping[int, Mapping[str, Any]], hosts: Mapping[int, str]) -> list[str]:
    """Which processes are slow at what each does on its own, in words; puts the slowest of all into `slowest`.

    places: {process: see `position`}. A wait for input counts if it is a tenth of a step or more.
    """
    found = []
    for name, what in (("input", "waits for its input"), ("product", "takes for a matrix product")):
        seconds = {process: float(place[name]) for process, place in places.items()}
        worst = max(seconds, key=lambda process: seconds[process])
        median, most = statistics.median(seconds.values()), seconds[worst]
        slowest[name] = {"process": worst, "host": hosts.get(worst, "?"), "seconds": most, "median": median}
        if most > SLOW * median and (name != "input" or most > 0.1 * float(places[worst]["seconds"])):
            found.append(
                f"process {worst} ({hosts.get(worst, '?')}) is slow: it {what} {most:.3g} s, the median of "
                f"{len(places)} processes is {median:.3g} s; all wait for it"
            )
    return found


def _messages(connection: socket.socket) -> Iterator[dict[str, Any]]:
    """JSON lines until the other side closes or is silent for SILENCE.

    Silence is counted in waits of BEAT, not by the clock: processes that were suspended and resumed together receive
    each other's heartbeats within the next wait.
    """
    connection.settimeout(BEAT)
    rest, waits = b"", 0
    while waits < SILENCE / BEAT:
        try:
            data = connection.recv(65536)
        except TimeoutError:
            waits += 1
            continue
        if not data:
            return
        waits = 0
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            try:
                message = json.loads(line)
            except (ValueError, RecursionError):
                return  # not one of ours
            if not isinstance(message, dict):
                return
            yield message
        if len(rest) > LONGEST:
            return
