"""`flanx sweep`: a gin file names a grid, its points are run; a table, results.csv, a figure and a page come out."""

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table

from flanx.cli import add_gin_arguments, parse_gin
from flanx.errors import UserError
from flanx.report import last_metrics
from flanx.sweep import page, plot
from flanx.sweep.drive import DONE, FAILED, RUNNING, Status, drive, log_path
from flanx.sweep.grid import Point, Sweep
from flanx.sweep.results import Row, collect, write_csv


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the door."""
    add_gin_arguments(parser)
    parser.add_argument("--dry_run", action="store_true", help="print the points and their commands, run nothing")
    parser.add_argument("--jobs", type=int, default=1, help="points to run at once (default 1)")


def run(args: argparse.Namespace) -> int:
    """Runs the sweep. 0: all points done; 1: some points or tasks failed, the others finished; 2: bad input."""
    from flanx import config

    parse_gin(args)
    sweep = config.make(Sweep)
    points = sweep.points()
    if args.jobs < 1:
        raise UserError(f"--jobs={args.jobs}: at least 1 point runs at a time")
    if args.dry_run:
        if sweep.store:
            print("flanx", shlex.join(sweep.store_arguments(args.gin_search_paths)))
        for point in points:
            print("flanx", shlex.join(point.arguments(args.gin_search_paths)))
        return 0
    check(points, args.gin_search_paths)
    out = pathlib.Path(sweep.out_dir)
    out.mkdir(parents=True, exist_ok=True)
    config.write_atomic(out / "sweep.gin", config.text())
    complete = build_store(sweep.store_arguments(args.gin_search_paths)) if sweep.store else True
    statuses = watch(points, args.jobs, args.gin_search_paths)
    rows = collect(sweep, statuses)
    publish(sweep, statuses, rows, out)
    return 1 if not complete or any(s.state == FAILED for s in statuses) else 0


def check(points: Sequence[Point], search_paths: str) -> None:
    """Binds every point's gin once before any runs: a wrong macro in the last point is said in the first second."""
    from flanx import config
    from flanx.cli import take_bindings

    paths = [p for p in search_paths.split(",") if p]
    for point in points:
        _, bindings = take_bindings(point.arguments())
        config.parse(point.gin_files, bindings, paths)


def build_store(arguments: Sequence[str]) -> bool:
    """Builds what the store lacks, in a process of its own: the builder needs TensorFlow, the sweep does not.

    False where some tasks failed: they are named above, recorded in the store, and the sweep goes on without them.
    """
    code = subprocess.run([sys.executable, "-m", "flanx", *arguments], check=False).returncode
    if code not in (0, 1):
        raise UserError(f"the store was not built (exit status {code}); the lines above say why")
    return code == 0


def watch(points: Sequence[Point], jobs: int, search_paths: str) -> list[Status]:
    """Runs the points under a live table; off a terminal a line per change."""
    console = Console(highlight=False)
    if console.is_terminal:
        with Live(console=console, refresh_per_second=2) as live:
            return drive(points, jobs, search_paths, lambda statuses: live.update(state_table(statuses)))
    seen: dict[str, str] = {}

    def say(statuses: list[Status]) -> None:
        for status in statuses:
            line = f"{status.point.name}: {describe(status)}"
            key = status.state
            if seen.get(status.point.name) != key and status.state in (RUNNING, DONE, FAILED):
                seen[status.point.name] = key
                done = sum(s.state in (DONE, FAILED) for s in statuses)
                console.print(f"[{done}/{len(statuses)}] {line}", markup=False, soft_wrap=True)

    return drive(points, jobs, search_paths, say)


def describe(status: Status) -> str:
    """One phrase on a point."""
    if status.state == DONE:
        return "already done" if status.skipped else f"done in {status.seconds:.0f} s"
    if status.state == FAILED:
        return f"failed ({status.reason}); see {log_path(status.point)}"
    return status.state


def state_table(statuses: Sequence[Status]) -> Table:
    """The live table: a row per point with its state and newest metrics."""
    table = Table("point", "state", "step", "loss")
    for status in statuses:
        record = last_metrics(status.point.folder) if status.state in (RUNNING, DONE) else None
        step, loss = (str(record["step"]), f"{record['loss']:.3f}") if record else ("", "")
        table.add_row(status.point.name, describe(status), step, loss)
    return table


def publish(sweep: Sweep, statuses: Sequence[Status], rows: Sequence[Row], out: pathlib.Path) -> None:
    """Prints the table and writes results.csv, scaling.png, scaling.svg and report.html; their paths come last."""
    Console(highlight=False).print(score_table(sweep, rows))
    write_csv(out / "results.csv", sweep, rows)
    written = [out / "results.csv"]
    if any(row.score is not None for row in rows):
        plot.draw(sweep, rows, sizes(sweep, statuses), out / "scaling.png")
        page.write_page(out / "report.html", sweep, rows, out / "scaling.png", facts(sweep, statuses))
        written += [out / "scaling.png", out / "report.html"]
    for status in statuses:
        if status.state == FAILED:
            print(f"{status.point.name}: {describe(status)}", file=sys.stderr)
    for path in written:
        print(path)


def score_table(sweep: Sweep, rows: Sequence[Row]) -> Table:
    """One line per point and suite."""
    table = Table(*sweep.axes, "suite", "score", "95% interval", "items", "state", title=sweep.title)
    for row in rows:
        has = row.score is not None
        score = f"{row.score:.1f}{'*' if row.flagged else ''}" if has else "-"
        interval = f"{row.low:.1f} to {row.high:.1f}" if has else ""
        table.add_row(*row.labels.values(), row.suite, score, interval, f"{row.n:,}" if has else "", row.state)
    return table


def sizes(sweep: Sweep, statuses: Sequence[Status]) -> dict[str, int]:
    """Parameters per label of the first axis, as the runs wrote them down."""
    first = next(iter(sweep.axes))
    found = {}
    for status in statuses:
        path = status.point.folder / "run.json"
        if path.exists():
            found[status.point.labels[first]] = json.loads(path.read_text(encoding="utf-8"))["num_params"]
    return found


def facts(sweep: Sweep, statuses: Sequence[Status]) -> dict[str, str]:
    """Date, versions and machine class, for the page."""
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("flanx", "jax", "flax", "optax", "numpy")
    )
    return {
        "date": datetime.date.today().isoformat(),
        "versions": f"Python {platform.python_version()}, {versions}",
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores",
        "points": f"{sum(s.state == DONE for s in statuses)} of {len(statuses)} done",
        "config": "sweep.gin beside this page; config.gin and operative_config.gin in every run's folder",
    }
