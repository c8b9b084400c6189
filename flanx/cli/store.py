"""`flanx store`: build, show, mix, verify."""

import argparse
import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from flanx import config
from flanx.cli.gin_flags import add_gin_arguments, parse_gin
from flanx.cli.table import print_table
from flanx.data import mixture_stats, store
from flanx.data.store import build, stats
from flanx.files import write_atomic
from flanx.settings import RANGES, flag, path_flag

_SHOWN = 10  # missing tasks of a build to list; up to twice as many are listed in full
_HELD = ("examples", "rendered", "tokens", "unknown")  # columns of `show`


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    commands = parser.add_subparsers(dest="store_command", metavar="build|show|mix|verify", required=True)
    build_parser = commands.add_parser("build", help="render and tokenize tasks into the store, or complete it")
    add_gin_arguments(build_parser)
    build_parser.add_argument("--runner", choices=build.RUNNERS, help="what runs the jobs")
    build_parser.add_argument("--runner_options", help="options of the Beam runner, separated by spaces")
    build_parser.add_argument("--quiet", action="store_true", help="no progress")
    show = commands.add_parser("show", help="what a store holds")
    show.add_argument("store", type=path_flag, help="folder or URL of the store")
    show.add_argument(
        "--lengths", type=_lengths, default=(512, 128), help="where truncation is reported: inputs,targets (512,128)"
    )
    mix = commands.add_parser(
        "mix",
        help="what a mixture gives over the planned steps",
        description="What a mixture gives over the planned steps. Its macros are those of runs/mix.gin (STORE_DIR, "
        "MIXTURE_OR_TASK_NAME, NUM_TASKS, COT_RATIO, ...); the gin files of a run override them.",
    )
    add_gin_arguments(mix)
    mix.add_argument("store", type=path_flag, nargs="?", help="folder or URL of the store; else the macro STORE_DIR")
    mix.add_argument("--plot", "--picture", type=path_flag, metavar="FILE", help="draw it into an image file")
    for command in (show, mix):
        command.add_argument("--tasks", action="store_true", help="a line for each task")
        command.add_argument("--json", metavar="FILE", help="write it as JSON; - for standard output")
    verify = commands.add_parser("verify", help="compare every byte of a store with its hashes")
    verify.add_argument("store", type=path_flag, help="folder or URL of the store")


def _lengths(text: str) -> tuple[int, int]:
    """The type of --lengths."""
    parts = text.split(",")
    if len(parts) != 2:
        raise argparse.ArgumentTypeError(f"'{text}'; it takes inputs,targets, as 512,128")
    inputs, targets = map(flag(int, RANGES["lengths"]), parts)
    return inputs, targets


def run(args: argparse.Namespace) -> int:
    """Runs a subcommand and returns its exit status."""
    return {"build": _build, "show": _show, "mix": _mix, "verify": _verify}[args.store_command](args)


def _build(args: argparse.Namespace) -> int:
    args.gin_file = args.gin_file or ["runs/store.gin"]
    options = args.runner_options.split() if args.runner_options else None
    for name, value in (("runner", args.runner), ("runner_options", options), ("quiet", args.quiet or None)):
        if value is not None:
            args.bindings = [*args.bindings, f"flanx.data.store.build.build_store.{name}={value!r}"]
    parse_gin(args)
    report = config.call(build.build_store)
    rate = report.examples / max(report.seconds, 1e-9)
    written = f"{report.built} shards built ({report.examples:,} examples, {rate:,.0f}/s)"
    print(f"{report.path}: {written}, {report.kept} kept")
    if of_splits := report.validation:
        print(
            f"{of_splits.path}: {of_splits.built} shards built ({of_splits.examples:,} examples), {of_splits.kept} kept"
        )
    for kind, reasons in (("missing", report.missing), ("failed", report.failed)):
        shown = sorted(reasons.items())[: _SHOWN if kind == "missing" and len(reasons) > 2 * _SHOWN else None]
        for name, reason in shown:
            print(f"{kind}: task {name}: {reason}", file=sys.stderr)
        if more := len(reasons) - len(shown):
            print(f"{kind}: and {more:,} more; `flanx store show {report.path}` lists them", file=sys.stderr)
    if report.stale:
        print(
            f"note: {len(report.stale)} tasks of the store, {report.stale[0]} the first, keep prompts of another "
            "version of flanx's rendering; name them in a build to make them again"
        )
    if report.failed:
        print(f"{len(report.failed)} tasks failed; details in {report.path}/{build.FAILED}", file=sys.stderr)
    return report.status


