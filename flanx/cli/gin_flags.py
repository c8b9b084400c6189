"""The gin flags that commands share: T5X's --gin_file, --gin_search_paths and --gin.NAME=VALUE."""

import argparse

from flanx.errors import UserError


def add_gin_arguments(parser: argparse.ArgumentParser) -> None:
    """The gin flags of T5X: --gin_file (repeatable), --gin_search_paths; --gin.NAME=VALUE is read by `main`."""
    parser.add_argument("--gin_file", action="append", default=[], metavar="FILE", help="gin file; may be given again")
    parser.add_argument(
        "--gin_search_paths", default="", metavar="DIRS", help="comma-separated folders to search for gin files"
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
        "--gin.NAME=VALUE binds a macro or a parameter; a string keeps its quotes: --gin.MODEL_DIR=\"'out/run'\""
    )


def parse_gin(args: argparse.Namespace, whole: bool = True) -> None:
    """Binds the gin files and bindings of `args`; see `flanx.config.parse`."""
    from flanx import config  # noqa: PLC0415  (imports gin, which `flanx --help` does without)

    if args.imports:
        config.allow_imports(args.imports)
    if not args.gin_file:
        raise UserError("no --gin_file given; `ls` flanx's gin folder or see the README for the files of each command")
    config.parse(args.gin_file, args.bindings, [p for p in args.gin_search_paths.split(",") if p], whole)
