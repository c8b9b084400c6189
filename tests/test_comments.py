"""CivilComments and Jigsaw's comments: every layout gives the same items, exemplars are balanced and drawn by item."""

import csv
import json
import pathlib
from collections import Counter

import pytest

from flanx.errors import UserError
from flanx.evals import registry
from flanx.evals.families import comments

ROWS = [
    {"id": str(n), "comment_text": f"comment {n}", "toxicity": (n % 5) / 5, "female": 0.9 if n % 3 == 0 else 0.1}
    for n in range(60)
]


def write(folder: pathlib.Path, name: str, rows: list[dict]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if name.endswith("jsonl"):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return
    with open(folder / name, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_layouts_of_civil_comments_give_the_same_items(tmp_path: pathlib.Path) -> None:
    parts = {"train": ROWS[:30], "test": ROWS[30:]}
    for split, rows in parts.items():
        write(tmp_path / "csv" / "civil_comments", f"{split}.csv", rows)
        tfds = [{"text" if key == "comment_text" else key: value for key, value in row.items()} for row in rows[::-1]]
        write(tmp_path / "jsonl" / "civil_comments", f"{split}.jsonl", tfds)
    names = {"train": "train", "test": "test_private"}
    whole = [row | {"split": names[split]} for split, rows in parts.items() for row in rows]
    whole.append(ROWS[0] | {"id": "public", "split": "test_public"})
    write(tmp_path / "whole" / "civil_comments", "civil_comments.csv", whole)
    for name in ("civil_comments", "civil_comments_10_shot"):
        hashes = {registry.load(name, str(tmp_path / layout)).hash for layout in ("csv", "jsonl", "whole")}
        assert len(hashes) == 1, name
    items = registry.load("civil_comments", str(tmp_path / "csv")).items
    assert {item.id for item in items} == {str(n) for n in range(30, 60)}
    for item in items:
        assert item.targets == (("yes",) if int(item.id) % 5 >= 3 else ("no",)) and item.options == ("yes", "no")
        assert item.labels == ((("female", "yes"),) if int(item.id) % 3 == 0 else ())
        assert item.query == f'"comment {item.id}"\nQuestion: {comments.QUESTION}\nAnswer:'


def test_exemplars_are_balanced_stateless_and_of_the_train_split(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "civil_comments", "train.csv", ROWS[:40])
    write(tmp_path / "civil_comments", "test.csv", ROWS[40:])
    items = registry.load("civil_comments_10_shot", str(tmp_path)).items
    train = {f'"comment {n}"' for n in range(40)}
    seen = Counter()
    for item in items:
        assert len(set(item.shots)) == 10 and sum(shot.endswith("yes\n\n") for shot in item.shots) == 5
        for shot in item.shots:
            text, answer = shot.partition("\n")[0], shot.rstrip().rpartition(" ")[2]
            assert text in train and (answer == "yes") == (int(text.strip('"').split()[1]) % 5 >= 3)
        seen.update(item.shots)
    assert len({item.shots for item in items}) == len(items) and len(seen) == 40
    starts = Counter(item.shots[0].endswith("yes\n\n") for item in items)
    assert min(starts[True], starts[False]) > 3  # classes are mixed
    write(tmp_path / "civil_comments", "test.csv", ROWS[45:])
    again = {item.id: item.shots for item in registry.load("civil_comments_10_shot", str(tmp_path)).items}
    assert len(again) == len(ROWS[45:]) and again.items() <= {item.id: item.shots for item in items}.items()
    write(tmp_path / "civil_comments", "train.csv", [row for row in ROWS[:40] if row["toxicity"] < 0.5])
    with pytest.raises(UserError, match=r"train.csv: 0 rated comments whose answer is 'yes', 5 are exemplars"):
        registry.load("civil_comments_10_shot", str(tmp_path))


def test_so_many_are_drawn_and_rows_without_a_rating_are_counted(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(comments, "COMMENTS", 12)
    rows = [*ROWS, ROWS[0] | {"id": "x", "toxicity": ""}, ROWS[0] | {"id": "y", "comment_text": " "}]
    write(tmp_path / "civil_comments", "test.csv", rows)
    first = registry.load("civil_comments", str(tmp_path)).items
    assert len(first) == 12 and "2 rows of test without a text or a rating are not drawn" in capsys.readouterr().out
    write(tmp_path / "civil_comments", "test.csv", rows[::-1])
    assert [item.id for item in registry.load("civil_comments", str(tmp_path)).items] == [item.id for item in first]


def test_jigsaws_labels_are_joined_by_id(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    suite = registry.load("jigsaw_toxicity", registry.SAMPLE)
    assert Counter(item.targets[0] for item in suite.items) == {"no": 6, "yes": 5}
    folder = tmp_path / "jigsaw_toxicity"
    rows = [{"id": n, "comment_text": f"c {n}", "lang": "en", "toxic": n % 2} for n in range(4)]
    write(folder, "wikidata_test.csv", rows)
    items = registry.load("jigsaw_toxicity", str(tmp_path)).items
    assert {item.id: item.targets[0] for item in items} == {"0": "no", "1": "yes", "2": "no", "3": "yes"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"toxicity": "1.5"}, r"test.csv:2: a rating is '1.5'; it is a share from 0 to 1"),
        ({"female": "often"}, r"test.csv:2: female is 'often'"),
        ({"toxicity": None}, r"test.csv:2: no column toxicity or target or toxic"),
        ({"comment_text": None}, r"test.csv:2: no column comment_text or text"),
        ({"id": None}, r"test.csv:2: no column id"),
    ],
)
def test_wrong_rows_are_named_with_their_line(tmp_path: pathlib.Path, change: dict, message: str) -> None:
    row = {key: value for key, value in (ROWS[0] | change).items() if value is not None}
    write(tmp_path / "civil_comments", "test.csv", [row])
    with pytest.raises(UserError, match=message):
        registry.load("civil_comments", str(tmp_path))


def test_two_comments_of_one_id_are_named_and_a_file_of_all_splits_says_which(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "civil_comments", "test.csv", [*ROWS[:3], ROWS[1]])
    with pytest.raises(UserError, match=r"test.csv:5: id '1' is that of .*test.csv:3, too; keep one of them"):
        registry.load("civil_comments", str(tmp_path))
    write(tmp_path / "whole" / "civil_comments", "civil_comments.csv", ROWS)
    with pytest.raises(UserError, match=r"civil_comments.csv:2: no column split, by which"):
        registry.load("civil_comments", str(tmp_path / "whole"))


def test_a_missing_file_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match=r"civil_comments: no file .*civil_comments/civil_comments.csv"):
        registry.load("civil_comments", str(tmp_path))
