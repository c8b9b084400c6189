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
        ({"pair": "nothing"}, "'nothing' is not a pair of comparison"),
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


def test_a_name_typed_on_two_machines_is_one_and_may_have_joiners():
    assert ballot.check_name("Zoe\u0301") == ballot.check_name("Zo\u00e9") == "Zo\u00e9"
    for name in ("\u0639\u0644\u06cc\u200c\u0631\u0636\u0627", "Jean\u00a0Luc", "\U0001f469\u200d\U0001f4bb"):
        assert ballot.check_name(name) == name
    with pytest.raises(UserError, match="printable"):
        ballot.check_name("\u200d \u200c")


@pytest.mark.parametrize("size", [0, 20, None, -1, -9])
def test_a_file_that_was_cut_anywhere_takes_the_next_ballot(tmp_path, size):
    """Empty, in the first line, whole, without the last line feed, in the last ballot."""
    writer = Writer(tmp_path, MADE, "Ada")
    writer.add([Ballot(pair.id, "left") for pair in MADE.pairs[:2]])
    writer.path.write_bytes(writer.path.read_bytes()[:size])
    kept = {0: 0, 20: 0, None: 2, -1: 2, -9: 1}[size]
    assert [len(rater.ballots) for rater in read(tmp_path, MADE)] == ([kept] if kept else [])
    writer.add([Ballot(MADE.pairs[2].id, "tie", note="\u00e9")])
    (ada,) = read(tmp_path, MADE)
    assert (ada.name, len(ada.ballots)) == ("Ada", kept + 1)


def test_a_copy_of_a_raters_file_is_not_counted_again(tmp_path):
    writer = Writer(tmp_path, MADE, "Ada")
    writer.add([Ballot(PAIR.id, "left")])
    text = writer.path.read_text()
    writer.path.with_name("copy.jsonl").write_text(text)
    with pytest.raises(UserError, match=r"copy.jsonl holds ballots of 'Ada', whose file is Ada-.*--read"):
        read(tmp_path, MADE)
    writer.path.with_name("copy.jsonl").unlink()
    writer.path.write_text(text.replace("Ada", "Bob"))
    with pytest.raises(UserError, match="holds ballots of 'Bob'"):
        read(tmp_path, MADE)


def test_an_editors_marks_are_passed_over_and_a_later_note_is_taken(tmp_path):
    path = saved(tmp_path / "ada.jsonl", {"pair": PAIR.id, "choice": "left", "note": "first"})
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n\r\n")
    assert read_back(tmp_path, MADE, path).endswith("1 ballots of Ada")
    for note, taken in (("later", 1), ("later", 0), ("", 0)):
        path = saved(tmp_path / "ada.jsonl", {"pair": PAIR.id, "choice": "left", "note": note})
        assert f"{taken} ballots of Ada" in read_back(tmp_path, MADE, path)
    (ada,) = read(tmp_path, MADE)
    assert (ada.ballots[PAIR.id, False].note, ada.changed) == ("later", 0)
