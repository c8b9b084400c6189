"""The served page: blind, and every choice kept."""

import json

import pytest

from flanx.compare import ballot, pairing, site
from flanx.errors import UserError
from flanx.web.server import Server
from tests.compare_case import HOSTILE, candidate, comparison, rater
from tests.web_case import ask, running

MADE = comparison(8, names=("candidate-one", "candidate-two"))
PAIR = MADE.pairs[0].id


@pytest.fixture
def server(tmp_path):
    with running(Server(site.routes(MADE, tmp_path))) as one:
        yield one


def vote(server, pair=PAIR, choice="left", rater="Ada", **more):
    return ask(server, "/api/ballot", {"rater": rater, "pair": pair, "choice": choice, **more})


def test_the_page_says_nothing_of_who_wrote_what(server):
    page = ask(server)
    assert page.status == 200 and "text/html" in page.headers["content-type"]
    assert page.headers["content-security-policy"] == "frame-ancestors 'none'"
    assert "candidate" not in page.text and "runs/" not in page.text
    data = json.loads(page.text.split('id="data">')[1].split("</script>")[0])
    assert [pair[0] for pair in data["pairs"]] == [pair.id for pair in MADE.pairs]
    for pair, (_, prompt, left, right) in zip(MADE.pairs, data["pairs"], strict=True):
        answers = MADE.answers[pair.prompt]
        shown = [data["texts"][number] for number in (prompt, left, right)]
        assert shown == [MADE.prompts[pair.prompt], answers[pair.left], answers[pair.right]]


def test_choices_are_on_disk_when_they_are_answered_and_a_rater_goes_on(server, tmp_path):
    assert vote(server, note="because", seconds=3.5).json == {"done": 1}
    assert vote(server, MADE.pairs[1].id, "bad").json == {"done": 2}
    assert vote(server, choice="right").json == {"done": 2}
    assert vote(server, rater="Bob").json == {"done": 1}
    ada, bob = ballot.read(tmp_path, MADE)
    assert (ada.name, ada.changed, bob.name) == ("Ada", 1, "Bob")
    assert all(each.time for each in ada.ballots.values())
    with running(Server(site.routes(MADE, tmp_path))) as again:
        found = ask(again, "/api/rater", {"rater": " Ada "}).json["ballots"]
        assert found == {PAIR: {"choice": "right", "note": ""}, MADE.pairs[1].id: {"choice": "bad", "note": ""}}
        assert ask(again, "/api/rater", {"rater": "Cy"}).json == {"ballots": {}}
    assert len([*(tmp_path / ballot.FOLDER).iterdir()]) == 2  # a name alone leaves no file


@pytest.mark.parametrize(
    "change, status, message",
    [
        ({"pair": "0" * 16}, 400, "not a pair of comparison"),
        ({"choice": "up"}, 400, "not one of left, right, tie, bad"),
        ({"rater": ""}, 400, "a rater's name"),
        ({"rater": "judge x"}, 400, "name of a judge"),
        ({"note": "a" * 2001}, 400, "2,000 at most"),
        ({"note": "a" * 2_000_000}, 413, "1,048,576 bytes at most"),
        ({"seconds": -1}, 400, "no time"),
    ],
)
def test_what_is_no_ballot_is_refused_in_a_line_and_leaves_nothing(tmp_path, change, status, message):
    judged = rater("judge x", {MADE.pairs[0]: 0}, kind="model")
    ballot.Writer(tmp_path, MADE, "judge x", "model").add([*judged.ballots.values()])
    with running(Server(site.routes(MADE, tmp_path))) as server:
        refused = vote(server, **{"pair": PAIR, **change})
    assert refused.status == status and message in refused.message
    assert len([*(tmp_path / ballot.FOLDER).iterdir()]) == 1


def test_a_page_can_hold_any_text(tmp_path):
    made = pairing.make([candidate("a", HOSTILE), candidate("b", [*HOSTILE[1:], HOSTILE[0]])])
    with running(Server(site.routes(made, tmp_path))) as server:
        text = ask(server).text
    assert text.count("</script>") == 2 and "<img" not in text
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert {*HOSTILE} <= {*data["texts"]}
    with pytest.raises(UserError):
        pairing.read(tmp_path)


def test_half_a_character_in_a_note_is_a_question_mark(server):
    assert vote(server, note="\ud800").json == {"done": 1}
    assert ask(server, "/api/rater", {"rater": "Ada"}).json["ballots"][PAIR]["note"] == "?"
    assert "choice is '?'" in vote(server, choice="\ud800").message


def test_a_ballot_that_cannot_be_written_is_said_so_and_not_counted(server, tmp_path):
    (tmp_path / ballot.FOLDER).write_text("a file where the folder should be")
    refused = vote(server)
    assert refused.status == 507 and "could not be written (File exists): tell whoever runs" in refused.message
    assert ask(server, "/api/rater", {"rater": "Ada"}).json == {"ballots": {}}
    (tmp_path / ballot.FOLDER).unlink()
    assert vote(server).json == {"done": 1}
