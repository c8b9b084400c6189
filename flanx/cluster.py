"""Multi-process runs: all processes present, all with the same configuration.

Every process gets its index from flags, from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or from
JAX's own detection (TPU VM, GKE, SLURM, MPI). Agreement and preemption use JAX (`multihost_utils`); which process is
missing or lost is found by `flanx.coordination`. jax is imported only if there are several processes or the training
loop runs: commands start without it.
"""

import argparse
import contextlib
import hashlib
import json
import os
import pathlib
import platform
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flanx import files
from flanx.coordination import BEAT, HANG_TIMEOUT, SHOWN, Connection, ProcessId
from flanx.errors import Preempted, UserError
from flanx.settings import COUNT, MOST_SECONDS, NATURAL, Range, flag

JAX_SILENCE = 24 * 3600  # seconds; `coordination` detects a lost process, while JAX would also end a suspended one
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
OF_ACCELERATORS = re.compile(r"libtpu.*|jax-cuda.*|nvidia-(cudnn|nccl|cublas)-.*")
OPTIONS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")  # if they differ on one host, the programs differ and a collective hangs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags for processes whose index is not in the environment."""
    parser.add_argument("--coordinator_address", metavar="HOST:PORT", help="address of process 0; all hosts reach it")
    parser.add_argument("--num_processes", type=flag(int, COUNT), metavar="N", help="processes of the run")
    parser.add_argument("--process_id", type=flag(int, NATURAL), metavar="I", help="this process's number, from 0")
    parser.add_argument(
        "--cluster_timeout",
        type=flag(float, Range(1, MOST_SECONDS)),
        default=300.0,
        metavar="SECONDS",
        help="how long to wait for all processes",
    )
    parser.add_argument(
        "--hang_timeout",
        type=flag(float, Range(1, MOST_SECONDS)),
        default=HANG_TIMEOUT,
        metavar="SECONDS",
        help=f"without a step of any process, after which all say where they are and end ({HANG_TIMEOUT:.0f})",
    )


def locate(args: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> ProcessId | None:
    """This process's place in the run: from flags, the environment or JAX's detection. None for a single process."""
    address = args.coordinator_address or environment.get("JAX_COORDINATOR_ADDRESS")
    if not address:
        if args.num_processes is not None or args.process_id is not None:
            raise UserError("--num_processes and --process_id need --coordinator_address=HOST:PORT")
        return _detect()
    count = args.num_processes if args.num_processes is not None else environment.get("JAX_NUM_PROCESSES")
    number = args.process_id if args.process_id is not None else environment.get("JAX_PROCESS_ID")
    number = environment.get("JOB_COMPLETION_INDEX") if number is None else number  # a Kubernetes indexed job
    if count is None or number is None:
        raise UserError(
            f"process 0 is at {address}, but this one's number is not known: add --num_processes and --process_id"
        )
    own = ProcessId(address, int(count), int(number))
    if ":" not in address or not 0 <= own.process < own.count:
        raise UserError(
            f"process {own.process} of {own.count} at '{address}': numbers run from 0, addresses are HOST:PORT"
        )
    return own if own.count > 1 else None


def _detect() -> ProcessId | None:
    """The result of JAX's own detection (Google Cloud TPU, GKE, SLURM, Open MPI)."""
    from jax._src.clusters import ClusterEnv  # noqa: PLC0415  (jax starts late; the detection has no public name)

    address, count, number = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, 300)[:3]
    if not address or number is None or not count or count < 2:
        return None
    return ProcessId(address, count, number)


def versions() -> dict[str, str]:
    """What must be equal on every host: Python, libraries, and flanx's own code."""
    versions = {"python": platform.python_version()}
    import importlib.metadata  # noqa: PLC0415  (20 ms, which a single process does without)

    versions |= {name: importlib.metadata.version(name) for name in PACKAGES}
    others = [(each.metadata["Name"] or "", each.version) for each in importlib.metadata.distributions()]
    found = [f"{name} {version}" for name, version in others if OF_ACCELERATORS.fullmatch(name)]
    versions["libraries of accelerators"] = ", ".join(sorted(set(found))) or "none"
    code, folder = hashlib.sha256(), pathlib.Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        code.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return versions | {"flanx code": code.hexdigest()[:12]}


_connection: Connection | None = None  # of this process, while it is one of several


