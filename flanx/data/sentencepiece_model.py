"""Writes SentencePiece model bytes without its library: additional pieces, or a whole model from a tokenizer.json.

transformers 5 saves a T5 tokenizer only as tokenizer.json, which has the contents of the SentencePiece model: pieces
with scores, and the normalizer's table. Field numbers are those of sentencepiece_model.proto (ModelProto).
"""

import base64
import binascii
import json
import re
import struct
from collections.abc import Mapping
from typing import Any

from flanx.errors import UserError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # ModelProto.SentencePiece.Type
SENTINEL = re.compile(r"<extra_id_\d+>")
BLANKS = ("Strip", "Replace")  # normalizer steps that collapse whitespace, as SentencePiece does


def piece(text: str, score: float, kind: int) -> bytes:
    """One entry of ModelProto.pieces (field 1): piece 1, score 2, type 3."""
    body = _field(1, text.encode("utf-8")) + b"\x15" + struct.pack("<f", score) + b"\x18" + _varint(kind)
    return _field(1, body)


def of_tokenizer(content: bytes, where: str) -> tuple[bytes, int]:
    """(SentencePiece model, number of sentinels after it) from a T5 tokenizer.json.

    Raises UserError for other kinds of tokenizers, and for tokens or steps that SentencePiece does not have.
    """
    try:
        whole = json.loads(content)
        model, rows = whole["model"], [(str(text), float(score)) for text, score in whole["model"]["vocab"]]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{where} is not a tokenizer of pieces with scores: {_what(error)}; give spiece.model"
        ) from error
    if model.get("type", "Unigram") != "Unigram" or model.get("byte_fallback") or model.get("unk_id") != UNKNOWN:
        raise UserError(f"{where} is not a T5 tokenizer (Unigram, unknown piece 2, no bytes); give its spiece.model")
    extra = 0
    while rows and SENTINEL.fullmatch(rows[-1][0]):
        rows.pop()
        extra += 1
    known = {text for text, _ in rows[:3]}
    for token in whole.get("added_tokens") or ():
        text = token.get("content", "")
        if text not in known and not re.fullmatch(rf"\u2581?{SENTINEL.pattern}", text):
            raise UserError(f"{where} adds a token '{text}', which SentencePiece does not have; give its spiece.model")
    kinds = {0: CONTROL, 1: CONTROL, 2: UNKNOWN}
    pieces = b"".join(piece(text, score, kinds.get(number, NORMAL)) for number, (text, score) in enumerate(rows))
    special = _int(40, 2) + _int(41, -1) + _int(42, 1) + _int(43, 0)  # unk, bos, eos, pad
    trainer = _int(3, 1) + special + b"".join(_field(45 + n, rows[i][0].encode()) for n, i in ((0, 2), (2, 1), (3, 0)))
    normalizer = (
        _field(1, b"nmt_nfkc")
        + _field(2, _table(whole.get("normalizer"), where))
        + b"".join(
            _int(number, 1)
            for number in (3, 4, 5)  # add dummy prefix, collapse whitespace, escape whitespace
        )
    )
    return pieces + _field(2, trainer) + _field(3, normalizer), extra


def _table(normalizer: Mapping[str, Any] | None, where: str) -> bytes:
    """A normalizer's character table, empty if it has none. Raises UserError for other kinds of steps."""
    found = b""
    for step in (normalizer or {}).get("normalizers") or ([normalizer] if normalizer else []):
        kind = step.get("type") if isinstance(step, dict) else step
        if kind == "Precompiled":
            try:
                found = base64.b64decode(step.get("precompiled_charsmap") or "", validate=True)
            except (binascii.Error, TypeError) as error:
                raise UserError(f"{where}: the normalizer's table is damaged ({error}); download it again") from error
        elif kind not in BLANKS:
            raise UserError(f"{where}: its normalizer has a step '{kind}', SentencePiece has none; give spiece.model")
    return found


def _what(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)[:100]


def _varint(number: int) -> bytes:
    number &= (1 << 64) - 1  # negative numbers are encoded in ten bytes
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def _field(number: int, payload: bytes) -> bytes:
    """A bytes field."""
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _int(number: int, value: int) -> bytes:
    """An integer field."""
    return _varint(number << 3) + _varint(value)
