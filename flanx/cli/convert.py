"""`flanx convert SOURCE DEST`: one checkpoint format into another, and the proof that both compute the same."""

import argparse
import pathlib

from flanx import card, hub
from flanx.convert import peft
from flanx.convert.conversion import Conversion, atomic
from flanx.convert.formats import KINDS, OpenCheckpoint, open_checkpoint
from flanx.convert.hf import ACTIVATIONS
from flanx.convert.logit_parity import GOLDEN
from flanx.errors import UserError
from flanx.settings import path_flag
from flanx.storage import Storage, open_storage


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument(
        "source",
        type=path_flag,
        metavar="SOURCE",
        help="checkpoint folder, T5X's and flanx's also on gs://; hf:ORG/NAME",
    )
    parser.add_argument("dest", type=path_flag, metavar="DEST", help="folder to write; must be empty or absent")
    parser.add_argument(
        "--from", dest="source_kind", default="auto", choices=("auto", *KINDS), help="default: detected from its files"
    )
    parser.add_argument("--to", dest="kind", choices=KINDS, help="default: flanx, unless SOURCE is flanx's")
    parser.add_argument("--base", type=path_flag, help="of an adapter: its base, where it is no longer where it was")
    parser.add_argument("--with-base", action="store_true", help="of --to peft: the base as well, in its folder `base`")
    parser.add_argument("--dtype", default="float32", help="of the parameters: float32 (default) or bfloat16")
    parser.add_argument(
        "--stacked",
        action="store_true",
        help="write layers stacked, for a model of flanx with scan_layers, or T5X's scalable_t5",
    )
    parser.add_argument("--drop-optimizer", action="store_true", help="leave out the optimizer's state")
    parser.add_argument(
        "--vocabulary",
        type=path_flag,
        metavar="SPEC",
        help="'byte' or a SentencePiece model, for the tokenizer",
    )
    parser.add_argument(
        "--feed-forward",
        metavar="NAME",
        choices=tuple(ACTIVATIONS),
        help="activation, which no tensor shows: gated-gelu (default if gated), relu (default if not), gated-silu ...",
    )
    parser.add_argument(
        "--scores",
        type=path_flag,
        action="append",
        default=[],
        metavar="DIR",
        help="scores of `flanx evaluate` for the export's card, in addition to the run's own; may be given again",
    )
    parser.add_argument(
        "--verify", action="store_true", help="compare logits with transformers; exit status 1 if not equal"
    )
    parser.add_argument(
        "--golden",
        type=path_flag,
        metavar="FILE",
        help="of --verify: logits to compare with where transformers is not installed",
    )


def run(args: argparse.Namespace) -> int:
    """Converts. 0: done; 1: written but not verified. Raises UserError for bad input."""
    if args.dest.startswith(hub.PREFIX):
        raise UserError(f"DEST '{args.dest}' is on the hub: convert to a folder, then `flanx push FOLDER {args.dest}`")
    if args.golden and not args.verify:
        raise UserError("--golden is what --verify compares with: add --verify")
    golden = open_storage(args.golden) if args.golden else None
    if golden and not golden.is_remote and not golden.local().is_file():
        raise UserError(f"--golden={args.golden}: no such file")
    optimizer = not args.drop_optimizer and args.kind not in ("hf", "peft")
    source = open_checkpoint(args.source, args.source_kind, optimizer, args.base)
    if args.base and source.pairs is None:
        raise UserError(f"--base is for an adapter, and {args.source} is none: leave it out")
    if args.with_base and args.kind != "peft":
        raise UserError("--with-base writes base and adapter apart, which is --to peft; the others merge them")
    if args.kind == "peft":
        return write_pairs(source, open_storage(args.dest), args)
    if source.kind == "flanx" and args.kind is None and source.pairs is None:
        raise UserError("SOURCE is a flanx checkpoint: add --to t5x or --to hf")
    kind = args.kind or "flanx"
    if args.scores and kind == "flanx":
        raise UserError("--scores go into the card of an export: add --to hf or --to t5x")
    dest = open_storage(args.dest)
    texts = card.cards(dest.name, source, [pathlib.Path(each) for each in args.scores]) if kind != "flanx" else {}
    config = {"feed_forward_proj": args.feed_forward} if args.feed_forward else {}
    conversion = Conversion(source, dest, kind, args.dtype, args.stacked, args.vocabulary, config, texts)
    result = conversion.run((golden or source.given / GOLDEN) if args.verify else None)
    print(
        f"{source.kind} {source.folder} -> {conversion.kind} {conversion.dest}: {result.num_tensors} tensors, "
        f"{result.num_params:,} parameters, fingerprint {result.fingerprint}"
    )
    return 0 if result.verified else 1


def write_pairs(source: OpenCheckpoint, dest: Storage, args: argparse.Namespace) -> int:
    """Writes a run's adapter as a PEFT folder, with its card. Raises UserError if SOURCE has no adapter."""
    if source.pairs is None:
        raise UserError(f"{source.given} is not an adapter, which --to peft writes; train one with runs/lora.gin")
    if dest.children():
        raise UserError(f"DEST '{dest}' is not empty; give another folder")
    texts = card.cards(dest.name, source, [pathlib.Path(each) for each in args.scores], "peft")
    with atomic(dest) as folder:
        peft.write(folder, source.pairs, args.with_base)
        if args.with_base:
            base = open_checkpoint(source.pairs.base, optimizer=False)
            Conversion(base, folder / peft.BASE, "hf", args.dtype, vocabulary=args.vocabulary).run()
        for name, text in texts.items():
            folder.write(name, text)
    count, place = len(source.pairs.of_layers), f"in {dest / peft.BASE}" if args.with_base else source.pairs.base
    print(f"{source.given} -> peft {dest}: pairs of {count} layers, for the base {place} in --to hf's form")
    return 0
