"""`flanx reproduce RECIPE`: every stage of reproducing a published row, resumed wherever it was stopped."""

import argparse
import os
import pathlib
import re

from flanx.cli.launch import BACKENDS
from flanx.errors import UserError
from flanx.launch.target import FILE, Target, read
from flanx.reproduction import rehearsal
from flanx.reproduction.road import Road
from flanx.reproduction.row import Reproduction, Row, is_url, platform, published
from flanx.reproduction.table import stages
from flanx.settings import COUNT, flag, path_flag, text_flag

PROGRAMS = {"cluster": "xpk", "partition": "slurm", "infra": "skypilot", "zone": "tpu-vm"}  # by a key of the target


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `flanx reproduce`."""
    parser.add_argument("recipe", metavar="RECIPE", help="a published row: flan_t5_small (`flanx recipe list`)")
    parser.add_argument(
        "--folder", type=path_flag, metavar="DIR", help="of marks, pages, results (out/reproduce/RECIPE)"
    )
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="walk the road in miniature on this machine: drawn data, vocabulary and parents, three small sizes",
    )
    parser.add_argument("--dry_run", action="store_true", help="print the stages and their commands; do nothing")
    parser.add_argument("--skip", action="append", default=[], metavar="STAGE", help="leave it out; may be given again")
    parser.add_argument(
        "--redo", type=text_flag, metavar="STAGE", help="repeat it and all later stages; results are set aside"
    )
    parser.add_argument(
        "--keep", action="store_true", help="take stages as they are that other settings were done with"
    )
    parser.add_argument(
        "--gin_file", action="append", type=path_flag, default=[], metavar="FILE", help="read after the recipe's own"
    )
    parser.add_argument("--data_dir", type=path_flag, help="files of tasks (else FLANX_DATA_DIR, else FOLDER/data)")
    parser.add_argument(
        "--benchmarks",
        type=path_flag,
        default="hub",
        metavar="DIR",
        help="of the benchmarks: a folder, or hub (default)",
    )
    parser.add_argument("--allow_missing", action="store_true", help="train without the tasks that have no data")
    parser.add_argument("--verify", action="store_true", help="compare both conversions with transformers")
    launch = parser.add_argument_group("where training and evaluations run (`flanx launch`); this machine without them")
    launch.add_argument("--target", type=text_flag, metavar="NAME", help="a table of the targets' file")
    launch.add_argument(
        "--targets", type=path_flag, default=FILE, metavar="FILE", help=f"the file of targets (default {FILE})"
    )
    launch.add_argument("--program", choices=sorted(BACKENDS), help="how; else what the target's keys are of")
    launch.add_argument(
        "--place", type=path_flag, metavar="URL", help="of store, runs and scores (else the target's bucket)"
    )
    launch.add_argument("--topology", metavar="NAME", help="the slice or GPUs: v5e:2x4 (see `flanx plan`)")
    launch.add_argument("--slices", type=flag(int, COUNT), default=1, metavar="N", help="slices of that shape")
    launch.add_argument(
        "--processes", type=flag(int, COUNT), default=1, metavar="N", help="of this machine; nodes of slurm"
    )
    launch.add_argument("--spot", action="store_true", help="cheaper hosts that may be preempted")
    launch.add_argument("--dirty", action="store_true", help="ship the tree with its changes, not the commit alone")
    launch.add_argument("--yes", action="store_true", help="do not ask before spending")


def run(args: argparse.Namespace) -> int:
    """Runs the stages, or prints them; returns the exit status of a failed command."""
    row = published(args.recipe, args.gin_file)
    folder = pathlib.Path(args.folder or f"out/reproduce/{row.name}{'_rehearsal' * args.rehearse}").absolute()
    if args.rehearse:
        refuse_real(args)
        asked = rehearsal.reproduction(row.name, row, folder, args.bindings)
        environment = rehearsal.environment(folder)
    else:
        asked, environment = real(args, row, folder), {}
    os.environ.update(environment)  # also for this process: it reads the stages' settings
    road = Road(folder, stages(asked), environment)
    road.check(args.skip, args.redo or "")
    if args.dry_run:
        print("\n".join(road.describe(args.skip)))
        return 0
    if args.rehearse:
        rehearsal.draw(folder)
    if status := road.run(args.skip, args.redo or "", args.keep):
        return status
    print(f"{row.name}: every stage is done; read {folder}/report.md")
    return 0


def refuse_real(args: argparse.Namespace) -> None:
    """Raises UserError for flags that set where a real run goes."""
    for name in ("target", "program", "place", "topology", "data_dir", "verify", "allow_missing", "spot"):
        if getattr(args, name):
            raise UserError(f"--rehearse runs on this machine with its own data: leave --{name} out")
    for name, usual in (("benchmarks", "hub"), ("slices", 1), ("processes", 1)):
        if getattr(args, name) != usual:
            raise UserError(f"--rehearse runs on this machine with its own data: leave --{name} out")


def real(args: argparse.Namespace, row: Row, folder: pathlib.Path) -> Reproduction:
    """The reproduction that the flags ask for. Raises UserError if cluster hosts would not see the folders."""
    target = read(args.targets, args.target, {}) if args.target else Target()
    program = args.program or next((name for key, name in PROGRAMS.items() if getattr(target, key)), "local")
    place = args.place or (
        f"{target.bucket.rstrip('/')}/{row.name}" if target.bucket and program != "local" else str(folder)
    )
    if "://" in place and not re.match(r"(gs|s3)://[^/]", place):
        raise UserError(f"--place={place}: give gs://BUCKET/FOLDER, s3://BUCKET/FOLDER, or a folder of this machine")
    place = place.rstrip("/") if "://" in place else os.path.abspath(place)  # valid from any working directory
    if program in ("xpk", "jobset", "tpu-vm", "skypilot") and not is_url(place):
        raise UserError(
            f"hosts of {program} do not see {place}: give --place=gs://BUCKET/FOLDER, or a bucket in the target "
            f"{args.target or '(--target=NAME)'} of {args.targets}"
        )
    how = [f"--target={args.target}", f"--targets={args.targets}"] * bool(args.target)
    how += [f"--topology={args.topology}"] if args.topology and program != "local" else []
    how += [f"--slices={args.slices}"] * (args.slices > 1) + [f"--processes={args.processes}"] * (args.processes > 1)
    how += [f"--{name}" for name in ("spot", "dirty", "yes") if getattr(args, name)]
    return Reproduction(
        folder,
        place,
        [row],
        data_dir=args.data_dir or os.environ.get("FLANX_DATA_DIR") or str(folder / "data"),
        benchmarks=args.benchmarks,
        program=program,
        how=how + (platform() if program == "local" else []),
        topology=args.topology or "auto",
        given=args.bindings,
        allow_missing=args.allow_missing,
        verify=args.verify,
        keeps_parent="parent" not in args.skip,
        skips_launch="launch" in args.skip,
    )
