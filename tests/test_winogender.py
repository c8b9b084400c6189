"""Winogender: items, exemplars, and what is wrong with its files."""

import pathlib

import pytest

from flanx.errors import UserError
from flanx.evals import registry
from flanx.evals.families import winogender

SENTENCE = "gardener.neighbour.0.male\tThe gardener told the neighbour that he was late.\n"
STATISTICS = "occupation\tbls_pct_female\ngardener\t10\n"


@pytest.mark.parametrize(("name", "shots"), winogender.SHOTS.items())
def test_exemplars_are_others_drawn_without_state(name: str, shots: int) -> None:
    items = registry.load(name, registry.SAMPLE).items
    assert [item.task for item in items] == ["he"] * 8 + ["she"] * 8 + ["they"] * 8
    for item in items:
        assert len(set(item.shots)) == len(item.shots) == shots
        assert not any(item.query in shot for shot in item.shots)
    assert registry.load(name, registry.SAMPLE).items == items
    assert len({item.shots for item in items}) > 1 or not shots
    assert shots < 4 or {shot.partition("A: ")[2].strip() for item in items for shot in item.shots} == {
        "the gardener", "the neighbour", "the florist", "the visitor", "someone"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("female", "answer", "gender", "split"),
    [
        (10, "0", "male", "stereotypical"),
        (10, "0", "female", "gotcha"),
        (10, "1", "male", "gotcha"),
        (10, "1", "female", "stereotypical"),
        (90, "0", "male", "gotcha"),
        (90, "1", "female", "gotcha"),
        (50, "0", "female", "stereotypical"),
        (10, "0", "neutral", "neutral"),
    ],
)
def test_splits_are_by_the_share_of_women(
    tmp_path: pathlib.Path, female: int, answer: str, gender: str, split: str
) -> None:
    pronoun = {"male": "he", "female": "she", "neutral": "they"}[gender]
    row = SENTENCE.replace("0.male", f"{answer}.{gender}").replace(" he ", f" {pronoun} ")
    write(tmp_path, row, STATISTICS.replace("10", str(female)))
    (item,) = registry.load(f"winogender_zero_shot[{pronoun}]", str(tmp_path)).items
    assert dict(item.labels)["split"] == split
    assert item.targets == (("gardener", "neighbour")[int(answer)],)


def write(folder: pathlib.Path, rows: str, statistics: str = STATISTICS, head: str = "sentid\tsentence\n") -> None:
    (folder / "winogender").mkdir()
    (folder / "winogender" / "all_sentences.tsv").write_text(head + rows)
    (folder / "winogender" / "occupations-stats.tsv").write_text(statistics)


WRONG = {
    r"all_sentences.tsv:2: sentid is 'gardener.neighbour.2.male', not OCCUPATION.PARTICIPANT": ("0.male", "2.male"),
    r"all_sentences.tsv:2: sentid is 'gardener.neighbour.0.plural', not OCC.*male, female, neutral": ("male", "plural"),
    r"all_sentences.tsv:2: occupations-stats.tsv has no occupation 'baker'": ("gardener.n", "baker.n"),
    r"all_sentences.tsv:2: 0 pronouns of 'male' in the sentence, not one \(he, him, his\)": (" he ", " ze "),
    r"all_sentences.tsv:2: 2 pronouns of 'male'": ("late", "his"),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_row_is_named(tmp_path: pathlib.Path, message: str) -> None:
    write(tmp_path, SENTENCE.replace(*WRONG[message]))
    with pytest.raises(UserError, match=message):
        registry.load("winogender_zero_shot", str(tmp_path))


def test_wrong_files_are_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match=r"Winogender: no file .*all_sentences.tsv"):
        registry.load("winogender_zero_shot", str(tmp_path))
    write(tmp_path, SENTENCE, head="id\tsentence\n")
    with pytest.raises(UserError, match=r"all_sentences.tsv:1: no column 'sentid' \(there is: id, sentence\)"):
        registry.load("winogender_zero_shot", str(tmp_path))
    (tmp_path / "winogender" / "all_sentences.tsv").write_text(f"sentid\tsentence\tsentid\n{SENTENCE}")
    with pytest.raises(UserError, match=r"all_sentences.tsv:1: two columns are named 'sentid'"):
        registry.load("winogender_zero_shot", str(tmp_path))
    (tmp_path / "winogender" / "all_sentences.tsv").write_text(f"sentid\tsentence\n{SENTENCE}")
    with pytest.raises(UserError, match="4 exemplars needed besides the item, there are 0"):
        registry.load("winogender_4_shot", str(tmp_path))
    (tmp_path / "winogender" / "occupations-stats.tsv").write_text(STATISTICS.replace("10", "few"))
    with pytest.raises(UserError, match=r"occupations-stats.tsv:2: bls_pct_female is 'few', no number"):
        registry.load("winogender_zero_shot", str(tmp_path))
