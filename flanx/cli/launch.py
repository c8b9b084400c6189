"""`flanx launch`: a run or a sweep on a slice, a cluster or this machine, and what became of it."""

import argparse
import dataclasses
import json
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from flanx import gin_files
from flanx.cli import gin_flags
from flanx.cli.table import print_table
from flanx.errors import UserError, nearest
from flanx.launch import cleanup, code, estimate, kubernetes, lifecycle, local, program, record, skypilot, slurm, tpu_vm
from flanx.launch.backend import Backend, State
from flanx.launch.job import Job, check_environment, check_name, refuse_secrets, shown
from flanx.launch.record import ENDED, LEFT, MADE, Record
from flanx.launch.target import FILE, KEYS, read
from flanx.plan import hardware
from flanx.settings import COUNT, MOST_SECONDS, NATURAL, Range, flag, path_flag
from flanx.storage import BUCKETS, open_storage

BACKENDS: dict[str, type[Backend]] = {
    "xpk": kubernetes.Xpk,
    "jobset": kubernetes.JobSet,
    "tpu-vm": tpu_vm.TpuVm,
    "skypilot": skypilot.SkyPilot,
    "slurm": slurm.Slurm,
    "local": local.Local,
}
RUNS = {"train": "MODEL_DIR", "evaluate": "OUTPUT_DIR", "infer": "INFER_OUTPUT_DIR"}  # command -> macro of its folder
QUESTIONS = ("status", "logs", "stop", "list")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `flanx launch`."""
    gin_flags.add_gin_arguments(parser)
    parser.add_argument(
        "program",
        metavar="PROGRAM",
        help=f"{', '.join(BACKENDS)} to launch; {', '.join(QUESTIONS)} for what was launched",
    )
    parser.add_argument(
        "what", nargs="?", default="", metavar="WHAT", help="a recipe or sweep (its gin file), or train, evaluate, "
        "infer; for status, logs and stop the launch's name",
    )  # fmt: skip
    parser.add_argument("--topology", metavar="NAME", help="the slice or GPUs: v5e:4x4, h100:16 (see `flanx plan`)")
    parser.add_argument("--slices", type=flag(int, COUNT), default=1, metavar="N", help="slices of that shape")
    parser.add_argument("--spot", action="store_true", help="cheaper hosts that may be preempted")
    parser.add_argument("--processes", type=flag(int, COUNT), default=1, metavar="N", help="of local; nodes of slurm")
    parser.add_argument("--name", help="of the launch (default: made of WHAT)")
    parser.add_argument("--target", default="", metavar="NAME", help="a table of the targets' file")
    parser.add_argument(
        "--targets", type=path_flag, default=FILE, metavar="FILE", help=f"the file of targets (default {FILE})"
    )
    for key in KEYS:
        kind = flag(int, NATURAL) if key == "quota" else str
        parser.add_argument(f"--{key}", type=kind, metavar="VALUE", help=f"in place of the target's {key}")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="a variable of every host")
    parser.add_argument("--dirty", action="store_true", help="ship the tree with its changes, not the commit alone")
    parser.add_argument("--wheel", default="", metavar="FILE", help="ship this wheel")
    parser.add_argument("--build", action="store_true", help="build and push the image first")
    parser.add_argument("--without_xpk", action="store_true", help="xpk: make a JobSet with kubectl")
    parser.add_argument("--no_plan", action="store_true", help="do not estimate whether it fits and how long it takes")
    parser.add_argument("--jobs", type=flag(int, COUNT), default=1, metavar="N", help="points of a sweep at once")
    parser.add_argument(
        "--restarts", type=flag(int, NATURAL), default=3, metavar="N", help="in a row without a newer checkpoint"
    )
    seconds = flag(float, Range(0, MOST_SECONDS))
    parser.add_argument(
        "--grace", type=seconds, default=120.0, metavar="S", help="for a run that is asked to save and end"
    )
    parser.add_argument("--period", type=seconds, default=30.0, metavar="S", help="between questions for the state")
    parser.add_argument("--dry_run", action="store_true", help="print what would be done; ask and make nothing")
    parser.add_argument("--yes", action="store_true", help="do not ask before spending")
    parser.add_argument("--detach", action="store_true", help="return once it is made (not of tpu-vm and local)")
    parser.add_argument("--folder", default=record.FOLDER, metavar="DIR", help=f"records and logs ({record.FOLDER})")
    parser.add_argument("--json", action="store_true", help="list, status: print JSON")


def run(args: argparse.Namespace) -> int:
    """Launches a run, or answers a query. The exit status of a launch is the run's."""
    if args.program in QUESTIONS:
        return {"status": status, "logs": logs, "stop": stop, "list": list_}[args.program](args)
    if args.program not in BACKENDS:
        raise UserError(
            f"no program '{args.program}'{nearest(args.program, [*BACKENDS, *QUESTIONS])} "
            f"(known: {', '.join(BACKENDS)}; {', '.join(QUESTIONS)})"
        )
    if not args.what and not args.gin_file:
        raise UserError(
            f"flanx launch {args.program} WHAT: name a recipe, a sweep's gin file, or train, evaluate, infer"
        )
    if args.what and args.what not in RUNS:
        args.gin_file = [gin_flags.file_of(args.what), *args.gin_file]
    if args.imports:
        gin_files.allow_imports(args.imports)
    if is_sweep(args):
        return launch_sweep(args)
    return launch(args)


