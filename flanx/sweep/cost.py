"""What a sweep costs, for its dry run: the training FLOPs of every point and the chip-hours that they come to.

With a topology the time of a step is `flanx plan`'s estimate of the fastest layout that fits, nothing compiled. Without
one the FLOPs are divided by what a chip is assumed to reach.
"""

import sys
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from flanx.errors import UserError
from flanx.sweep.dependencies import Need, Parent
from flanx.sweep.grid import Point

ASSUMED = (
    "v4",
    0.4,
)  # the paper's chip; its own run of Flan-PaLM 540B comes to about 30% of the peak (paper, section 2)


def show(
    points: Sequence[Point],
    wanted: Mapping[str, Need],
    parents: Mapping[str, Parent],
    search_paths: str,
    topology: str | None,
) -> None:
    """Prints a line for each point and the sum."""
    from flanx.plan import hardware, planned_run

    paths = [p for p in search_paths.split(",") if p]
    slice_ = hardware.parse(topology) if topology else None
    table = Table("point", "starts from", "parameters", "steps", "FLOPs", "layout", "hours", "chip-hours", box=None)
    known: dict[str, tuple[float, str]] = {}
    flops, chip_hours, unknown = 0.0, 0.0, 0
    for point in points:
        planned = planned_run.read(point.gin_files, point.all_bindings(), paths)
        work = planned.flops_per_step * planned.train_steps
        row = [point.name, start(wanted[point.name], parents.get(point.name)), f"{planned.model.num_params():,}"]
        if not planned.train_steps:
            table.add_row(*row, "0", "evaluation alone", "", "", "")
            continue
        key = repr((planned.model, planned.batch_size, planned.lengths, planned.trainer.num_microbatches))
        if key not in known:
            if slice_:
                print(f"estimating the step of {point.name} on {slice_.name} ...", file=sys.stderr, flush=True)
            known[key] = step_time(planned, slice_)
        seconds, layout = known[key]
        hours = seconds * planned.train_steps / 3600
        chips = slice_.chips if slice_ else 1
        flops += work
        chip_hours += hours * chips
        unknown += not seconds
        times = [f"{hours:,.3g}" if slice_ else "", f"{hours * chips:,.3g}"] if seconds else ["", "does not fit"]
        table.add_row(*row, f"{planned.train_steps:,}", f"{work:.2e}", layout, *times)
    console = Console(highlight=False, width=160) if not Console().is_terminal else Console(highlight=False)
    console.print(table)
    family, share = ASSUMED
    how = (
        f"estimate of `flanx plan` on {slice_.name}"
        if slice_
        else (
            f"no --topology is named: chip-hours are those of {family} chips at {share:.0%} of their "
            f"{hardware.CHIPS[family].flops / 1e12:.0f} TFLOP/s, which is an assumption"
        )
    )
    lost = f", without {unknown} that do not fit" if unknown else ""
    console.print(
        f"in all: {flops:.3g} FLOPs, {chip_hours:,.3g} chip-hours{lost} ({how}; training alone, no evaluation)"
    )


def start(wanted: Need, parent: Parent | None) -> str:
    """What a point starts from: the point that it waits for, the path of its parent, or nothing."""
    if parent is None:
        return wanted.parent or "scratch"
    return f"waits for {parent.point or parent.folder.name}" + (", chosen" if parent.chosen else "")


def step_time(planned, slice_) -> tuple[float, str]:
    """(seconds of a step, the layout); seconds are 0 where nothing fits. Without a topology those of one chip."""
    from flanx.plan import cost_model, hardware, search

    if slice_ is None:
        family, share = ASSUMED
        return planned.flops_per_step / (hardware.CHIPS[family].flops * share), ""
    scanned = planned.scanned()
    try:
        best = search.ranked(scanned, cost_model.trace(scanned, slice_.chip.is_tpu), slice_)[0]
    except UserError as error:
        return 0.0, str(error).partition(";")[0]
    return (best.seconds, best.layout.name) if best.fits else (0.0, f"nearest: {best.layout.name}")
