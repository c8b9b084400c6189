"""Many processes as one run: who is there, whether all run the same, and who was lost.

Every process knows its number from flags, from JAX_COORDINATOR_ADDRESS and its two companions, or from what JAX itself
detects (TPU VM, GKE, SLURM, MPI). Before JAX connects them, all report to process 0 over a plain socket: JAX's own
start aborts without a name when one is missing. The connections stay open: a process that dies ends the others with
its name, and one that is told to stop tells the others at which step.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import queue
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from flanx.errors import Preempted, UserError

PORT_OFFSET = 1000  # the roll call listens this far above JAX's coordinator
BEAT, SILENCE = 5.0, 30.0  # seconds between signs of life, and without one until a process counts as lost
LOST = 70  # exit status of a process that ends because another one did
AHEAD = 4  # steps from a stop's announcement to the stop: hosts run at most two steps apart
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@dataclasses.dataclass(frozen=True)
class Place:
    """One process among many: the address of JAX's coordinator (host:port), how many there are, and its number."""

    address: str
    count: int
    process: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags for processes that nothing else numbers."""
    parser.add_argument("--coordinator_address", metavar="HOST:PORT", help="address of process 0; all hosts reach it")
    parser.add_argument("--num_processes", type=int, metavar="N", help="processes of the run")
    parser.add_argument("--process_id", type=int, metavar="I", help="this process's number, from 0")
    parser.add_argument(
        "--cluster_timeout", type=float, default=300.0, metavar="SECONDS", help="limit of the roll call"
    )


def locate(args: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Place | None:
    """This process's place: from flags, from the environment, or as JAX detects it. None for a single process."""
    address = args.coordinator_address or environment.get("JAX_COORDINATOR_ADDRESS")
    if not address:
        if args.num_processes is not None or args.process_id is not None:
            raise UserError("--num_processes and --process_id need --coordinator_address=HOST:PORT")
        return _detect()
    count = args.num_processes if args.num_processes is not None else environment.get("JAX_NUM_PROCESSES")
    number = args.process_id if args.process_id is not None else environment.get("JAX_PROCESS_ID")
    number = environment.get("JOB_COMPLETION_INDEX") if number is None else number  # an indexed job of Kubernetes
    if count is None or number is None:
        raise UserError(
            f"process 0 is at {address}, but this one's number is not known: add --num_processes and --process_id"
        )
    place = Place(address, int(count), int(number))
    if ":" not in address or not 0 <= place.process < place.count:
        raise UserError(
            f"process {place.process} of {place.count} at '{address}': numbers run from 0, addresses are HOST:PORT"
        )
    return place if place.count > 1 else None


def _detect() -> Place | None:
    """What JAX's own detection finds (Google Cloud TPU, GKE, SLURM, Open MPI)."""
    from jax._src.clusters import ClusterEnv  # the detection alone has no public name

    found = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, 300)
    address, count, number = found[:3]
    return Place(address, count, number) if address and count and count > 1 else None


def versions() -> dict[str, str]:
    """What must be equal on every host: Python, libraries, and flanx's own code."""
    found = {"python": platform.python_version()}
    found |= {name: importlib.metadata.version(name) for name in PACKAGES}
    code, folder = hashlib.sha256(), pathlib.Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        code.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return found | {"flanx code": code.hexdigest()[:12]}


class Cluster:
    """A process's connection to process 0, which also serves it to itself."""

    def __init__(self, place: Place, timeout: float) -> None:
        self.place, self.timeout = place, timeout
        self.stop_step: int | None = None
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._leaving = False
        host, _, port = place.address.rpartition(":")
        port_number = int(port) + PORT_OFFSET
        if place.process == 0:
            _Server(port_number, place.count, timeout).start()
        self._lock = threading.Lock()
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

    def announce_stop(self, step: int) -> None:
        """Tells every process to stop a few steps after `step`."""
        if self.stop_step is None:
            self._send({"stop": step + AHEAD})

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
                elif "stop" in message:
                    self.stop_step = message["stop"]
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

    def run(self) -> None:
        """Accepts processes for ever."""
        threading.Thread(target=self._beat, daemon=True).start()
        while True:
            connection, _ = self._listener.accept()
            connection.settimeout(SILENCE)
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
                    self._tell({"stop": message["stop"]})
                elif "failed" in message:
                    self._tell({"failed": message["failed"], "process_failed": number}, but=number)
                elif "bye" in message:
                    said_bye = True
        with self._lock:
            self._sockets.pop(number, None)
        if number is not None and not said_bye:
            self._tell({"lost": number, "host": self._hosts[number]})

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
    """JSON lines until the other side closes; raises OSError (a timeout) after SILENCE."""
    rest = b""
    while data := connection.recv(65536):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield json.loads(line)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


_joined: Cluster | None = None


@contextlib.contextmanager
def joined(args: argparse.Namespace, recipe: str) -> Iterator[None]:
    """Joins the run's other processes, if there are any, for as long as the context lasts.

    All must run the same recipe (the whole gin text), code and versions. Raises UserError otherwise, before any
    device is touched.
    """
    global _joined
    place = locate(args)
    if place is None:
        yield
        return
    import jax

    cluster = Cluster(place, args.cluster_timeout)
    try:
        cluster.agree("roll call", {"recipe": hashlib.sha256(recipe.encode()).hexdigest()[:12]} | versions())
        if os.environ.get("JAX_PLATFORMS", "") == "cpu":
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
        limit = int(args.cluster_timeout)
        # a lost process is noticed on the sockets; at the end nobody waits long for one that failed
        jax.distributed.initialize(
            place.address, place.count, place.process, initialization_timeout=limit, shutdown_timeout_seconds=60
        )
        _joined = cluster
        yield
    except Preempted:  # all stop at the same step
        cluster.leave()
        raise
    except BaseException as error:
        cluster.fail((str(error).splitlines() or [type(error).__name__])[0])
        raise
    finally:
        _joined = None
    cluster.leave()
    jax.distributed.shutdown()


def agree(round_name: str, facts: Mapping[str, Any]) -> None:
    """Waits until every process of the run has brought the same facts; nothing to do for a single process."""
    if _joined is not None:
        _joined.agree(round_name, facts)


def is_first() -> bool:
    """Whether this process writes what only one may write."""
    return _joined is None or _joined.place.process == 0


def stops(asked: bool, step: int) -> bool:
    """Whether the run stops after `step`: at once for a single process, at one common step for several."""
    if _joined is None:
        return asked
    if asked:
        _joined.announce_stop(step)
    return _joined.stop_step is not None and step >= _joined.stop_step
