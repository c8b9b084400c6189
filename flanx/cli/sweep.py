"""`flanx sweep`: runs the points of a grid that a gin file names, and writes tables, figures and a report."""

import argparse
import dataclasses
import fnmatch
import itertools
import math
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence

from flanx import bucket, config, files
from flanx.cli.gin_flags import add_gin_arguments, parse_gin
from flanx.cli.table import print_table
from flanx.errors import UserError
from flanx.evals import significance
from flanx.evals.scores import interval_text, partial, score_text
from flanx.files import write_atomic
from flanx.launch.job import typed
from flanx.plan import hardware
from flanx.progress import Progress
from flanx.settings import COUNT, MOST_SECONDS, NATURAL, Range, flag
from flanx.sweep import cost, dependencies, difference_section, forecast, report, results, statistics
from flanx.sweep.dependencies import Dependencies, Parent
from flanx.sweep.grid import GIN, RECORD, Point, Sweep, record
from flanx.sweep.results import Outcome
from flanx.sweep.scheduler import Launcher, Status, log_path, parse_launcher, run_points
from flanx.sweep.state import DONE, FAILED, RETRYING, RUNNING, State, inheritable_lock
from flanx.train_metrics import last_metrics


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `flanx sweep`."""
    add_gin_arguments(parser)
    parser.add_argument("--dry_run", action="store_true", help="print the commands, what waits for what, and the cost")
    parser.add_argument("--topology", metavar="NAME", help="of the dry run's cost: a slice as `flanx plan` names it")
    parser.add_argument("--jobs", type=flag(int, COUNT), default=1, help="points to run at once (default 1)")
    parser.add_argument(
        "--only",
        metavar="PATTERN",
        action="append",
        help="only the points whose name matches, as 'T5-*'; may be given again",
    )
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--redo", action="store_true", help="run points again that are done with other settings")
    again.add_argument("--keep", action="store_true", help="keep points that are done with other settings")
    parser.add_argument("--retries", type=flag(int, NATURAL), default=2, help="attempts after a crash (default 2)")
    parser.add_argument(
        "--retry_wait",
        type=flag(float, Range(0, MOST_SECONDS)),
        default=10.0,
        metavar="S",
        help="before the first, then doubled",
    )
    parser.add_argument(
        "--launcher",
        metavar="COMMAND",
        help="hand each point to this program, which waits for it (`flanx launch` gives itself; "
        "{name}, {job}, {arguments} are replaced by the point's)",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the sweep. 0: all points done; 1: some points or tasks failed, the others finished; 2: bad input."""
    parse_gin(args)
    sweep, text = config.make(Sweep), config.text()
    with bucket.copied([sweep.out_dir], may_be_empty=True) as folders:
        return _run(args, dataclasses.replace(sweep, out_dir=folders[0]), text)


def _run(args: argparse.Namespace, sweep: Sweep, text: str) -> int:
    launcher = parse_launcher(args.launcher, args.retries, args.retry_wait)
    points = chosen(sweep.points(), args.only)
    report.check(sweep)
    of_points = dependencies.dependencies(points, args.gin_search_paths, args.dry_run)
    stores = dependencies.stores(sweep, of_points, args.gin_search_paths)
    if args.dry_run:
        if not args.redo:
            settle_changed(points, args)
        return dry_run(points, of_points, stores, sweep, args)
    parents = dependencies.parents(sweep, points, of_points)
    settle_changed(points, args)
    out = make_folder(sweep.out_dir)
    write_atomic(out / GIN, text)
    write_atomic(out / RECORD, record(sweep))
    blocked, complete = build_stores(stores, of_points)
    statuses = run_points_and_predict(sweep, points, args.jobs, args.gin_search_paths, launcher, parents, blocked)
    publish(sweep, statuses)
    return 0 if complete and all(status.state == DONE for status in statuses) else 1


