"""Suites that are a table and a file of rows: what every key makes, and what is refused with file and line."""

import json
import math
import pathlib
import sys
from typing import Any

import pytest

from flanx.cli import main
from flanx.errors import UserError
from flanx.evals import metrics, registry, rescore, scores, suite_table
from flanx.sweep import score_expressions
from tests.echo_case import lines, score

CAPITALS = """
[capitals]
source = "jsonl:capitals.jsonl"
prompt = "Q: {question}\\nA:"
answer = "capital"
"""
ROWS = [
    {"question": "Which city is the capital of France?", "capital": "Paris", "part": "West Europe"},
    {"question": "Which city is the capital of Peru?", "capital": ["Lima", "Ciudad de los Reyes"], "part": "Americas"},
    {"question": "Which city is the capital of Italy?", "capital": "Rome", "part": "West Europe"},
]
CHOICES = [
    {"q": "2 + 2?", "options": ["3", "4", "5"], "right": "B", "index": 1, "number": 2, "text": "4"},
    {"q": "3 + 3?", "options": ["6", "7", "8"], "right": "A", "index": 0, "number": 1, "text": "6"},
]
MORE = """
[sums]
source = "jsonl:sums.jsonl"
prompt = "Q: {q}\\n{options}\\nA:"
answer = "right"
options = "options"
answer_is = "letter"
"""