def is_sweep(args: argparse.Namespace) -> bool:
    """Whether the gin files bind a sweep, directly or through includes."""
    if args.what in RUNS:
        return False
    folders = [path for path in args.gin_search_paths.split(",") if path]
    scan = gin_files.Scan([*folders, str(gin_folder())])
    for name in args.gin_file:
        scan.read(name, "the command line")
    return any(re.search(r"(^|\.)Sweep\b", key) for key in scan.bound)


def gin_folder() -> pathlib.Path:
    """The folder of flanx's gin files."""
    from flanx import config  # noqa: PLC0415  (imports gin)

    return config.gin_folder()


# ---- one run ---------------------------------------------------------------------------------------------------------


def launch(args: argparse.Namespace) -> int:
    """Launches one run, after printing the plan and asking for confirmation."""
    job, planned = make_job(args)
    kind = BACKENDS["jobset" if args.program == "xpk" and args.without_xpk else args.program]
    backend = kind(job)
    if args.detach and not backend.keeps_run:
        raise UserError(f"--detach: {args.program} has no one who keeps the run; use `nohup`, tmux or a service")
    built = image_commands(args, backend)
    print_plan(backend, planned, built)
    if args.dry_run:
        return 0
    lifecycle.check(backend)
    if not args.yes:
        confirm()
    for words in built:
        lifecycle.must(words)
    kept = Record(
        *(job.name, next(name for name, each in BACKENDS.items() if each is kind), job.folder),
        command=["flanx", *job.words],
        commit=job.code.tag,
        topology=job.topology.name if job.topology else f"{job.processes} processes",
    )
    ended = lifecycle.launch(backend, kept, args.period, args.detach)
    if args.detach:
        print(f"made: flanx launch status {job.name} (or logs, stop)")
    return ended


def make_job(args: argparse.Namespace) -> tuple[Job, str]:
    """(The job given by the flags, its plan in words). Raises UserError for every error detectable upfront."""
    command = args.what if args.what in RUNS else "train"
    topology = hardware.parse(args.topology) if args.topology else None
    if topology and args.slices > 1:
        if topology.slices > 1 or not topology.chip.is_tpu:
            raise UserError(f"--topology={args.topology} --slices={args.slices}: give slices of one TPU shape, once")
        topology = dataclasses.replace(topology, slices=args.slices)
    name = check_name(args.name or default_name(args))
    folder = pathlib.Path(args.folder) / name
    if (folder / record.FILE).exists() and ((old := record.read(folder)).is_driven or old.stage in (MADE, LEFT)):
        raise UserError(f"the launch {name} has not ended ({old.text}): give --name, or `flanx launch stop {name}`")
    search_paths = [path for path in args.gin_search_paths.split(",") if path]
    words = [command, *(f"--gin_file={file}" for file in args.gin_file)]
    words += [f"--gin_search_paths={args.gin_search_paths}"] if args.gin_search_paths else []
    words += [f"--import={module}" for module in args.imports]
    words += [f"--gin.{binding}" for binding in args.bindings]
    refuse_secrets({"the command line": shlex.join(words)}, "the run")
    target = read(args.targets, args.target, {key: getattr(args, key) for key in KEYS})
    if args.imports and args.program not in ("local", "slurm") and not target.image:
        raise UserError(f"--import={args.imports[0]}: a module of your own is not shipped: give an image that has it")
    files = (args.gin_file, args.bindings, search_paths)
    config, run_folder = estimate.operative_config(*files, RUNS[command])
    refuse_secrets({"the operative config": config}, "the run")
    planned = ""
    if topology and command == "train" and not args.no_plan:
        planned = estimate.plan(*files, topology).text
    return Job(
        *(name, words, folder, target, topology, args.spot, args.processes, config),
        own_files=estimate.own_files(args.gin_file),
        model_dir=run_folder if command == "train" else "",
        code=code.find(args.dirty, args.wheel),
        builds=args.build,
        environment=check_environment(args.env),
        restarts=args.restarts,
        grace=args.grace,
    ), planned


