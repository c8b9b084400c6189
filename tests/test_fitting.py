"""Prompts fitted to a length: exemplars are dropped first, then the beginning of the prompt."""

import dataclasses

from flanx.evals.fitting import fit
from flanx.evals.spec import Item, Spec
from tests.echo_case import BYTES


def test_exemplars_are_dropped_then_the_beginning_is_cut() -> None:
    shots = tuple(f"shot {i} ..........\n" for i in range(5))
    item = Item(task="t", id="1", head="Head.\n", shots=shots, query="Query?", targets=("x",), kind="exact")
    spec = Spec("s", "bbh", shots=5)
    count = lambda text: len(BYTES.encode(text))  # noqa: E731
    for use in (None, count):
        whole = fit(item, spec, BYTES, 400, use)
        assert (whole.shots, whole.cut, whole.tokens[-1]) == (5, False, 1)
        some = fit(item, spec, BYTES, 60, use)
        assert some.text == "Head.\nshot 0 ..........\nshot 1 ..........\nQuery?" and not some.cut
        assert len(some.tokens) <= 60
        last = fit(item, dataclasses.replace(spec, drop="first"), BYTES, 60, use)
        assert last.text == "Head.\nshot 3 ..........\nshot 4 ..........\nQuery?"
        none = fit(item, dataclasses.replace(spec, drop="none"), BYTES, 60, use)
        assert (none.shots, none.cut, len(none.tokens)) == (5, True, 60)
        assert BYTES.decode(none.tokens).endswith("..\nQuery?")
        short = fit(item, spec, BYTES, 5, use)
        assert (short.shots, short.cut, BYTES.decode(short.tokens)) == (0, True, "ery?")


def test_a_prompt_of_the_whole_length_is_kept_and_one_token_more_is_not() -> None:
    item = Item(task="t", id="1", head="Head.\n", shots=("shot\n",), query="Query?", targets=("x",), kind="exact")
    spec = Spec("s", "bbh", shots=1)
    text = "Head.\nshot\nQuery?"
    exact = fit(item, spec, BYTES, len(text) + 1)  # the end of sequence is a token
    assert (exact.text, exact.shots, exact.cut, len(exact.tokens)) == (text, 1, False, len(text) + 1)
    shorter = fit(item, spec, BYTES, len(text))
    assert (shorter.text, shorter.shots, shorter.cut) == ("Head.\nQuery?", 0, False)
    cut = fit(item, spec, BYTES, len("Head.\nQuery?"))
    assert (cut.cut, BYTES.decode(cut.tokens), len(cut.tokens)) == (True, "ead.\nQuery?", len("Head.\nQuery?"))
    assert cut.generation(BYTES).prompt == "ead.\nQuery?"  # what the model got
    assert (exact.generation(BYTES).prompt, exact.generation(BYTES).shots_available) == (text, 1)
