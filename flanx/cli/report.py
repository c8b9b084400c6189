"""`flanx report`: a sweep's tables and figures; a run's curves; scores in the layout of the paper's Table 5."""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from flanx import bucket, files
from flanx.errors import UserError
from flanx.evals import comparison, label_table, responsible, table5
from flanx.settings import COUNT, flag, path_flag
from flanx.sweep import curves, label_figures, report, responsible_page, run_page
from flanx.sweep.state import State


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `flanx report`."""
    parser.add_argument(
        "run",
        nargs="+",
        type=path_flag,
        metavar="RUN[=MODEL]",
        help="folder of a training run, or with scores.json; MODEL: a row of Table 5 to print next to it",
    )
    parser.add_argument("--csv", type=path_flag, metavar="FILE", help="write the table as CSV as well")
    parser.add_argument(
        "--figures",
        type=path_flag,
        metavar="FOLDER",
        help="draw scores by label (bias) and toxicity into it, the latter with a page of its tables",
    )
    parser.add_argument("--output", type=path_flag, metavar="FOLDER", help="of the page of training runs; else theirs")
    parser.add_argument(
        "--show_text",
        type=flag(int, COUNT),
        metavar="N",
        help="print the N continuations of highest toxicity of each toxicity suite (they may offend)",
    )
    parser.epilog = (
        "RUN that holds metrics.jsonl: report.html, report.md and figures/ are written into it, its curves and tasks; "
        "several are drawn over one another, into runs.html of the folder that holds them. "
        "Several with generations of the same items are compared with the first, by paired tests. "
        "RUN may also be a sweep, its folder or its gin file (with --gin.NAME=VALUE): then results.csv, cells.csv, "
        "report.md, report.html and figures/ are written into the sweep's folder"
    )


def run(args: argparse.Namespace) -> int:
    """Writes reports of sweeps or training runs, and prints the table of runs with scores."""
    with bucket.copied(args.run) as names:
        if files.mirrors and len(names) > 1 and not args.output and curves.is_run(names[0]):
            raise UserError("runs in buckets have no folder that holds them all: add --output FOLDER for their page")
        return _run(args, names)


def _run(args: argparse.Namespace, names: Sequence[str]) -> int:
    if not any(report.is_sweep(name) for name in names):
        return _report_runs(args, names)
    if args.output:
        raise UserError("--output belongs to a report of training runs; a sweep's lies in its folder")
    if args.figures:
        raise UserError("--figures belongs to a report of runs with scores; a sweep's lie in its folder")
    if args.csv:
        raise UserError("--csv belongs to a report of runs; a sweep's results.csv lies in its folder")
    for name in names:
        if not report.is_sweep(name):
            raise UserError(f"{name} is not a sweep: report sweeps and runs separately")
        sweep = report.read(name, args.bindings)
        for path in report.publish(sweep, State(sweep.out_dir)):
            print(files.shown(path))
    return 0


def _report_curves(args: argparse.Namespace, names: Sequence[str]) -> list[str]:
    """Writes the page of training runs, and returns those that have scores."""
    bare = [name for name in names if not any(pathlib.Path(name).rglob("scores.json"))]
    if bare and args.csv:
        raise UserError(f"--csv writes the table of scores, and {bare[0]} has no scores.json: leave it out")
    for path in run_page.publish(curves.read_runs(names), pathlib.Path(args.output) if args.output else None):
        print(files.shown(path))
    for name in bare if len(bare) < len(names) else ():
        print(f"note: {name} has no scores.json: it is in no table below", file=sys.stderr)
    return [name for name in names if name not in bare]


def _report_runs(args: argparse.Namespace, names: Sequence[str]) -> int:
    are_runs = curves.is_run(names[0])
    if args.output and not are_runs:
        raise UserError(f"--output belongs to a report of training runs, and {names[0]} is none")
    scored = _report_curves(args, names) if are_runs else names
    if not scored:
        return 0
    lines = [table5.Line.read(text) for text in scored]
    print(table5.markdown(lines))
    for text in filter(None, (label_table.markdown(lines), responsible.markdown(lines))):
        print(f"\n{text}")
    if args.figures:
        folder = pathlib.Path(args.figures)
        for path in [*label_figures.draw(lines, folder), *responsible_page.publish(lines, folder)]:
            print(f"\nwritten: {path}")
    if len(lines) > 1 and (tests := comparison.markdown(comparison.compare_all([(x.label, x.folder) for x in lines]))):
        print(f"\n{tests}")
    for line in lines if args.show_text else ():
        print(responsible.offending(line, args.show_text))
    if args.csv:
        files.write_atomic(pathlib.Path(args.csv), table5.table(lines))
        print(f"\nwritten: {args.csv}")
    return 0
