"""flanx's vocabularies as SeqIO's: the same ids for every text."""

from flanx import storage
from flanx.data.vocabulary import Bytes, Vocabulary
from flanx.seqio.packages import seqio


def to_seqio(vocabulary: Vocabulary) -> seqio.Vocabulary:
    """The equal SeqIO vocabulary."""
    if isinstance(vocabulary, Bytes):
        return seqio.ByteVocabulary(extra_ids=vocabulary.extra_ids)
    return seqio.SentencePieceVocabulary(storage.local(vocabulary.spec), extra_ids=vocabulary.extra_ids)
