"""Licences: what the table says and what it does not, classes of compound licences, and the filter on the program."""

import csv
import pathlib

import pytest

from flanx.cli.main import main
from flanx.data.task import licence, tables
from flanx.errors import UserError

PAPER = ("cot", "muffin", "t0_sf", "niv2")


def table() -> list[dict[str, str]]:
    with (tables.roots()[0] / "tables" / "licences.csv").open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def test_every_line_is_of_a_data_set_that_a_task_has_and_says_where_it_is_stated():
    known = {(task.collection, task.dataset) for task in tables.load_tables().values()}
    rows = table()
    assert len({(row["collection"], row["name"]) for row in rows}) == len(rows) > 200
    for row in rows:
        assert (row["collection"], row["name"]) in known, row
        assert all(page.startswith(("https://", "http://")) for page in row["stated"].split()), row


def test_a_task_of_the_paper_has_the_licence_that_a_page_states_or_none():
    stated = {(row["collection"], row["name"]): row["licence"] for row in table()}
    for task in tables.load_tables().values():
        if task.collection in PAPER:
            assert task.licence == stated.get((task.collection, task.dataset), ""), task.name
    tasks = tables.load_tables()
    assert licence.classify(tasks["cot_gsm8k"].licence) == "permissive"
    assert licence.classify(tasks["muffin_anli_r1"].licence) == "restricted"
    assert licence.classify(tasks["muffin_xsum"].licence) == "unknown"


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("MIT", "permissive"),
        ("CC-BY-4.0 AND CC-BY-SA-3.0", "share_alike"),
        ("CC-BY-NC-4.0 AND MIT", "restricted"),
        ("MIT AND what my lawyer said", "unknown"),
        ("", "unknown"),
    ],
)
def test_the_strictest_part_is_the_class(text, group):
    assert licence.classify(text) == group


def test_a_filter_takes_classes_and_licences_and_every_part_must_pass():
    asked = licence.parse("permissive, CC-BY-SA-3.0")
    assert licence.allows(asked, "MIT") and licence.allows(asked, "CC-BY-2.5 AND CC-BY-SA-3.0")
    assert not licence.allows(asked, "CC-BY-SA-4.0") and not licence.allows(asked, "")
    assert not licence.allows(asked, "MIT AND CC-BY-NC-4.0")
    assert licence.allows(licence.parse("unknown"), "")


def test_list_and_plan_keep_to_a_licence(capsys, tmp_path):
    assert main(["tasks", "list", "--licence", "permissive"]) == 0
    homes = [t.collection for t in tables.load_tables().values() if licence.classify(t.licence) == "permissive"]
    left = {name: homes.count(name) for name in PAPER}
    said = capsys.readouterr().out
    assert f"total                    {sum(left.values()):6,} of  1,836" in said and sum(left.values()) > 400
    assert main(["tasks", "plan", "cot", "--licence", "permissive", "--data_dir", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "cot_gsm8k" in said and "cot_creak" not in said and f"0 of {left['cot']} in place" in said
    assert main(["tasks", "list", "cot_creak", "--licence", "permissive"]) == 2
    assert "cot_creak: licence CC-BY-SA-4.0 (share_alike) is not permissive" in capsys.readouterr().err
    assert main(["tasks", "list", "--licence", "free"]) == 2
    assert "no licence or class 'free'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("collection,name,licence\ncot,gsm8k,MIT\n", r"licences.csv:2: a row is collection,name,licence,stated"),
        (
            "collection,name,licence,stated\ncot,gsm8k,MTI,https://x\n",
            r"licences.csv:2: licence 'MTI' is in none of the classes",
        ),
        ("collection,name,licence,stated\ncot,gsm8k,MIT,\n", r"licences.csv:2: a row is collection"),
    ],
)
def test_a_wrong_line_is_refused(tmp_path: pathlib.Path, monkeypatch, lines, message):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "licences.csv").write_text(lines)
    monkeypatch.setenv("FLANX_TABLES", str(tmp_path))
    with pytest.raises(UserError, match=message):
        tables.load()


def test_a_root_of_the_users_own_may_know_better(tmp_path: pathlib.Path, monkeypatch):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "licences.csv").write_text(
        "collection,name,licence,stated\nmuffin,xsum,CC0-1.0,https://x\nmuffin,anli_r1,MIT,https://x\n"
    )
    monkeypatch.setenv("FLANX_TABLES", str(tmp_path))
    tasks = tables.load_tables()
    assert (tasks["muffin_xsum"].licence, tasks["muffin_anli_r1"].licence) == ("CC0-1.0", "MIT")
