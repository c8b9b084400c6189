"""`flanx compare` from the command line: made, served, exported, read back, judged, reported."""

import json
import sys
import threading

import pytest

from flanx import files
from flanx.cli.main import main
from flanx.compare import ballot, pairing
from flanx.convert import hf
from flanx.convert.t5_shapes import T5Sizes
from flanx.storage import open_storage
from tests.compare_case import write_answers
from tests.convert_case import draw

SIZES = T5Sizes(
    vocab_size=384, gated=True, tied=False, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=1,
    num_decoder_layers=1,
)  # fmt: skip


@pytest.fixture
def answers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for n, name in enumerate("abc"):
        write_answers(tmp_path / f"{name}.jsonl", [f"{n} to {prompt}" for prompt in range(4)])
    return tmp_path


def records(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def vote(folder, name, choices):
    made = pairing.read(folder)
    given = [ballot.Ballot(pair.id, choice) for pair, choice in zip(made.pairs, choices, strict=False)]
    ballot.Writer(folder, made, name).add(given)


def test_a_comparison_is_made_and_its_results_are_printed_and_written(answers, capsys):
    assert main(["compare", "a.jsonl", "b.jsonl", "mine=c.jsonl", "--results"]) == 0
    printed = capsys.readouterr().out
    assert "12 pairs of 4 prompts (a, b, mine)" in printed and "no ballots yet" in printed
    folder = answers / "out" / "compare"
    vote(folder, "Ada", ["left", "right", "tie", "bad"] * 3)
    vote(folder, "Bob", ["left"] * 6)
    assert main(["compare", "--results"]) == 0
    printed = capsys.readouterr().out
    for word in ("Ada", "A preferred %", "Bradley-Terry", "Krippendorff's alpha", "left preferred %", "planning"):
        assert word in printed or word == "planning", word
    head, *rows = records(folder)
    assert (head["id"], head["candidates"]) == (pairing.read(folder).id, ["a", "b", "mine"])
    assert {row["what"] for row in rows} == {"rater", "win_rate", "rating", "agreement", "position"}


def test_it_is_served_until_it_is_stopped_then_reported(answers, capsys, monkeypatch):
    from tests.web_case import ask

    from flanx.web.server import Server  # isort: skip

    run = Server.run

    def serve(server):
        def rate():
            made = pairing.read(answers / "out" / "compare")
            while not server._server.started:
                pass
            assert (
                ask(server, "/api/ballot", {"rater": "Ada", "pair": made.pairs[0].id, "choice": "left"}).status == 200
            )
            busy.append(main(["compare"]))
            server.stop()

        thread = threading.Thread(target=rate)
        thread.start()
        run(server)
        thread.join()

    busy: list[int] = []
    monkeypatch.setattr(Server, "run", serve)
    assert main(["compare", "a.jsonl", "b.jsonl"]) == 0
    printed = capsys.readouterr()
    assert "Open http://127.0.0.1:" in printed.out and "Ada" in printed.out.partition("Ctrl-C")[2]
    assert busy == [2] and "another `flanx compare` serves" in printed.err


def test_a_page_is_exported_and_what_it_saved_is_read_back(answers, capsys):
    assert main(["compare", "a.jsonl", "b.jsonl", "--export", "page.html"]) == 0
    made = pairing.read(answers / "out" / "compare")
    page = (answers / "page.html").read_text(encoding="utf-8")
    assert made.id in page and "connect-src 'none'" in page and "a.jsonl" not in page
    head = {"comparison": made.id, "rater": "Ada", "kind": "people", "version": 1}
    lines = [head, {"pair": made.pairs[0].id, "choice": "left", "note": "", "seconds": 1}]
    (answers / "ada.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    capsys.readouterr()
    for said in ("1 ballots of Ada", "0 ballots of Ada; 1 were here already"):
        assert main(["compare", "--read", "ada.jsonl"]) == 0
        assert said in capsys.readouterr().out


def test_a_checkpoint_judges_in_both_orders_and_is_reported_alone(answers, capsys):
    hf.write(open_storage(answers / "drawn"), draw(SIZES), SIZES, {})
    (answers / "drawn" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
    assert main(["compare", "a.jsonl", "b.jsonl", "--judge", "drawn", "--judge", "again=drawn"]) == 0
    printed = capsys.readouterr().out
    assert "judge drawn: 4 pairs in both orders" in printed and "judge again: 4 pairs" in printed
    vote(answers / "out" / "compare", "Ada", ["left", "right", "left", "tie"])
    assert main(["compare", "--judge", "drawn"]) == 0
    printed = capsys.readouterr().out
    assert "judge drawn: 0 pairs in both orders, 4 before" in printed and "Cohen's kappa" in printed
    rates = {row["raters"]: row["ballots"] for row in records(answers / "out" / "compare") if row["what"] == "win_rate"}
    assert rates == {"people": 4, "judge drawn": 4, "judge again": 4}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["a.jsonl"], "1 candidate given: two or more"),
        (["a.jsonl", "a.jsonl"], "two candidates are named 'a': write NAME=a.jsonl"),
        (["a.jsonl", "other.jsonl"], "have no prompt in common"),
        ([], "holds no comparison: name the runs or files to compare"),
        (["a.jsonl", "nowhere"], "no folder or file 'nowhere'"),
        (["a.jsonl", "b.jsonl", "--read", "a.jsonl"], "a.jsonl:1: not the first line of ballots"),
        (["a.jsonl", "b.jsonl", "--pairs", "0"], "argument --pairs"),
        (["--pairs", "2"], "--pairs only applies to a new comparison"),
        (["--seed", "2"], "--seed only applies to a new comparison"),
        (["a.jsonl", "b.jsonl", "--export", "a.jsonl"], "--export a.jsonl: a page is written there"),
        (["a.jsonl", "b.jsonl", "--host", "0.0.0.0"], "FLANX_TOKEN"),
        (["a.jsonl", "b.jsonl", "--host", ""], "not an empty one"),
        (["a.jsonl", "b.jsonl", "--judge", "x=nowhere"], "nowhere"),
        (["a.jsonl", "b.jsonl", "--read", "nowhere.jsonl"], "no file 'nowhere.jsonl'"),
        (["a.jsonl", "b.jsonl", "--read", "a.jsonl"], "a.jsonl:1: not the first line of ballots"),
    ],
)
def test_bad_input_is_a_line_and_status_2(answers, capsys, monkeypatch, arguments, message):
    monkeypatch.delenv("FLANX_TOKEN", raising=False)
    write_answers(answers / "other.jsonl", ["x"], prompts=["another"])
    if "--host" in arguments:
        pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")
    try:
        status = main(["compare", *arguments])
    except SystemExit as end:  # argparse's
        status = end.code
    error = capsys.readouterr().err
    assert status == 2 and message in error and len(error.splitlines()) <= 5
    assert not (answers / "out").exists()  # no comparison that the next command would have to be the same as


