"""Which layout: every one estimated, the best compiled, the fastest that fits chosen; and the roofline of each."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from flanx.errors import UserError
from flanx.partition import AXES, Partitioner
from flanx.plan import cost_model, hardware, hlo
from flanx.plan.hardware import Topology
from flanx.plan.mesh_layout import PRESETS, Layout, layouts
from flanx.plan.planned_run import Recipe
from flanx.plan.tpu_compile import Answer
from flanx.train_step import Trainer

ATTEMPTS = 6  # compilations of layouts that do not fit
MARGIN = 1.15  # an estimate may be this far above a chip's memory and still be worth a compilation


@dataclasses.dataclass(frozen=True)
class Plan:
    """One layout on one topology. Bytes and FLOPs per chip, seconds per step.

    Attributes:
      source: "compiled" (the TPU compiler's figures) or "estimate" (from the jaxpr alone).
      parts: bytes of HBM by what they hold.
      flops: products that the chip computes, recomputation included; `compute` is their time at peak.
      memory, links, network: time of HBM traffic, of collectives inside a slice and between slices, at peak.
      collectives: rows {kind, axes, count, bytes}.
    """

    topology: Topology
    layout: Layout
    source: str
    parts: Mapping[str, float]
    flops: float
    compute: float
    memory: float
    links: float
    network: float
    collectives: Sequence[Mapping[str, Any]]
    compile_seconds: float = 0.0
    host_bytes: float = 0.0

    @property
    def hbm(self) -> float:
        """Bytes at the peak."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether that is no more than the chip has."""
        return self.hbm <= self.topology.chip.hbm_bytes

    @property
    def seconds(self) -> float:
        """A step where nothing of the communication is hidden behind the work."""
        return max(self.compute, self.memory) + self.links + self.network

    @property
    def roofline_seconds(self) -> float:
        """A step where all of it is hidden: the slowest of the four alone."""
        return max(self.compute, self.memory, self.links, self.network)


def estimated(traced: cost_model.Trace, topology: Topology, layout: Layout) -> Plan:
    """The plan of a layout from shapes alone."""
    cost = cost_model.cost(traced, layout)
    rows = [{"kind": k, "axes": axes, "count": None, "bytes": b} for (k, axes), b in cost.collectives.items()]
    parts = {
        "parameters": cost.params,
        "optimizer": cost.optimizer,
        "gradients": cost.gradients,
        "activations": cost.activations,
        "batch": cost.batch,
    }
    return _plan(topology, layout, "estimate", parts, cost.flops, 2.0 * sum(parts.values()), rows)


def compiled(traced: cost_model.Trace, topology: Topology, layout: Layout, answer: Answer) -> Plan:
    """The plan of a layout with the compiler's memory and collectives.

    Parameters, optimizer and batch are exact from their shardings; of the temporaries as much counts as gradients as
    these take, the rest as activations.
    """
    cost = cost_model.cost(traced, layout)
    gradients = min(cost.gradients, answer.temporaries)
    parts = {
        "parameters": cost.params,
        "optimizer": cost.optimizer,
        "gradients": gradients,
        "activations": answer.temporaries - gradients,
        "batch": max(answer.arguments - cost.params - cost.optimizer, 0.0),
    }
    shape = (layout.replicas, layout.data, layout.model)
    merged: dict[tuple[str, tuple[str, ...]], dict[str, Any]] = {}
    for found in answer.collectives:
        axes = tuple(AXES[i] for i in hlo.axes_spanned(found["members"], shape))
        row = merged.setdefault((found["kind"], axes), {"kind": found["kind"], "axes": axes, "count": 0, "bytes": 0.0})
        row["count"] += found["count"]
        row["bytes"] += found["sent"]
    touched = max(answer.accessed, 2.0 * (answer.arguments + answer.temporaries))
    plan = _plan(topology, layout, "compiled", parts, cost.flops, touched, list(merged.values()))
    return dataclasses.replace(plan, compile_seconds=answer.seconds, host_bytes=answer.host_bytes)


def _plan(
    topology: Topology,
    layout: Layout,
    source: str,
    parts: Mapping[str, float],
    flops: float,
    touched: float,
    rows: Sequence[Mapping[str, Any]],
) -> Plan:
    kind = topology.chip
    times = [0.0, 0.0]
    for row in rows:
        inside, across = _bandwidths(topology, layout, row["axes"])
        slow = across is not None
        times[slow] += row["bytes"] / (across if slow else inside)
    times_compute, times_memory = flops / kind.flops, touched / kind.hbm_bandwidth
    order = sorted(rows, key=lambda row: -row["bytes"])
    return Plan(topology, layout, source, parts, flops, times_compute, times_memory, times[0], times[1], order)


def _bandwidths(topology: Topology, layout: Layout, axes: Sequence[str]) -> tuple[float, float | None]:
    """Bytes/s that a chip sends over mesh axes inside a slice; and between slices (or nodes), if they cross any.

    A TPU's ring over one axis of the torus has two links; a mesh axis longer than the torus is wide takes a second
    and a third axis of it.
    """
    kind = topology.chip
    if kind.is_tpu:
        across = kind.network_bandwidth if "replica" in axes and topology.slices > 1 else None
        length = math.prod(getattr(layout, a) for a in axes if a != "replica") or 1
        dims = sorted(topology.shape, reverse=True)
        used = next((i for i in range(1, len(dims) + 1) if math.prod(dims[:i]) >= length), len(dims))
        return 2.0 * used * kind.link_bandwidth, across
    length = math.prod({"replica": layout.replicas, "data": layout.data, "model": layout.model}[a] for a in axes)
    reach = length if axes == ("model",) else layout.model * length  # `model` is innermost: neighbours share a node
    return kind.link_bandwidth, kind.network_bandwidth if reach > kind.most else None


def ranked(recipe: Recipe, traced: cost_model.Trace, topology: Topology) -> list[Plan]:
    """Every layout's estimate: those that fit first, the fastest first; then by what they need."""
    if recipe.batch_size % recipe.trainer.num_microbatches:
        raise UserError(
            f"a batch of {recipe.batch_size} rows does not divide into {recipe.trainer.num_microbatches} microbatches"
        )
    found, refusals = [], []
    for layout in layouts(recipe, topology):
        try:
            found.append(estimated(traced, topology, layout))
        except UserError as error:
            refusals.append(str(error))
    if refusals and not found:
        raise UserError(refusals[0])
    if not found:
        raise UserError(
            f"a batch of {recipe.batch_size} rows ({recipe.trainer.num_microbatches} microbatches) divides over no "
            f"layout of {topology.name} ({topology.chips} chips); use a BATCH_SIZE that is a multiple of a power of "
            "two, or fewer chips"
        )
    return sorted(found, key=order)


def order(plan: Plan) -> tuple[bool, float, float]:
    """Fitting plans by time, to the percent, then by memory; the others by memory."""
    return (not plan.fits, round(math.log(plan.seconds), 2) if plan.fits else plan.hbm, plan.hbm)


def best(
    plans: Sequence[Plan],
    traced: cost_model.Trace,
    ask: Callable[[Layout], Answer | None] | None,
    compilations: int,
) -> list[Plan]:
    """The plans with `compilations` of the likely ones compiled, best first.

    Goes on until one fits, up to ATTEMPTS; a layout that the estimate puts above one that did not fit is passed over,
    one on which the compiler failed (`ask` gives None) is left out.
    """
    if ask is None:
        return list(plans)
    done: list[Plan] = []
    asked: set[Layout] = set()
    too_large = math.inf
    for plan in (p for p in plans if p.hbm <= MARGIN * p.topology.chip.hbm_bytes):
        if len(asked) >= max(compilations, ATTEMPTS) or (len(done) >= compilations and any(p.fits for p in done)):
            break
        if plan.hbm >= too_large:
            continue
        asked.add(plan.layout)
        if (answer := ask(plan.layout)) is None:
            continue
        done.append(compiled(traced, plan.topology, plan.layout, answer))
        if not done[-1].fits:
            too_large = plan.hbm
    return [*sorted(done, key=order), *[p for p in plans if p.layout not in asked]]


def reason(plans: Sequence[Plan]) -> str:
    """Why the first plan is the chosen one."""
    first, rest = plans[0], [p for p in plans[1:] if p.fits and p.source == plans[0].source]
    if not first.fits:
        return "no layout fits; this one comes nearest"
    if not rest:
        return "the only one that fits among those looked at"
    return f"the fastest that fits: {rest[0].seconds / first.seconds:.2f} x ahead of {rest[0].layout.name}"


def advice(plan: Plan) -> str:
    """What to try where the nearest plan does not fit."""
    less = "remat = 'full', a larger NUM_MICROBATCHES or a smaller BATCH_SIZE"
    state = sum(plan.parts[part] for part in ("parameters", "optimizer", "gradients"))
    if state > plan.topology.chip.hbm_bytes:
        return "more chips or another --family: parameters, optimizer and gradients alone are too much"
    return f"{less}, --topology='{hardware.larger(plan.topology)}' or another --family"


def settle(
    partitioner: Partitioner,
    trainer: Trainer,
    batch_size: int,
    lengths: Mapping[str, int],
) -> Partitioner:
    """`partitioner` with the num_partitions and rules that the estimate prefers for the devices at hand."""
    devices = list(partitioner.devices if partitioner.devices is not None else jax.devices())
    recipe = Recipe(trainer, batch_size, lengths).scanned()
    topology = topology_of(devices)
    plan = ranked(recipe, cost_model.trace(recipe, topology.chip.is_tpu), topology)[0]
    if not plan.fits:
        raise UserError(
            f"no layout of {len(devices)} x {topology.chip.family} fits: the nearest, {plan.layout.name}, needs "
            f"{plan.hbm / 1e9:.1f} GB of {topology.chip.hbm_bytes / 1e9:.1f}; see `flanx plan`"
        )
    return dataclasses.replace(
        partitioner,
        num_partitions=plan.layout.model,
        logical_axis_rules=PRESETS[plan.layout.preset],
        num_replicas=plan.layout.replicas,
    )


def topology_of(devices: Sequence[jax.Device]) -> Topology:
    """The topology of real devices, with the memory that they report; a CPU is a chip with the host's memory."""
    kinds = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e"}
    text = devices[0].device_kind
    family = kinds.get(text) or next((f for f in hardware.CHIPS if f in text.lower()), "h100")
    limit = (devices[0].memory_stats() or {}).get("bytes_limit") if devices[0].platform != "cpu" else 1e15
    kind = dataclasses.replace(hardware.CHIPS[family], hbm_bytes=limit or hardware.CHIPS[family].hbm_bytes)
    slices = len({getattr(d, "slice_index", None) for d in devices})
    if devices[0].platform == "tpu":
        spans = [1 + max(d.coords[i] for d in devices) for i in range(kind.axes)]
        return Topology(kind, tuple(spans), slices)
    return Topology(kind, (len(devices),), 1)
