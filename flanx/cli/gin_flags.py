"""The gin flags that commands share: T5X's --gin_file, --gin_search_paths and --gin.NAME=VALUE."""

import argparse
import contextlib
import pathlib
import re
import textwrap

from flanx.errors import UserError
from flanx.settings import path_flag


def search_paths(text: str) -> str:
    """The `type` of --gin_search_paths."""
    folders = [path_flag(part.strip()) for part in text.split(",") if part.strip()]
    if absent := next((folder for folder in folders if not pathlib.Path(folder).is_dir()), ""):
        raise argparse.ArgumentTypeError(f"no folder '{absent}'")
    return ",".join(folders)


def add_gin_arguments(parser: argparse.ArgumentParser) -> None:
    """The gin flags of T5X: --gin_file (repeatable), --gin_search_paths; --gin.NAME=VALUE is read by `main`."""
    parser.add_argument(
        "--gin_file", action="append", type=path_flag, default=[], metavar="FILE", help="gin file; may be given again"
    )
    parser.add_argument(
        "--gin_search_paths",
        type=search_paths,
        default="",
        metavar="DIRS",
        help="comma-separated folders to search for gin files",
    )
    parser.add_argument(
        "--import",
        action="append",
        default=[],
        dest="imports",
        metavar="MODULE",
        help="a module of your own that gin files may import; may be given again",
    )
    parser.epilog = (
        "--gin.NAME=VALUE binds a macro or a parameter; a string keeps its quotes: --gin.MODEL_DIR=\"'out/run'\". "
        "Exit status: 0 done, 1 some part failed or the machine did, 2 bad input, 75 stopped with the state saved."
    )


def file_of(what: str) -> str:
    """The gin file for a recipe name, or the file itself. Raises UserError suggesting the nearest name."""
    if what.endswith(".gin"):
        return what
    from flanx.sweep.published_recipes import find  # noqa: PLC0415  (only needed for recipe names)

    return find(what).gin


def repair(parser: argparse.ArgumentParser, message: str) -> str:
    """How to pass the recipe or file that was typed without a flag to a command that takes gin files; "" for any other
    command line error."""
    words = message.partition("unrecognized arguments: ")[2].split()
    if not words or "--gin_file" not in parser.format_usage():
        return ""
    with contextlib.suppress(UserError):
        return f"give a recipe or a gin file as --gin_file={file_of(words[0])}"
    return ""


def describe_macros(parser: argparse.ArgumentParser, name: str) -> None:
    """Adds the macros of gin file `name`, with defaults, and flanx's other gin files to a command's help."""
    from flanx import config  # noqa: PLC0415  (imports gin, not needed for other commands' help)

    folder = config.gin_folder()
    macros = re.findall(
        r"^([A-Z_]+) = (.*?)\s*(?:  # (.*))?$", (folder / name).read_text(encoding="utf-8"), re.MULTILINE
    )
    rows = [
        f"  {macro:32} {'must be bound' if value == '%gin.REQUIRED' else value:24} {meaning}".rstrip()
        for macro, value, meaning in macros
    ]
    files = []
    for kind in ("mixtures", "models", "evals"):
        names = sorted(path.relative_to(folder).as_posix() for path in (folder / kind).rglob("*.gin"))
        files += textwrap.wrap("  ".join(names), 110, initial_indent="  ", subsequent_indent="  ")
    lines = [f"macros of {name}:", *rows, "gin files to add (--gin_file):", *files]
    parser.epilog = "\n".join([*textwrap.wrap(parser.epilog or "", 100), "", *lines])
    parser.formatter_class = argparse.RawDescriptionHelpFormatter


def parse_gin(args: argparse.Namespace, whole: bool = True) -> None:
    """Binds the gin files and bindings of `args`; see `flanx.config.parse`."""
    from flanx import config, gin_files  # noqa: PLC0415  (imports gin, which `flanx --help` does not need)

    if args.imports:
        gin_files.allow_imports(args.imports)
    if not args.gin_file:
        raise UserError(
            "no --gin_file given, nor --checkpoint, which stands for some; `flanx COMMAND --help` names the files"
        )
    config.parse(args.gin_file, args.bindings, [p for p in args.gin_search_paths.split(",") if p], whole)
