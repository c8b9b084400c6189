"""`flanx convert SOURCE DEST`: one checkpoint format into another, and the proof that both compute the same."""

import argparse
import contextlib
import dataclasses
import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

import flanx
from flanx.convert import flanx_format, hf, logit_parity, scan_layers, t5x
from flanx.convert.lazy_tensor import BFLOAT16, STATE, TARGET, Tensor, fingerprint, held
from flanx.convert.open_checkpoint import KINDS, NOTE, Source, open_source
from flanx.convert.storage import Folder, at
from flanx.errors import UserError
from flanx.optim import factored_axes

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": BFLOAT16}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the door."""
    parser.add_argument("source", metavar="SOURCE", help="checkpoint folder; T5X's and flanx's may be on gs://")
    parser.add_argument("dest", metavar="DEST", help="folder to write; must not hold anything yet")
    parser.add_argument("--from", dest="source_kind", default="auto", choices=("auto", *KINDS), help="default: look")
    parser.add_argument("--to", dest="kind", choices=KINDS, help="default: flanx, unless SOURCE is flanx's")
    parser.add_argument("--dtype", default="float32", help="of the parameters: float32 (default) or bfloat16")
    parser.add_argument("--stacked", action="store_true", help="write layers stacked, for a model with scan_layers")
    parser.add_argument("--drop-optimizer", action="store_true", help="leave the optimizer's state behind")
    parser.add_argument(
        "--vocabulary", metavar="SPEC", help="'byte' or a SentencePiece model, for Hugging Face's tokenizer"
    )
    parser.add_argument(
        "--feed-forward",
        metavar="NAME",
        choices=tuple(logit_parity.ACTIVATIONS),
        help="activation, which no tensor shows: gated-gelu (default if gated), relu (default if not), gated-silu ...",
    )
    parser.add_argument(
        "--verify", action="store_true", help="compare logits with transformers; exit status 1 if not equal"
    )
    parser.add_argument("--golden", metavar="FILE", help="logits to compare with where transformers is not installed")


def run(args: argparse.Namespace) -> int:
    """Converts; 0 done, 1 written but not verified. Raises UserError for bad input."""
    if args.dtype not in DTYPES:
        reason = "T5's activations overflow float16" if args.dtype == "float16" else f"no dtype '{args.dtype}'"
        raise UserError(f"--dtype {args.dtype}: {reason}; use {' or '.join(DTYPES)}")
    source = open_source(args.source, args.source_kind, optimizer=not args.drop_optimizer and args.kind != "hf")
    kind = args.kind or ("flanx" if source.kind != "flanx" else None)
    if kind is None:
        raise UserError("SOURCE is a flanx checkpoint: say --to t5x or --to hf")
    if source.layout is None and (kind == "hf" or args.verify):
        raise UserError(f"{source.folder} is no T5: it has neither a Hugging Face form here nor a model to verify with")
    if args.stacked and kind != "flanx":
        raise UserError(f"--stacked writes flanx's form of scan_layers; leave it out for --to {kind}")
    dest = at(args.dest)
    if dest.children() or (not dest.is_remote and dest.local().is_file()):
        raise UserError(f"DEST '{dest}' is not empty; give another folder")
    golden = at(args.golden) if args.golden else source.tokenizer / logit_parity.GOLDEN
    if args.verify:
        logit_parity.expect_reference(golden)
    dtype = DTYPES[args.dtype]
    source = dataclasses.replace(
        source,
        tensors={n: t.cast(dtype) if n.startswith(TARGET) else t for n, t in source.tensors.items()},
        config={**source.config, **({"feed_forward_proj": args.feed_forward} if args.feed_forward else {})},
    )
    with whole(dest) as place:
        written = write(source, kind, place, args.vocabulary, args.stacked)
        mark = fingerprint(written.tensors)
        note = {"source": str(args.source), "from": source.kind, "to": kind, "dtype": args.dtype, "step": source.step}
        note |= {"fingerprint": mark, "config": dict(source.config), "flanx": flanx.__version__}
        place.write(NOTE, json.dumps(note, indent=2) + "\n")
        holds = verify(source, written, place, mark, golden) if args.verify else True
    print(f"{source.kind} {source.folder} -> {kind} {dest}: {_sizes(written)}, fingerprint {mark}")
    return 0 if holds else 1


