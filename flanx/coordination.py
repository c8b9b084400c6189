"""The sockets that hold a run's processes together: a roll call, a stop for all, the name of who was lost.

Process 0 serves all, itself among them. JAX's own start aborts without a name when a process is missing, and a
collective waits for a lost one for ever; here every process has a connection to process 0 that stays open.
"""

import contextlib
import dataclasses
import json
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from flanx.errors import UserError

PORT_OFFSET = 1000  # the roll call listens this far above JAX's coordinator
BEAT, SILENCE = 5.0, 30.0  # seconds between signs of life, and without one until a process counts as lost
LOST = 70  # exit status of a process that ends because another one did
AHEAD = 2  # steps that a process may take before it must know where all stop: hosts run at most two steps apart


@dataclasses.dataclass(frozen=True)
class Place:
    """One process among many: the address of JAX's coordinator (host:port), how many there are, and its number."""

    address: str
    count: int
    process: int


class Cluster:
    """A process's connection to process 0, which also serves it to itself."""

    def __init__(self, place: Place, timeout: float) -> None:
        self.place, self.timeout = place, timeout
        self._step = 0  # the last one done
        self._hold: int | None = None  # the step at which this process waits to hear where all stop
        self._stop_step: int | None = None
        self._stop_known, self._asked = threading.Event(), False
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._leaving = False
        host, _, port = place.address.rpartition(":")
        port_number = int(port) + PORT_OFFSET
        if place.process == 0:
            _Server(port_number, place.count, timeout).start()
        self._lock, self._steps = threading.Lock(), threading.Lock()
        self._socket = self._connect(host.strip("[]") if place.process else "127.0.0.1", port_number)
        self._send({"process": place.process, "host": socket.gethostname()})
        threading.Thread(target=self._read, name="flanx-cluster", daemon=True).start()
        threading.Thread(target=self._beat, name="flanx-cluster-beat", daemon=True).start()

    def _connect(self, host: str, port: int) -> socket.socket:
        limit = time.monotonic() + self.timeout
        while True:
            try:
                return socket.create_connection((host, port), timeout=SILENCE)
            except OSError as error:
                if time.monotonic() > limit:
                    raise UserError(
                        f"process {self.place.process}: process 0 at {host}:{port} did not answer within "
                        f"{self.timeout:.0f} s ({error}); is it running, and is the port open?"
                    ) from error
                time.sleep(0.2)

    def agree(self, round_name: str, facts: Mapping[str, Any]) -> None:
        """Waits for every process to bring the same facts. Raises UserError naming who is missing or differs."""
        self._send({"round": round_name, "facts": json.loads(json.dumps(dict(facts)))})
        if error := self._answers.get():
            raise UserError(error)

    def _verdict(self, answer: Mapping[str, Any]) -> str | None:
        """What is wrong with a round: who is missing, or which fact differs where."""
        name = answer["round"]
        if missing := ", ".join(map(str, answer["missing"])):
            return (
                f"{name}: no word from process {missing} (of {self.place.count}) within {self.timeout:.0f} s; "
                "look at its log, or raise --cluster_timeout"
            )
        first = answer["facts"]["0"]
        for number, told in sorted(answer["facts"].items(), key=lambda item: int(item[0])):
            for fact, value in told.items():
                if value != first.get(fact):
                    return (
                        f"{name}: '{fact}' differs between hosts: process 0 has {_short(first.get(fact))}, process "
                        f"{number} ({answer['hosts'].get(number, '?')}) has {_short(value)}; give all the same files "
                        "and versions"
                    )
        return None

    def stops(self, asked: bool, step: int) -> bool:
        """Whether all processes stop after `step`, which this one has done; `asked` asks for it.

        All must stop at one step, or those that go on wait for the others in a collective. So whoever is asked makes
        every process name its step, without waiting; each takes at most AHEAD more (another may need them to get on)
        until it hears the common step, AHEAD beyond the farthest.
        """
        with self._steps:
            self._step, hold = step, self._hold
        if asked and not self._asked:
            self._asked = True
            self._send({"stop": "asked"})
        if hold is not None and step >= hold:
            self._stop_known.wait()
        return self._stop_step is not None and step >= self._stop_step

    def _name_step(self) -> None:
        with self._steps:
            if self._hold is not None:  # somebody else has asked before
                return
            at, self._hold = self._step, self._step + AHEAD
        self._send({"at": at})

    def fail(self, reason: str) -> None:
        """Tells every process that this one failed: they would wait for it in a collective for ever."""
        if not self._leaving:
            with contextlib.suppress(OSError):
                self._send({"failed": reason})
        self.leave()

    def leave(self) -> None:
        """Ends the connection in order."""
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
                if "lost" in message:
                    self._end(f"process {message['lost']} ({message['host']}) was lost")
                elif message.get("stop") == "asked":
                    self._name_step()
                elif "stop" in message:
                    self._stop_step = message["stop"]
                    self._stop_known.set()
                elif "failed" in message:
                    self._end(f"process {message['process_failed']} failed: {message['failed']}")
                elif "round" in message:
                    error = self._verdict(message)
                    self._leaving = self._leaving or error is not None  # all hear it and end by themselves
                    self._answers.put(error)
        self._end("process 0 was lost")

    def _end(self, reason: str) -> None:
        if not self._leaving:
            print(
                f"flanx: process {self.place.process} ends because {reason}; the same command goes on from the last "
                "checkpoint",
                file=sys.stderr,
                flush=True,
            )
            os._exit(LOST)  # a collective may never return: no other way out is sure


