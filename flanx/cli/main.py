"""The program `flanx`: one table of commands. Bad input is a short message on standard error and exit status 2."""

import argparse
import contextlib
import csv
import errno
import gc
import importlib
import json
import os
import signal
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import flanx
from flanx import cluster, files, malloc
from flanx.cli import gin_flags, short_form
from flanx.errors import Preempted, UserError, nearest


class Command(NamedTuple):
    """A subcommand: a module of flanx.cli with add_arguments(parser) and run(args) -> exit status, or a single call of
    a gin-bound function, with the macro that names its output folder."""

    summary: str
    function: str = ""  # "module:function"
    folder: str = ""  # macro
    computes: bool = False  # whether it may keep the CPU busy for a long time
    binds: bool = True  # whether it accepts --gin.NAME=VALUE


ISSUES = "https://github.com/flanx/flanx/issues"
OF_THE_INPUT = (
    UnicodeError,
    RecursionError,
    EOFError,
    OSError,
    csv.Error,
    json.JSONDecodeError,
    tomllib.TOMLDecodeError,
    tarfile.TarError,
    zipfile.BadZipFile,
)
OF_THE_MACHINE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE),
)
REPAIRS = {
    errno.ENOSPC: "; make room there and run the same command again",
    errno.EDQUOT: "; make room in your quota and run the same command again",
    errno.EFBIG: "; raise the limit (ulimit -f), or give a path on another file system",
    errno.EACCES: "; change its permissions, or give a path that is yours",
    errno.EPERM: "; change its owner or permissions, or give a path that is yours",
    errno.EROFS: "; give a path that can be written",
    errno.ENOENT: "; give a path that exists, or one whose folder does",
    errno.ENOTDIR: "; a part of the path is a file: give a folder",
    errno.EISDIR: "; give a file",
    errno.EEXIST: "; give another path, or a folder",
    errno.ENAMETOOLONG: "; give a shorter path",
    errno.EADDRINUSE: "; choose another port",
    errno.ENOLCK: "; the file system has no locks: give a path on another one",
    errno.ENOTSUP: "; the file system cannot do this: give a path on another one",
    errno.EMFILE: "; raise the limit (ulimit -n)",
}

COMMANDS = {
    "train": Command("fine-tune a model on a mixture", "flanx.train:train", "MODEL_DIR", True),
    "evaluate": Command("score a checkpoint on held-out suites", "flanx.evaluate:evaluate", "OUTPUT_DIR", True),
    "infer": Command("answer your own prompts with a checkpoint", "flanx.infer:infer", "INFER_OUTPUT_DIR", True),
    "ask": Command(
        "talk with a checkpoint in the terminal; --serve: on a page, and by OpenAI's API", computes=True, binds=False
    ),
    "finetune": Command("fine-tune a checkpoint on a file of yours, without a gin file", computes=True),
    "sweep": Command("run a grid of trainings and evaluations, draw its table and figures", computes=True),
    "fit": Command(
        "scaling laws of a sweep's scores, and predictions that are written down before their cells run", binds=False
    ),
    "recipe": Command("the published rows: every value with its source", binds=False),
    "store": Command("build, show and verify token stores"),
    "tasks": Command("list, show, fetch and audit tasks"),
    "suites": Command("list evaluation suites, show their prompts", binds=False),
    "convert": Command("convert checkpoints: T5X, Hugging Face, flanx", binds=False),
    "push": Command(
        "send an exported model to the Hugging Face hub; without --yes it says what it would send", binds=False
    ),
    "rescore": Command("score kept generations again, offline", binds=False),
    "report": Command("tables and figures of a sweep; curves of runs; scores in the layout of the paper's Table 5"),
    "compare": Command(
        "which answers of two or more runs people prefer, on a page of this machine; models as judges", binds=False
    ),
    "watch": Command("curves of training runs in the terminal, while they are written", binds=False),
    "track": Command("send the records of a training run to Weights & Biases, Trackio or MLflow", binds=False),
    "doctor": Command("check what this machine has, and what prevents a run"),
    "explain": Command("what gin files set, and which line set each value"),
    "plan": Command("whether a recipe fits a TPU slice or GPUs, and how long it takes"),
    "reproduce": Command(
        "reproduce a published row stage by stage, from data to card; resumes; --rehearse: in miniature"
    ),
    "launch": Command("run on TPU slices, clusters, or as many processes; follow, stop and list what was launched"),
}


