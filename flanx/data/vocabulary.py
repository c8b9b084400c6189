"""Byte and SentencePiece vocabularies with SeqIO's ids, without SeqIO or TensorFlow.

    vocabulary = load("byte")                                                      # 259 ids
    vocabulary = load("gs://t5-data/vocabs/cc_all.32000/sentencepiece.model")           # 32,000 pieces + 100 extra ids
    vocabulary = load("gs://t5-data/vocabs/cc_all.32000.100extra/sentencepiece.model")  # 32,100 pieces, no extra ids
    vocabulary = load("t5/sentencepiece.model#line_break=|")                       # likewise, line breaks as "|"
    vocabulary = load("hf:google/flan-t5-small")     # of a model on the Hugging Face hub, or a checkpoint folder

In both, 0 is padding, 1 is end-of-sequence, 2 is unknown. Byte b has id b + 3. Extra ids are sentinels at the end; in a
SentencePiece model `<extra_id_0>` has the highest id, as the public T5 checkpoints expect.

T5's and mT5's models turn line breaks into spaces. With "#line_break=MARK" each one becomes MARK before encoding
(`keep_line_breaks`) and a line break again on decoding (`restore_line_breaks`): in stores, training, evaluation and
SeqIO alike, since all of them use the vocabulary named by the spec.
"""

import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np

from flanx import hub, run_record, storage
from flanx.data.sentencepiece_model import USER_DEFINED, of_tokenizer, piece
from flanx.errors import UserError, nearest
from flanx.files import write_atomic

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
BYTES = 256
FIRST_BYTE = 3  # the three special ids come first


LINE_BREAK = "#line_break="  # precedes the mark in the spec of a SentencePiece model
MODELS = ("spiece.model", "tokenizer.json")  # SentencePiece files of a Hugging Face folder, best first
CONVERTED = "flanx_convert.json"  # written by `flanx convert`; records an export's mark


def keep_line_breaks(text: str, mark: str) -> str:
    """`text` with each line break replaced by `mark` between spaces; if `mark` is "", the text is unchanged."""
    return text.replace("\r\n", "\n").replace("\n", f" {mark} ") if mark else text


def restore_line_breaks(text: str, mark: str) -> str:
    """The inverse of `keep_line_breaks`, except for spaces at line breaks; marks in the original text become breaks."""
    return re.sub(rf" *{re.escape(mark)} *", "\n", text) if mark else text


