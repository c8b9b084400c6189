"""Many processes as one run: who is there, whether all run the same, and who was lost.

Every process knows its number from flags, from JAX_COORDINATOR_ADDRESS and its two companions, or from what JAX itself
detects (TPU VM, GKE, SLURM, MPI). Before JAX connects them, all report to process 0 (`flanx.coordination`). The
connections stay open: a process that dies ends the others with its name, and one that is told to stop tells the others
at which step.
"""

import argparse
import contextlib
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import signal
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from flanx.coordination import Cluster, Place
from flanx.errors import Preempted, UserError

JAX_SILENCE = 24 * 3600  # a lost process is noticed on our sockets; JAX would also end one that was only stopped
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


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
        jax.distributed.initialize(
            place.address,
            place.count,
            place.process,
            initialization_timeout=limit,
            heartbeat_timeout_seconds=JAX_SILENCE,
            shutdown_timeout_seconds=60,  # at the end nobody waits long for one that failed
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


def meet(place: str) -> None:
    """Waits until every process of the run has come to `place`; all must come to the same places in the same order."""
    if _joined is not None:
        from jax.experimental import multihost_utils  # not at the top: it takes a device

        multihost_utils.sync_global_devices(place)


@contextlib.contextmanager
def first_alone(place: str) -> Iterator[None]:
    """A block on shared files that the first process is through with before the others begin it."""
    if not is_first():
        meet(place)
    yield
    if is_first():
        meet(place)


def stops(asked: bool, step: int) -> bool:
    """Whether the run stops after `step`: at once for a single process, at one common step for several."""
    return asked if _joined is None else _joined.stops(asked, step)


@contextlib.contextmanager
def on_sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, so that the loop can save and leave; only in the main thread, as signals demand."""
    stopping = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    try:
        yield stopping
    finally:
        signal.signal(signal.SIGTERM, previous)
