"""One conversion: a checkpoint written in another format, and the check that both compute the same."""

import contextlib
import dataclasses
import io
import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

import flanx
from flanx import files
from flanx.convert import flanx_format, hf, logit_parity, scan_layers, t5x
from flanx.convert.flanx_format import NOTE
from flanx.convert.formats import OpenCheckpoint, expect_fingerprint, open_checkpoint
from flanx.convert.lazy_tensor import BFLOAT16, STATE, TARGET, LazyTensor, fingerprint, in_memory, parameters
from flanx.data import vocabulary as vocabularies
from flanx.errors import UserError
from flanx.files import umask
from flanx.storage import Storage, open_storage

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": BFLOAT16}


TIES = (
    "note: the model has a head of its own. transformers 5 ties it to the embeddings in `tie_weights()`, as lm_eval "
    "does, whatever config.json says; from_pretrained(DEST, tie_word_embeddings=False) keeps it, and so does "
    "`lm_eval --model hf --model_args pretrained=DEST,tie_word_embeddings=False`"
)


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What to write of a checkpoint, and where.

    Attributes:
      kind: format of `dest`: "flanx", "t5x" or "hf".
      dtype: of the parameters, a name in DTYPES.
      stacked: one tensor for all layers of a stack, for flanx's scan_layers or T5X's scalable_t5.
      vocabulary: "byte" or a SentencePiece model, for the tokenizer files; None: they are copied.
      cards: {name: text} of further files that document the checkpoint.
      config: entries of Hugging Face's config.json that cannot be inferred from tensors; they override the source's.
    """

    source: OpenCheckpoint
    dest: Storage
    kind: str
    dtype: str = "float32"
    stacked: bool = False
    vocabulary: str | None = None
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    cards: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            reason = "T5's activations overflow float16" if self.dtype == "float16" else f"no dtype '{self.dtype}'"
            raise UserError(f"--dtype {self.dtype}: {reason}; use {' or '.join(DTYPES)}")
        if self.kind == "hf":
            self.source.t5_sizes()
        if self.kind == "t5x" and (start := hf.start_token(self.source.config)) != 0:
            raise UserError(f"--to t5x: decoding of {self.source.given} starts with token {start}, T5X's always with 0")
        if self.stacked and self.kind == "hf":
            raise UserError("--stacked writes flanx's or T5X's form of scan_layers; leave it out for --to hf")
        if self.dest.children() or (not self.dest.is_remote and self.dest.local().is_file()):
            raise UserError(f"DEST '{self.dest}' is not empty; give another folder")

    def run(self, verify_with: Storage | None = None) -> "Result":
        """Writes `dest`, with a note of its origin.

        Args:
          verify_with: a golden to verify the result against if transformers is not installed; None: do not verify.
        """
        if verify_with is not None:
            self.source.t5_sizes()
            logit_parity.expect_reference(verify_with)
            kinds = {tensor.dtype for tensor in parameters(self.source.tensors).values()}
            if self.dtype == "bfloat16" and kinds != {BFLOAT16} and not logit_parity.has_transformers():
                raise UserError(
                    "--verify with --dtype bfloat16 needs transformers (pip install 'flanx[hf]'): "
                    "a golden has the logits of the parameters before they are rounded"
                )
        if self.source.note:
            expect_fingerprint(self.source, fingerprint(self.source.tensors))
        dtype = DTYPES[self.dtype]
        source = dataclasses.replace(
            self.source,
            tensors={n: t.cast(dtype) if n.startswith(TARGET) else t for n, t in self.source.tensors.items()},
            config={**self.source.config, **self.config},
        )
        if self.kind == "t5x" and self.stacked and not source.t5_sizes().layer_bias:
            print("T5X's scanned layers have a relative bias each: the stack's is copied into every one of its layers")
            sizes = dataclasses.replace(source.t5_sizes(), layer_bias=True)
            source = dataclasses.replace(source, tensors=scan_layers.spread_bias(source.tensors), sizes=sizes)
        with atomic(self.dest, self.kind) as folder:
            written = self._write(source, folder)
            mark = fingerprint(written.tensors, finite=files.verifying)
            note: dict[str, Any] = {
                "source": self.source.name,
                "from": source.kind,
                "to": self.kind,
                "dtype": self.dtype,
            }
            note |= {"step": source.step, "fingerprint": mark, "config": dict(source.config), **source.origin}
            mark_of_breaks = write_tokenizer(source, folder, self.vocabulary, wanted=self.kind == "hf")
            note |= {"line_break": mark_of_breaks} if mark_of_breaks else {}
            for name, text in self.cards.items():
                folder.write(name, text)
            folder.write(NOTE, json.dumps(note | {"flanx": flanx.__version__}, indent=2) + "\n")
            verified = verify_with is None or verify(source, written, folder, mark, verify_with)
        shapes = [tensor.shape for tensor in parameters(written.tensors).values()]
        return Result(len(shapes), sum(map(math.prod, shapes)), mark, verified)

    def _write(self, source: OpenCheckpoint, folder: Storage) -> OpenCheckpoint:
        """Writes `source` to `folder`, and opens the result."""
        if self.kind == "hf":
            hf.write(folder, source.tensors, source.t5_sizes(), source.config)
            if not source.t5_sizes().tied:
                print(TIES)
        elif self.kind == "flanx":
            flanx_format.write(folder, scan_layers.stack(source.tensors) if self.stacked else source.tensors)
        else:
            tensors, step = for_t5x(source, self.stacked)
            t5x.write_legacy(folder / f"checkpoint_{step}", tensors, step)
        written = open_checkpoint(folder, self.kind)
        return written if written.config else dataclasses.replace(written, config=source.config)


@dataclasses.dataclass(frozen=True)
class Result:
    """What a conversion wrote.

    Attributes:
      num_tensors, num_params, fingerprint: of the parameters.
      verified: False if --verify found a difference.
    """

    num_tensors: int
    num_params: int
    fingerprint: str
    verified: bool


@contextlib.contextmanager
def atomic(dest: Storage, kind: str = "") -> Iterator[Storage]:
    """A folder to write to that becomes `dest` at the end; after an error nothing of it is left.

    In a bucket it is `dest` itself, and the file that makes a folder a checkpoint is written last; except for Hugging
    Face's form (`kind`), whose writer needs a disk.
    """
    if dest.is_remote and kind != "hf":
        yield dest
        return
    if dest.is_remote:
        with tempfile.TemporaryDirectory(prefix="flanx-") as name:
            yield (made := open_storage(name))
            for file in sorted(made.keys(), key=lambda file: (file == "config.json", file)):
                dest.write(file, made.read(file))
        return
    parent = dest.local().parent
    parent.mkdir(parents=True, exist_ok=True)
    partial = open_storage(tempfile.mkdtemp(prefix=f"{dest.local().name}.partial-", dir=parent))
    partial.local().chmod(0o777 & ~umask())
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial.local(), ignore_errors=True)
        raise
    if dest.local().exists():
        dest.local().rmdir()
    partial.local().rename(dest.local())


def for_t5x(source: OpenCheckpoint, stacked: bool) -> tuple[dict[str, LazyTensor], int]:
    """What T5X restores: the tensors in its model's form, with an optimizer state, and the step.

    Without a state, it is Adafactor's at step 0, all zeros: T5X's first update ignores it.
    """
    tensors = dict(source.tensors)
    if source.sizes is not None and source.sizes.layer_bias:
        tensors = scan_layers.to_scalable_t5(tensors, stacked)
    if any(name.startswith(f"{STATE}param_states/") for name in tensors):
        return tensors, source.step
    unused = in_memory(np.zeros((1,), np.float32))
    for name, tensor in parameters(tensors).items():
        state = dict.fromkeys(flanx_format.MOMENTS, unused)
        shapes = {"v": tensor.shape}
        if factored := scan_layers.factored_shapes(name, tensor.shape):
            shapes = dict(zip(("v_row", "v_col"), factored, strict=True))
        state |= {moment: in_memory(np.zeros(shape, np.float32)) for moment, shape in shapes.items()}
        tensors |= {f"{STATE}param_states/{name}/{moment}": zeros for moment, zeros in state.items()}
    return tensors, 0


def write_tokenizer(source: OpenCheckpoint, folder: Storage, vocabulary: str | None, wanted: bool) -> str:
    """Tokenizer files that transformers loads: copied from SOURCE, or made from a vocabulary, by default the run's.

    Returns the mark of line breaks, "" if there is none.

    Raises UserError if the vocabulary has more ids than the model's embedding has rows.
    """
    names = source.given.children() & set(hf.TOKENIZER_FILES)
    given = vocabulary is not None
    extra_ids: int | None = None
    if vocabulary is None and not names and (named := vocabularies.named_in(source.given)) is not None:
        vocabulary, extra_ids = named
    if vocabulary is None:
        for name in names:
            folder.write(name, source.given.read(name))
        if wanted and not names:
            print(
                f"no tokenizer files in {source.given}: add --vocabulary SPEC to write them; without them "
                "transformers' AutoTokenizer makes one that has nothing to do with the model"
            )
        return str(source.note.get("line_break", ""))
    try:
        loaded = vocabularies.load(vocabulary, extra_ids)
    except UserError as error:
        if given or wanted:
            raise
        print(f"note: the result has no tokenizer: {error}")
        return ""
    extra_ids, rows = loaded.extra_ids, source.sizes.vocab_size if source.sizes else loaded.size
    if loaded.size > rows:
        raise UserError(
            f"--vocabulary {vocabulary} has {loaded.size} ids, the model's table {rows} rows; "
            "give the one that it was trained with"
        )
    config: dict[str, Any] = {"tokenizer_class": "T5Tokenizer"}
    if isinstance(loaded, vocabularies.SentencePiece):
        folder.write("spiece.model", loaded.content)
        if loaded.line_break:
            mark = loaded.line_break
            print(f"note: to the model a line break is '{mark}'; transformers' tokenizer does not write it so")
    else:
        config["tokenizer_class"] = "ByT5Tokenizer"
        extra_ids += rows - loaded.size  # transformers cannot decode an id that the tokenizer does not have
    config |= {"extra_ids": extra_ids, "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    folder.write("tokenizer_config.json", json.dumps(config, indent=2) + "\n")
    return loaded.line_break


def verify(source: OpenCheckpoint, written: OpenCheckpoint, folder: Storage, mark: str, golden: Storage) -> bool:
    """Whether both have the same values and logits; prints both results, keeps a golden next to the checkpoint.

    `source` has the values as they were written, possibly rounded from its checkpoint's; `mark` is the fingerprint of
    `written`.
    """
    same_values = fingerprint(source.tensors) == mark
    print(f"parameters read back: {'the same' if same_values else 'NOT the same'}")
    config = dict(source.config)
    is_rounded = BFLOAT16 in {tensor.dtype for tensor in parameters(written.tensors).values()}
    with tempfile.TemporaryDirectory() as temporary:
        if written.kind == "hf":
            reference, ours = folder, source
        elif source.kind == "hf" and not is_rounded:
            reference, ours = source.folder, written
        else:
            reference, ours = open_storage(temporary), written
            hf.write(reference, source.tensors, source.t5_sizes(), config)
        parity, kept = logit_parity.verify(ours, reference.local(), config, golden)
    if kept:
        content = io.BytesIO()
        np.savez(content, **kept)
        folder.write(logit_parity.GOLDEN, content.getvalue())
    print(parity)
    return same_values and parity.holds
