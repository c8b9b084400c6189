"""Published figures of chips, the shapes of their slices, and the names of both."""

import dataclasses
import math
import re
from collections.abc import Sequence

from flanx.errors import UserError, nearest

GB, GIB = 1e9, 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of chip.

    Attributes:
      family: its name in a topology, e.g. "v4" in "v4:4x4x4".
      flops: dense bfloat16 FLOP/s.
      hbm_bytes: available to a program; for a TPU, what the compiler leaves of the published size.
      hbm_bandwidth: bytes/s.
      link_bandwidth: bytes/s of one link, one direction; a TPU has two links per axis of its torus.
      network_bandwidth: bytes/s per chip between slices (TPU) or between nodes (GPU).
      axes: dimensions of the torus; 0 for a GPU, whose link reaches every other GPU in its node.
      max_chips: chips in the largest slice; for a GPU, GPUs per node.
      per_host: chips per host of a multi-host slice; alone: chips of the largest single-host slice
        (cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus: machines -4t of slices, -8t alone).
      source: where the figures are published.
    """

    family: str
    flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    axes: int
    max_chips: int
    per_host: int
    alone: int
    source: str

    @property
    def is_tpu(self) -> bool:
        """Whether the TPU compiler can compile for it."""
        return self.axes > 0


# Link bandwidths are the chip's published figure divided by its links (6 on a 3-D torus, 4 on a 2-D one).
# A TPU program gets slightly less than the published memory, as its compiler reports: v4 30.75 of 32 GiB and so on.
CHIPS: dict[str, Chip] = {
    chip.family: chip
    for chip in (
        Chip(
            *("v4", 275e12, 30.75 * GIB, 1200 * GB, 2400e9 / 8 / 6, 50e9 / 8, 3, 4096, 4, 4),
            "cloud.google.com/tpu/docs/v4: 275 TFLOP/s, 32 GiB, 1,200 GB/s, 2,400 Gbit/s; network as v5p",
        ),
        Chip(
            *("v5e", 197e12, 15.75 * GIB, 800 * GB, 1600e9 / 8 / 4, 6.4e12 / 8 / 256, 2, 256, 4, 8),
            "cloud.google.com/tpu/docs/v6e (its column v5e): 197 TFLOP/s, 16 GB, 800 GB/s, 1,600 Gbit/s, "
            "network 6.4 Tbit/s for 256",
        ),
        Chip(
            *("v5p", 459e12, 95 * GB, 2765 * GB, 1200e9 / 2 / 6, 50e9 / 8, 3, 6144, 4, 4),
            "cloud.google.com/tpu/docs/v5p: 459 TFLOP/s, 95 GB, 2,765 GB/s, 1,200 GB/s both directions, "
            "network 50 Gbit/s",
        ),
        Chip(
            *("v6e", 918e12, 31.25 * GIB, 1600 * GB, 3200e9 / 8 / 4, 25.6e12 / 8 / 256, 2, 256, 4, 8),
            "cloud.google.com/tpu/docs/v6e: 918 TFLOP/s, 32 GB, 1,600 GB/s, 3,200 Gbit/s, network 25.6 Tbit/s for 256",
        ),
        Chip(
            *("a100-40", 312e12, 40 * GB, 1555 * GB, 300 * GB, 25 * GB, 0, 8, 8, 8),
            "NVIDIA A100 data sheet: 312 TFLOP/s, 40 GB, 1,555 GB/s, NVLink 600 GB/s both directions; DGX 200 Gbit/s",
        ),
        Chip(
            *("a100", 312e12, 80 * GB, 2039 * GB, 300 * GB, 25 * GB, 0, 8, 8, 8),
            "NVIDIA A100 data sheet: 312 TFLOP/s, 80 GB, 2,039 GB/s, NVLink 600 GB/s both directions; DGX 200 Gbit/s",
        ),
        Chip(
            *("h100", 989e12, 80 * GB, 3350 * GB, 450 * GB, 50 * GB, 0, 8, 8, 8),
            "NVIDIA H100 SXM data sheet: 989 TFLOP/s dense, 80 GB, 3.35 TB/s, NVLink 900 GB/s both; DGX 400 Gbit/s",
        ),
        Chip(
            *("h200", 989e12, 141 * GB, 4800 * GB, 450 * GB, 50 * GB, 0, 8, 8, 8),
            "NVIDIA H200 data sheet: 989 TFLOP/s dense, 141 GB, 4.8 TB/s, NVLink 900 GB/s both; DGX 400 Gbit/s",
        ),
        Chip(
            *("b200", 2250e12, 180 * GB, 7700 * GB, 900 * GB, 50 * GB, 0, 8, 8, 8),
            "NVIDIA DGX B200 data sheet: 18 PFLOP/s dense for 8, 1,440 GB, 62 TB/s, NVLink 14.4 TB/s both; 400 Gbit/s",
        ),
    )
}

# jax's device_kind -> the chip. Variants with a different peak (H100 PCIe and NVL, H200 NVL) are left out.
KINDS: dict[str, Chip] = {
    kind: CHIPS[family]
    for family, kinds in {
        "v4": ("TPU v4",),
        "v5e": ("TPU v5 lite", "TPU v5e"),
        "v5p": ("TPU v5", "TPU v5p"),
        "v6e": ("TPU v6 lite", "TPU v6e"),
        "a100-40": ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"),
        "a100": ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"),
        "h100": ("NVIDIA H100 80GB HBM3",),
        "h200": ("NVIDIA H200",),
        "b200": ("NVIDIA B200",),
    }.items()
    for kind in kinds
}

# Slices in ascending size, as listed in the documents above; larger ones continue the pattern.
_SHAPES_3D = "1x1x1 2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16"
SHAPES: dict[str, Sequence[str]] = {
    "v4": _SHAPES_3D.split()[1:],
    "v5p": _SHAPES_3D.split()[1:-1],
    "v5e": ["1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"],
    "v6e": ["1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"],
}
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclasses.dataclass(frozen=True)
class Topology:
    """The chips of a run: `slices` slices of one shape, or a number of GPUs.

    Attributes:
      chip: their kind.
      shape: chips per axis of one slice; (n,) for n GPUs.
      slices: slices joined by the data-centre network.
    """

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chips(self) -> int:
        """Total chips."""
        return self.slices * math.prod(self.shape)

    @property
    def chips_per_host(self) -> int:
        """Chips per host."""
        per_slice = math.prod(self.shape)
        return per_slice if per_slice <= self.chip.alone else self.chip.per_host

    @property
    def hosts_per_slice(self) -> int:
        """Hosts per slice, each of which runs one process; a partly used host counts."""
        return -(-math.prod(self.shape) // self.chips_per_host)

    @property
    def hosts(self) -> int:
        """Total hosts."""
        return self.slices * self.hosts_per_slice

    @property
    def name(self) -> str:
        """ "v4:4x4x4", "2x v4:4x4x4", "h100:16"."""
        return (f"{self.slices}x " if self.slices > 1 else "") + f"{self.chip.family}:{'x'.join(map(str, self.shape))}"


def parse(text: str) -> Topology:
    """The topology of "v4:4x4x4", "v5e:16x16" ,"2x v4:8x8x8" (two slices) or "h100:16". Raises UserError."""
    found = re.fullmatch(r"(?:([1-9]\d*)\s*x\s*)?([a-z][a-z0-9-]*):(\d+(?:x\d+)*)", text.strip())
    if not found:
        raise UserError(
            f"--topology={text}: write FAMILY:SHAPE, as v4:4x4x4, 2x v5e:16x16 (two slices), h100:8, or auto"
        )
    slices, family, shape = int(found[1] or 1), found[2], tuple(int(n) for n in found[3].split("x"))
    chip = known_chip(family)
    topology = Topology(chip, shape, slices)
    if chip.is_tpu:
        _check_shape(topology)
    elif len(shape) != 1 or not shape[0] or slices > 1:
        raise UserError(f"--topology={text}: GPUs are counted, as {family}:16")
    return topology


def known_chip(family: str) -> Chip:
    """The chip of a family, by name. Raises UserError with the nearest and all known names."""
    if family not in CHIPS:
        raise UserError(f"no chip '{family}'{nearest(family, CHIPS)} (known: {', '.join(CHIPS)})")
    return CHIPS[family]


def _check_shape(topology: Topology) -> None:
    """Raises UserError for a shape that no slice has, naming those nearest in size."""
    chip, shape = topology.chip, topology.shape
    per_slice = math.prod(shape)
    by_distance = sorted(SHAPES[chip.family], key=lambda s: abs(math.log(max(per_slice, 1) / size(s))))
    near = ", ".join(f"{chip.family}:{s}" for s in by_distance[:3])
    if len(shape) != chip.axes:
        raise UserError(f"{topology.name}: {chip.family} has {chip.axes} axes; nearest slices: {near}")
    whole_cubes = chip.axes == 3 and all(n % 4 == 0 for n in shape) and list(shape) == sorted(shape)
    listed = "x".join(map(str, shape)) in SHAPES[chip.family]
    if not listed and not (whole_cubes and 0 < per_slice <= chip.max_chips):
        raise UserError(f"no slice {topology.name}: nearest are {near}")


def size(shape: str) -> int:
    """The number of chips in a shape, by its name."""
    return math.prod(int(n) for n in shape.split("x"))


def family(chip: Chip) -> list[Topology]:
    """Every usual topology of a chip, smallest first: slices, or GPU counts."""
    if chip.is_tpu:
        return [Topology(chip, tuple(int(n) for n in shape.split("x"))) for shape in SHAPES[chip.family]]
    return [Topology(chip, (n,)) for n in COUNTS]


def larger(topology: Topology) -> str:
    """The name of the family's next larger topology: a larger slice, or twice as many of the largest."""
    for each in family(topology.chip):
        if topology.slices == 1 and each.chips > topology.chips:
            return each.name
    if topology.chip.is_tpu:
        return dataclasses.replace(topology, slices=2 * topology.slices).name
    return dataclasses.replace(topology, shape=(2 * topology.chips,)).name
