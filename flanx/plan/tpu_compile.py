"""One layout of a recipe through the TPU compiler, in a process of its own: `python -m flanx.plan.tpu_compile`.

The compiler comes with the package libtpu and needs no TPU. It must own its process: JAX is told to be on the CPU and
libtpu not to look for the machine's metadata, before either is imported. Request and answer are JSON on stdin and
stdout.
"""

import dataclasses
import importlib.util
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from flanx.errors import UserError

ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # no metadata server outside of Google Cloud
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no chip is opened, so no lock is needed
    "JAX_PLATFORMS": "cpu",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "XLA_FLAGS": "",
}


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the compiler says of a layout, per chip. Bytes, seconds.

    Attributes:
      fits: whether the program fits the chip's memory; if not, `needs` is what it asked for.
      arguments, temporaries: state and batch; all that lives only during the step.
      accessed: the compiler's own count of bytes read and written (a loop's body once).
      collectives: of the program, as `program.Collective` fields.
      seconds, host_bytes: what the compilation itself took.
    """

    fits: bool
    needs: float
    arguments: float
    temporaries: float
    accessed: float
    collectives: list[dict[str, Any]]
    seconds: float
    host_bytes: float


class Broken(UserError):
    """The compiler failed on a layout for a reason of its own; on another it may not."""


def has_compiler() -> bool:
    """Whether the TPU compiler is installed."""
    return importlib.util.find_spec("libtpu") is not None


def ask(request: Mapping[str, Any], timeout: float = 3600.0) -> Answer:
    """Compiles in a process of its own. Raises Broken where the compiler fails.

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
        raise UserError(f"the compiler needed more than {timeout:.0f} s: raise --timeout or try --estimate") from error
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:] or [f"exit status {done.returncode}"]
        raise Broken(f"the compiler failed on {request['layout']}: {last[0][:300]}")
    return Answer(**json.loads(lines[-1]))


def compile_layout(request: Mapping[str, Any]) -> Answer:
    """The work of the process: gin -> step -> program -> figures."""
    import jax
    from jax.experimental import topologies

    from flanx.plan import hardware, hlo, mesh_layout, planned_run

    began = time.monotonic()
    topology = hardware.parse(request["topology"])
    planned = planned_run.read(request["gin_files"], request["bindings"], request["search_paths"])
    if not request["unrolled"]:
        planned = planned.scanned()
    devices = topologies.get_topology_desc(platform="tpu", **options(topology)).devices
    partitioner = mesh_layout.Layout(**request["layout"]).partitioner(devices)
    state, batch = planned.trainer.abstract_state(partitioner), planned.batch(partitioner)
    with partitioner.scope():
        lowered = planned.trainer.jit(state).lower(state, batch)
    arguments = sum(_shard_bytes(leaf) for leaf in jax.tree.leaves((state, batch)))
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if (needs := needed(str(error), arguments)) is None:
            raise
        return _answer(began, False, needs, arguments, needs - arguments, 0.0, [])
    memory = compiled.memory_analysis()
    needs = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    needs += memory.generated_code_size_in_bytes - memory.alias_size_in_bytes
    analysis = compiled.cost_analysis() or {}
    found = hlo.collectives(compiled.as_text(), len(devices), topology.slices)
    arguments = memory.argument_size_in_bytes
    accessed = analysis.get("bytes accessed", 0.0)
    return _answer(began, True, needs, arguments, needs - arguments, accessed, [dataclasses.asdict(c) for c in found])


def needed(refusal: str, arguments: float) -> float | None:
    """The bytes that a program asked for, from the compiler's refusal; None where it is of another kind."""
    for pattern, more in (
        (r"Used ([0-9.]+)([KMGT]) of [0-9.]+[KMGT] hbm", 0.0),
        (r"required for HLO temporaries \(([0-9.]+)([KMGT])\) exceeds available HBM", arguments),
    ):
        if found := re.search(pattern, refusal):
            return float(found[1]) * 2.0 ** {"K": 10, "M": 20, "G": 30, "T": 40}[found[2]] + more
    return None


def _answer(began: float, fits: bool, needs: float, *rest: Any) -> Answer:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    return Answer(fits, needs, *rest, time.monotonic() - began, peak)


def options(topology: Any) -> dict[str, Any]:
    """What `get_topology_desc` takes for a topology: v4 and v5p have two cores per chip that work as one."""
    more = {"num_slices": topology.slices} if topology.slices > 1 else {}
    if topology.chip.family == "v4":
        more["chip_config_name"] = "megacore"
    return {"topology_name": f"{topology.chip.family}:{'x'.join(map(str, topology.shape))}", **more}


def _shard_bytes(leaf: Any) -> float:
    shape = leaf.sharding.shard_shape(leaf.shape)
    size = leaf.dtype.itemsize
    for n in shape:
        size *= n
    return float(size)


if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(compile_layout(json.load(sys.stdin)))))
