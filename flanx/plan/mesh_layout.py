"""Mesh layouts of a run on a topology: a mesh shape and a preset of logical axis rules."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

from jax.sharding import AbstractMesh, AxisType

from flanx import partition
from flanx.plan.hardware import Topology
from flanx.plan.planned_run import PlannedRun

SEQUENCE = [("length", "model")]
PRESETS: dict[str, partition.Rules] = {
    "(1, 1)": partition.rules(1, 1),
    "(2, 1)": partition.rules(2, 1),
    "(1, 2)": partition.rules(1, 2),
    "(2, 2)": partition.rules(2, 2),
    "(1, 2) + sequence": partition.rules(1, 2, extra=SEQUENCE),
    "fsdp": partition.rules(preset="fsdp"),
}


@dataclasses.dataclass(frozen=True)
class MeshLayout:
    """A mesh shape and the name of a preset of rules.

    Attributes:
      replicas: complete copies of the state, one per slice.
      data, model: chips along the other two axes of the mesh.
      preset: a key of PRESETS.
    """

    replicas: int
    data: int
    model: int
    preset: str

    @property
    def name(self) -> str:
        """ "data 16 x model 4, (1, 2)"."""
        replicas = f"replica {self.replicas} x " if self.replicas > 1 else ""
        return f"{replicas}data {self.data} x model {self.model}, {self.preset}"

    def partitioner(self, devices: Sequence[Any] | None = None) -> partition.Partitioner:
        """The partitioner on real devices, or on an abstract mesh if none are given."""
        rules = PRESETS[self.preset]
        if devices is None:
            return AbstractPartitioner(self.model, rules, None, self.replicas, self.data)
        return partition.Partitioner(self.model, rules, devices, self.replicas)


@dataclasses.dataclass(frozen=True)
class AbstractPartitioner(partition.Partitioner):
    """A partitioner without devices: its shardings give shard shapes, but no array can be placed on them."""

    data: int = 1

    @functools.cached_property
    def mesh(self) -> Any:  # an AbstractMesh, while `Partitioner` has a Mesh of devices
        """The shape of the mesh, without devices."""
        shape = (self.num_replicas or 1, self.data, int(self.num_partitions))
        return AbstractMesh(shape, partition.AXES, axis_types=(AxisType.Auto,) * 3)


def mesh_layouts(run: PlannedRun, topology: Topology) -> Iterator[MeshLayout]:
    """Every layout whose shards divide the run's (micro)batch, ordered by the size of the `model` axis."""
    per_slice = topology.chips // topology.slices
    rows = run.batch_size // run.trainer.num_microbatches
    for model in (n for n in range(1, min(per_slice, 64) + 1) if per_slice % n == 0 and n & (n - 1) == 0):
        for preset, rules in PRESETS.items():
            layout = MeshLayout(topology.slices, per_slice // model, model, preset)
            if model == 1 and rules not in (PRESETS["(1, 1)"], PRESETS["fsdp"]):
                continue  # without a model axis, these two presets cover all
            if model > 1 and preset == "fsdp":
                continue
            if rows % layout.partitioner().batch_shards() == 0:
                yield layout
