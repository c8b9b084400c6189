"""Suites of tasks: any split by the task's own templates, the metrics of its row, what is missing, wrong names."""

import json
import pathlib
from typing import Any

import pytest

from flanx.cli.main import main
from flanx.data.task import render, tables
from flanx.errors import UserError
from flanx.evals import registry, rescore, scores, task_metrics
from flanx.evals.generations import Generation
from flanx.sweep import score_expressions
from tests.echo_case import lines, score

LONG = ["the cat sat on the mat today", "a dog ran over the green hill", "nobody ever came to see the house"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder of tables: labels with three splits, options, numbers, free text with a metric each."""
    folder = tmp_path_factory.mktemp("made")
    rows = [{"q": f"Is {n} even?", "a": ["yes", "no"][n % 2], "o": ["yes", "no"], "n": n / 2} for n in range(60)]
    stories = [{"q": f"Tell {n}.", "a": LONG[n % 3] + f" {n}", "low": LONG[n % 3]} for n in range(20)]

    def add(name: str, found: list[dict], *more: str, targets: str = "a") -> None:
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
        command = ["tasks", "add", str(folder / f"{name}.jsonl"), "--inputs", "q", "--targets", targets]
        assert main([*command, "--output", str(folder / "mine"), *more]) == 0

    add("even", rows, "--validation_share", "0.2", "--test_share", "0.2")
    add("listed", rows, "--options", "o", "--validation_share", "0.3")
    add("half", rows, "--validation_share", "0.3", targets="n")
    add("bleu", stories, "--metric", "bleu", "--validation_share", "0.5")
    add("low", stories, "--metric", "rouge", "--validation_share", "0.5", targets="low")
    table = folder / "mine" / "tables" / "own.toml"
    table.write_text(table.read_text().replace('["rouge"]', '["pearson"]'))  # `tasks add` refuses that
    section = next(part for part in table.read_text().split("\n[") if part.startswith("bleu]"))
    for metric in ("accuracy", "rouge", "squad", "exact_match"):
        text = section.replace("bleu]", f"{metric}]").replace('["bleu"]', f'["{metric}"]')
        table.write_text(f"{table.read_text()}\n[{text}")
    return folder


@pytest.fixture
def own(made: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """An empty folder, with those tables in force."""
    monkeypatch.setenv("FLANX_TABLES", str(made / "mine"))
    monkeypatch.delenv("FLANX_DATA_DIR", raising=False)
    return tmp_path


def load(name: str, data_dir: str = "") -> Any:
    return registry.load(name, data_dir)


@pytest.mark.parametrize(
    ("name", "task", "split", "style"),
    [
        ("own_even", "own_even", "test", "zsopt"),
        ("own_even:validation", "own_even", "validation", "zsopt"),
        ("own_even:train/fsopt", "own_even", "train", "fsopt"),
        ("own_listed", "own_listed", "validation", "zsopt"),
        ("own_listed:validation/fsopt", "own_listed", "validation", "fsopt"),
        ("suite_text_word_reverse:validation", "suite_text_word_reverse", "validation", "zsopt"),
    ],
)
def test_prompts_are_those_of_training_and_of_tasks_show(
    own: pathlib.Path, name: str, task: str, split: str, style: str
) -> None:
    found = load(name)
    row = tables.load_tables()[task]
    rendered = list(render.render_rows(row, style, split, count=lambda text: 0))
    assert [(item.prompt(), *item.targets) for item in found.items] == [(r.inputs, r.targets) for r in rendered]
    assert [len(item.shots) for item in found.items] == [r.shots for r in rendered]
    assert found.spec.split == split and all(item.kind == "+".join(row.metrics) for item in found.items)
    assert found.items[0].prompt(0) == (found.items[0].head + found.items[0].query)


def test_a_few_shot_prompt_loses_its_last_exemplars_where_it_is_too_long(own: pathlib.Path) -> None:
    name = "own_even:validation/fsopt"
    prompt, count = next((item.prompt(), len(item.shots)) for item in load(name).items if len(item.shots) > 2)
    entry = score(own / "out", name, data_dir="", lengths={"inputs": len(prompt) - 20, "targets": 8})["suites"][name]
    rows = lines(own / "out" / "generations" / "own_even-validation-fsopt__own_even.jsonl")[1:]
    short = next(row for row in rows if row["shots"] < row["shots_available"])
    assert not short["cut"] and 0 < entry["shots_dropped"] < 1 and count > 2


def test_one_template_by_its_number_or_name(own: pathlib.Path) -> None:
    data = "#template="
    first, same = load(f"suite_text_word_reverse:test{data}0[:3]"), load(f"suite_text_word_reverse:test{data}0[:3]")
    other = load(f"suite_text_word_reverse:test{data}1[:3]")
    row = tables.load_tables()["suite_text_word_reverse"]
    named = load(f"suite_text_word_reverse:test{data}{row.templates[0]}:1[:3]")
    assert first.items == same.items and [i.query for i in first.items] != [i.query for i in other.items]
    assert named.items == other.items and named.hash != first.hash
    assert load(f"suite_text_word_reverse:test{data}none[:3]").items[0].query != first.items[0].query
    with pytest.raises(UserError, match="has no template '99'"):
        load(f"own_even:test{data}99")


def test_options_are_ranked(own: pathlib.Path) -> None:
    listed = load("own_listed:validation+rank")
    assert all(item.targets[0] in item.options and len(item.options) == 2 for item in listed.items)
    assert {item.options for item in load("own_even:test+rank").items} == {("no", "yes")}
    marked = next(item for item in listed.items if item.options != ("yes", "no"))
    assert all(f"{option}" in marked.query for option in marked.options)
    entry = score(own / "out", "own_even:test+rank", data_dir="")["suites"]["own_even:test+rank"]
    assert entry["scoring"] == "rank" and entry["n"] == len(load("own_even:test").items) and not entry["flagged"]
    for name in ("own_half:validation+rank", "own_bleu:validation+rank", "bbh_direct[navigate]+rank"):
        with pytest.raises(UserError, match=r"no options to rank"):
            load(name, registry.SAMPLE)


@pytest.mark.parametrize(
    ("task", "metric"),
    [("even", "accuracy"), ("half", "number"), ("bleu", "bleu"), ("rouge", "rougeL"), ("squad", "em")],
)
def test_scores_are_the_metrics_of_the_row_over_the_generations(own: pathlib.Path, task: str, metric: str) -> None:
    name = f"own_{task}:validation"
    found = score(own / "out", name, data_dir="")
    entry = found["suites"][name]
    rows = lines(own / "out" / "generations" / f"own_{task}-validation__own_{task}.jsonl")[1:]
    for number, row in enumerate(rows):  # answers as a model would give them
        row["outputs"] = [[row["targets"][0], f" {row['targets'][0].upper()}. ", "a cat sat 3"][number % 3]]
    path = own / "out" / "generations" / f"own_{task}-validation__own_{task}.jsonl"
    header = path.read_text().splitlines()[0]
    path.write_text("\n".join([header, *map(json.dumps, rows)]) + "\n")
    again = rescore.rescore(own / "out")[0][name]
    wanted = task_metrics.METRICS[{"rougeL": "rouge", "em": "squad"}.get(metric, metric)](
        [row["targets"][0] for row in rows], [row["outputs"][0] for row in rows]
    )
    assert again["metrics"] == pytest.approx(wanted) and again["score"] == pytest.approx(wanted[metric])
    assert again["metric"] == entry["metric"] == metric and set(again["tasks"]) == {f"own_{task}"}
    assert (again["low"] is None) == (metric == "bleu") and 0 < again["score"] < 100
    assert again["tasks"][f"own_{task}"]["score"] == again["score"]
    (own / "out" / "scores.json").write_text(json.dumps(found | {"suites": {name: again}}))
    assert scores.read_scores(own / "out" / "scores.json")["suites"][name] == again
    assert ("no interval: bleu is no mean over items" in scores.interval_text(again, " to ")) == (metric == "bleu")


def test_a_pattern_gives_the_mean_the_tasks_and_what_is_missing(
    own: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    entry = score(own / "out", "own_*:test[:5]", "own_[elh]*:validation"[:0] or "own_e*:validation", data_dir="")[
        "suites"
    ]
    test, validation = entry["own_*:test[:5]"], entry["own_e*:validation"]
    assert set(test["tasks"]) == {"own_even"} and test["n"] == 5
    assert set(test["missing"]) == {t for t in tables.load_tables() if t.startswith("own_")} - {"own_even"}
    assert test["data"]["missing"]["own_half"] == "task own_half has no split 'test' (it has train, validation)"
    said = capsys.readouterr().out
    assert (
        "own_*:test[:5]: left out, as has no split 'test' (it has train, validation): own_listed, own_half, own_bleu"
        in said
    )
    assert "own_*:test[:5] (split test, accuracy): " in said and f"{len(test['missing'])} tasks left out" in said
    assert set(validation["tasks"]) == {"own_even", "own_exact_match"}
    assert validation["metric"] == "accuracy and exact_match" and validation["metrics"] == {}
    assert validation["score"] == pytest.approx(sum(e["score"] for e in validation["tasks"].values()) / 2)
    chosen = load("own_e*:validation[own_even]")
    assert {item.task for item in chosen.items} == {"own_even"} and chosen.spec.allow_missing == ("own_even",)


def test_tasks_without_data_are_missing_in_a_collection_and_an_error_alone(own: pathlib.Path) -> None:
    (own / "data" / "bbh" / "bbh").mkdir(parents=True)
    (own / "data" / "bbh" / "bbh" / "navigate.json").write_text(
        '{"examples": [{"input": "Do you return?\\nOptions:\\n- Yes\\n- No", "target": "Yes"}]}'
    )
    found = load("bbh:test", str(own / "data"))
    assert {item.task for item in found.items} == {"bbh_navigate"} and len(found.data["missing"]) == 26
    assert "bbh/bbh/snarks.json" in found.data["missing"]["bbh_snarks"]
    with pytest.raises(UserError, match=r"task bbh_snarks: no file .*snarks.json; run: flanx tasks fetch bbh_snarks"):
        load("bbh_snarks:test", str(own / "data"))
    with pytest.raises(UserError, match="suite bbh:test: no folder of benchmark data; set DATA_DIR"):
        load("bbh:test")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("own_evn:test", r"no mixture, collection or task 'own_evn'; did you mean 'own_even'"),
        ("own_evn", r"no evaluation suite 'own_evn'; did you mean 'own_even'"),
        ("own_even:dev", r"'own_even:dev': task own_even has no split 'dev' \(it has train, validation, test\)"),
        ("own_listed:test", r"task own_listed has no split 'test' \(it has train, validation\)"),
        ("niv2:validation[:50]", r"has no split 'validation' \(it has train\); as the other 1553 tasks"),
        ("cot_gsm8k", r"neither a test nor a validation split, only train"),
        ("own_even:test/fewshot", r"no prompt style 'fewshot'"),
        ("own_even:test/zsnoopt", r"task own_even has no style 'zsnoopt' \(it has zsopt, fsopt\)"),
        ("own_even:test[:5]/fsopt", r"in one pair of brackets"),
        ("own_e*:test[own_half]", r"own_e\*:test has no task 'own_half'"),
        ("own_low:validation", r"pearson compares numbers, and \d+ of \d+ answers are none"),
    ],
)
def test_wrong_names_are_named(own: pathlib.Path, name: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLANX_IMPORTS")  # no module of a user's that might have the name
    with pytest.raises(UserError, match=said):
        load(name, registry.SAMPLE)


def test_an_unknown_name_without_tables_of_ones_own_names_their_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLANX_TABLES", raising=False)
    monkeypatch.delenv("FLANX_IMPORTS")
    said = "'own_zzzzzz'; tasks of your own: name the folder of their tables in FLANX_TABLES"
    with pytest.raises(UserError, match=said):
        load("own_zzzzzz:test")


def test_accuracy_of_free_text_says_so(own: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("own_accuracy:validation", "own_exact_match:validation"):
        entry = score(own / "out", name, data_dir="")["suites"][name]
        assert "free text" in entry["misfit"] and entry["flagged"]
        assert f"{name}: own_" in capsys.readouterr().out
    entry = score(own / "out", "own_rouge:validation", data_dir="")["suites"]["own_rouge:validation"]
    assert "misfit" not in entry


def test_the_majority_of_samples_counts(own: pathlib.Path) -> None:
    found = load("own_even:test[:1]+sc3")
    item = found.items[0]
    row = Generation(item.id, item.task, item.prompt(), list(item.targets), item.kind, "en", 0, False, 1, 0, 1, 0)
    row.outputs, row.ended = ["maybe", item.targets[0], item.targets[0].upper()], [True] * 3
    assert scores.summarize(found.spec, found.hash, [row])["score"] == 100
    assert registry.resolve("own_even:test+beam4").beams == 4
    assert registry.resolve("own_even:test+likelihood").scoring == "likelihood"


def test_sweeps_take_them_as_scores(own: pathlib.Path) -> None:
    parts = score_expressions.parse("own_even:validation/fsopt[:5]+sc8 | own_even | suite_composition[:20]:words")
    assert [(part.suite, part.group) for part in parts] == [
        ("own_even:validation/fsopt[:5]+sc8", ""), ("own_even", ""), ("suite_composition[:20]", "words")
    ]  # fmt: skip
    with pytest.raises(UserError, match="has no split 'vali'"):
        score_expressions.parse("own_even:vali")