def settle_changed(points: Sequence[Point], args: argparse.Namespace) -> None:
    """Raises UserError naming points completed with other settings, unless --redo or --keep says what to do.

    With --redo their folders are set aside, as runs/<point>.<n>, and they are rerun.
    """
    changed = {} if args.keep else dependencies.changed(points, args.gin_search_paths)
    if changed and not args.redo:
        name, lines = next(iter(changed.items()))
        more = f"\n(and {len(changed) - 1} more points)" if len(changed) > 1 else ""
        listed = "; ".join(lines[:4]) + ("; ..." if len(lines) > 4 else "")
        raise UserError(
            f"{name} is done with other settings: {listed}{more}\n"
            "give another OUT_DIR; or --redo to run such points again (their folders are set aside); or --keep to "
            "report them as they are"
        )
    taken = {point.folder.name for point in points}
    for point in points:
        if point.name in changed:
            names = (f"{point.name}.{n}" for n in itertools.count(1))
            aside = next(n for n in names if n not in taken and not point.folder.with_name(n).exists())
            set_aside(point, point.folder.with_name(aside))


def set_aside(point: Point, aside: pathlib.Path) -> None:
    """Renames a point's folder. Raises UserError if another driver of a sweep in a bucket is working there."""
    if mirror := files.mirror_of(point.folder):
        with inheritable_lock(point.folder / "lock") as held:
            if held is None:
                raise UserError(f"{point.name}: another driver runs it or sets it aside; wait for that")
            mirror.move(point.folder, aside)
    else:
        point.folder.rename(aside)
    print(f"{point.name}: set aside as {files.shown(aside)}")


def chosen(points: Sequence[Point], patterns: Sequence[str] | None) -> list[Point]:
    """The points matching any `--only`; all without one. Raises UserError for a pattern that matches none."""
    for pattern in patterns or ():
        if not any(fnmatch.fnmatch(point.name, pattern) for point in points):
            names = ", ".join(point.name for point in points[:5])
            raise UserError(f"--only={pattern} matches no point; they are called {names}{', ...' * (len(points) > 5)}")
    return [p for p in points if patterns is None or any(fnmatch.fnmatch(p.name, pattern) for pattern in patterns)]


def make_folder(name: str) -> pathlib.Path:
    """Creates the sweep's folder and tests writing to it. Raises UserError if that fails."""
    out = pathlib.Path(name)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with open(out / "state.lock", "a", encoding="utf-8"):
            pass
    except OSError as error:
        raise UserError(f"the sweep's folder {out} cannot be written: {error.strerror} (Sweep.out_dir)") from error
    return out


def build_stores(
    stores: Mapping[str, Sequence[str]], of_points: Mapping[str, Dependencies]
) -> tuple[dict[str, str], bool]:
    """Builds or completes the stores; ({point: why it cannot run}, whether every task of every store was built).

    Each runs in a separate process: the builder may need TensorFlow, the sweep does not. Tasks that fail are reported
    and recorded in the store, and the sweep continues without them; a store that fails blocks only its own points.
    """
    failed: dict[str, str] = {}
    complete = True
    for folder, arguments in stores.items():
        code = subprocess.run([sys.executable, "-m", "flanx", *arguments], check=False).returncode
        complete &= code == 0
        if code not in (0, 1):
            failed[folder] = f"its store {folder} was not built (exit status {code}); the lines above say why"
    if failed and len(failed) == len(stores) and all(each.train_steps for each in of_points.values()):
        raise UserError(f"no store was built: {next(iter(failed.values()))}")
    reasons = {name: failed[n.store_dir] for name, n in of_points.items() if n.train_steps and n.store_dir in failed}
    return reasons, complete


