"""`flanx push FOLDER hf:ORG/NAME`: an exported model to the Hugging Face hub; without --yes only what would be sent."""

import argparse
import pathlib

from flanx import hub
from flanx.cli.table import print_table
from flanx.settings import path_flag


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("folder", type=path_flag, metavar="FOLDER", help="what `flanx convert --to hf` wrote")
    parser.add_argument("name", type=path_flag, metavar="hf:ORG/NAME", help="where to; HF_TOKEN gives access")
    parser.add_argument("--private", action="store_true", help="of a repository that is made: not for everyone")
    parser.add_argument("--yes", action="store_true", help="send it")


def run(args: argparse.Namespace) -> int:
    """Sends, or says what it would. Raises UserError for what is no whole export, and where the hub refuses."""
    folder, (name, _) = pathlib.Path(args.folder), hub.split(args.name)
    found = hub.sendable(folder)
    print_table(("file", "bytes"), [[file, f"{size:,}"] for file, size in found.items()])
    if not args.yes:
        kind = "private" if args.private else "public"
        print(f"nothing is sent; with --yes these {len(found)} files go to {hub.PREFIX}{name} ({kind} where it is new)")
        return 0
    print(f"sent: {hub.push(folder, args.name, args.private)}")
    return 0
