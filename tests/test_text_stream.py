"""The pieces of an answer add up to its text, however its tokens come."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flanx.ask.text_stream import TextStream
from flanx.data import vocabulary


def reference(words, tokens, stop):
    """As `Model.generate` cuts: the shortest output that holds a stop text, up to the first in it."""
    for count in range(len(tokens) + 1):
        text = words.decode(tokens[:count])
        if any(each in text for each in stop):
            return text[: min(text.find(each) for each in stop if each in text)]
    return words.decode(tokens)


def stream(words, tokens, sizes, stop):
    """(the pieces, the stream) of tokens that come `sizes` at a time."""
    text = TextStream(words.decode, stop, words.line_break)
    pieces, have, at = [], 0, 0
    while True:
        have, at = have + sizes[at % len(sizes)], at + 1
        is_last = have >= len(tokens)
        pieces.append(text.feed(tokens[:have], is_last))
        if is_last or text.stopped:
            return pieces, text


SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=4)
LETTERS = "ab é|"


@settings(max_examples=150, deadline=None)
@given(
    st.text(LETTERS, max_size=12),
    st.binary(max_size=3),
    SIZES,
    st.lists(st.text(LETTERS, min_size=1, max_size=3), max_size=2),
)
def test_bytes(text, damage, sizes, stop):
    words = vocabulary.load("byte")
    tokens = [byte + 3 for byte in text.encode() + damage + text.encode()]
    pieces, _ = stream(words, tokens, sizes, stop)
    assert "".join(pieces) == reference(words, tokens, stop)


@settings(max_examples=150, deadline=None)
@given(st.data(), SIZES, st.sampled_from([(), ("A:",), ("\n",), ("\n\n", "Q")]))
@pytest.mark.parametrize("mark", ["", "+", "..", "<extra_id_99>"])
def test_sentencepiece_with_and_without_a_mark_of_line_breaks(t5_like, mark, data, sizes, stop):
    words = vocabulary.load(f"{t5_like.path}{vocabulary.LINE_BREAK}{mark}") if mark else t5_like
    special = [i for text in ("+", ".", "A:", "\n", " ", "Q") for i in words.encode(text)]
    ids = st.integers(2, words.size - 1) | st.sampled_from(special)
    tokens = data.draw(st.lists(ids, max_size=14))
    pieces, _ = stream(words, tokens, sizes, stop)
    assert "".join(pieces) == reference(words, tokens, stop)


def test_half_of_a_mark_may_complete_a_stop_text(t5_like):
    words = vocabulary.load(f"{t5_like.path}{vocabulary.LINE_BREAK}..")
    tokens = words.encode(".")[-1:] * 4  # two marks: two line breaks
    pieces, text = stream(words, tokens, [1], ("\n\n", "Q"))
    assert "".join(pieces) == reference(words, tokens, ("\n\n", "Q")) == "" and text.stopped


def test_text_comes_as_soon_as_it_can_no_longer_change():
    words = vocabulary.load("byte")
    tokens = words.encode("no STOP, so éSTOPPED")
    pieces, text = stream(words, tokens, [1], ["STOPPED"])
    assert pieces[:3] == ["n", "o", " "] and pieces[3:8] == ["", "", "", "", "STOP,"]
    assert "".join(pieces) == "no STOP, so é" and text.stopped and text.count == len(tokens)
    assert stream(words, words.encode("é"), [1], [])[0] == ["", "é"]
    with_half = TextStream(lambda tokens: "a\ufffd"[: len(tokens)])
    assert [with_half.feed([5], False), with_half.feed([5, 5], False), with_half.feed([5, 5], True)] == [
        "a",
        "",
        "\ufffd",
    ]
