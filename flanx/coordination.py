"""Which process of a run is missing, and which one was lost: what JAX's own coordination does not say by name.

JAX's start aborts without a name when a process is missing, and a collective waits for a lost one without end. Here
every process has a connection to process 0, itself included, that stays open: process 0 waits for all at the start, and
tells the others who failed or died. It listens on the coordinator's address alone, one port range above JAX's own, and
believes no connection that a process failed or was lost before it has shown the run's token, which process 0 draws and
leaves in JAX's key-value store (`admit`).
"""

import contextlib
import dataclasses
import json
import os
import queue
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from flanx.errors import UserError

PORT_OFFSET = 1000  # the roll call listens this far above JAX's coordinator
BEAT, SILENCE = 5.0, 30.0  # seconds between signs of life, and without one until a process counts as lost
LONGEST = 65536  # bytes of a message
LOST = 70  # exit status of a process that ends because another one did


@dataclasses.dataclass(frozen=True)
class ProcessId:
    """One process among many: the address of JAX's coordinator (host:port), how many there are, and its number."""

    address: str
    count: int
    process: int

    @property
    def host(self) -> str:
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """Where process 0 listens for the roll call."""
        return int(self.address.rpartition(":")[2]) + PORT_OFFSET


class Connection:
    """A process's connection to process 0. Creating it is the roll call: it returns when all processes are there.

    Raises UserError naming those that are missing after `timeout` seconds.
    """

    def __init__(self, own: ProcessId, timeout: float) -> None:
        self.own = own
        self._timeout = timeout
        self._leaving = False
        self._answers: queue.Queue[str] = queue.Queue()  # of process 0 to the roll call; "": all are there
        self._lock = threading.Lock()
        self._server = _Server(own, timeout) if own.process == 0 else None
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
        """Shows the run's token to process 0, once JAX's key-value store, `store`, connects all processes."""
        if self._server:
            self._server.token = secrets.token_hex(16)
            store.key_value_set("flanx/coordination", self._server.token)
        self._send({"token": store.blocking_key_value_get("flanx/coordination", int(timeout * 1000))})

    def fail(self, reason: str) -> None:
        """Tells every process that this one failed: they would wait for it in a collective without end."""
        if not self._leaving:
            with contextlib.suppress(OSError):
                self._send({"failed": reason})
        self.leave()

    def leave(self) -> None:
        """Ends the connection in order: from here on the others may end, and this process, without being lost."""
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
                self._send({})

    def _read(self) -> None:
        with contextlib.suppress(OSError), self._socket:
            for message in _messages(self._socket):
                if "missing" in message:
                    names = ", ".join(map(str, message["missing"]))
                    late = f"process {names} (of {self.own.count}) did not start within {self._timeout:.0f} s"
                    self._answers.put(names and f"{late}; look at its log, or raise --cluster_timeout")
                elif "taken" in message:
                    self._answers.put(
                        f"process {self.own.process} is there already: give every process its own --process_id"
                    )
                elif "lost" in message:
                    self._end(f"process {message['lost']} ({message['host']}) was lost")
                elif "failed" in message:
                    self._end(f"process {message['process']} failed: {message['failed']}")
        self._end("process 0 was lost")

    def _end(self, reason: str) -> None:
        if not self._leaving:
            print(
                f"flanx: process {self.own.process} ends because {reason}; the same command resumes from the last "
                "checkpoint",
                file=sys.stderr,
                flush=True,
            )
            os._exit(LOST)  # a collective may never return, so only this ends the process for sure


class _Server(threading.Thread):
    """Process 0's side: calls the roll, and tells all who failed or is lost."""

    def __init__(self, own: ProcessId, timeout: float) -> None:
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
                elif "bye" in message:
                    is_leaving = True
        if process is not None:
            with self._lock:
                self._sockets.pop(process, None)
            if is_admitted and not is_leaving:
                self._tell({"lost": process, "host": host})

    def _enter(self, message: Mapping[str, Any], connection: socket.socket) -> tuple[int | None, str]:
        """Enters a process into the roll, once; (its number, its host), None for one that is none or is there."""
        process = message.get("process")
        with self._lock:
            if not isinstance(process, int) or process not in range(self._count) or process in self._sockets:
                connection.sendall(b'{"taken": true}\n')
                return None, ""
            self._sockets[process] = connection
            is_complete = len(self._sockets) == self._count
        if is_complete:
            self._call_roll()
        return process, str(message["host"])[:100]

    def _call_roll(self) -> None:
        """Answers all at once: when the last process is there, or when the time is over."""
        with self._lock:
            if self._called:
                return
            self._called = True
            missing = [i for i in range(self._count) if i not in self._sockets]
        self._tell({"missing": missing})

    def _tell(self, message: Mapping[str, Any], but: int | None = None) -> None:
        with self._lock:
            for connection in [c for number, c in self._sockets.items() if number != but]:
                with contextlib.suppress(OSError):
                    connection.sendall(json.dumps(message).encode() + b"\n")

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT)
            self._tell({})


def _messages(connection: socket.socket) -> Iterator[dict[str, Any]]:
    """JSON lines until the other side closes or has been silent for SILENCE.

    Silence is counted in waits of BEAT and not by the clock: processes that were stopped and continued together receive
    each other's signs of life within the next wait.
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