def dry_run(
    points: Sequence[Point],
    of_points: Mapping[str, Dependencies],
    stores: Mapping[str, Sequence[str]],
    sweep: Sweep,
    args: argparse.Namespace,
) -> int:
    """Prints the command of every point that is not done, then a table of each point's cost."""
    states = State(sweep.out_dir).statuses(points)
    again = dependencies.changed(points, args.gin_search_paths) if args.redo else {}
    done = {point.name for point in points if states[point.name][0] == DONE and point.name not in again}
    to_run = [point.arguments(args.gin_search_paths) for point in points if point.name not in done]
    for arguments in (*stores.values(), *to_run):
        print(typed(arguments))
    try:
        parents = dependencies.parents(sweep, points, of_points)
    except UserError as error:
        parents = {}
        print(f"note: not ready to run: {error}")
    topology = hardware.parse(args.topology) if args.topology is not None else None

    def announce(point: Point) -> None:
        print(f"estimating a step of {point.name} on {args.topology} ...", file=sys.stderr, flush=True)

    found = cost.costs(points, args.gin_search_paths, topology, announce)
    starts = [start(of_points[point.name], parents.get(point.name)) for point in points]
    rows = [
        [point.name, *cost_row(each, "done" if point.name in done else text)]
        for point, each, text in zip(points, found, starts, strict=True)
    ]
    found = [each for point, each in zip(points, found, strict=True) if point.name not in done]
    columns = ("point", "starts from", "parameters", "steps", "FLOPs", "layout", "hours", "chip-hours")
    print_table(columns, rows, left=("starts from", "layout"))
    unfit = sum(1 for each in found if each.train_steps and not each.seconds)
    whole = f"without {len(done)} done" if done else "in all"
    print(
        f"{whole}: {sum(each.flops for each in found if each.train_steps):.3g} FLOPs, "
        f"{sum(each.hours * each.chips for each in found):,.3g} chip-hours"
        f"{f', without {unfit} that do not fit' if unfit else ''} ({cost.basis(topology)}; training only)"
    )
    for line in power_lines(sweep):
        print(line)
    return 0


def power_lines(sweep: Sweep) -> list[str]:
    """What it takes to detect differences between two cells, from the noise of finished runs, or an assumed noise."""
    outcomes = results.collect(sweep, State(sweep.out_dir).statuses(sweep.points()))
    found = difference_section.floors(sweep, statistics.mean_scores(sweep, outcomes))
    seeds = max(1, math.prod(len(sweep.axes[axis]) for axis in sweep.average_over if axis in sweep.axes))
    if not found:
        return significance.power_lines(seeds, significance.SEEDS_SD, "assumed")
    score, floor = max(found.items(), key=lambda item: item[1].sd)
    return significance.power_lines(seeds, floor.sd, f"{score}, the noisiest score of the runs that are done")


def cost_row(each: cost.PointCost, starts_from: str) -> list[str]:
    """A point's cells in the dry run's table."""
    row = [starts_from, f"{each.parameters:,}", f"{each.train_steps:,}"]
    if not each.train_steps:
        return [*row, "evaluation only", "", "", ""]
    if not each.seconds:
        return [*row, f"{each.flops:.2e}", each.layout, "does not fit", ""]
    hours = f"{each.hours:,.3g}" if each.layout else ""
    return [*row, f"{each.flops:.2e}", each.layout, hours, f"{each.hours * each.chips:,.3g}"]


def start(of_point: Dependencies, parent: Parent | None) -> str:
    """What a point starts from: the point it waits for, its parent's path, or nothing."""
    if parent is None:
        return of_point.parent or "scratch"
    return f"waits for {parent.point or parent.folder.name}" + (", chosen" if parent.chosen else "")


def run_points_and_predict(
    sweep: Sweep,
    points: Sequence[Point],
    jobs: int,
    search_paths: str,
    launcher: Launcher,
    parents: Mapping[str, Parent],
    blocked: Mapping[str, str],
) -> list[Status]:
    """Runs the points; those of `Sweep.predict_first` last, once their prediction has been written."""
    first, late = forecast.split(sweep, points, parents)
    planned = forecast.planned(late, search_paths)
    statuses = watch(sweep, first, jobs, search_paths, launcher, parents, blocked)
    if late:
        for line in forecast.write(sweep, late, planned):
            print(line, flush=True)
        statuses += watch(sweep, late, jobs, search_paths, launcher, parents, blocked)
    return statuses


