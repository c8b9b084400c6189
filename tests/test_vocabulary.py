"""Ids equal SeqIO's; wrong specs are one clear line."""

import pathlib
import socket
from typing import Any

import pytest

from flanx import storage
from flanx.data import vocabulary
from flanx.errors import UserError


def to_seqio(words: vocabulary.Vocabulary) -> Any:
    """SeqIO's vocabulary of the same ids; skips where SeqIO is not installed."""
    pytest.importorskip("seqio")
    from flanx.seqio.vocabularies import to_seqio as convert

    return convert(words)


TEXTS = ["", "hello world", "Ünïcode ☃ 漢字", "two\nlines\tand  spaces", "<extra_id_0> first <extra_id_3>"]


@pytest.fixture(scope="module")
def model() -> str:
    seqio = pytest.importorskip("seqio")
    return str(pathlib.Path(seqio.__file__).parent / "test_data" / "sentencepiece" / "sentencepiece.model")


@pytest.fixture(scope="module", params=["byte", "byte with sentinels", "pieces", "pieces with few sentinels"])
def pair(request: pytest.FixtureRequest, model: str) -> tuple:
    spec, extra_ids = {
        "byte": ("byte", None),
        "byte with sentinels": ("byte", 125),
        "pieces": (model, None),
        "pieces with few sentinels": (model, 7),
    }[request.param]
    ours = vocabulary.load(spec, extra_ids)
    return ours, to_seqio(ours)


def test_sizes_and_special_ids_are_seqios(pair):
    ours, theirs = pair
    assert ours.size == theirs.vocab_size
    assert (ours.pad_id, ours.eos_id, ours.unk_id) == (theirs.pad_id, theirs.eos_id, theirs.unk_id)


@pytest.mark.parametrize("text", TEXTS)
def test_encoding_and_decoding_are_seqios(pair, text):
    ours, theirs = pair
    ids = ours.encode(text)
    assert ids == list(theirs.encode(text))
    assert ours.count(text) == len(ids)
    sequences = [one.tolist() for one in ours.sequences([text, "", text])]
    assert sequences == [[*theirs.encode_tf(one).numpy().tolist(), 1] for one in (text, "", text)]
    assert ours.decode(ids) == theirs.decode(ids)
    assert ours.decode([*ids, 1, *ids]) == theirs.decode([*ids, 1, *ids])  # nothing after the end counts
    assert ours.decode([*ids, ours.size + 3]) == theirs.decode([*ids, ours.size + 3])


def test_default_numbers_of_sentinels(model):
    assert vocabulary.load("byte").size == 259
    assert vocabulary.load(model).extra_ids == 100


def test_a_model_that_holds_its_sentinels_gets_no_more_of_them(model, tmp_path):
    seqio = pytest.importorskip("seqio")
    with_them = tmp_path / "words.100extra.model"  # as in T5's public cc_all.32000.100extra
    with_them.write_bytes(seqio.SentencePieceVocabulary(model, extra_ids=100)._model_context().sp_model)
    ours, theirs = vocabulary.load(str(with_them)), seqio.SentencePieceVocabulary(str(with_them))
    assert ours.size == vocabulary.load(model).size == theirs.vocab_size
    assert ours.encode(TEXTS[-1]) == vocabulary.load(model).encode(TEXTS[-1])
    assert to_seqio(ours) == theirs  # which T5X asks of a task and its model


def test_fingerprints_tell_vocabularies_apart(model):
    prints = {vocabulary.load(*spec).fingerprint for spec in [("byte", 0), ("byte", 100), (model, 100), (model, 7)]}
    assert len(prints) == 4
    assert vocabulary.load("byte").fingerprint == "byte-0"


@pytest.mark.parametrize("content", [None, b"", b"no model"])
def test_a_file_that_is_no_model_is_named(tmp_path, content):
    file = tmp_path / "words.model"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=r"words\.model"):
        vocabulary.load(str(file))


