"""Ballots: what is taken, what is refused, and what counts."""

import json

import pytest

from flanx.compare import ballot
from flanx.compare.ballot import Ballot, Writer, check, read, read_back
from flanx.errors import UserError
from tests.compare_case import comparison

MADE = comparison()
PAIR = MADE.pairs[0]


@pytest.mark.parametrize(
    "choice, swapped, verdict",
    [("left", False, PAIR.left), ("right", False, PAIR.right), ("left", True, PAIR.right), ("right", True, PAIR.left),
     ("tie", True, "tie"), ("bad", False, "bad")],
)  # fmt: skip
def test_a_choice_of_a_side_is_a_verdict_on_a_candidate(choice, swapped, verdict):
    assert Ballot(PAIR.id, choice, swapped).verdict(PAIR) == verdict


@pytest.mark.parametrize(
    "change, message",
    [
        ({"pair": "nothing"}, "'nothing' is no pair of comparison"),
        ({"pair": 3}, "'pair' of a ballot is '3', not of type str"),
        ({"choice": "up"}, "choice is 'up', not one of left, right, tie, bad"),
        ({"choice": None}, "'choice' of a ballot is 'None'"),
        ({"note": "a" * 2001}, "the note has 2,001 characters, 2,000 at most"),
        ({"seconds": -1}, "'seconds' is -1"),
        ({"seconds": float("nan")}, "'seconds' is nan"),
        ({"seconds": True}, "'seconds' of a ballot"),
        ({"swapped": "no"}, "'swapped' of a ballot"),
    ],
)
def test_a_wrong_ballot_is_refused_in_a_line(change, message):
    given = {"pair": PAIR.id, "choice": "tie", "seconds": 2, "rater": "unknown fields are nothing"}
    assert check(MADE, given) == Ballot(PAIR.id, "tie", seconds=2)
    with pytest.raises(UserError, match=f"line 3: {message}"):
        check(MADE, {**given, **change}, "line 3")


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "a" * 61, 3, None, "\u202eabc"])
def test_a_rater_has_a_name(name):
    assert ballot.check_name("  Ada É ") == "Ada É"
    with pytest.raises(UserError, match="1 to 60 printable characters"):
        ballot.check_name(name)


def test_the_last_ballot_of_a_pair_counts_and_changes_are_counted(tmp_path):
    writer = Writer(tmp_path, MADE, "Ada")
    for given in (Ballot(PAIR.id, "left"), Ballot(MADE.pairs[1].id, "tie"), Ballot(PAIR.id, "right", note="oh")):
        writer.add([given])
    writer.add([Ballot(PAIR.id, "right", note="a later note")])
    with writer.path.open("a") as file:
        file.write('{"pair": "cut off by a ki')
    Writer(tmp_path, MADE, "Ada/../x").add([Ballot(PAIR.id, "bad")])
    ada, other = read(tmp_path, MADE)
    assert (ada.name, ada.changed, other.name) == ("Ada", 1, "Ada/../x")
    assert [each.choice for each in ada.ballots.values()] == ["right", "tie"]
    assert ada.ballots[PAIR.id, False].note == "a later note"
    Writer(tmp_path, MADE, "Ada").add([Ballot(MADE.pairs[2].id, "tie")])
    assert len(read(tmp_path, MADE)[0].ballots) == 3
    assert {path.parent for path in tmp_path.rglob("*.jsonl")} == {tmp_path / ballot.FOLDER}


def test_a_file_of_another_comparison_is_refused(tmp_path):
    other = comparison(seed=1)
    Writer(tmp_path, other, "Ada").add([Ballot(other.pairs[0].id, "left")])
    for refused in (lambda: read(tmp_path, MADE), lambda: read_back(tmp_path, MADE, ballot.path_of(tmp_path, "Ada"))):
        with pytest.raises(UserError, match=f"of another comparison .{other.id}, this is {MADE.id}"):
            refused()


def saved(path, *rows, **header):
    """A file as the page saves it."""
    head = {"comparison": MADE.id, "rater": "Ada", "kind": "people", "version": 1, **header}
    path.write_text("\n".join(json.dumps(row) for row in (head, *rows)), encoding="utf-8")
    return path


def test_a_saved_file_is_taken_once(tmp_path):
    rows = [{"pair": pair.id, "choice": "left", "note": "", "seconds": 1.5} for pair in MADE.pairs]
    path = saved(tmp_path / "ada.jsonl", *rows[:2])
    assert read_back(tmp_path, MADE, path) == f"{path}: 2 ballots of Ada"
    path = saved(tmp_path / "ada.jsonl", *rows[:3])
    assert read_back(tmp_path, MADE, path) == f"{path}: 1 ballots of Ada; 2 were here already"
    (ada,) = read(tmp_path, MADE)
    assert (len(ada.ballots), ada.changed) == (3, 0)


@pytest.mark.parametrize(
    "rows, header, message",
    [
        ([{"pair": PAIR.id, "choice": "right"}], {}, "said something else of 1 pairs before"),
        (
            [{"pair": MADE.pairs[1].id, "choice": "tie"}] * 2,
            {},
            r"two ballots of pair \w+ \(lines 2 and 3\): remove one",
        ),
        ([{"pair": PAIR.id, "choice": "up"}], {"rater": "Bob"}, "saved.jsonl:2: choice is 'up'"),
        ([], {}, "holds no ballots"),
        ([{"pair": PAIR.id, "choice": "tie"}], {"rater": ""}, "saved.jsonl:1: a rater's name"),
        ([{"pair": PAIR.id, "choice": "tie"}], {"version": 2}, "not the first line of ballots"),
        ([[1]], {}, "saved.jsonl:2: not a JSON object"),
        ([{"pair": PAIR.id, "choice": "tie"}], {"rater": "judge x"}, "'judge x' is a judge that is a model"),
        ([{"pair": PAIR.id, "choice": "tie"}], {"rater": "Bob", "kind": "model"}, "'Bob' is a judge that is a model"),
    ],
)
def test_a_saved_file_that_does_not_fit_is_refused_whole(tmp_path, rows, header, message):
    Writer(tmp_path, MADE, "Ada").add([Ballot(PAIR.id, "left")])
    Writer(tmp_path, MADE, "judge x", "model").add([Ballot(PAIR.id, "left")])
    before = {path: path.read_bytes() for path in (tmp_path / ballot.FOLDER).iterdir()}
    with pytest.raises(UserError, match=message):
        read_back(tmp_path, MADE, saved(tmp_path / "saved.jsonl", *rows, **header))
    with pytest.raises(UserError, match="no file"):
        read_back(tmp_path, MADE, tmp_path / "nowhere")
    assert {path: path.read_bytes() for path in (tmp_path / ballot.FOLDER).iterdir()} == before
