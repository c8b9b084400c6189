"""`flanx push FOLDER hf:ORG/NAME`: an exported model to the Hugging Face hub; without --yes only what would be sent."""

import argparse
import pathlib

from flanx import files, hub
from flanx.cli.table import print_table
from flanx.settings import path_flag
from flanx.storage import open_storage


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("folder", type=path_flag, metavar="FOLDER", help="what `flanx convert --to hf` wrote")
    parser.add_argument("name", type=path_flag, metavar="hf:ORG/NAME", help="where to; HF_TOKEN gives access")
    parser.add_argument("--private", action="store_true", help="of a new repository: not public")
    parser.add_argument("--yes", action="store_true", help="send it")


def run(args: argparse.Namespace) -> int:
    """Uploads, or prints what it would upload. Raises UserError for an incomplete export, and if the hub refuses."""
    folder, (name, _) = pathlib.Path(args.folder), hub.split(args.name)
    found = hub.sendable(folder)
    expect_whole(folder, args.yes)
    print_table(("file", "bytes"), [[file, f"{size:,}"] for file, size in found.items()])
    if not args.yes:
        kind = "private" if args.private else "public"
        print(f"nothing is sent; with --yes these {len(found)} files go to {hub.PREFIX}{name} ({kind} where it is new)")
        return 0
    print(f"sent: {hub.push(folder, args.name, args.private)}")
    return 0


def expect_whole(folder: pathlib.Path, all_of_it: bool) -> None:
    """Raises UserError if a file of the model cannot be read; with `all_of_it` also if its parameters differ from those
    that `flanx convert` recorded."""
    from flanx.convert import formats, peft  # noqa: PLC0415  (jax, which `flanx push --help` does not need)
    from flanx.convert.lazy_tensor import fingerprint  # noqa: PLC0415

    storage = open_storage(folder)
    if hub.ADAPTER in storage.children():  # its base need not be local
        peft.read(storage)
        return
    source = formats.open_checkpoint(folder, optimizer=False)
    if all_of_it and files.verifying:
        formats.expect_fingerprint(source, fingerprint(source.tensors))
