"""flanx's vocabularies as SeqIO vocabularies: the same ids for every text."""

import re
from collections.abc import Sequence
from typing import Any

from flanx.data.vocabulary import SentencePiece, Vocabulary, keep_line_breaks, restore_line_breaks
from flanx.seqio.packages import seqio, tf


class _LineBreaks(seqio.SentencePieceVocabulary):
    """A SentencePiece model that preserves line breaks with a mark; see `flanx.data.vocabulary`."""

    def __init__(self, path: str, extra_ids: int, mark: str) -> None:
        super().__init__(path, extra_ids=extra_ids)
        self._mark = mark

    def _encode(self, s: str) -> Sequence[int]:
        return super()._encode(keep_line_breaks(s, self._mark))

    def _decode(self, ids: Any) -> str:
        return restore_line_breaks(super()._decode(ids), self._mark)

    def _encode_tf(self, s: Any) -> Any:
        kept = f" {self._mark} ".replace("\\", "\\\\")
        return super()._encode_tf(tf.strings.regex_replace(s, "\r?\n", kept))

    def _decode_tf(self, ids: Any) -> Any:
        return tf.strings.regex_replace(super()._decode_tf(ids), f" *{re.escape(self._mark)} *", "\n")


def to_seqio(vocabulary: Vocabulary) -> seqio.Vocabulary:
    """The equivalent SeqIO vocabulary."""
    if not isinstance(vocabulary, SentencePiece):
        return seqio.ByteVocabulary(extra_ids=vocabulary.extra_ids)
    path = vocabulary.file
    if vocabulary.line_break:
        return _LineBreaks(path, vocabulary.extra_ids, vocabulary.line_break)
    return seqio.SentencePieceVocabulary(path, extra_ids=vocabulary.extra_ids)