class Folder:
    """A folder of FLANX_TABLES with tables and rows."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path / "suites"
        self.path.mkdir(parents=True)

    def write(self, table: str, rows: list | str | None = None, name: str = "own.toml", file: str = "") -> None:
        (self.path / name).write_text(table, encoding="utf-8")
        if rows is not None:
            text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
            (self.path / (file or table.partition(":")[2].partition('"')[0])).write_text(text, encoding="utf-8")


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.setenv("FLANX_TABLES", str(tmp_path / "mine"))
    return Folder(tmp_path / "mine")


def test_the_least_table_is_a_suite(folder: Folder) -> None:
    folder.write(CAPITALS, ROWS)
    suite = registry.load("capitals", "")
    assert [item.prompt() for item in suite.items] == [f"Q: {row['question']}\nA:" for row in ROWS]
    assert suite.items[1].targets == ("Lima", "Ciudad de los Reyes") and suite.items[0].kind == "text"
    assert [item.id for item in suite.items] == ["capitals-0", "capitals-1", "capitals-2"]
    assert suite.items[2].location == f"{folder.path / 'capitals.jsonl'}:3"
    assert suite.spec == registry.resolve("capitals") and suite.spec.family == "own"
    assert [item.id for item in registry.load("capitals[:1]+sc8", "").items] == ["capitals-0"]


def test_rows_that_repeat_another_are_counted_once_for_all(folder: Folder, capsys: pytest.CaptureFixture) -> None:
    folder.write(CAPITALS, [*ROWS, ROWS[0], ROWS[0]])
    for _ in range(2):
        assert len(registry.load("capitals", "").items) == 5
    said = "own.toml:2: 2 of 5 items of capitals repeat another one, and each counts\n"
    assert capsys.readouterr().out == f"note: {folder.path}/{said}"


def test_its_hash_is_of_what_the_model_reads(folder: Folder) -> None:
    folder.write(CAPITALS, ROWS)
    before = registry.load("capitals", "").hash
    folder.write(CAPITALS + 'note = "mine"\nlicence = "MIT"\n')
    assert registry.load("capitals", "").hash == before
    for change in ('stop = ["Q:"]\n', "version = 2\n", 'head = "Answer.\\n"\n', 'extractor = "exact"\n'):
        folder.write(CAPITALS + change)
        assert registry.load("capitals", "").hash != before, change
    folder.write(CAPITALS, [*ROWS[:2], ROWS[2] | {"capital": "Roma"}])
    assert registry.load("capitals", "").hash != before


def test_it_is_evaluated_resumed_rescored_as_any_other(folder: Folder, tmp_path: pathlib.Path) -> None:
    rows = [{"question": f"Say {word}. No word but this: {word}", "capital": word} for word in ("Abcdefg", "Bcdefgh")]
    folder.write(CAPITALS.replace("\\nA:", "") + 'extractor = "exact"\n', rows)
    found = score(tmp_path / "out", "capitals", data_dir="sample")["suites"]["capitals"]
    assert found["n"] == 2 and found["data"]["folder"] == "" and scores.incomplete(found) == []
    path = tmp_path / "out" / "generations" / "capitals__capitals.jsonl"
    assert [row["prompt"] for row in lines(path)[1:]] == [f"Q: {row['question']}" for row in rows]
    path.write_bytes(path.read_bytes()[:-40])
    assert score(tmp_path / "out", "capitals", data_dir="sample")["suites"]["capitals"] == found
    again, _ = rescore.rescore(tmp_path / "out")
    assert again["capitals"] == found


@pytest.mark.parametrize(
    ("answer_is", "answer"), [("letter", "right"), ("index", "index"), ("number", "number"), ("text", "text")]
)
def test_options_are_listed_and_the_right_one_found(folder: Folder, answer_is: str, answer: str) -> None:
    folder.write(MORE.replace('"letter"', f'"{answer_is}"').replace('"right"', f'"{answer}"'), CHOICES)
    items = registry.load("sums", "").items
    assert items[0].query == "Q: 2 + 2?\n(A) 3\n(B) 4\n(C) 5\nA:"
    assert [item.targets for item in items] == [("(B)",), ("(A)",)] and items[0].kind == "letter"
    assert not items[0].options


def test_options_are_ranked(folder: Folder) -> None:
    ranks = 'scoring = "rank"\ntarget = " {letter}"\noption = "{number}. {option}"\nseparator = " | "\n'
    folder.write(MORE + ranks, CHOICES)
    item = registry.load("sums", "").items[0]
    assert item.query == "Q: 2 + 2?\n1. 3 | 2. 4 | 3. 5\nA:"
    assert item.options == (" A", " B", " C") and item.targets == (" B",)
    plain = (
        'scoring = "rank_normalized"\noptions = ["3", "4", "6"]\nanswer_is = "text"\nanswer = "text"\nlike = "sums"\n'
    )
    folder.write(MORE + '[text]\nprompt = "Q: {q}"\n' + plain, CHOICES)
    assert [item.options for item in registry.load("text", "").items] == [("3", "4", "6")] * 2
    assert [item.targets for item in registry.load("text", "").items] == [("4",), ("6",)]


def test_exemplars_are_inline_of_a_split_or_of_a_source(folder: Folder, tmp_path: pathlib.Path) -> None:
    inline = 'shots = 1\nexemplars = [{question = "Of Spain?", capital = "Madrid"}, {question = "x", capital = "y"}]\n'
    folder.write(CAPITALS + inline, ROWS)
    item = registry.load("capitals", "").items[0]
    assert item.prompt() == f"Q: Of Spain?\nA: Madrid\n\nQ: {ROWS[0]['question']}\nA:"
    split = CAPITALS.replace("capitals.jsonl", "{split}.jsonl") + 'shots = 2\nexemplars = "dev"\nhead = "Go.\\n"\n'
    split += 'exemplar = "{question} -> {target};\\n"\n'
    folder.write(split, ROWS, file="test.jsonl")
    folder.write(split, ROWS[1:], file="dev.jsonl")
    item = registry.load("capitals", "").items[0]
    assert item.shots == (f"{ROWS[1]['question']} -> Lima;\n", f"{ROWS[2]['question']} -> Rome;\n")
    assert item.head == "Go.\n"
    own = 'shots = 1\n[capitals.exemplars]\nsource = "csv:shots.csv"\nfields = "keep(capital, question=asked)"\n'
    folder.write(CAPITALS + own, "asked,capital\nOf Spain?,Madrid\n", file="shots.csv")
    folder.write(CAPITALS + own, ROWS)
    assert registry.load("capitals", "").items[0].shots == ("Q: Of Spain?\nA: Madrid\n\n",)


def test_rows_are_of_tasks_by_a_field_or_by_a_path(folder: Folder) -> None:
    folder.write(CAPITALS + 'task_field = "part"\ngroups = {old = ["west_europe"]}\n', ROWS)
    suite = registry.load("capitals", "")
    assert [item.task for item in suite.items] == ["west_europe", "west_europe", "americas"]
    assert suite.items[2].id == "americas-1" and suite.spec.groups == (("old", ("west_europe",)),)
    assert [item.id for item in registry.load("capitals[americas]", "").items] == ["americas-1"]
    with pytest.raises(UserError, match="capitals has no task 'america'; did you mean 'americas'"):
        registry.resolve("capitals[america]")
    by_path = CAPITALS.replace("capitals.jsonl", "{task}.jsonl") + 'tasks = ["de", "fr"]\nlanguage = "{task}"\n'
    folder.write(by_path, ROWS[:1], file="de.jsonl")
    folder.write(by_path, ROWS[1:], file="fr.jsonl")
    assert [(item.task, item.language) for item in registry.load("capitals", "").items] == [
        ("de",) * 2,
        *[("fr",) * 2] * 2,
    ]


def test_another_form_of_the_rows_is_read_only_where_their_own_is_absent(folder: Folder) -> None:
    table = CAPITALS + 'other = {source = "csv:x.csv", fields = "keep(question=Asked, capital=City)"}\n'
    folder.write(table, ROWS)
    (folder.path / "x.csv").write_text("Asked,City\nWhich city is the capital of Chile?,Santiago\n")
    assert registry.load("capitals", "").items[0].targets == ("Paris",)
    (folder.path / "capitals.jsonl").unlink()
    assert [item.targets for item in registry.load("capitals", "").items] == [("Santiago",)]


def test_exemplars_list_their_own_options_and_match_a_field(folder: Folder) -> None:
    table = MORE.replace("sums.jsonl", "{split}.jsonl") + 'shots = 1\nexemplars = "dev"\nmatch = "kind"\n'
    table += 'exemplar = "{q} [{options}] {target} by {kind}\\n"\nseparator = " "\n'
    rows = [CHOICES[0] | {"kind": "even"}, CHOICES[1] | {"kind": "odd"}]
    folder.write(table, rows, file="test.jsonl")
    folder.write(table, rows[::-1], file="dev.jsonl")
    shots = [item.shots for item in registry.load("sums", "").items]
    assert shots == [("2 + 2? [(A) 3 (B) 4 (C) 5] (B) by even\n",), ("3 + 3? [(A) 6 (B) 7 (C) 8] (A) by odd\n",)]
    folder.write(table, rows[1:], file="dev.jsonl")
    with pytest.raises(UserError, match=r"own.toml:9: 1 exemplars of 'sums' with kind 'even' needed, there are 0"):
        registry.load("sums", "")


def test_exemplars_of_a_split_are_of_the_same_task(folder: Folder) -> None:
    table = CAPITALS.replace("capitals.jsonl", "{split}.jsonl") + 'task_field = "part"\nshots = 1\nexemplars = "dev"\n'
    folder.write(table, ROWS, file="test.jsonl")
    folder.write(table, [ROWS[1] | {"question": "A?"}, ROWS[0] | {"question": "E?"}], file="dev.jsonl")
    found = {item.task: item.shots for item in registry.load("capitals", "").items}
    assert found == {"west_europe": ("Q: E?\nA: Paris\n\n",), "americas": ("Q: A?\nA: Lima\n\n",)}
    folder.write(table, ROWS[1:2], file="dev.jsonl")
    with pytest.raises(UserError, match=r"own.toml:8: 1 exemplars of 'west_europe' needed, there are 0"):
        registry.load("capitals", "")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.csv", "question,capital\nOf France?,Paris\n"),
        ("rows.tsv", "question\tcapital\nOf France?\tParis\n"),
        ("rows.CSV.txt", "question,capital\nOf France?,Paris\n"),
        ("rows.json", '[{"question": "Of France?", "capital": "Paris"}]'),
        ("rows.json#data.rows", '{"data": {"rows": {"1": {"question": "Of France?", "capital": "Paris"}}}}'),
        ("rows.yaml#rows", "rows:\n- question: Of France?\n  capital: Paris\n"),
    ],
)
def test_every_kind_of_file_is_read(folder: Folder, name: str, text: str) -> None:
    file = name.partition("#")[0]
    kind = "csv" if file.endswith("txt") else file.rpartition(".")[2]
    folder.write(CAPITALS.replace("jsonl:capitals.jsonl", f"{kind}:{name}"), text, file=file)
    (item,) = registry.load("capitals", "").items
    assert item.query == "Q: Of France?\nA:" and item.targets == ("Paris",)


def test_rows_are_read_from_the_data_folder_where_none_lie_next_to_the_table(
    folder: Folder, tmp_path: pathlib.Path
) -> None:
    folder.write(CAPITALS)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "capitals.jsonl").write_text(json.dumps(ROWS[0]))
    assert len(registry.load("capitals", str(tmp_path / "data")).items) == 1
    with pytest.raises(UserError, match=rf"capitals: no file {folder.path / 'capitals.jsonl'}; put it there"):
        registry.load("capitals", "")


def test_a_changed_file_is_read_again(folder: Folder) -> None:
    folder.write(CAPITALS, ROWS)
    assert len(registry.load("capitals", "").items) == 3
    folder.write(CAPITALS.replace("Q: ", "Question: "), ROWS[:2])
    assert [item.query[:9] for item in registry.load("capitals", "").items] == ["Question:"] * 2


WRONG = {
    'match = "part"': r"own.toml:6: match needs a split in exemplars",
    'promt = "x"': r"own.toml:6: unknown key 'promt'; did you mean 'prompt'",
    "prompt": "",
    "max_new = 0": r"own.toml:6: max_new is 0; it is 1 to 2147483647",
    'max_new = "many"': r"own.toml:6: max_new is 'many', not of type int",
    "cot = 1": r"own.toml:6: cot is 1, not of type bool",
    'extractor = "nmber"': r"own.toml:6: no extractor 'nmber'; did you mean 'number'",
    'scoring = "rank"': r"own.toml:6: scoring needs `options` to rank; free answers are generated",
    'metric = "accuracy"': r"own.toml:6: metric is 'accuracy', not one of exact_match, f1, .*; options are",
    'split = ""': r"own.toml:6: split is empty",
    'average = "median"': r"own.toml:6: average is 'median', not one of mean, harmonic",
    'options = "choices"': r"own.toml:6: options needs `answer_is`",
    'answer_is = "letter"': r"own.toml:6: answer_is needs `options`",
    "shots = 2": r"own.toml:6: shots needs `exemplars`",
    'exemplars = "dev"': r"own.toml:6: exemplars needs `shots`",
    'shots = 1\nexemplars = "test"': r"own.toml:7: exemplars is the split that is scored",
    "shots = 1\nexemplars = [1]": r"own.toml:7: exemplars is the name of a split, a list",
    'shots = 1\nexemplars = {sorce = "x"}': r"own.toml:7: exemplars has unknown key 'sorce'; did you mean 'source'",
    'shots = 1\nexemplars = [{quest = "x"}]': r"own.toml:4: prompt names 'question', which .*own.toml:7 does not have",
    'stop = "Q:"\nhead = "a } b"': r"own.toml:7: head: a single '}'",
    'head = "{part} {question} {quest}"': r"own.toml:6: head names 'quest', .*capitals.jsonl:1 does not",
    'id = "{numbr}"': r"own.toml:6: id names 'numbr', which .*capitals.jsonl:1 does not have",
    'fields = "keep(question) | kep(capital)"': r"own.toml:6: fields: unknown operation 'kep'; did you mean 'keep'",
    'fields = "keep(question)"': r"own.toml:5: answer names 'capital', which capitals does not have",
    'fields = "keep(capital)"': r"own.toml:4: prompt names 'question', which capitals does not have",
    'other = "csv:x.csv"': r"own.toml:6: other is 'csv:x.csv', not {source = ...}",
    'other = {source = "csv:x.csv", split = "dev"}': r"own.toml:6: other has unknown key 'split'",
    'other = {source = "csv"}': r"own.toml:6: source is '<kind>:<path>'",
    'fields = "keep(question, capital)"\nother = {source = "csv:x.csv", fields = "keep(question)"}': (
        r"own.toml:7: other makes no field 'capital', which the rows of `source` have"
    ),
    'other = {source = "csv:x.csv"}\nshots = 1\nexemplars = "dev"': r"own.toml:6: other has no exemplars: give them",
    'groups = {a = ["x"]}': r"own.toml:6: groups: no task 'x'",
    'groups = ["x"]': r"own.toml:6: groups is \['x'\]",
    'tasks = ["a", "b"]': r"own.toml:6: tasks needs {task} in source, or task_field",
    'tasks = ["a b"]': r"own.toml:6: 'a b' is not a name of a task",
    'task_field = "part"\ntasks = ["americas"]': r"capitals.jsonl:1: 'part' is 'west_europe', which is not a task",
    'metric = "f1"\nextractor = "number"': r"own.toml:6: metric f1 compares generated texts",
    'like = "capitals"': r"own.toml:6: capitals would be like itself",
    'like = ["a"]': r"own.toml:6: no section \['a'\] in this file",
    "max_new = 9999999999": r"own.toml:6: max_new is 9999999999; it is 1 to 2147483647",
    'split = "test[x]"': r"own.toml:6: split 'test\[x\]': write name",
    'options = ["a"]\nanswer_is = "text"': r"own.toml:6: options are 2 to 26, not 1",
    'option = "{letter} {text}"\nanswer_is = "letter"\noptions = "o"': r"own.toml:6: option names 'text'",
    'extractor = "number"': r"capitals.jsonl:1: extractor 'number' reads no answer in 'Paris', and in 3 of 3",
    'extractor = "yes_no"': r"capitals.jsonl:1: extractor 'yes_no' reads no answer in 'Paris'",
    'task_field = "part"\ngroups = {a = ["asia"]}': r"own.toml:7: groups: no task 'asia'",
    'task_field = "part"\nextractor = {asia = "text"}': r"own.toml:7: extractor: no task 'asia'",
    'shots = 1\nexemplars = "dev"': r"own.toml:7: .*capitals.jsonl:1 would be an exemplar and is scored; give another",
    'shots = 2\nsplit = "test[1:]"\nexemplars = "test[:2]"': r"own.toml:8: .*capitals.jsonl:2 would be an exemplar",
}


def test_a_prompt_names_a_field(folder: Folder) -> None:
    folder.write(CAPITALS.replace("{question}", "question"), ROWS)
    with pytest.raises(UserError, match=r"own.toml:4: prompt names no field of a row, as '{question}' does"):
        registry.load("capitals", "")


@pytest.mark.parametrize("change", WRONG)
def test_a_wrong_table_is_refused_with_the_line(folder: Folder, change: str) -> None:
    table = CAPITALS.replace("prompt =", "# prompt =") if change == "prompt" else f"{CAPITALS}{change}\n"
    folder.write(table, ROWS)
    with pytest.raises(UserError, match=WRONG[change] or r"own.toml:2: capitals needs 'prompt'") as error:
        registry.load("capitals", "")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "Of Chad?"}, r"own.toml:5: answer names 'capital', which .*capitals.jsonl:4 does not have"),
        ({"question": "Of \ud800?", "capital": "x"}, r"capitals.jsonl:4: '.ud800' is half a character"),
        ({"question": "Of Chad?", "capital": ""}, r"capitals.jsonl:4: no answer: 'capital' is empty"),
        ({"question": "Of Chad?", "capital": None}, r"capitals.jsonl:4: no answer: 'capital' is empty"),
        ({"question": "Of Chad?", "capital": []}, r"capitals.jsonl:4: no answer: 'capital' is empty"),
        ({"question": "Of Chad?", "capital": {"a": 1}}, r"capitals.jsonl:4: 'capital' is dict, not text"),
        ({"question": None, "capital": "x"}, r"capitals.jsonl:4: 'question' is NoneType, not text"),
        ({"question": "x", "capital": float("nan")}, r"capitals.jsonl:4: .*NaN|capitals.jsonl:4: 'capital' is nan"),
    ],
)
def test_a_wrong_row_is_refused_with_the_line(folder: Folder, row: dict, message: str) -> None:
    folder.write(CAPITALS, [*ROWS, row])
    with pytest.raises(UserError, match=message):
        registry.load("capitals", "")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"right": "D"}, r"sums.jsonl:3: 'right' is not the letter of one of its 3 options: 'D'"),
        ({"options": ["1"]}, r"sums.jsonl:3: 'options' is not a list of 2 to 26 options"),
        ({"options": "abc"}, r"sums.jsonl:3: 'options' is not a list of 2 to 26 options"),
        ({"options": ["1", " "]}, r"sums.jsonl:3: an option is empty"),
        ({"options": ["1", None]}, r"sums.jsonl:3: 'options' is NoneType, not text"),
        ({"right": ""}, r"sums.jsonl:3: no answer: 'right' is empty"),
    ],
)
def test_wrong_options_are_refused_with_the_line(folder: Folder, row: dict, message: str) -> None:
    folder.write(MORE, [*CHOICES, CHOICES[0] | row])
    with pytest.raises(UserError, match=message):
        registry.load("sums", "")


def test_a_prompt_is_not_empty_and_not_longer_than_the_table_says(folder: Folder, tmp_path: pathlib.Path) -> None:
    table = CAPITALS.replace("Q: {question}\\nA:", "{question}") + 'shots = 2\nexemplar = "{question} {target}\\n"\n'
    table += 'exemplars = [{question = "Of Spain?", capital = "Madrid"}, {question = "Of Cuba?", capital = "Havana"}]\n'
    folder.write(f"{table}max_inputs = 60\n", ROWS)
    assert score(tmp_path / "out", "capitals")["suites"]["capitals"]["shots_dropped"] == 1
    rows = lines(tmp_path / "out" / "generations" / "capitals__capitals.jsonl")[1:]
    assert [row["shots"] for row in rows] == [1, 1, 1] and all(row["prompt_tokens"] <= 60 for row in rows)
    folder.write(f"{table}max_inputs = 9\n", ROWS)
    with pytest.raises(UserError, match=r"the shortest takes \d+ tokens alone, and max_inputs has 9: raise max_inputs"):
        score(tmp_path / "short", "capitals")
    folder.write(table, [*ROWS, {"question": " ", "capital": "x"}])
    with pytest.raises(UserError, match=r"capitals.jsonl:4: the prompt is empty"):
        registry.load("capitals", "")


def test_two_rows_of_one_id_are_refused_with_both_lines(folder: Folder) -> None:
    folder.write(CAPITALS + 'id = "{capital}"\n', [*ROWS, ROWS[0]])
    with pytest.raises(UserError, match=r"id 'Paris' of capitals occurs twice \(.*jsonl:1, .*jsonl:4\)"):
        registry.load("capitals", "")


def test_two_suites_of_one_name_are_refused_with_both_lines(folder: Folder) -> None:
    folder.write(CAPITALS, ROWS)
    folder.write(f"\n{CAPITALS}", name="second.toml")
    both = rf"two suites are named 'capitals': {folder.path / 'own.toml'}:2 and {folder.path / 'second.toml'}:3"
    with pytest.raises(UserError, match=both):
        registry.resolve("capitals")
    assert registry.resolve("bbh_cot").family == "bbh"  # the others go on
    (folder.path / "second.toml").write_text(CAPITALS.replace("[capitals]", "[tydiqa]"))
    with pytest.raises(UserError, match=rf"named 'tydiqa': .* and {folder.path / 'second.toml'}:2"):
        registry.names()


def test_a_table_has_no_name_of_a_task(folder: Folder) -> None:
    for name in ("muffin_rte", "niv2"):
        folder.write(CAPITALS.replace("[capitals]", f"[{name}]"), ROWS)
        with pytest.raises(
            UserError, match=rf"two suites are named '{name}': .*own.toml:2 and the task .*; rename one"
        ):
            registry.load(name, "")


def test_whole_answers_of_free_text_are_flagged(folder: Folder, tmp_path: pathlib.Path) -> None:
    rows = [{"question": f"Why {n}?", "capital": f"because of the long story number {n}"} for n in range(4)]
    folder.write(CAPITALS, rows)
    entry = score(tmp_path / "out", "capitals")["suites"]["capitals"]
    assert entry["misfit"].startswith("capitals: exact_match compares whole answers") and entry["flagged"]


def _installed(target: pathlib.Path, init: str) -> None:
    """A package with suites, as pip lays it out: the module, and a dist-info with its entry points."""
    package, info = target / "geo_suites", target / "geo_suites-1.0.dist-info"
    package.mkdir(parents=True)
    info.mkdir()
    (package / "__init__.py").write_text(init)
    (package / "geo.toml").write_text(CAPITALS)
    (package / "capitals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: geo-suites\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[flanx.suites]\ngeo = geo_suites:FOLDER\n")


@pytest.mark.parametrize("value", ["pathlib.Path(__file__).parent", "lambda: pathlib.Path(__file__).parent"])
def test_an_installed_package_brings_suites(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    _installed(tmp_path / "site", f"import pathlib\nFOLDER = {value}\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "geo_suites", raising=False)
    suite = registry.load("capitals", "")
    assert len(suite.items) == 3 and suite.spec.family == "geo"
    sys.modules.pop("geo_suites", None)


@pytest.mark.parametrize(
    ("init", "message"),
    [
        (
            "raise RuntimeError('broken')\n",
            r"geo = geo_suites:FOLDER of geo-suites: gives no folder \(RuntimeError: broken",
        ),
        ("FOLDER = '/no/such/folder'\n", "of geo-suites: /no/such/folder is not a folder"),
        ("FOLDER = 3\n", "of geo-suites: gives no folder"),
        ("def FOLDER():\n    raise SystemExit\n", r"of geo-suites: gives no folder \(SystemExit\); fix or remove it"),
    ],
)
def test_a_package_that_gives_no_folder_is_named(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, init: str, message: str
) -> None:
    _installed(tmp_path / "site", init)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "geo_suites", raising=False)
    with pytest.raises(UserError, match=message):
        registry.names()
    sys.modules.pop("geo_suites", None)


def test_a_wrong_table_keeps_nobody_from_the_others(folder: Folder, capsys: pytest.CaptureFixture) -> None:
    folder.write(CAPITALS, ROWS)
    folder.write(CAPITALS.replace("[capitals]", "[others]").replace("prompt", "promt"), ROWS, name="wrong.toml")
    assert len(registry.load("capitals", "").items) == 3 and registry.resolve("gsm8k_cot")
    with pytest.raises(UserError, match=r"wrong.toml:\d: unknown key 'promt'; did you mean 'prompt'"):
        registry.load("others", "")
    assert main.main(["suites", "list", "capital*"]) == 0
    said = capsys.readouterr()
    assert "capitals" in said.out and "note: " in said.err and "its suites are left out" in said.err
    folder.write(CAPITALS, ROWS, name="again.toml")
    with pytest.raises(UserError, match="unknown key"):  # the first of what is wrong
        registry.load("capitals", "")
    assert [str(error).partition(":")[0] for error in suite_table.wrong()][1] == "two suites are named 'capitals'"


def test_the_harmonic_mean_is_of_scores_raised_by_one() -> None:
    assert metrics.average([0.0, 50.0, 100.0], "harmonic") == pytest.approx(3 / (1 / 1 + 1 / 51 + 1 / 101))
    assert metrics.average([20.0, 40.0], "mean") == 30.0
    rows = {"a": [1.0, 0.0, 0.0, 0.0], "b": [1.0, 1.0, 1.0, 0.0]}
    low, high = metrics.interval(rows, "harmonic") or (math.nan, math.nan)
    assert low < metrics.average([25.0, 75.0], "harmonic") < high
    step = 1e-4
    slope = (metrics.average([25 + step, 75.0], "harmonic") - metrics.average([25.0, 75.0], "harmonic")) / step
    assert slope == pytest.approx((metrics.average([25.0, 75.0], "harmonic") / 26) ** 2 / 2, rel=1e-4)


def test_a_sweep_takes_the_scores_of_a_table(folder: Folder) -> None:
    folder.write(
        CAPITALS + 'task_field = "part"\naverage = "harmonic"\ngroups = {all = ["west_europe", "americas"]}\n', ROWS
    )
    task = {"low": 20.0, "high": 60.0, "flagged": False, "extraction_failed": 0.0, "n": 9}
    tasks = {"west_europe": task | {"score": 30.0}, "americas": task | {"score": 50.0}}
    entry = task | {"score": 38.0, "tasks": tasks, "groups": {}}
    whole = score_expressions.value(["capitals"], {"capitals": entry})
    assert isinstance(whole, score_expressions.Estimate) and whole.score == 38.0
    found = score_expressions.value(["capitals:all"], {"capitals": entry})
    assert isinstance(found, score_expressions.Estimate)
    assert found.score == metrics.average([30.0, 50.0], "harmonic") and found.low < found.score < found.high


def test_a_file_is_not_named_as_a_family_of_ours(folder: Folder) -> None:
    folder.write(CAPITALS, ROWS, name="mmlu.toml")
    with pytest.raises(UserError, match=r"mmlu.toml:2: 'mmlu' is a family of flanx's own suites; rename the file"):
        registry.names()


def test_a_suite_can_have_the_harmonic_mean_of_its_tasks(folder: Folder, tmp_path: pathlib.Path) -> None:
    rows = [
        {"question": f"{n} Say: Abcdefg", "capital": "Abcdefg" if n else "x", "part": "ab"[n % 2]} for n in range(4)
    ]
    table = CAPITALS.replace("\\nA:", "") + 'extractor = "exact"\ntask_field = "part"\naverage = "harmonic"\n'
    folder.write(table, rows)
    found = score(tmp_path / "out", "capitals", data_dir="sample")["suites"]["capitals"]
    assert found["score"] == metrics.average([task["score"] for task in found["tasks"].values()], "harmonic")


# --- scores by label, marks, false answers, whole sentences -----------------------------------------------------------

MARKED = '[t]\nsource = "jsonl:t.jsonl"\nprompt = "{q}"\nanswer = "a"\n'
SENTENCES = {"q": "Which?", "o": ["x y", "x z"], "a": [0, 1], "sex": "f", "no": ["n", ""]}
RANKED = MARKED + 'options = "o"\nanswer_is = "marks"\nscoring = "rank"\n'


def test_scores_are_given_for_each_value_of_a_label(folder: Folder) -> None:
    folder.write(CAPITALS + 'labels = ["part"]\naverage = "items"\n', ROWS)
    suite = registry.load("capitals", "")
    assert [item.labels for item in suite.items] == [(("part", row["part"]),) for row in ROWS]
    folder.write(CAPITALS + 'average = "items"\n')
    assert registry.load("capitals", "").hash != suite.hash
    folder.write(CAPITALS + 'labels = ["parts"]\n')
    with pytest.raises(UserError, match=r"capitals.jsonl:1|own.toml:6: labels names 'parts', which .* does not have"):
        registry.load("capitals", "")


def test_options_may_be_whole_sentences_and_several_right(folder: Folder) -> None:
    rows = [SENTENCES, SENTENCES | {"a": [1, 1]}]
    folder.write(RANKED.replace("{q}", "") + 'metric = "mc2"\n', rows, file="t.jsonl")
    first, second = registry.load("t", "").items
    assert (first.query, first.options, first.targets) == ("", ("x y", "x z"), ("x z",))
    assert second.targets == ("x y", "x z")


@pytest.mark.parametrize(
    ("table", "row", "message"),
    [
        (MARKED.replace("{q}", ""), {}, "own.toml:1: t needs 'prompt'"),
        (RANKED, {"a": [0, 2]}, "t.jsonl:1: 'a' is not a list of 0 or 1 for each of 2 options: "),
        (RANKED, {"a": [1]}, "'a' is not a list of 0 or 1 for each of 2 options"),
        (RANKED, {"a": [0, 0]}, "'a' marks no option as right"),
        (MARKED + 'metric = "mc2"\n', {}, "own.toml:5: metric mc2 is of options that are ranked"),
        (MARKED + 'metric = "truthfulqa"\n', {}, "foils and metric = 'truthfulqa' need each other"),
        (MARKED + 'foils = "no"\n', {}, "own.toml:5: foils and metric = 'truthfulqa' need each other"),
        (RANKED + 'foils = "no"\nmetric = "truthfulqa"\n', {}, "foils are compared with generated texts"),
        (
            MARKED + 'foils = "sex"\nmetric = "truthfulqa"\n',
            {"a": "x"},
            "t.jsonl:1: 'sex' is not a list of false answers",
        ),
        (
            MARKED + 'foils = "no"\nmetric = "truthfulqa"\n',
            {"no": [""], "a": "x"},
            "'no' is not a list of false answers",
        ),
        (MARKED + 'metric = "bbq"\n', {}, "own.toml:5: metric is 'bbq', not one of"),
    ],
)
def test_marks_and_false_answers_that_make_no_sense_are_refused(
    folder: Folder, table: str, row: dict[str, Any], message: str
) -> None:
    folder.write(table, [SENTENCES | row], file="t.jsonl")
    with pytest.raises(UserError, match=message):
        registry.load("t", "")
