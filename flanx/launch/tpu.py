"""What Google's and SkyPilot's services call the chips of `flanx.plan.hardware`."""

import dataclasses
from collections.abc import Mapping

from flanx.errors import UserError
from flanx.plan.hardware import SHAPES, Topology


@dataclasses.dataclass(frozen=True)
class ChipNames:
    """Names of one kind of TPU chip.

    Attributes:
      accelerator: the first part of its accelerator type, "v5litepod" in v5litepod-16.
      cores: per chip, if the number in the type counts cores (v4, v5p); 1 if it counts chips.
      node: the label of GKE's nodes, cloud.google.com/gke-tpu-accelerator.
      runtime: software version of a TPU VM (cloud.google.com/tpu/docs/runtimes).
    """

    accelerator: str
    cores: int
    node: str
    runtime: str


# accelerator types and nodes: xpk 1.16.0, core/system_characteristics.py; cloud.google.com/tpu/docs/v4, v5e, v5p, v6e
TPUS: Mapping[str, ChipNames] = {
    "v4": ChipNames("v4", 2, "tpu-v4-podslice", "tpu-ubuntu2204-base"),
    "v5e": ChipNames("v5litepod", 1, "tpu-v5-lite-podslice", "v2-alpha-tpuv5-lite"),
    "v5p": ChipNames("v5p", 2, "tpu-v5p-slice", "v2-alpha-tpuv5"),
    "v6e": ChipNames("v6e", 1, "tpu-v6e-slice", "v2-alpha-tpuv6e"),
}


def names(topology: Topology | None) -> ChipNames:
    """The names of a topology's chip. Raises UserError if there is no topology or it is not a TPU's."""
    if topology is None:
        raise UserError("no --topology: give the slice, as --topology=v5e:4x4 (`flanx plan` finds one that fits)")
    if topology.chip.family not in TPUS:
        raise UserError(f"{topology.name} is not a TPU: launch it with slurm or skypilot")
    return TPUS[topology.chip.family]


def accelerator_type(topology: Topology | None) -> str:
    """The accelerator type of one slice, e.g. v5litepod-16. Raises UserError for a shape that no type expresses."""
    found = names(topology)
    assert topology
    if shape(topology) not in SHAPES[topology.chip.family]:
        few = ", ".join(f"{topology.chip.family}:{each}" for each in list(SHAPES[topology.chip.family])[-3:])
        raise UserError(f"an accelerator type does not say the shape {topology.name}: take one as {few}, or xpk")
    return f"{found.accelerator}-{topology.chips // topology.slices * found.cores}"


def shape(topology: Topology) -> str:
    """The shape of one slice, e.g. 4x4."""
    return "x".join(map(str, topology.shape))
