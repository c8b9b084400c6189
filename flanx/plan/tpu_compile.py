"""Compiles one mesh layout of a run for TPU in a separate process: `python -m flanx.plan.tpu_compile`.

The compiler comes with the libtpu package and needs no TPU. It needs its own process, whose environment (ENVIRONMENT)
keeps JAX on the CPU and libtpu from querying the machine's metadata. Request and report are JSON on stdin and stdout.
"""

import dataclasses
import importlib.util
import json
import math
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
from jax.experimental import topologies

from flanx.errors import UserError
from flanx.plan import hardware, hlo, mesh_layout, planned_run

ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # no metadata server outside Google Cloud
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no chip is opened, so no lock is needed
    "JAX_PLATFORMS": "cpu",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "XLA_FLAGS": "",
}


@dataclasses.dataclass(frozen=True)
class CompilerReport:
    """What the compiler reports for a layout, per chip. Bytes, seconds.

    Attributes:
      fits: whether the program fits the chip's memory; if not, `needs` is what it requested.
      arguments, temporaries: state and batch; everything that lives only during the step.
      accessed: the compiler's own count of bytes read and written (a loop's body counts once).
      collectives: of the program, as the fields of `hlo.Collective`.
      seconds, host_bytes: used by the compilation itself.
    """

    fits: bool
    needs: float
    arguments: float
    temporaries: float
    accessed: float
    collectives: list[dict[str, Any]]
    seconds: float
    host_bytes: float


class CompilerError(UserError):
    """The compiler failed on this layout; another layout may compile."""


def has_compiler() -> bool:
    """Whether the TPU compiler is installed."""
    return importlib.util.find_spec("libtpu") is not None


def compile_in_child(request: Mapping[str, Any], timeout: float = 3600.0) -> CompilerReport:
    """Compiles in a child process. Raises CompilerError if the compiler fails.

    request: gin_files, bindings, search_paths, topology, layout, unrolled.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", "flanx.plan.tpu_compile"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=timeout,
            env=os.environ | ENVIRONMENT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"the compiler took more than {timeout:.0f} s: raise --timeout or use --estimate") from error
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        last_line = [line for line in done.stderr.splitlines() if line.strip()][-1:] or [
            f"exit status {done.returncode}"
        ]
        raise CompilerError(f"the compiler failed on {request['layout']}: {last_line[0][:300]}")
    return CompilerReport(**json.loads(lines[-1]))


def compile_layout(request: Mapping[str, Any]) -> CompilerReport:
    """The work of the child process: gin -> step -> program -> figures."""
    began = time.monotonic()
    topology = hardware.parse(request["topology"])
    planned = planned_run.read(request["gin_files"], request["bindings"], request["search_paths"])
    if not request["unrolled"]:
        planned = planned.scanned()
    devices = topologies.get_topology_desc(platform="tpu", **options(topology)).devices
    partitioner = mesh_layout.MeshLayout(**request["layout"]).partitioner(devices)
    state, batch = planned.trainer.abstract_state(partitioner), planned.batch(partitioner)
    with partitioner.scope():
        lowered = planned.trainer.jit(state).lower(state, batch)
    arguments = sum(_shard_bytes(leaf) for leaf in jax.tree.leaves((state, batch)))
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if (needs := requested_bytes(str(error), arguments)) is None:
            raise
        return _report(began, False, needs, arguments, 0.0, [])
    memory = compiled.memory_analysis()
    assert memory is not None  # the TPU compiler always has one
    needs = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    needs += memory.generated_code_size_in_bytes - memory.alias_size_in_bytes
    analysis = compiled.cost_analysis() or {}
    found = hlo.collectives(compiled.as_text() or "", len(devices), topology.slices)
    arguments = memory.argument_size_in_bytes
    accessed = analysis.get("bytes accessed", 0.0)
    return _report(began, True, needs, arguments, accessed, [dataclasses.asdict(c) for c in found])


def requested_bytes(message: str, arguments: float) -> float | None:
    """The bytes that a program needs, from the compiler's out-of-memory message; None for any other message."""
    for pattern, more in (
        (r"Used ([0-9.]+)([KMGT]) of [0-9.]+[KMGT] hbm", 0.0),
        (r"required for HLO temporaries \(([0-9.]+)([KMGT])\) exceeds available HBM", arguments),
    ):
        if found := re.search(pattern, message):
            return float(found[1]) * 2.0 ** {"K": 10, "M": 20, "G": 30, "T": 40}[found[2]] + more
    return None


def _report(
    began: float, fits: bool, needs: float, arguments: float, accessed: float, collectives: list[dict[str, Any]]
) -> CompilerReport:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    return CompilerReport(
        fits, needs, arguments, needs - arguments, accessed, collectives, time.monotonic() - began, peak
    )


def options(topology: hardware.Topology) -> dict[str, Any]:
    """Arguments of `get_topology_desc` for a topology: v4 and v5p have two cores per chip that act as one."""
    more: dict[str, Any] = {"num_slices": topology.slices} if topology.slices > 1 else {}
    if topology.chip.family == "v4":
        more["chip_config_name"] = "megacore"
    return {"topology_name": f"{topology.chip.family}:{'x'.join(map(str, topology.shape))}", **more}


def _shard_bytes(leaf: Any) -> float:
    return float(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize)


if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(compile_layout(json.load(sys.stdin)))))
