"""`flanx plan`: gin files and a topology -> a table of layouts, the chosen one, and an exit status (0 fits, 1 not)."""

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Sequence
from typing import Any

from flanx.cli import gin_flags
from flanx.errors import UserError

GB = 1e9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `flanx plan`."""
    gin_flags.add_gin_arguments(parser)
    parser.add_argument("--topology", default="auto", help="v4:4x4x4, '2x v5e:16x16' (two slices), h100:16, or auto")
    parser.add_argument("--family", default="v5e", help="the chip whose smallest slice --topology=auto looks for")
    parser.add_argument("--compilations", type=int, default=2, metavar="N", help="layouts to compile (default 2)")
    parser.add_argument("--estimate", action="store_true", help="compile nothing: shapes alone")
    parser.add_argument("--layout", metavar="NAME", help="only layouts whose name has this, as 'model 4, (1, 2)'")
    parser.add_argument("--unrolled", action="store_true", help="compile layer by layer where the recipe does not scan")
    parser.add_argument("--timeout", type=float, default=3600.0, metavar="SECONDS", help="limit of one compilation")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--rows", type=int, default=8, metavar="N", help="layouts to print (default 8)")


def run(args: argparse.Namespace) -> int:
    """Plans and prints. 0: it fits; 1: it does not; 2 (UserError): it cannot be asked."""
    from flanx.plan import hardware, planned_run, search

    if not args.gin_file:
        raise UserError("no --gin_file given; `flanx plan --gin_file=models/t5_1_1/xxl.gin --topology=v4:4x4x4`")
    for flag, value in (("compilations", args.compilations), ("timeout", args.timeout), ("rows", args.rows)):
        if value < 1:
            raise UserError(f"--{flag}={value:g}: give 1 or more; --estimate compiles nothing")
    paths = [p for p in args.gin_search_paths.split(",") if p]
    planned = planned_run.read(args.gin_file, args.bindings, paths)
    topologies = (
        [hardware.parse(args.topology)]
        if args.topology != "auto"
        else hardware.family(hardware.known_chip(args.family))
    )
    plans, notes = look(planned, topologies, args, paths)
    first = plans[0]
    if args.json:
        print(json.dumps(as_json(planned, first) | {"notes": notes}))
    else:
        print_plan(planned, plans[: args.rows], notes)
    if args.topology == "auto" and not first.fits:
        kind = "slice" if first.topology.chip.is_tpu else "number"
        raise UserError(
            f"no {kind} of {args.family} holds it: the largest, {first.topology.name}, has "
            f"{first.topology.chip.hbm_bytes / GB:.1f} GB a chip and the recipe needs {first.hbm / GB:.1f}; "
            f"next: {search.advice(first)}"
        )
    return 0 if first.fits else 1


def look(planned: Any, topologies: Sequence[Any], args: argparse.Namespace, paths: Sequence[str]) -> tuple[Any, list]:
    """The plans of the first topology on which one fits (or of the last), best first, and what to say beside them."""
    from flanx.plan import cost_model, search, tpu_compile

    notes = []
    is_tpu = topologies[0].chip.is_tpu
    compiles = is_tpu and not args.estimate and tpu_compile.has_compiler()
    if not is_tpu:
        notes.append("GPUs are planned from shapes alone: memory within about a third, times at published peaks")
    elif not args.estimate and not compiles:
        notes.append("libtpu is not installed (pip install 'flanx[tpu-plan]'): shapes alone, nothing was compiled")
    scanned = planned if args.unrolled else planned.scanned()
    traced = cost_model.trace(scanned, is_tpu)
    plans: list[Any] = []
    for topology in topologies:
        try:
            candidates = search.ranked(scanned, traced, topology)
        except UserError:
            if topology is topologies[-1] and not plans:
                raise
            continue
        if args.layout:
            candidates = [p for p in candidates if args.layout in p.layout.name]
            if not candidates:
                raise UserError(f"--layout='{args.layout}' names no layout of {topology.name} that the batch allows")
        nearest = min(p.hbm for p in candidates)
        if len(topologies) > 1 and nearest > search.MARGIN * topology.chip.hbm_bytes:
            plans = candidates
            continue
        broken: list[str] = []
        ask = functools.partial(_ask, args, list(paths), topology, broken) if compiles else None
        plans = search.best(candidates, traced, ask, args.compilations)
        notes += [f"{error}; left out" for error in broken]
        if broken and (not plans or plans[0].source != "compiled"):
            raise UserError(broken[0])
        if plans[0].fits:
            break
    if compiles and plans[0].source != "compiled":
        notes.append("nothing was compiled: by the estimate every layout needs far more than a chip has")
    elif compiles and scanned is not planned:
        notes.append(
            "compiled with scanned layers, the same numbers in a shorter program; --unrolled compiles as it is"
        )
    return plans, notes


def _ask(args: argparse.Namespace, paths: list[str], topology: Any, broken: list[str], layout: Any) -> Any:
    """One compilation; says on standard error that it goes on. None, and a line for `broken`, where it fails."""
    from flanx.plan import tpu_compile

    if not args.json:
        print(f"compiling {topology.name}: {layout.name} ...", file=sys.stderr, flush=True)
    request = {
        "gin_files": args.gin_file,
        "bindings": args.bindings,
        "search_paths": paths,
        "topology": topology.name,
        "layout": dataclasses.asdict(layout),
        "unrolled": args.unrolled,
    }
    try:
        return tpu_compile.ask(request, args.timeout)
    except tpu_compile.Broken as error:
        broken.append(str(error))
        return None


def as_json(planned: Any, plan: Any) -> dict[str, Any]:
    """The chosen plan as one flat object."""
    steps = planned.train_steps
    hours = plan.seconds * steps / 3600
    return {
        "fits": plan.fits,
        "topology": plan.topology.name,
        "chips": plan.topology.chips,
        "layout": dataclasses.asdict(plan.layout),
        "source": plan.source,
        "hbm_per_chip_bytes": plan.hbm,
        "hbm_capacity_bytes": plan.topology.chip.hbm_bytes,
        "hbm_parts_bytes": dict(plan.parts),
        "model_flops_per_step": planned.flops_per_step,
        "collectives": [dict(row) for row in plan.collectives],
        "step_seconds": plan.seconds,
        "roofline_step_seconds": plan.roofline_seconds,
        "seconds": {"compute": plan.compute, "hbm": plan.memory, "links": plan.links, "network": plan.network},
        "tokens_per_second": planned.tokens_per_step / plan.seconds,
        "mfu": utilisation(planned, plan),
        "hours": hours,
        "chip_hours": hours * plan.topology.chips,
        "compile_seconds": plan.compile_seconds,
        "compile_host_bytes": plan.host_bytes,
    }


def utilisation(planned: Any, plan: Any) -> float:
    """Model FLOPs over what the chips could do in the step's time."""
    return planned.flops_per_step / (plan.seconds * plan.topology.chips * plan.topology.chip.flops)