class Parser(argparse.ArgumentParser):
    """argparse's parser with one-line errors."""

    def error(self, message: str) -> NoReturn:
        """Exits the program with status 2."""
        line = " ".join(message.split())[:600]
        repair = gin_flags.repair(self, line) or f"`{self.prog} --help` lists what it takes"
        self.exit(2, f"{self.prog}: {line}; {repair}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Exit status: 0 done, 1 some part failed, 2 bad input, 75 preempted and saved."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = Parser(prog="flanx", description=(flanx.__doc__ or "").partition("\n")[0])
    parser.add_argument("--version", action="version", version=flanx.__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    name = arguments[0] if arguments and not arguments[0].startswith("-") else None
    if name is not None and name not in COMMANDS:
        print(f"flanx: no command '{name}'{nearest(name, COMMANDS)}", file=sys.stderr)
        return 2
    for each, command in COMMANDS.items():
        subparser = commands.add_parser(each, help=command.summary, description=command.summary)
        subparser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        subparser.add_argument(
            "--no_verify", action="store_true", help="read checkpoints and stores without comparing their checksums"
        )
        if each == name and command.function:
            gin_flags.add_gin_arguments(subparser)
            cluster.add_arguments(subparser)
            short_form.add_arguments(subparser, each)
            if {"-h", "--help"} & set(arguments):
                gin_flags.describe_macros(subparser, f"runs/{name}.gin")
        elif each == name:  # only this command's module is imported
            importlib.import_module(f"flanx.cli.{name}").add_arguments(subparser)
    given = [a for a in arguments if not a.startswith("--gin.") and a != "--debug"]
    if name is None:
        parser.parse_args(given)
        parser.print_help()
        return 2
    args = commands.choices[name].parse_args(given[1:])
    args.debug = "--debug" in arguments
    files.verifying = not args.no_verify
    try:
        args.bindings = _bindings(name, arguments)
        if COMMANDS[name].function:
            short_form.expand(name, args)
            return run_call(COMMANDS[name], args)
        return importlib.import_module(f"flanx.cli.{name}").run(args)
    except KeyboardInterrupt:
        print(f"flanx {name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except Exception as error:
        if args.debug and not isinstance(error, Preempted):
            raise
        status, message = describe(error)
        print(f"flanx {name}: {message}", file=sys.stderr)
        return status


def _bindings(name: str, arguments: Sequence[str]) -> list[str]:
    """The "NAME=VALUE" of --gin flags. Raises UserError if the command accepts none."""
    found = [a.removeprefix("--gin.") for a in arguments if a.startswith("--gin.")]
    if found and not COMMANDS[name].binds:
        raise UserError(f"--gin.{found[0][:100]}: this command takes no gin bindings; leave it out")
    return found


def describe(error: Exception) -> tuple[int, str]:
    """(exit status, message of one to five lines) for an error that ends a command."""
    if isinstance(error, Preempted):
        return 75, str(error)
    if isinstance(error, UserError):
        return 2, str(error)
    text = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    if isinstance(error, OSError) and error.errno is not None:
        paths = " -> ".join(
            str(p) for p in (error.filename, error.filename2) if isinstance(p, str | bytes | os.PathLike)
        )
        what = f"{os.strerror(error.errno)}{REPAIRS.get(error.errno, '')}"
        return (1 if error.errno in OF_THE_MACHINE else 2), f"{paths[:300]}: {what}" if paths else what
    for number in OF_THE_MACHINE:  # as they appear in library errors
        if os.strerror(number) in str(error):
            return 1, f"{os.strerror(number)}{REPAIRS.get(number, '')} ({text[:150]})"
    if isinstance(error, RuntimeError) and "home directory" in text:  # pathlib's
        return 2, "a path begins with ~ and a name that no user has; write it in full"
    if isinstance(error, MemoryError):
        return 1, f"out of memory ({text}); give the machine more, or the command less at once"
    if isinstance(error, OF_THE_INPUT):
        return 2, f"{_kind(error)}: {text}; look at the input, and run it with --debug to see where it was read"
    return 1, (
        f"{type(error).__name__}: {text}\nThis is an error of flanx {flanx.__version__}, not of yours: run the command "
        f"again with --debug and send the traceback to {ISSUES}"
    )


def _kind(error: Exception) -> str:
    kinds = {UnicodeError: "not text in UTF-8", RecursionError: "nested too deeply", json.JSONDecodeError: "not JSON"}
    return next((text for kind, text in kinds.items() if isinstance(error, kind)), "a file cannot be read")


def entry() -> None:
    """The program's entry point: runs `main`, then exits at once; a closed pipe (`| head`) ends it quietly.

    C++ threads of the checkpoint writer may still hold a callback; one that wakes while Python shuts down aborts the
    process (status 134) after all work is done. Everything of ours is closed by then.
    """
    if sys.argv[1:2] and sys.argv[1] in COMMANDS and COMMANDS[sys.argv[1]].computes:
        malloc.keep_freed_memory()
        if COMMANDS[sys.argv[1]].function:
            gc.disable()  # until `run_call` has imported its modules: imports create no garbage
    status: int | str | None
    try:
        try:
            status = main()
        except SystemExit as end:  # from argparse, after --help or an invalid flag
            status = end.code
        for stream in filter(None, (sys.stdout, sys.stderr)):  # None: closed before startup
            stream.flush()
    except KeyboardInterrupt:  # before a command has begun: while importing modules and parsing flags
        with contextlib.suppress(OSError, AttributeError):
            print("flanx: interrupted", file=sys.stderr, flush=True)
        status = 130
    except BrokenPipeError:
        status = 128 + signal.SIGPIPE  # as for a program killed by the signal
    except OSError as error:  # from standard output: a full disk
        with contextlib.suppress(OSError, AttributeError):
            print(f"flanx: standard output: {error.strerror}", file=sys.stderr, flush=True)
        status = 1
    os._exit(status if isinstance(status, int) else 0)


def run_call(command: Command, args: argparse.Namespace) -> int:
    """Runs a command that is a single call: parses gin, writes the config to the output folder, calls the function."""
    from flanx import bucket, config  # noqa: PLC0415  (imports gin, which `flanx --help` does not need)

    gin_flags.parse_gin(args)
    if not gc.isenabled():
        gc.freeze()  # keeps collections during tracing from scanning imported objects: a tenth of the startup time
        gc.enable()
    module, _, function = command.function.partition(":")
    with cluster.joined(args, config.text()), bucket.opened(config.value(command.folder)):
        folder = config.value(command.folder) if cluster.is_first() else None
        config.call(getattr(importlib.import_module(module), function), folder)
    return 0


if __name__ == "__main__":
    entry()