def _show(args: argparse.Namespace) -> int:
    inputs, targets = args.lengths
    table = stats.describe_store(store.open_store(args.store), (inputs, targets))
    if args.json:
        return _write_json(table, args.json)
    vocabulary = table["vocabulary"]
    print(f"{table['path']}\nhash {table['hash']}\nvocabulary {vocabulary['spec']} ({vocabulary['size']} ids)")
    columns = (*_HELD, f"cut at {inputs}/{targets}: inputs", "targets")
    rows = [(name, row["tasks"], *_contents(row)) for name, row in table["collections"].items()]
    print_table(("collection", "tasks", *columns), rows)
    if args.tasks:
        rows = [(n, len(r["styles"]), *_contents(r), r["licence"]) for n, r in table["tasks"].items()]
        print_table(("task", "styles", *columns, "licence"), rows)
    for name, reason in table["missing"].items():
        print(f"missing: task {name}: {reason}")
    return 0


def _contents(row: Mapping[str, Any]) -> list[str]:
    counts = (row["examples"], row["rendered"], row["input_tokens"] + row["target_tokens"])
    shares = [f"{row[key]:.2%}" for key in ("unknown_share", "cut_inputs_share", "cut_targets_share")]
    return [*(f"{count:,}" for count in counts), *shares]


def _mix(args: argparse.Namespace) -> int:
    if args.store:
        args.bindings = [*args.bindings, f"STORE_DIR={args.store!r}"]
    args.gin_file = ["runs/mix.gin", *args.gin_file]
    parse_gin(args, whole=False)  # a run's files have further macros, which may stay unset
    for macro in ("STORE_DIR", "MIXTURE_OR_TASK_NAME"):
        config.value(macro)
    table = config.call(mixture_stats.describe_mixture)
    if args.plot:
        mixture_stats.draw(table, args.plot)
    if args.json:
        return _write_json(table, args.json)
    mixture, rates = table["mixture"], table["mixture"]["rates"] or {}
    counts = f"{mixture['tasks']} tasks, {mixture['sources']} sources"
    print(f"{mixture['asked']['name']}: {counts}; fingerprint {table['fingerprint']}")
    padding = [f"{side.replace('first_full', 'side that fills first')} {s:.2%}" for side, s in table["padding"].items()]
    cut = [f"{side} {share:.2%}" for side, share in table["cut"].items()]
    print(
        f"{table['steps']:,} steps of {table['batch_size']} rows: {table['examples']:,.0f} examples, "
        f"{table['examples_per_row']:.2f} in a row; padding {', '.join(padding)}; cut {', '.join(cut)}; "
        f"chain of thought {mixture['cot_share']:.2%}"
    )
    none = {"tasks": 0, "share": 0.0, "drawn": 0.0, "most_epochs": 0.0}
    rows = [
        (name, r["tasks"], *([f"{rates[name]:.2%}"] if rates else []), f"{r['share']:.2%}", f"{r['drawn']:,.0f}",
         f"{r['most_epochs']:.3g}")
        for name, r in (dict.fromkeys(rates, none) | table["collections"]).items()
    ]  # fmt: skip
    asked = ["asked"] if rates else []
    print_table(("collection", "tasks", *asked, "share", "examples drawn", "most epochs of a task"), rows)
    if args.tasks:
        ordered = sorted(table["tasks"].items(), key=lambda item: -item[1]["share"])
        rows = [
            (name, f"{r['share']:.2%}", f"{r['examples']:,}", f"{r['drawn']:,.0f}", f"{r['epochs']:.3g}",
             f"{r['cut_inputs']:.2%}", f"{r['cut_targets']:.2%}")
            for name, r in ordered
        ]  # fmt: skip
        print_table(("task", "share", "examples", "drawn", "epochs", "inputs cut", "targets cut"), rows)
    for name, reason in mixture["missing"].items():
        print(f"missing: {name}: {reason}")
    return 0


def _verify(args: argparse.Namespace) -> int:
    opened = store.verify(args.store, lambda file, size: print(f"{file}: {size:,} bytes, intact"))
    print(f"{opened.path}: intact; hash {opened.hash}")
    if (opened.path / store.VALIDATION).is_dir():
        args.store = str(opened.path / store.VALIDATION)
        return _verify(args)
    return 0


def _write_json(table: Mapping[str, Any], path: str) -> int:
    text = json.dumps(table, indent=1)
    if path == "-":
        print(text)
    else:
        write_atomic(pathlib.Path(path), text + "\n")
    return 0