def default_name(args: argparse.Namespace) -> str:
    """A name derived from the last gin file."""
    stem = pathlib.PurePath(args.gin_file[-1] if args.gin_file else args.what).stem
    return re.sub(r"[^a-z0-9]+", "-", f"flanx-{stem}".lower())[:40].strip("-")


def image_commands(args: argparse.Namespace, backend: Backend) -> Sequence[Sequence[str]]:
    """The commands of --build."""
    if not args.build:
        return []
    if not backend.job.image:
        raise UserError("--build: the target has no image; give --image=REGISTRY/NAME")
    return code.image_commands(backend.job.code, backend.job.image, backend.accelerator)


def print_plan(backend: Backend, planned: str, built: Sequence[Sequence[str]]) -> None:
    """Prints exactly what will happen."""
    job = backend.job
    where = f"{job.topology.name}: {job.topology.chips} chips on {job.topology.hosts} hosts" if job.topology else ""
    print(f"{job.name}: {where or f'{job.processes} processes'}{', spot' if job.spot else ''}")
    what = (
        f"image {job.image}" if job.image else f"commit {job.code.tag}" + (f", {job.code.wheel}" * bool(job.code.wheel))
    )
    print(f"code: {what}")
    print(f"plan: {planned or 'not estimated'}")
    print(f"command: {shown(['flanx', *job.words])}")
    for name, content in backend.files().items():
        print(f"file {backend.folder}/{name}: {len(content.splitlines())} lines")
    stages = {
        "asks": [each.words for each in backend.checks()],
        "does": [*built, *backend.ship(), *backend.make(), *backend.prepare()],
        "log" if backend.keeps_run else "run": list(backend.hosts().values()),
        "at the end": [*backend.discard(), *backend.clean()],
    }
    for stage, commands in stages.items():
        for words in commands[:20]:
            print(f"{stage}: {shown(words)}")
        if len(commands) > 20:
            print(f"{stage}: and {len(commands) - 20} more like the last")


def confirm() -> None:
    """Asks before spending money. Raises UserError for anything but yes, and if nobody can be asked."""
    if not sys.stdin.isatty():
        raise UserError("there is nobody to ask here: give --yes to continue, or --dry_run to look only")
    if input("continue? [y/N] ").strip().lower() not in ("y", "yes"):
        raise UserError("nothing was made")


# ---- a sweep ---------------------------------------------------------------------------------------------------------


def launch_sweep(args: argparse.Namespace) -> int:
    """Launches a sweep as an array, --jobs at a time: `flanx sweep` manages order and state and launches each point."""
    check_sweep_folder(args)
    words = [f"--gin_file={file}" for file in args.gin_file]
    words += [f"--gin_search_paths={args.gin_search_paths}"] if args.gin_search_paths else []
    words += [f"--import={module}" for module in args.imports] + [f"--gin.{binding}" for binding in args.bindings]
    refuse_secrets({"the command line": shlex.join(words)}, "the sweep")
    read(args.targets, args.target, {key: getattr(args, key) for key in KEYS})
    code.find(args.dirty, args.wheel)
    check_environment(args.env)
    topology = []
    if args.topology:
        named = dataclasses.replace(hardware.parse(args.topology), slices=args.slices)
        topology = [f"--topology={named.name}"]
    sweep = [sys.executable, "-m", "flanx", "sweep", *words]
    if not args.no_plan and (failed := subprocess.run([*sweep, "--dry_run", *topology], check=False).returncode):
        return failed
    each = [sys.executable, "-m", "flanx", "launch", *point_flags(args), "--yes", "--no_plan", "--name={job}"]
    command = [*sweep, f"--jobs={args.jobs}", f"--launcher={shlex.join(each)}"]
    print(f"does: {shown(command)}")
    if args.dry_run:
        return 0
    if not args.yes:
        confirm()
    try:
        return subprocess.run(command, check=False).returncode
    finally:
        found, wrong = records(args.folder)
        for error in wrong:
            print(f"launch: {error}", file=sys.stderr)
        for one in found:
            if one.stage in (MADE, LEFT):
                print(f"launch: {one.name} is not ended ({one.text}): flanx launch stop {one.name}", file=sys.stderr)


def point_flags(args: argparse.Namespace) -> list[str]:
    """The `flanx launch` arguments passed to each point: all but the gin flags and the sweep's own."""
    flags = [args.program]
    for name in ("topology", "target", "targets", "wheel", "folder", *KEYS):
        value = getattr(args, name)
        flags += [f"--{name}={value}"] if value not in (None, "") else []
    flags += [f"--{name}={getattr(args, name)}" for name in ("slices", "processes", "restarts", "grace", "period")]
    flags += [f"--{name}" for name in ("spot", "dirty", "without_xpk") if getattr(args, name)]
    return flags + [f"--env={pair}" for pair in args.env]