class _Server(threading.Thread):
    """Process 0's side: gathers rounds, passes on stops, notices who is lost."""

    def __init__(self, port: int, count: int, timeout: float) -> None:
        super().__init__(name="flanx-cluster-server", daemon=True)
        self._listener = socket.create_server(("", port))
        self._count, self._timeout = count, timeout
        self._lock = threading.Lock()
        self._sockets: dict[int, socket.socket] = {}
        self._hosts: dict[int, str] = {}
        self._rounds: dict[str, dict[int, Any]] = {}
        self._at: dict[int, int] = {}  # the step of each process when a stop was asked for

    def run(self) -> None:
        """Accepts processes for ever."""
        threading.Thread(target=self._beat, daemon=True).start()
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        number, said_bye = None, False
        with contextlib.suppress(OSError), connection:
            for message in _messages(connection):
                if "process" in message:
                    number = message["process"]
                    with self._lock:
                        self._sockets[number], self._hosts[number] = connection, message["host"]
                elif "round" in message:
                    self._gather(message["round"], number, message["facts"])
                elif "stop" in message:
                    self._tell(message)
                elif "at" in message:
                    self._stop_beyond(number, message["at"])
                elif "failed" in message:
                    self._tell({"failed": message["failed"], "process_failed": number}, but=number)
                elif "bye" in message:
                    said_bye = True
        with self._lock:
            self._sockets.pop(number, None)
        if number is not None and not said_bye:
            self._tell({"lost": number, "host": self._hosts[number]})

    def _stop_beyond(self, number: int, step: int) -> None:
        """Tells where all stop as soon as every process has named its step."""
        with self._lock:
            self._at[number] = step
            whole = len(self._at) == self._count
        if whole:
            self._tell({"stop": max(self._at.values()) + AHEAD})

    def _gather(self, name: str, number: int, facts: Any) -> None:
        with self._lock:
            arrived = self._rounds.setdefault(name, {})
            if not arrived:
                timer = threading.Timer(self._timeout, self._close, (name,))
                timer.daemon = True
                timer.start()
            arrived[number] = facts
            whole = len(arrived) == self._count
        if whole:
            self._close(name)

    def _close(self, name: str) -> None:
        """Answers a round: with all facts, or after the time limit with who is missing."""
        with self._lock:
            arrived = self._rounds.get(name)
            if arrived is None:
                return
            self._rounds[name] = None if len(arrived) == self._count else arrived
            missing = [i for i in range(self._count) if i not in arrived]
        self._tell({"round": name, "facts": arrived, "hosts": self._hosts, "missing": missing})

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

    Silence is counted in waits of BEAT and not read off the clock: processes that were stopped together and go on
    together hear of each other within the next wait.
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
            yield json.loads(line)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
