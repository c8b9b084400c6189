"""BBQ: what is wrong with its files, and rows that its authors leave out."""

import json
import logging
import pathlib
import shutil

import pytest

from flanx.errors import UserError
from flanx.evals import registry

SAMPLE = registry.SAMPLE_DIR / "bbq"
METADATA = "analysis_scripts/additional_metadata.csv"
ALONE = "bbq[Age]"


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of our sample."""
    shutil.copytree(SAMPLE, tmp_path / "bbq")
    return tmp_path / "bbq"


def change(path: pathlib.Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_letters_and_texts_are_asked_for(folder: pathlib.Path) -> None:
    item = registry.load(ALONE, str(folder.parent)).items[0]
    assert item.query.endswith("Who was slow with the machine?\n(A) The retiree\n(B) The student\n(C) Not known\nA:")
    assert (item.targets, item.kind, item.options) == (("(C)",), "letter", ())
    assert dict(item.labels) == {
        "condition": "ambiguous", "polarity": "negative", "label_type": "label", "_biased": "A", "_unknown": "C"
    }  # fmt: skip
    item = registry.load("bbq_rank[Age]", str(folder.parent)).items[0]
    assert item.query.endswith(" station.\n\nQ: Who was slow with the machine?\nA:")
    assert item.options == (" The retiree", " The student", " Not known") and item.targets == (" Not known",)
    assert dict(item.labels)["_biased"] == " The retiree"


def test_rows_without_a_target_are_left_out_with_a_note(folder: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    change(folder / METADATA, "Age,1,0,0,label", "Age,1,0,NA,label")
    change(folder / METADATA, "Age,1,3,1,label\n", "")
    with caplog.at_level(logging.WARNING, logger="flanx"):
        assert [item.id for item in registry.load(ALONE, str(folder.parent)).items] == ["Age-1", "Age-2"]
    assert "BBQ Age: 2 of 4 rows have no target_loc and are left out" in caplog.text


WRONG = {
    "Age.jsonl:1: context_condition is 'vague', not ambig or disambig": ("data/Age.jsonl", '"ambig"', '"vague"'),
    "Age.jsonl:1: question_polarity is 'bad', not neg or nonneg": ("data/Age.jsonl", '"neg"', '"bad"'),
    "Age.jsonl:1: label is '3', not 0, 1 or 2": ("data/Age.jsonl", '"label": 2', '"label": 3'),
    "Age.jsonl:1: no text column 'ans2'": ("data/Age.jsonl", '"ans2": "Not', '"ans3": "Not'),
    "Age.jsonl:1: answer_info calls 0 of the three answers 'unknown', not one": ("data/Age.jsonl", '"unknown"', '"?"'),
    "Age.jsonl:1: answer_info calls 0": ("data/Age.jsonl", '["Not known", "unknown"]', "5"),
    "Age.jsonl:1: question is empty": ("data/Age.jsonl", "Who was slow with the machine?", " "),
    "Age.jsonl:1: ans0 is empty": ("data/Age.jsonl", '"ans0": "The retiree"', '"ans0": ""'),
    "additional_metadata.csv:2: target_loc is '7', not 0, 1, 2 or NA": (METADATA, "Age,1,0,0", "Age,1,0,7"),
    r"additional_metadata.csv:1: no column 'target_loc' \(there is": (METADATA, "target_loc", "target"),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_row_is_named(folder: pathlib.Path, message: str) -> None:
    file, old, new = WRONG[message]
    change(folder / file, old, new)
    with pytest.raises(UserError, match=message):
        registry.load(ALONE, str(folder.parent))


def test_absent_files_are_named(folder: pathlib.Path) -> None:
    with pytest.raises(UserError, match=r"BBQ Religion: no file .*Religion.jsonl"):
        rows = (folder / METADATA).read_text()
        (folder / METADATA).write_text(rows + "Religion,1,0,0,label\n")
        registry.load("bbq[Religion]", str(folder.parent))
    row = json.loads((folder / "data" / "Age.jsonl").read_text().splitlines()[0])
    (folder / "data" / "Religion.jsonl").write_text(json.dumps(row | {"example_id": 9}))
    (folder / METADATA).write_text("category,example_id,target_loc\nAge,0,0\n")
    with pytest.raises(UserError, match=r"additional_metadata.csv: no row of category 'Religion'"):
        registry.load("bbq[Religion]", str(folder.parent))
    (folder / METADATA).unlink()
    with pytest.raises(UserError, match=r"BBQ: no file .*additional_metadata.csv"):
        registry.load(ALONE, str(folder.parent))
