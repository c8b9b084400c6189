"""The search for a mesh layout: all are estimated, the best are compiled, and the fastest that fits is chosen."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from flanx.errors import UserError
from flanx.partition import AXES, Partitioner
from flanx.plan import cost_model, hardware, hlo
from flanx.plan.hardware import Topology
from flanx.plan.mesh_layout import PRESETS, MeshLayout, mesh_layouts
from flanx.plan.planned_run import PlannedRun
from flanx.plan.tpu_compile import CompilerError, CompilerReport
from flanx.train_step import Trainer

ATTEMPTS = 6  # most compilations while no layout fits
TIE = 1.02  # the accuracy of an estimate: within it, less memory is preferred
SURPRISE = 1.25  # a program this many times slower than the next estimate was misjudged by its own
MARGIN = 1.15  # an estimate up to this factor above a chip's memory is still worth compiling

Compile = Callable[[Topology, MeshLayout], CompilerReport]  # raises CompilerError if the compiler fails


@dataclasses.dataclass(frozen=True)
class Plan:
    """One layout on one topology. Bytes and FLOPs per chip, seconds per step.

    Attributes:
      source: "compiled" (the TPU compiler's figures) or "estimate" (from the jaxpr only).
      parts: bytes of HBM by what they hold.
      flops: of the chip's products, recomputation included; `compute` is their time at peak.
      memory, links, network: time of HBM traffic, of collectives within a slice and between slices, at peak.
      collectives: rows {kind, axes, count, bytes}.
    """

    topology: Topology
    layout: MeshLayout
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
        """Total bytes at the peak."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether the chip has that much memory."""
        return self.hbm <= self.topology.chip.hbm_bytes

    @property
    def seconds(self) -> float:
        """Seconds per step with no communication overlapped with computation."""
        return max(self.compute, self.memory) + self.links + self.network

    @property
    def roofline_seconds(self) -> float:
        """Seconds per step with all communication overlapped: the slowest of the four."""
        return max(self.compute, self.memory, self.links, self.network)


def estimated(traced: cost_model.Trace, topology: Topology, layout: MeshLayout) -> Plan:
    """The plan of a layout, estimated from shapes."""
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


def compiled(traced: cost_model.Trace, topology: Topology, layout: MeshLayout, report: CompilerReport) -> Plan:
    """The plan of a layout with the compiler's memory and collectives.

    Parameters, optimizer and batch are exact, from their shardings; the temporaries are split into the gradients, of
    known size, and the rest, the activations.
    """
    cost = cost_model.cost(traced, layout)
    gradients = min(cost.gradients, report.temporaries)
    parts = {
        "parameters": cost.params,
        "optimizer": cost.optimizer,
        "gradients": gradients,
        "activations": report.temporaries - gradients,
        "batch": max(report.arguments - cost.params - cost.optimizer, 0.0),
    }
    shape = (layout.replicas, layout.data, layout.model)
    merged: dict[tuple[str, tuple[str, ...]], dict[str, Any]] = {}
    for each in report.collectives:
        axes = tuple(AXES[i] for i in hlo.axes_spanned(each["members"], shape))
        row = merged.setdefault((each["kind"], axes), {"kind": each["kind"], "axes": axes, "count": 0, "bytes": 0.0})
        row["count"] += each["count"]
        row["bytes"] += each["sent"]
    touched = max(report.accessed, 2.0 * (report.arguments + report.temporaries))
    plan = _plan(topology, layout, "compiled", parts, cost.flops, touched, list(merged.values()))
    return dataclasses.replace(plan, compile_seconds=report.seconds, host_bytes=report.host_bytes)


def _plan(
    topology: Topology,
    layout: MeshLayout,
    source: str,
    parts: Mapping[str, float],
    flops: float,
    touched: float,
    rows: Sequence[Mapping[str, Any]],
) -> Plan:
    chip = topology.chip
    links = network = 0.0
    for row in rows:
        inside, across = _bandwidths(topology, layout, row["axes"])
        if across is None:
            links += row["bytes"] / inside
        else:
            network += row["bytes"] / across
    heaviest_first = sorted(rows, key=lambda row: -row["bytes"])
    return Plan(
        *(topology, layout, source, parts, flops, flops / chip.flops, touched / chip.hbm_bandwidth, links, network),
        collectives=heaviest_first,
    )


def _bandwidths(topology: Topology, layout: MeshLayout, axes: Sequence[str]) -> tuple[float, float | None]:
    """Bytes/s that a chip sends over mesh axes within a slice, and between slices (or nodes) if they cross any.

    A TPU's ring over one torus axis has two links; a mesh axis longer than the torus axis also spans a second and a
    third.
    """
    chip = topology.chip
    if chip.is_tpu:
        across = chip.network_bandwidth if "replica" in axes and topology.slices > 1 else None
        length = math.prod(getattr(layout, a) for a in axes if a != "replica") or 1
        dims = sorted(topology.shape, reverse=True)
        used = next((i for i in range(1, len(dims) + 1) if math.prod(dims[:i]) >= length), len(dims))
        return 2.0 * used * chip.link_bandwidth, across
    length = math.prod({"replica": layout.replicas, "data": layout.data, "model": layout.model}[a] for a in axes)
    reach = length if axes == ("model",) else layout.model * length  # `model` is innermost: its neighbours share a node
    return chip.link_bandwidth, chip.network_bandwidth if reach > chip.max_chips else None


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
      plans: for the first topology on which a layout fits, else for the last one searched; best first, never empty.
      failures: one message for each layout on which the compiler failed.
    """

    plans: Sequence[Plan]
    failures: Sequence[str] = ()

    @property
    def best(self) -> Plan:
        """The chosen plan."""
        return self.plans[0]


def search(
    run: PlannedRun, topologies: Sequence[Topology], ask: Compile | None, compilations: int = 2, name: str = ""
) -> SearchResult:
    """Searches the mesh layouts of one topology after another until a layout fits.

    Args:
      ask: compiles a layout; None for estimates only.
      compilations: layouts to compile on each topology.
      name: only layouts whose name contains this.

    Raises:
      UserError: for a batch that no layout divides, and if the compiler fails on every layout.
    """
    traced = cost_model.trace(run, topologies[0].chip.is_tpu)
    result: SearchResult | None = None
    for topology in topologies:
        try:
            plans = ranked(run, traced, topology)
        except UserError:
            if topology is topologies[-1] and result is None:
                raise
            continue
        plans = [plan for plan in plans if name in plan.layout.name]
        if not plans:
            raise UserError(f"--layout='{name}' names no layout of {topology.name} that the batch allows")
        if len(topologies) > 1 and min(plan.hbm for plan in plans) > MARGIN * topology.chip.hbm_bytes:
            result = SearchResult(plans)
            continue
        result = compile_best(plans, traced, ask, compilations) if ask else SearchResult(plans)
        if result.failures and (not result.plans or result.best.source != "compiled"):
            raise UserError(result.failures[0])
        if result.best.fits:
            break
    assert result is not None  # every topology was searched, or ranked() raised for the last one
    return result


def ranked(run: PlannedRun, traced: cost_model.Trace, topology: Topology) -> list[Plan]:
    """Every layout's estimate: first those that fit, fastest first, then the others by the memory they need."""
    if run.batch_size % run.trainer.num_microbatches:
        raise UserError(
            f"a batch of {run.batch_size} rows does not divide into {run.trainer.num_microbatches} microbatches"
        )
    plans, errors = [], []
    for layout in mesh_layouts(run, topology):
        try:
            plans.append(estimated(traced, topology, layout))
        except UserError as error:
            errors.append(error)
    if errors and not plans:
        raise errors[0]
    if not plans:
        raise UserError(
            f"a batch of {run.batch_size} rows ({run.trainer.num_microbatches} microbatches) divides over no "
            f"layout of {topology.name} ({topology.chips} chips); use a BATCH_SIZE that is a multiple of a power of "
            "two, or fewer chips"
        )
    return best_first(plans)


def best_first(plans: Iterable[Plan]) -> list[Plan]:
    """Plans that fit, by time (by memory if within TIE of the fastest), then the others by memory."""
    plans = list(plans)
    tied = TIE * min((plan.seconds for plan in plans if plan.fits), default=0.0)

    def key(plan: Plan) -> tuple[bool, float, float]:
        return (not plan.fits, plan.seconds if plan.fits and plan.seconds > tied else 0.0, plan.hbm)

    return sorted(plans, key=key)


def compile_best(plans: Sequence[Plan], traced: cost_model.Trace, ask: Compile, compilations: int) -> SearchResult:
    """The plans, with `compilations` of the most promising compiled, best first.

    Continues, up to ATTEMPTS, until one fits that is not SURPRISE times slower than the next one's estimate. A layout
    with a larger estimate than one that did not fit is skipped; one on which the compiler failed is left out.
    """
    done: list[Plan] = []
    asked: set[MeshLayout] = set()
    failures: list[str] = []
    too_large = math.inf
    for plan in (p for p in plans if p.hbm <= MARGIN * p.topology.chip.hbm_bytes):
        is_good = any(p.fits and p.seconds <= SURPRISE * plan.seconds for p in done)
        if len(asked) >= max(compilations, ATTEMPTS) or (len(done) >= compilations and is_good):
            break
        if plan.hbm >= too_large:
            continue
        asked.add(plan.layout)
        try:
            report = ask(plan.topology, plan.layout)
        except CompilerError as error:
            failures.append(str(error))
            continue
        done.append(compiled(traced, plan.topology, plan.layout, report))
        if not done[-1].fits:
            too_large = plan.hbm
    return SearchResult([*best_first(done), *[p for p in plans if p.layout not in asked]], failures)


def reason(plans: Sequence[Plan]) -> str:
    """Why the first plan was chosen."""
    first, rest = plans[0], [p for p in plans[1:] if p.fits and p.source == plans[0].source]
    if not first.fits:
        return "no layout fits; this one comes nearest"
    if not rest:
        return "the only one searched that fits"
    if rest[0].seconds <= TIE * first.seconds:
        return f"the least memory of those that are fastest: {rest[0].layout.name} needs {rest[0].hbm / 1e9:.2f} GB"
    return f"the fastest that fits: {rest[0].seconds / first.seconds:.2f} x ahead of {rest[0].layout.name}"


def advice(plan: Plan) -> str:
    """What to try if the nearest plan does not fit."""
    less = "remat = 'full', a larger NUM_MICROBATCHES or a smaller BATCH_SIZE"
    state = sum(plan.parts[part] for part in ("parameters", "optimizer", "gradients"))
    if state > plan.topology.chip.hbm_bytes:
        return "more chips or another --family: parameters, optimizer and gradients alone are too much"
    return f"{less}, --topology='{hardware.larger(plan.topology)}' or another --family"


def resolve_partitioner(
    partitioner: Partitioner,
    trainer: Trainer,
    batch_size: int,
    lengths: Mapping[str, int],
) -> Partitioner:
    """`partitioner` with num_partitions and rules from the best estimate for the available devices."""
    devices = list(partitioner.devices if partitioner.devices is not None else jax.devices())
    run = PlannedRun(trainer, batch_size, lengths).scanned()
    topology = topology_of(devices)
    plan = ranked(run, cost_model.trace(run, topology.chip.is_tpu), topology)[0]
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


def topology_of(devices: Sequence[Any]) -> Topology:
    """The topology of real devices, with the memory they report; a CPU counts as a chip with ample memory."""
    kind = devices[0].device_kind
    similar = next((f for f in hardware.CHIPS if f in kind.lower()), "h100")
    chip = hardware.KINDS.get(kind, hardware.CHIPS[similar])
    limit = (devices[0].memory_stats() or {}).get("bytes_limit") if devices[0].platform != "cpu" else 1e15
    chip = dataclasses.replace(chip, hbm_bytes=limit or chip.hbm_bytes)
    slices = len({getattr(d, "slice_index", None) for d in devices})
    if devices[0].platform == "tpu":
        spans = [1 + max(d.coords[i] for d in devices) for i in range(chip.axes)]
        return Topology(chip, tuple(spans), slices)
    return Topology(chip, (len(devices),), 1)