@contextlib.contextmanager
def joined(args: argparse.Namespace, gin_text: str) -> Iterator[None]:
    """Joins the run's other processes, if any, for the duration of the context.

    All must have the same configuration (the whole gin text), code and versions: UserError otherwise.
    """
    global _connection
    own = locate(args)
    if own is None:
        yield
        return
    import jax  # noqa: PLC0415  (see the module's docstring)
    from jax._src import distributed  # noqa: PLC0415  (the key-value store has no public name)

    connection = Connection(own, args.cluster_timeout, args.hang_timeout)
    try:
        if os.environ.get("JAX_PLATFORMS", "") == "cpu":
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            own.address,
            own.count,
            own.process,
            initialization_timeout=int(args.cluster_timeout),
            heartbeat_timeout_seconds=JAX_SILENCE,
            shutdown_timeout_seconds=60,  # at the end, do not wait long for a process that failed
            coordinator_bind_address=own.address,  # not on every interface, JAX's default
        )
        _connection = connection
        connection.admit(distributed.global_state.client, args.cluster_timeout)
        local = jax.local_devices()
        facts = {"gin files and bindings": _digest(gin_text), "devices": f"{len(local)} x {local[0].device_kind}"}
        agree("the configuration", facts | versions() | {name: os.environ.get(name, "unset") for name in OPTIONS})
        yield
    except (Preempted, _Disagreement):  # raised by every process at the same point
        connection.leave()
        jax.distributed.shutdown()
        raise
    except BaseException as error:
        if isinstance(error, jax.errors.JaxRuntimeError):
            time.sleep(BEAT)  # a collective fails if another process was lost; that message ends this process with LOST
        connection.fail((str(error).splitlines() or [type(error).__name__])[0])
        raise
    finally:
        _connection = None
    connection.leave()
    jax.distributed.shutdown()


class _Disagreement(UserError):
    """Processes differ, and all of them know it."""


def agree(what: str, facts: Mapping[str, Any]) -> None:
    """Raises UserError on all processes if one of them has other facts than process 0."""
    every = gather(facts)
    for name in facts:
        groups: dict[str, list[str]] = {}
        for process, other in enumerate(every):
            groups.setdefault(other.get(name, ""), []).append(f"{process} ({other['host']})" if process else "0")
        if len(groups) > 1:
            parts = [f"process {', '.join(_few(members))} has {_short(value)}" for value, members in groups.items()]
            raise _Disagreement(
                f"{what}: '{name}' differs between hosts: {', '.join(parts)}; give all the same files and versions"
            )


def gather(facts: Mapping[str, Any]) -> list[dict[str, str]]:
    """The facts of every process, in order, as texts and with its "host"; [] for a single process."""
    if _connection is None:
        return []
    import numpy as np  # noqa: PLC0415  (see the module's docstring)
    from jax.experimental import multihost_utils  # noqa: PLC0415

    own = json.dumps({name: str(value) for name, value in facts.items()} | {"host": platform.node()}).encode()
    longest = int(multihost_utils.process_allgather(np.array(len(own))).max())
    padded = np.frombuffer(own.ljust(longest), np.uint8)
    return [json.loads(row.tobytes()) for row in np.asarray(multihost_utils.process_allgather(padded))]


def _few(names: Sequence[str]) -> list[str]:
    return [*names[:SHOWN], *([f"{len(names) - SHOWN} more"] if len(names) > SHOWN else [])]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _short(value: str | None) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def is_first() -> bool:
    """Whether this is the process that writes what only one may write."""
    return _connection is None or _connection.own.process == 0


def place() -> tuple[int, int]:
    """This process's index, and the number of processes."""
    return (0, 1) if _connection is None else (_connection.own.process, _connection.own.count)


def barrier(name: str) -> None:
    """Waits until every process of the run has reached the barrier `name`; all must reach the same ones in order.

    What the first process wrote to a folder in a bucket before the barrier is visible to the others after it."""
    if _connection is not None:
        from jax.experimental import multihost_utils  # noqa: PLC0415  (see the module's docstring)

        for mirror in files.mirrors.values() if is_first() else ():
            mirror.publish()
        multihost_utils.sync_global_devices(name)
        for mirror in () if is_first() else files.mirrors.values():
            mirror.pull(checkpoints=False)


@contextlib.contextmanager
def first_alone(name: str) -> Iterator[None]:
    """A block on shared files that the first process completes before the others enter it."""
    if not is_first():
        barrier(name)
    yield
    if is_first():
        barrier(name)
