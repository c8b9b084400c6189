"""A SentencePiece model of a tokenizer.json: the ids of the model that it was made of, and of transformers."""

import json
import pathlib
from typing import Any

import pytest
import sentencepiece

from flanx.data import vocabulary
from flanx.data.sentencepiece_model import of_tokenizer
from flanx.errors import UserError
from tests import t5_vocabulary

TEXTS = [
    "Question: 5 + 5",
    "  Frage:  1\t2 ",
    "ﬁ ① Ａ 問題：",
    "",
    "unknown ∮ zzz",
    "<extra_id_0> A: <extra_id_3>",
    "a\nb",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """What transformers 5 saves of a T5's tokenizer, and the model that it was made of in `model`."""
    transformers = pytest.importorskip("transformers", reason="the extra hf")
    home = tmp_path_factory.mktemp("tokenizer")
    (home / "model").mkdir()
    (home / "model" / "spiece.model").write_bytes(pathlib.Path(t5_vocabulary.train(home)).read_bytes())
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 20}
    (home / "model" / "tokenizer_config.json").write_text(json.dumps(config))
    transformers.AutoTokenizer.from_pretrained(home / "model").save_pretrained(home / "saved")
    if (home / "saved" / "spiece.model").exists():
        pytest.skip("this release of transformers saves the SentencePiece model")
    return home


def test_ids_and_texts_are_those_of_the_model(folder):
    ours, theirs = vocabulary.load(str(folder / "saved")), vocabulary.load(str(folder / "model"))
    assert ours.size == theirs.size and ours.extra_ids == theirs.extra_ids == 20
    for read in ("IdToPiece", "GetScore", "IsControl", "IsUnknown"):
        one, other = ([getattr(each._processor, read)(i) for i in range(ours.size)] for each in (ours, theirs))
        assert one == other, read
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text), text
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text)), text
    assert vocabulary.load(str(folder / "saved" / "tokenizer.json")).fingerprint == ours.fingerprint


def test_pieces_and_scores_of_a_tokenizer_are_those_of_the_model(tmp_path):
    """Without transformers, an extra: a file that is written here, without the normalizer's table, for plain text."""
    theirs = vocabulary.load(t5_vocabulary.train(tmp_path))._processor
    pieces = [[theirs.IdToPiece(i), theirs.GetScore(i)] for i in range(theirs.GetPieceSize())]
    sentinels = [[f"<extra_id_{n}>", 0.0] for n in (1, 0)]
    whole = {"model": {"type": "Unigram", "unk_id": 2, "vocab": pieces + sentinels}, "normalizer": None}
    model, extra = of_tokenizer(json.dumps(whole).encode(), "x/tokenizer.json")
    ours = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert extra == 2 and [[ours.IdToPiece(i), ours.GetScore(i)] for i in range(ours.GetPieceSize())] == pieces
    for text in ("Question: 5 + 5", "The answer is 12. A: b", "unknown ∮ zzz"):
        assert ours.EncodeAsIds(text) == theirs.EncodeAsIds(text), text


def test_seqio_reads_the_same_model(folder, tmp_path, monkeypatch):
    pytest.importorskip("seqio")
    from flanx.seqio.vocabularies import to_seqio

    monkeypatch.setenv("FLANX_CACHE", str(tmp_path))
    ours = vocabulary.load(str(folder / "saved"))
    assert [*to_seqio(ours).encode(TEXTS[0])] == ours.encode(TEXTS[0])


def wrong(folder: pathlib.Path, **changes: Any) -> bytes:
    whole = json.loads((folder / "saved" / "tokenizer.json").read_text())
    whole["model"] |= changes.pop("model", {})
    return json.dumps(whole | changes).encode()


def test_what_sentencepiece_does_not_have_is_refused(folder):
    more = {"id": 90, "content": "<mine>", "special": True}
    for content, message in (
        (b"{}", "is not a tokenizer of pieces with scores: no 'model'"),
        (b"[]", "is not a tokenizer of pieces"),
        (wrong(folder, model={"type": "BPE"}), "is not a T5 tokenizer"),
        (wrong(folder, added_tokens=[more]), "adds a token '<mine>', which SentencePiece does not have"),
        (wrong(folder, normalizer={"type": "Lowercase"}), "its normalizer has a step 'Lowercase'"),
        (wrong(folder, normalizer={"type": "Precompiled", "precompiled_charsmap": "*"}), "the normalizer's table is"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            of_tokenizer(content, "x/tokenizer.json")
        assert len(str(caught.value).splitlines()) == 1
