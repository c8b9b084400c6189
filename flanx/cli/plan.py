"""`flanx plan`: gin files and a topology -> a table of mesh layouts and the chosen one; exit status 0 where it fits."""

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Sequence
from typing import Any

import jax

from flanx import trainable
from flanx.cli import gin_flags
from flanx.cli.table import print_table
from flanx.errors import UserError
from flanx.plan import hardware, planned_run, search, tpu_compile
from flanx.plan.hardware import Topology
from flanx.plan.mesh_layout import MeshLayout
from flanx.plan.planned_run import PlannedRun
from flanx.plan.search import Plan, SearchResult
from flanx.settings import COUNT, MOST_SECONDS, Range, flag, path_flag, text_flag

GB = 1e9
COLUMNS = (
    *("layout", "fits", "GB/chip", "param", "optim", "grad", "activ"),
    *("compute s", "hbm s", "ICI s", "DCN s", "step s", "from"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `flanx plan`."""
    gin_flags.add_gin_arguments(parser)
    parser.add_argument(
        "recipe",
        nargs="?",
        type=path_flag,
        metavar="RECIPE",
        help="a published row (`flanx recipe list`), or a gin file",
    )
    parser.add_argument("--topology", default="auto", help="v4:4x4x4, '2x v5e:16x16' (two slices), h100:16, or auto")
    parser.add_argument("--family", default="v5e", help="the chip whose smallest slice --topology=auto looks for")
    parser.add_argument(
        "--compilations", type=flag(int, COUNT), default=2, metavar="N", help="layouts to compile (default 2)"
    )
    parser.add_argument("--estimate", action="store_true", help="compile nothing: estimate from shapes")
    parser.add_argument(
        "--layout", type=text_flag, metavar="NAME", help="only layouts whose name has this, as 'model 4, (1, 2)'"
    )
    parser.add_argument("--unrolled", action="store_true", help="compile layer by layer where the model does not scan")
    parser.add_argument(
        "--timeout",
        type=flag(float, Range(1, MOST_SECONDS)),
        default=3600.0,
        metavar="SECONDS",
        help="limit of one compilation",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--rows", type=flag(int, COUNT), default=8, metavar="N", help="layouts to print (default 8)")


def run(args: argparse.Namespace) -> int:
    """Plans and prints. 0: a layout fits; 1: none does; 2 (UserError): wrong input."""
    files = [*([gin_flags.file_of(args.recipe)] if args.recipe else []), *args.gin_file]
    if not files:
        raise UserError("no RECIPE and no --gin_file given; `flanx plan flan_t5_xxl --topology=v4:4x4x4`")
    planned = planned_run.read(files, args.bindings, search_paths(args))
    topologies = (
        [hardware.parse(args.topology)]
        if args.topology != "auto"
        else hardware.family(hardware.known_chip(args.family))
    )
    is_tpu = topologies[0].chip.is_tpu
    compiles = is_tpu and not args.estimate and tpu_compile.has_compiler()
    ask = functools.partial(compile_layout, args, files) if compiles else None
    searched = planned if args.unrolled else planned.scanned()
    result = search.search(searched, topologies, ask, args.compilations, args.layout or "")
    notes = notes_on(result, is_tpu, args.estimate, compiles, searched is not planned)
    if args.json:
        print(json.dumps(as_json(planned, result.best) | {"notes": notes}))
    else:
        print_plan(planned, result.plans[: args.rows], notes)
    if args.topology == "auto" and not result.best.fits:
        chip, largest = result.best.topology.chip, result.best.topology.name
        raise UserError(
            f"no {'slice' if chip.is_tpu else 'number'} of {args.family} fits it: the largest, {largest}, has "
            f"{chip.hbm_bytes / GB:.1f} GB a chip and the run needs {result.best.hbm / GB:.1f}; "
            f"next: {search.advice(result.best)}"
        )
    return 0 if result.best.fits else 1


def search_paths(args: argparse.Namespace) -> list[str]:
    """The folders in --gin_search_paths."""
    return [path for path in args.gin_search_paths.split(",") if path]


def compile_layout(
    args: argparse.Namespace, files: Sequence[str], topology: Topology, layout: MeshLayout
) -> tpu_compile.CompilerReport:
    """Compiles one layout in a child process, announced on standard error."""
    if not args.json:
        print(f"compiling {topology.name}: {layout.name} ...", file=sys.stderr, flush=True)
    request = {
        "gin_files": files,
        "bindings": args.bindings,
        "search_paths": search_paths(args),
        "topology": topology.name,
        "layout": dataclasses.asdict(layout),
        "unrolled": args.unrolled,
    }
    return tpu_compile.compile_in_child(request, args.timeout)


def notes_on(result: SearchResult, is_tpu: bool, estimate: bool, compiles: bool, is_scanned: bool) -> list[str]:
    """Notes for the reader on how the plans were made."""
    notes = [f"{failure}; left out" for failure in result.failures]
    if not is_tpu:
        notes.append("GPUs are planned from shapes alone: memory within about a third, times at published peaks")
    elif not estimate and not compiles:
        notes.append("libtpu is not installed (pip install 'flanx[tpu-plan]'): shapes alone, nothing was compiled")
    elif compiles and result.best.source != "compiled":
        notes.append("nothing was compiled: by the estimate every layout needs far more than a chip has")
    elif compiles and is_scanned:
        notes.append(
            "compiled with scanned layers, the same numbers from a shorter program; --unrolled compiles layer by layer"
        )
    return notes


def trained(planned: PlannedRun) -> str | None:
    """A line on what is trained; None if everything is."""
    patterns, scanned = planned.trainer.patterns, planned.scanned()
    return trainable.describe(patterns, jax.eval_shape(scanned.trainer.init).params) if patterns else None


def as_json(planned: PlannedRun, plan: Plan) -> dict[str, Any]:
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
        "trained": trained(planned),
        "model_flops_per_step": planned.flops_per_step,
        "collectives": [dict(row) for row in plan.collectives],
        "step_seconds": plan.seconds,
        "roofline_step_seconds": plan.roofline_seconds,
        "seconds": {"compute": plan.compute, "hbm": plan.memory, "links": plan.links, "network": plan.network},
        "tokens_per_second": planned.tokens_per_step / plan.seconds,
        "mfu": mfu(planned, plan),
        "hours": hours,
        "chip_hours": hours * plan.topology.chips,
        "compile_seconds": plan.compile_seconds,
        "compile_host_bytes": plan.host_bytes,
    }


def mfu(planned: PlannedRun, plan: Plan) -> float:
    """Model FLOPs utilization: model FLOPs over the chips' peak FLOPs in the step time."""
    return planned.flops_per_step / (plan.seconds * plan.topology.chips * plan.topology.chip.flops)


def print_plan(planned: PlannedRun, plans: Sequence[Plan], notes: Sequence[str]) -> None:
    """Prints the table of layouts, then the details of the chosen one."""
    first = plans[0]
    chip = first.topology.chip
    print(
        f"{first.topology.name}: {first.topology.chips} chips of {chip.hbm_bytes / GB:.1f} GB   "
        f"batch {planned.batch_size} x {planned.lengths['inputs']} + {planned.lengths['targets']}   "
        f"{planned.model.num_params():,} parameters   {planned.flops_per_step:.3g} model FLOPs a step"
    )
    rows = []
    for plan in plans:
        sizes = [plan.hbm, *(plan.parts[k] for k in ("parameters", "optimizer", "gradients", "activations"))]
        times = [plan.compute, plan.memory, plan.links, plan.network, plan.seconds]
        cells = [f"{s / GB:.2f}" for s in sizes] + [f"{t:.3g}" for t in times]
        rows.append([plan.layout.name, "yes" if plan.fits else "no", *cells, plan.source])
    print_table(COLUMNS, rows, left=("fits", "from"))
    numbers = as_json(planned, first)
    print(f"chosen: {first.layout.name} - {search.reason(plans)}")
    if numbers["trained"]:
        print(f"  {numbers['trained']}")
    headroom = (chip.hbm_bytes - first.hbm) / GB
    room = f"{headroom:.2f} GB left" if first.fits else f"{-headroom:.2f} GB too much (next: {search.advice(first)})"
    print(
        f"  {first.hbm / GB:.2f} of {chip.hbm_bytes / GB:.2f} GB a chip, {room}; step "
        f"{first.roofline_seconds:.3g} s with all communication overlapped, {first.seconds:.3g} s with none"
    )
    print(
        f"  {numbers['tokens_per_second']:,.0f} tokens/s, MFU {numbers['mfu']:.1%}; {planned.train_steps:,} steps: "
        f"{numbers['hours']:.3g} h, {numbers['chip_hours']:,.0f} chip-hours"
    )
    for row in first.collectives[:6]:
        count = f"{row['count']} x " if row["count"] else ""
        print(f"  {count}{row['kind']} over {'+'.join(row['axes']) or '?'}: {row['bytes'] / GB:.3g} GB a step")
    for note in notes:
        print(f"note: {note}")