@contextlib.contextmanager
def whole(dest: Folder) -> Iterator[Folder]:
    """A folder to write in that becomes `dest` at the end; after an error nothing of it is left.

    In a bucket it is `dest` itself: the file without which a folder is no checkpoint is written last there.
    """
    if dest.is_remote:
        yield dest
        return
    place = at(f"{dest}.partial")
    shutil.rmtree(place.local(), ignore_errors=True)  # of a conversion that was killed
    place.local().mkdir(parents=True)
    try:
        yield place
    except BaseException:
        shutil.rmtree(place.local(), ignore_errors=True)
        raise
    if dest.local().exists():
        dest.local().rmdir()
    place.local().rename(dest.local())


def write(source: Source, kind: str, place: Folder, vocabulary: str | None, stacked: bool) -> Source:
    """Writes `source` to `place` in format `kind`, with its tokenizer's files, and opens the result."""
    if kind == "hf":
        hf.write(place, source.tensors, source.layout, source.config)
    elif kind == "flanx":
        flanx_format.write(place, scan_layers.stack(source.tensors) if stacked else source.tensors)
    else:
        tensors, step = with_state(source)
        t5x.write_legacy(place / f"checkpoint_{step}", tensors, step)
    if kind != "t5x":
        write_tokenizer(source.tokenizer, place, vocabulary, wanted=kind == "hf")
    written = open_source(place, kind)
    if not written.config:
        written = dataclasses.replace(written, config=source.config)
    return written


def with_state(source: Source) -> tuple[dict[str, Tensor], int]:
    """What T5X wants to restore: the tensors with an optimizer state, and the step.

    Where there is none, it is Adafactor's at step 0, all zeros: T5X's first update takes nothing of them.
    """
    tensors = dict(source.tensors)
    if any(name.startswith(f"{STATE}param_states/") for name in tensors):
        return tensors, source.step
    unused = held(np.zeros((1,), np.float32))
    for name in source.tensors:
        if not name.startswith(TARGET):
            continue
        shape = source.tensors[name].shape
        axes = factored_axes(shape, scan_layers.LEAST_FACTORED)
        state = dict.fromkeys(flanx_format.MOMENTS, unused)
        if axes:
            state["v_row"] = held(np.zeros(np.delete(shape, axes[1]), np.float32))
            state["v_col"] = held(np.zeros(np.delete(shape, axes[0]), np.float32))
        else:
            state["v"] = held(np.zeros(shape, np.float32))
        for moment, tensor in state.items():
            tensors[f"{STATE}param_states/{name.removeprefix(TARGET)}/{moment}"] = tensor
    return tensors, 0


def write_tokenizer(found: Folder, place: Folder, vocabulary: str | None, wanted: bool) -> None:
    """Tokenizer files that transformers loads: made from `vocabulary`, else copied from where the source lies."""
    if vocabulary is not None:
        from flanx.data import remote
        from flanx.data import vocabulary as vocabularies

        loaded = vocabularies.load(vocabulary)
        config: dict[str, Any] = {"extra_ids": loaded.extra_ids, "tokenizer_class": "T5Tokenizer"}
        if vocabulary == "byte":
            config["tokenizer_class"] = "ByT5Tokenizer"
        else:
            place.write("spiece.model", remote.read(vocabulary))
        config |= {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
        place.write("tokenizer_config.json", json.dumps(config, indent=2) + "\n")
        return
    names = found.children() & set(hf.TOKENIZER_FILES)
    for name in names:
        place.write(name, found.read(name))
    if wanted and not names:
        print(f"no tokenizer files in {found}: add --vocabulary SPEC to write them")


def verify(source: Source, written: Source, place: Folder, mark: str, golden: Folder) -> bool:
    """Whether values and logits are the same on both sides; prints both findings, keeps a golden beside the result."""
    values = fingerprint(source.tensors) == mark
    print(f"parameters read back: {'the same' if values else 'NOT the same'}")
    config = dict(source.config)
    with tempfile.TemporaryDirectory() as temporary:
        if "hf" in (source.kind, written.kind):
            folder, ours = (place, source) if written.kind == "hf" else (source.folder, written)
        else:
            folder, ours = at(temporary), written
            hf.write(folder, source.tensors, source.layout, config)
        result, kept = logit_parity.verify(ours, folder.local(), config, golden)
    if kept:
        content = io.BytesIO()
        np.savez(content, **kept)
        place.write(logit_parity.GOLDEN, content.getvalue())
    print(result)
    return values and result.holds


def _sizes(source: Source) -> str:
    params = [tensor for name, tensor in source.tensors.items() if name.startswith(TARGET)]
    total = sum(int(np.prod(tensor.shape)) for tensor in params)
    return f"{len(params)} tensors, {total:,} parameters"