class Vocabulary(Protocol):
    """What the store, the decoder and the model configuration need from a vocabulary."""

    @property
    def spec(self) -> str: ...  # "byte", or the path or URL of the SentencePiece model
    @property
    def extra_ids(self) -> int: ...
    @property
    def size(self) -> int: ...  # all ids, including extra ids
    @property
    def pad_id(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    @property
    def unk_id(self) -> int: ...
    @property
    def line_break(self) -> str: ...  # the mark for a line break; "" if the model sees line breaks as they are
    @property
    def fingerprint(self) -> str: ...  # equal fingerprints mean equal ids for every text

    def encode(self, text: str) -> list[int]: ...
    def count(self, text: str) -> int: ...  # its number of tokens
    def sequences(self, texts: list[str]) -> list[np.ndarray]: ...  # per text i32[n + 1]: its tokens and EOS
    def decode(self, ids: Iterable[int]) -> str: ...


@dataclasses.dataclass(frozen=True)
class Bytes:
    """UTF-8 bytes as ids; nothing is unknown, and undecodable bytes are skipped."""

    extra_ids: int = 0
    spec: str = "byte"
    pad_id: int = PAD_ID
    eos_id: int = EOS_ID
    unk_id: int = UNK_ID
    line_break: str = ""

    @property
    def size(self) -> int:
        return FIRST_BYTE + BYTES + self.extra_ids

    @property
    def fingerprint(self) -> str:
        return f"byte-{self.extra_ids}"

    def encode(self, text: str) -> list[int]:
        return [b + FIRST_BYTE for b in text.encode("utf-8")]

    def count(self, text: str) -> int:
        return len(text.encode("utf-8"))

    def sequences(self, texts: list[str]) -> list[np.ndarray]:
        return [self._sequence(text.encode("utf-8")) for text in texts]

    def _sequence(self, text: bytes) -> np.ndarray:
        ids = np.empty(len(text) + 1, np.int32)
        np.add(np.frombuffer(text, np.uint8), FIRST_BYTE, out=ids[:-1])
        ids[-1] = EOS_ID
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text up to the first end of sequence."""
        kept = bytes(i - FIRST_BYTE for i in _until_eos(ids) if FIRST_BYTE <= i < FIRST_BYTE + BYTES)
        return kept.decode("utf-8", errors="ignore")


@dataclasses.dataclass(frozen=True)
class SentencePiece:
    """A SentencePiece model file whose ids 0, 1, 2 are padding, end-of-sequence and unknown."""

    spec: str
    extra_ids: int = 100
    pad_id: int = PAD_ID
    eos_id: int = EOS_ID
    unk_id: int = UNK_ID

    @property
    def path(self) -> str:
        """The path or URL of the model file, or of an equivalent tokenizer.json."""
        path = self.spec.partition(LINE_BREAK)[0]
        if not path.startswith(hub.PREFIX):
            return path
        folder = hub.fetch(path, weights=False).folder
        return str(folder / MODELS[0 if (folder / MODELS[0]).exists() else 1])

    @property
    def file(self) -> str:
        """The local path of the model file; a copy if it is remote or converted from a tokenizer.json."""
        if not self.path.endswith(MODELS[1]):
            return storage.local(self.path)
        copy = storage.cache_dir() / hashlib.sha256(self.content).hexdigest()[:16] / MODELS[0]
        if not copy.exists():
            write_atomic(copy, self.content)
        return str(copy)

    @property
    def line_break(self) -> str:
        return self.spec.rpartition(LINE_BREAK)[2] if LINE_BREAK in self.spec else ""

    @functools.cached_property
    def content(self) -> bytes:
        """The bytes of the model."""
        content = storage.read(self.path)
        if not content:
            raise UserError(f"{self.spec}: empty file, not a SentencePiece model")
        return of_tokenizer(content, self.path)[0] if self.path.endswith(MODELS[1]) else content

    @functools.cached_property
    def _processor(self) -> Any:
        import sentencepiece  # noqa: PLC0415  (not needed for a byte vocabulary)

        # A serialized protocol buffer can be extended by appending to it: the extra ids are additional pieces.
        extra = b"".join(piece(f"\u2581<extra_id_{i}>", 0.0, USER_DEFINED) for i in reversed(range(self.extra_ids)))
        try:
            processor = sentencepiece.SentencePieceProcessor(model_proto=self.content + extra)
        except RuntimeError as error:
            raise UserError(f"{self.spec}: not a SentencePiece model") from error
        if (processor.eos_id(), processor.unk_id()) != (EOS_ID, UNK_ID):
            raise UserError(f"{self.spec}: ids of end and unknown must be 1 and 2, as in T5's models")
        if not (processor.IsControl(PAD_ID) or processor.IsUnused(PAD_ID)):
            raise UserError(
                f"{self.spec}: id 0 is the ordinary piece {processor.IdToPiece(PAD_ID)!r}, and 0 is padding here; "
                "train the model with --pad_id=0 --eos_id=1 --unk_id=2 --bos_id=-1"
            )
        return processor

    @property
    def has_sentinels(self) -> bool:
        """Whether T5's extra ids are among the model's own pieces."""
        unknown = self._processor.unk_id()
        return any(self._processor.PieceToId(piece) != unknown for piece in ("<extra_id_0>", "\u2581<extra_id_0>"))

    @property
    def size(self) -> int:
        return self._processor.GetPieceSize()

    @property
    def fingerprint(self) -> str:
        mark = f"{LINE_BREAK}{self.line_break}" if self.line_break else ""
        return f"sentencepiece-{self.extra_ids}-{hashlib.sha256(self.content).hexdigest()}{mark}"

    def encode(self, text: str) -> list[int]:
        return self._processor.EncodeAsIds(keep_line_breaks(text, self.line_break))

    def count(self, text: str) -> int:
        return len(self.encode(text))

    def sequences(self, texts: list[str]) -> list[np.ndarray]:
        kept = [keep_line_breaks(text, self.line_break) for text in texts]
        ids = self._processor.Encode(kept, out_type=int, add_eos=True, num_threads=1)  # builds run a process per core
        return [np.array(each, np.int32) for each in ids]

    def decode(self, ids: Iterable[int]) -> str:
        """The text up to the first end of sequence; ids beyond the model's (padded embeddings) are unknown."""
        size = self.size
        text = self._processor.DecodeIds([i if i < size else UNK_ID for i in _until_eos(ids)])
        return restore_line_breaks(text, self.line_break)


def load(spec: str, extra_ids: int | None = None) -> Vocabulary:
    """The vocabulary of a spec: "byte", or the path or URL of a SentencePiece model.

    `extra_ids`: how many sentinels to add at the end; by default 0 for bytes, and 100, as in T5, for a SentencePiece
    model that has none among its own pieces. Raises UserError for anything else, and for a mark that the model cannot
    represent.
    """
    if not isinstance(spec, str) or not spec:
        raise UserError(f"VOCABULARY is {spec!r}; give 'byte', or the path or URL of a SentencePiece model")
    if spec.startswith(f"byte{LINE_BREAK}"):
        raise UserError(f"VOCABULARY is {spec!r}: bytes write line breaks as they are; give 'byte'")
    if spec != "byte" and "/" not in spec and not os.path.exists(spec) and (hint := nearest(spec, ["byte"])):
        raise UserError(f"VOCABULARY is {spec!r}, which is no file{hint}")
    return _load(spec, extra_ids)


@functools.lru_cache(maxsize=16)
def _load(spec: str, extra_ids: int | None) -> Vocabulary:
    if spec == "byte":
        return Bytes(extra_ids or 0)
    path, of_breaks, mark = spec.partition(LINE_BREAK)
    if is_folder(path):
        named = named_in(path)
        if named is None:
            raise UserError(f"VOCABULARY: {no_vocabulary(path)}")
        spec = f"{named[0]}{of_breaks}{mark}"
        extra_ids = named[1] if extra_ids is None else extra_ids
        if not named[0].startswith(hub.PREFIX):
            return _load(spec, extra_ids)
    vocabulary = SentencePiece(spec, extra_ids or 0)
    if extra_ids is None and vocabulary.path.endswith(MODELS[1]):
        extra_ids = of_tokenizer(storage.read(vocabulary.path), vocabulary.path)[1]
        vocabulary = SentencePiece(spec, extra_ids)
    if extra_ids is None and not vocabulary.has_sentinels:
        vocabulary = SentencePiece(spec, 100)
    _ = vocabulary.size  # fail early: a wrong file is a configuration error
    mark = vocabulary.line_break
    if LINE_BREAK in spec and (
        not mark.strip() or mark[0].isalnum() or vocabulary.decode(vocabulary.encode("\n")) != "\n"
    ):
        raise UserError(
            f"VOCABULARY {spec}: {mark!r} cannot mark line breaks: it is empty, begins with a letter or digit, or the "
            "model does not write it; take '|' or a sentinel such as '<extra_id_99>'"
        )
    return vocabulary


# ---- the vocabulary stored with a checkpoint -------------------------------------------------------------------------


def is_folder(path: str) -> bool:
    """Whether a text names a checkpoint, not a file: a hub model, a folder, a URL whose last part has no dot."""
    if path.startswith(storage.URLS):
        return "." not in path.rstrip("/").rpartition("/")[2]
    return path.startswith(hub.PREFIX) or os.path.isdir(os.path.expanduser(path))


def named_in(path: str | os.PathLike, adapters: tuple[str, ...] = ()) -> tuple[str, int | None] | None:
    """(spec, extra ids or None for the default) of the vocabulary stored with a run, a step folder, an export or a hub
    model; for PEFT adapters, their base model's. None if there is none that flanx can read.

    adapters: those it is the base of, to detect cycles.
    """
    text = os.fspath(path)
    folder = storage.open_storage(hub.fetch(text, weights=False).folder if text.startswith(hub.PREFIX) else text)
    of_run = folder.parent.name == "checkpoints"
    is_step = re.fullmatch(r"checkpoint_\d+", folder.name) and (of_run or not folder.is_remote)
    above = folder.parent.parent if of_run else folder.parent
    for place in (folder, above) if is_step else (folder,):
        names = place.children()
        data = run_record.read_stored_run(place).get("data") or {}
        if spec := data.get("store", {}).get("vocabulary"):
            return spec, None
        config = place.read_json("tokenizer_config.json") if "tokenizer_config.json" in names else {}
        if str(config.get("tokenizer_class", "")).startswith("ByT5Tokenizer"):
            return "byte", None
        if model := next((name for name in MODELS if name in names), None):
            extra_ids = config.get("extra_ids") if model == MODELS[0] else None  # tokenizer.json has its own
            spec = text if text.startswith(hub.PREFIX) else f"{place}/{model}"
            note = place.read_json(CONVERTED) if CONVERTED in names else {}
            spec += f"{LINE_BREAK}{note['line_break']}" if note.get("line_break") else ""
            return spec, extra_ids if type(extra_ids) is int else None
        adapter = place.read_json(hub.ADAPTER) if hub.ADAPTER in names else None
        if (base := hub.base_of_adapter(adapter, place)) is not None and base not in adapters:
            return named_in(base, (*adapters, base))
    return None


def no_vocabulary(path: str | os.PathLike) -> str:
    """The message for a checkpoint without one."""
    return (
        f"{path} does not say its vocabulary (run.json, spiece.model, tokenizer.json): give vocabulary='byte', or the "
        "path or URL of its SentencePiece model"
    )


def _until_eos(ids: Iterable[int]) -> Iterable[int]:
    for i in ids:
        if i == EOS_ID:
            return
        yield int(i)