def test_another_comparison_needs_another_folder(answers, capsys):
    assert main(["compare", "a.jsonl", "b.jsonl", "--results"]) == 0
    assert main(["compare", "a.jsonl", "b.jsonl", "--seed", "1", "--results"]) == 2
    assert "another --output" in capsys.readouterr().err
    assert main(["compare", str(answers / "a.jsonl"), "b.jsonl", "--results"]) == 0  # the same by another path
    assert main(["compare", "b.jsonl", "a.jsonl", "--results"]) == 0  # the same in another order
    assert "note: out/compare has them as a, b:" in capsys.readouterr().out


def test_a_report_without_ballots_is_refused(answers, capsys):
    assert main(["compare", "a.jsonl", "b.jsonl", "--report"]) == 2
    assert "out/compare has no ballots yet" in capsys.readouterr().err and not (answers / "out").exists()


def test_ballots_are_not_read_while_the_page_is_served(answers, capsys):
    assert main(["compare", "a.jsonl", "b.jsonl", "--results"]) == 0
    vote(answers / "out" / "compare", "Ada", ["left"])
    (saved,) = (answers / "out" / "compare" / "ballots").iterdir()
    saved.rename(answers / "ada.jsonl")
    with files.lock(answers / "out" / "compare" / "lock"):
        assert main(["compare", "--read", "ada.jsonl"]) == 2
    assert "another `flanx compare` serves" in capsys.readouterr().err


def test_a_missing_extra_is_named(answers, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    for name in ("flanx.web.server", "flanx.compare.site"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert main(["compare", "a.jsonl", "b.jsonl"]) == 2
    assert "pip install 'flanx[serve]'" in capsys.readouterr().err
    assert main(["compare", "a.jsonl", "b.jsonl", "--export", "page.html"]) == 0  # needs no server