def print_plan(planned: Any, plans: Sequence[Any], notes: Sequence[str]) -> None:
    """The table of layouts, then the chosen one in words."""
    from rich.console import Console
    from rich.table import Table

    from flanx.plan import search

    first = plans[0]
    kind = first.topology.chip
    console = Console(highlight=False, width=max(150, Console().width) if not Console().is_terminal else None)
    console.print(
        f"{first.topology.name}: {first.topology.chips} chips of {kind.hbm_bytes / GB:.1f} GB   "
        f"batch {planned.batch_size} x {planned.lengths['inputs']} + {planned.lengths['targets']}   "
        f"{planned.model.num_params():,} parameters   {planned.flops_per_step:.3g} model FLOPs a step",
        soft_wrap=True,
    )
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in (
        "layout",
        "fits",
        "GB/chip",
        "param",
        "optim",
        "grad",
        "activ",
        "compute s",
        "hbm s",
        "ICI s",
        "DCN s",
    ):
        table.add_column(name, justify="left" if name in ("layout", "fits") else "right", no_wrap=True)
    table.add_column("step s", justify="right", no_wrap=True)
    table.add_column("from", no_wrap=True)
    for plan in plans:
        sizes = [plan.hbm, *(plan.parts[k] for k in ("parameters", "optimizer", "gradients", "activations"))]
        times = [plan.compute, plan.memory, plan.links, plan.network, plan.seconds]
        cells = [f"{s / GB:.2f}" for s in sizes] + [f"{t:.3g}" for t in times]
        table.add_row(plan.layout.name, "yes" if plan.fits else "no", *cells, plan.source)
    console.print(table)
    told = as_json(planned, first)
    console.print(f"chosen: {first.layout.name} - {search.reason(plans)}", soft_wrap=True)
    headroom = (kind.hbm_bytes - first.hbm) / GB
    room = f"{headroom:.2f} GB left" if first.fits else f"{-headroom:.2f} GB too much (next: {search.advice(first)})"
    console.print(
        f"  {first.hbm / GB:.2f} of {kind.hbm_bytes / GB:.2f} GB a chip, {room}; step "
        f"{first.roofline_seconds:.3g} s if all communication hides behind the work, {first.seconds:.3g} s if none",
        soft_wrap=True,
    )
    console.print(
        f"  {told['tokens_per_second']:,.0f} tokens/s, MFU {told['mfu']:.1%}; {planned.train_steps:,} steps: "
        f"{told['hours']:.3g} h, {told['chip_hours']:,.0f} chip-hours",
        soft_wrap=True,
    )
    for row in first.collectives[:6]:
        count = f"{row['count']} x " if row["count"] else ""
        console.print(f"  {count}{row['kind']} over {'+'.join(row['axes']) or '?'}: {row['bytes'] / GB:.3g} GB a step")
    for note in notes:
        console.print(f"note: {note}", soft_wrap=True)