def trained(folder: pathlib.Path, name: str, **ids: object) -> str:
    """A SentencePiece model of 64 pieces or more with these special ids."""
    sentencepiece = pytest.importorskip("sentencepiece")
    lines = [f"question {i}: what is {i} plus {i * 3}? the answer is {i * 4}." for i in range(200)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(folder / name), vocab_size=64, hard_vocab_limit=False,
        minloglevel=2, **ids,
    )  # fmt: skip
    return str(folder / f"{name}.model")


def test_a_model_whose_id_0_is_a_piece_of_text_is_refused(tmp_path):
    word = trained(tmp_path, "word0", pad_id=-1, bos_id=-1, eos_id=1, unk_id=2)
    with pytest.raises(UserError, match=r"word0.model: id 0 is the ordinary piece .*--pad_id=0"):
        vocabulary.load(word)
    assert vocabulary.load(trained(tmp_path, "start0", pad_id=-1, bos_id=0, eos_id=1, unk_id=2)).pad_id == 0
    with pytest.raises(UserError, match="must be 1 and 2"):
        vocabulary.load(trained(tmp_path, "llama", pad_id=-1, unk_id=0, bos_id=1, eos_id=2))


def test_a_piece_that_only_begins_as_a_sentinel_is_none(tmp_path):
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    assert vocabulary.load(trained(tmp_path, "like", user_defined_symbols=["<extra_id_0>x"], **ids)).extra_ids == 100
    assert vocabulary.load(trained(tmp_path, "own", user_defined_symbols=["<extra_id_0>"], **ids)).extra_ids == 0


@pytest.mark.parametrize("spec", [None, 5, "", ["byte"]])
def test_what_is_no_spec_is_refused(spec):
    with pytest.raises(UserError, match="VOCABULARY is"):
        vocabulary.load(spec)


def test_an_address_without_an_answer_is_a_line_in_seconds():
    listening = socket.create_server(("127.0.0.1", 0))
    with pytest.raises(UserError, match=r"x\.model: no answer within 0.5 s"):
        storage.read(f"http://127.0.0.1:{listening.getsockname()[1]}/x.model", 0.5)
    listening.close()


@pytest.mark.parametrize("mark", ["+", "<extra_id_99>"])
def test_line_breaks_are_kept_by_a_mark_and_come_back(t5_like: vocabulary.Vocabulary, mark: str) -> None:
    text = "Q: a 5\n\nA: b\nThe answer is 5."
    assert "\n" not in t5_like.decode(t5_like.encode(text)) and t5_like.line_break == ""
    marked = vocabulary.load(f"{t5_like.spec}#line_break={mark}")
    assert (marked.line_break, marked.size) == (mark, t5_like.size) and marked.fingerprint != t5_like.fingerprint
    assert marked.encode(text) == t5_like.encode(f"Q: a 5 {mark} {mark} A: b {mark} The answer is 5.")
    assert marked.decode(marked.encode(text)) == text
    assert marked.encode(text.replace("\n", "\r\n")) == marked.encode(text)
    theirs = to_seqio(marked)
    assert theirs.encode(text) == marked.encode(text) == theirs.encode_tf(text).numpy().tolist()
    assert theirs.decode(marked.encode(text)) == text and theirs != to_seqio(t5_like)
    assert theirs.decode_tf(theirs.encode_tf(text)).numpy().decode() == text


@pytest.mark.parametrize("mark", ["", " ", "n", "{", "｜"])
def test_a_mark_that_cannot_keep_line_breaks_is_refused(t5_like: vocabulary.Vocabulary, mark: str) -> None:
    with pytest.raises(UserError, match="cannot mark line breaks"):
        vocabulary.load(f"{t5_like.spec}#line_break={mark}")
    with pytest.raises(UserError, match="bytes write line breaks as they are"):
        vocabulary.load("byte#line_break=+")


@pytest.mark.parametrize("name", ["bytes", "Byte", "byt"])
def test_a_name_close_to_byte_is_no_path(name):
    with pytest.raises(UserError, match=f"^VOCABULARY is '{name}', which is no file; did you mean 'byte'"):
        vocabulary.load(name)
