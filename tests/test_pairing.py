"""Which answers stand beside each other: shuffled, balanced, blind, and the same for ever."""

import dataclasses
import itertools
import json

import pytest

from flanx.compare import pairing
from flanx.errors import UserError
from tests.compare_case import candidate, comparison


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("prompts", [7, 20])
def test_each_of_two_candidates_is_on_the_left_in_half_of_their_pairs_in_every_task(seed, prompts):
    made = comparison(prompts, names="abc", seed=seed)
    assert len(made.pairs) == 3 * prompts and len(made.by_id) == len(made.pairs)
    for a, b in itertools.combinations(range(3), 2):
        pairs = [pair for pair in made.pairs if {*pair.sides} == {a, b}]
        for task in ("", "creativity", "planning"):
            some = [pair for pair in pairs if not task or made.tasks[pair.prompt] == task]
            left = sum(pair.left == a for pair in some)
            assert abs(2 * left - len(some)) <= 1, (a, b, task)
    for pair in made.pairs:
        assert made.answers[pair.prompt][pair.left] == f"{pair.left} to {pair.prompt}"


def test_order_and_sides_are_drawn_from_the_seed():
    one, again, other = comparison(40), comparison(40), comparison(40, seed=1)
    assert one == again and one.id == again.id != other.id
    assert [pair.prompt for pair in one.pairs] != [pair.prompt for pair in other.pairs]
    assert [pair.prompt for pair in one.pairs] != sorted(pair.prompt for pair in one.pairs)
    sides = [{(pair.prompt, pair.left) for pair in each.pairs} for each in (one, other)]
    assert sides[0] != sides[1]


def test_what_is_left_out_is_counted():
    ours = candidate("ours", {"p": "same  words", "q": "", "r": "a", "only ours": "b", "s": "c"})
    theirs = candidate("theirs", {"p": "same words", "q": "d", "r": "e", "s": "f"})
    made = pairing.make([ours, theirs], most=2)
    assert made.left_out == {
        "prompts of ours that another candidate has not": 1,
        "empty answers of ours, shown as such": 1,
        "pairs of equal answers, not shown": 1,
        "pairs not drawn": 1,
    }
    assert len(made.pairs) == 2 and len(made.prompts) == 4


def test_nothing_to_compare_is_refused(monkeypatch):
    with pytest.raises(UserError, match=r"have no prompt in common \('p', 'q'\)"):
        pairing.make([candidate("a", {"p": "1"}), candidate("b", {"q": "1"})])
    with pytest.raises(UserError, match="all 1 prompts have the same answer"):
        pairing.make([candidate("a", {"p": "1"}), candidate("b", {"p": "1"})])
    monkeypatch.setattr(pairing, "MOST_PAIRS", 7)
    with pytest.raises(UserError, match="8 pairs; one page has 7 at most: draw so many with --pairs"):
        comparison(8)
    monkeypatch.setattr(pairing, "MOST_BYTES", 9)
    with pytest.raises(UserError, match="4 pairs have 24 bytes; one page has 9 at most: draw fewer with --pairs 1"):
        pairing.make([candidate(name, {f"p{n}": f"{name}{n}" for n in range(4)}) for name in "ab"])


def test_a_comparison_is_kept_and_never_replaced(tmp_path):
    made = comparison()
    pairing.write(tmp_path, made)
    pairing.write(tmp_path, made)
    assert pairing.read(tmp_path) == made
    with pytest.raises(UserError, match="holds another comparison"):
        pairing.write(tmp_path, comparison(seed=1))
    with pytest.raises(UserError, match="holds no comparison"):
        pairing.read(tmp_path / "nowhere")


@pytest.mark.parametrize("key", ["candidates", "answers", "pairs", "seed", "id", "version"])
def test_a_file_that_was_changed_is_refused(tmp_path, key):
    pairing.write(tmp_path, comparison())
    record = json.loads((tmp_path / pairing.FILE).read_text())
    record[key] = record[key][::-1] if isinstance(record[key], list | str) else 9
    (tmp_path / pairing.FILE).write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"has changed|this flanx reads 1"):
        pairing.read(tmp_path)
    del record[key]
    (tmp_path / pairing.FILE).write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"has changed|this flanx reads 1"):
        pairing.read(tmp_path)


def test_the_hash_covers_every_part():
    made = comparison()
    for field in dataclasses.fields(made):
        value = getattr(made, field.name)
        changed = {"more": 1} if field.name == "left_out" else value[:-1] if isinstance(value, tuple) else value + 1
        assert dataclasses.replace(made, **{field.name: changed}).id != made.id, field.name
