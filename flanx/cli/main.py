"""The program `flanx`: one table of doors. Bad input is one line on standard error and exit status 2."""

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence

import flanx
from flanx import cluster, malloc
from flanx.cli import gin_flags
from flanx.errors import Preempted, UserError, nearest

# doors that are one gin-bound call: door -> (function, macro that names its folder, what it does)
CALLS = {
    "train": ("flanx.train:train", "MODEL_DIR", "fine-tune a model on a mixture"),
    "evaluate": ("flanx.evaluate:evaluate", "OUTPUT_DIR", "score a checkpoint on held-out suites"),
    "infer": ("flanx.infer:infer", "INFER_OUTPUT_DIR", "answer prompts of your own with a checkpoint"),
}
COMPUTES = (*CALLS, "sweep")
# doors with flags of their own: door -> (module with add_arguments(parser) and run(args) -> exit status, what it does)
DOORS = {
    "sweep": ("flanx.cli.sweep", "run a grid of trainings and evaluations, draw its table and figures"),
    "recipe": ("flanx.cli.recipe", "the published rows: every value with its source"),
    "store": ("flanx.cli.store", "build, show and verify token stores"),
    "tasks": ("flanx.cli.tasks", "list, show, fetch and audit tasks"),
    "convert": ("flanx.cli.convert", "convert checkpoints: T5X, Hugging Face, flanx"),
    "rescore": ("flanx.cli.rescore", "score kept generations again, offline"),
    "report": ("flanx.cli.report", "tables and figures of a sweep; runs in the layout of the paper's Table 5"),
    "doctor": ("flanx.cli.doctor", "say what this machine has, and what stands in the way of a run"),
    "explain": ("flanx.cli.explain", "what gin files amount to, and which line set each value"),
    "plan": ("flanx.cli.plan", "say whether a recipe fits a TPU slice or GPUs, and how long it would take"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one door and returns its exit status (0 done, 1 some part failed, 2 bad input, 75 preempted and saved)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="flanx", description=flanx.__doc__)
    parser.add_argument("--version", action="version", version=flanx.__version__)
    doors = parser.add_subparsers(dest="door", metavar="DOOR")
    summaries = {name: entry[-1] for name, entry in (CALLS | DOORS).items()}
    if arguments and not arguments[0].startswith("-") and arguments[0] not in summaries:
        print(f"flanx: no door '{arguments[0]}'{nearest(arguments[0], summaries)}", file=sys.stderr)
        return 2
    for name, summary in summaries.items():
        door = doors.add_parser(name, help=summary, description=summary)
        if name in CALLS:
            gin_flags.add_gin_arguments(door)
            cluster.add_arguments(door)
        elif arguments[:1] == [name]:  # only the door that is opened is imported
            importlib.import_module(DOORS[name][0]).add_arguments(door)
    bindings = [a.removeprefix("--gin.") for a in arguments if a.startswith("--gin.")]
    arguments = [a for a in arguments if not a.startswith("--gin.")]
    args = parser.parse_args(arguments)
    if args.door is None:
        parser.print_help()
        return 2
    args.bindings = bindings
    try:
        if args.door in CALLS:
            return run_call(args)
        return importlib.import_module(DOORS[args.door][0]).run(args)
    except UserError as error:
        print(f"flanx {args.door}: {error}", file=sys.stderr)
        return 2
    except Preempted as news:
        print(f"flanx {args.door}: {news}", file=sys.stderr)
        return 75
    except KeyboardInterrupt:
        print(f"flanx {args.door}: interrupted", file=sys.stderr)
        return 130


def entry() -> None:
    """The program: `main`, then the end at once; a reader that has seen enough (`| head`) ends it quietly.

    Threads of the checkpoint writer's C++ may still hold a callback; one that wakes while Python takes itself down
    aborts the process (status 134) after all work is done. Everything of ours is closed by then.
    """
    if sys.argv[1:2] and sys.argv[1] in COMPUTES:
        malloc.keep_freed_memory()
    try:
        try:
            status = main()
        except SystemExit as end:  # argparse's, after --help or a wrong flag
            status = end.code or 0
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        status = 128 + signal.SIGPIPE  # as a program that the signal ends
    os._exit(status)


def run_call(args: argparse.Namespace) -> int:
    """A door that is one call: binds gin, saves the config beside the run, calls."""
    from flanx import config

    target, folder, _ = CALLS[args.door]
    gin_flags.parse_gin(args)
    module, _, function = target.partition(":")
    with cluster.joined(args, config.text()):
        config.call(
            getattr(importlib.import_module(module), function), config.value(folder) if cluster.is_first() else None
        )
    return 0


if __name__ == "__main__":
    entry()