def check_sweep_folder(args: argparse.Namespace) -> None:
    """Raises UserError for a folder with a sweep that this version cannot read."""
    from flanx.sweep.grid import GIN, RECORD, RUNS, recorded  # noqa: PLC0415  (only needed for a sweep)

    where = estimate.sweep_folder(args.gin_file, args.bindings, args.gin_search_paths.split(","))
    with tempfile.TemporaryDirectory() as copy:
        folder = pathlib.Path(where)
        if where.startswith(BUCKETS):
            bucket, folder = open_storage(where), pathlib.Path(copy)
            bucket.expect_bucket()
            if (bucket / RUNS).keys():
                (folder / RUNS).mkdir()
            for name in (GIN, RECORD):
                if (content := bucket.find(name)) is not None:
                    (folder / name).write_bytes(content)
        if (folder / GIN).exists() or (folder / RUNS).is_dir():
            try:
                recorded(folder)
            except UserError as error:
                text = str(error).replace(copy, where)
                raise UserError(
                    f"{where} holds a sweep of another version: give another OUT_DIR, or that version\n{text}"
                ) from error


# ---- queries ---------------------------------------------------------------------------------------------------------


def records(folder: str) -> tuple[list[Record], list[UserError]]:
    """All launches in a folder, and the errors of unreadable records."""
    found, wrong = [], []
    for name in record.names(folder):
        try:
            found.append(record.read(pathlib.Path(folder) / name))
        except UserError as error:
            wrong.append(error)
    return found, wrong


def named(args: argparse.Namespace) -> Record:
    """The launch named on the command line."""
    if not args.what:
        raise UserError(f"flanx launch {args.program} NAME; `flanx launch list` prints the names")
    return record.find(args.folder, args.what)


def list_(args: argparse.Namespace) -> int:
    """Prints all launches from their records; 1 if one cannot be read, naming it."""
    found, wrong = records(args.folder)
    for error in wrong:
        print(f"flanx: {error}", file=sys.stderr)
    if args.json:
        print(
            json.dumps([{k: str(v) if k == "folder" else v for k, v in vars(each).items()} for each in found], indent=1)
        )
        return 1 if wrong else 0
    rows = []
    for each in found:
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime(each.started)) if each.started else ""
        rows.append([each.name, each.program, each.topology, each.commit, began, each.stage, each.text])
    columns = ("name", "program", "chips", "commit", "started", "stage", "last known")
    print_table(columns, rows, left=columns[1:])
    return 1 if wrong else 0


def status(args: argparse.Namespace) -> int:
    """Queries the service and prints the state; 1 if it has failed or something is left behind."""
    each = named(args)
    state, text = None, each.text
    if each.stage in (MADE, LEFT) and each.questions:
        answers = [program.run(words, 120.0) for words in each.questions]
        state, text = BACKENDS[each.program].state(answers, each.identifier)
    word = state.value if state else each.stage
    if args.json:
        print(json.dumps({"name": each.name, "stage": each.stage, "state": word, "text": text, "status": each.status}))
    else:
        by = f", driven by process {each.pid}" if each.is_driven else ""
        print(f"{each.name}: {word}" + (f" ({text})" if text else "") + by)
        if each.stage == LEFT:
            print("left behind; remove it with\n  " + "\n  ".join(shown(words) for words in each.remove))
    has_failed = state == State.FAILED or (state == State.LOST and BACKENDS[each.program].keeps_run)
    return 1 if each.stage == LEFT or has_failed or each.status else 0


def logs(args: argparse.Namespace) -> int:
    """Prints the hosts' logs: from the service if it keeps them, else from the launch's files."""
    each = named(args)
    if each.logs and each.stage == MADE:
        streams = program.Streams({"": each.logs[0]}, each.folder / "logs")
        try:
            return next(iter(streams.wait(1.0).values()))
        finally:
            streams.stop(1.0)
    files = sorted((each.folder / "logs").glob("*.log"))
    if not files:
        raise UserError(f"{each.name} has no logs in {each.folder}/logs: it has not run")
    for file in files:
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            print(f"[{file.stem}] {line}" if file.stem else line)
    return 0


def stop(args: argparse.Namespace) -> int:
    """Ends a launch and releases its hosts."""
    each = named(args)
    if each.stage == ENDED:
        print(f"{each.name}: ended already")
        return 0
    cleanup.stop(each, args.grace + 300.0)
    print(f"{each.name}: {record.read(each.folder).stage}")
    return 0
