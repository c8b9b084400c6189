"""The cost of a sweep, for its dry run: the training FLOPs of every point and the resulting chip-hours.

With a topology, the step time is `flanx plan`'s estimate for the fastest layout that fits, without compiling. Without
one, the FLOPs are divided by the throughput that a chip is assumed to reach.
"""

import dataclasses
from collections.abc import Callable, Sequence

from flanx.errors import UserError
from flanx.plan import cost_model, hardware, planned_run, search
from flanx.plan.hardware import Topology
from flanx.plan.planned_run import PlannedRun
from flanx.sweep.grid import Point

FAMILY = "v4"  # the paper's chip
UTILISATION = 0.4  # assumed; the paper's Flan-PaLM 540B run reaches about 30% of peak (paper, section 2)


@dataclasses.dataclass(frozen=True)
class PointCost:
    """The training cost of one point.

    Attributes:
      seconds: per step; 0 if no layout fits, or if the point only evaluates.
      layout: the name of the layout, or why none fits.
      chips: in the topology; 1 without one.
    """

    parameters: int
    train_steps: int
    flops: float
    seconds: float
    layout: str
    chips: int

    @property
    def hours(self) -> float:
        """Hours for the whole training."""
        return self.seconds * self.train_steps / 3600


def costs(
    points: Sequence[Point], search_paths: str, topology: Topology | None, on_estimate: Callable[[Point], None]
) -> list[PointCost]:
    """The cost of every point; `on_estimate` is called before each estimate with a topology, which is slow."""
    paths = [p for p in search_paths.split(",") if p]
    known: dict[str, tuple[float, str]] = {}
    result = []
    for point in points:
        run = planned_run.read(point.gin_files, point.all_bindings(), paths)
        seconds, layout = 0.0, ""
        if run.train_steps:
            key = repr((run.model, run.batch_size, run.lengths, run.trainer.num_microbatches))
            if key not in known:
                if topology:
                    on_estimate(point)
                known[key] = step_time(run, topology)
            seconds, layout = known[key]
        chips = topology.chips if topology else 1
        flops = run.flops_per_step * run.train_steps
        result.append(PointCost(run.model.num_params(), run.train_steps, flops, seconds, layout, chips))
    return result


def step_time(run: PlannedRun, topology: Topology | None) -> tuple[float, str]:
    """(seconds per step, layout); seconds are 0 if nothing fits. Without a topology, for one chip."""
    if topology is None:
        return run.flops_per_step / (hardware.CHIPS[FAMILY].flops * UTILISATION), ""
    scanned = run.scanned()
    try:
        best = search.ranked(scanned, cost_model.trace(scanned, topology.chip.is_tpu), topology)[0]
    except UserError as error:
        return 0.0, str(error).partition(";")[0]
    return (best.seconds, best.layout.name) if best.fits else (0.0, f"nearest: {best.layout.name}")


def basis(topology: Topology | None) -> str:
    """What the chip-hours are based on."""
    if topology:
        return f"estimate of `flanx plan` on {topology.name}"
    return (
        f"without --topology: chip-hours of {FAMILY} chips at {UTILISATION:.0%} of their "
        f"{hardware.CHIPS[FAMILY].flops / 1e12:.0f} TFLOP/s, which is an assumption"
    )