def watch(
    sweep: Sweep,
    points: Sequence[Point],
    jobs: int,
    search_paths: str,
    launcher: Launcher,
    parents: Mapping[str, Parent],
    blocked: Mapping[str, str],
) -> list[Status]:
    """Runs the points, with a row for each running one (see `Progress`) and a line for each that has ended."""

    def on_done(status: Status) -> None:
        if sweep.choose_by:
            _refresh()
            results.write_choices(sweep)  # points that start from a chosen checkpoint wait for it

    seen: dict[str, tuple[str, str]] = {}
    with Progress(line_period=0.0) as progress:

        def show(statuses: list[Status]) -> None:
            for status in statuses:
                name, key = status.point.name, (status.state, status.reason)
                if status.state == RUNNING and progress.is_live:
                    record = last_metrics(status.point.folder)
                    at = f"  step {record['step']}  loss {record['loss']:.3f}" if record else ""
                    progress.update(name, describe(status) + at)
                elif seen.get(name) != key and status.state in (RUNNING, RETRYING):
                    progress.update(name, describe(status))
                elif seen.get(name) != key and status.state in (DONE, FAILED):
                    progress.remove(name)
                    ended = sum(s.state in (DONE, FAILED) for s in statuses)
                    style = "yellow" if status.state == FAILED else None
                    progress.note(f"[{ended}/{len(statuses)}] {name}: {describe(status)}", style)
                seen[name] = key

        return run_points(points, jobs, search_paths, show, launcher, parents, blocked, on_done)


def describe(status: Status) -> str:
    """The state of a point as a phrase."""
    if status.state == DONE:
        return "already done" if status.skipped else f"done in {status.seconds:.0f} s"
    if status.state in (FAILED, RETRYING):
        word = "failed" if status.state == FAILED else "will be retried"
        log = log_path(status.point)
        return f"{word} ({status.reason})" + (f"; see {os.path.relpath(log)}" if log.exists() else "")
    return f"{status.state} ({status.reason})" if status.reason else status.state


def publish(sweep: Sweep, statuses: Sequence[Status]) -> None:
    """Prints the scores, writes the report and prints the paths of its files."""
    _refresh()
    state = State(sweep.out_dir)
    print(sweep.title)
    print_scores(sweep, results.collect(sweep, state.statuses(sweep.points())))
    written = report.publish(sweep, state)
    for status in statuses:
        if status.state == FAILED:
            print(f"{status.point.name}: {describe(status)}", file=sys.stderr)
    for path in written:
        if path.suffix != ".svg":
            print(files.shown(path))


def _refresh() -> None:
    """Fetches what other drivers and the runs have uploaded, if the sweep is in a bucket."""
    for mirror in files.mirrors.values():
        mirror.refresh()


def print_scores(sweep: Sweep, outcomes: Sequence[Outcome]) -> None:
    """Prints one line per point, checkpoint and suite."""
    rows = []
    for outcome in outcomes:
        labels = [*outcome.point.labels.values(), outcome.checkpoint]
        if not outcome.suites:
            rows.append([*labels, f"no score ({outcome.absence})", "", "", ""])
        for name, entry in outcome.suites.items():
            score = f"{score_text(entry)}{'!' if entry['flagged'] else ''}{'‡' if partial(entry) else ''}"
            rows.append([*labels, name, score, interval_text(entry, " to "), f"{entry['n']:,}"])
    left = [*sweep.axes, "checkpoint", "suite"]
    print_table([*left, "score", "95% interval", "items"], rows, left=left)
    for note in results.version_note(outcomes):
        print(note)
