"""Tasks of own files and of pre-rendered exports, from the command to the rendered example."""

import gzip
import json

import pytest

from flanx.cli.main import main
from flanx.data.importers import user_file
from flanx.data.task import render, sources, tables


@pytest.fixture
def output(tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    folder.mkdir()
    monkeypatch.setenv("FLANX_TABLES", str(folder))
    tables._load.cache_clear()
    yield folder
    tables._load.cache_clear()


def rendered(name):
    tables._load.cache_clear()
    return list(render.render_rows(tables.load_tables()[name], "zsopt", "train"))


@pytest.mark.parametrize("kind", ["jsonl", "tsv", "csv"])
def test_two_columns_of_a_file_become_a_task(kind, output, tmp_path, capsys):
    path = tmp_path / f"My data.{kind}"
    if kind == "jsonl":
        path.write_text('{"the question": "How {many}?", "a": "3"}\n{"the question": "Who?", "a": "me"}\n')
    else:
        mark = {"tsv": "\t", "csv": ","}[kind]
        path.write_text(mark.join(["the question", "a"]) + f"\nHow {{many}}?{mark}3\nWho?{mark}me\n")
    assert main(["tasks", "add", str(path), "--inputs", "the question", "--targets", "a", "--output", str(output)]) == 0
    assert "own_my_data" in capsys.readouterr().out
    assert [(r.inputs, r.targets) for r in rendered("own_my_data")] == [("How {many}?", "3"), ("Who?", "me")]
    again = ["tasks", "add", str(path), "--inputs", "the question", "--targets", "a", "--output", str(output)]
    assert main(again) == 2
    assert "it already has a task" in capsys.readouterr().err
    assert main([*again, "--name", "other"]) == 0
    assert len(rendered("own_other")) == 2


def test_a_wrong_column_is_named(output, tmp_path, capsys):
    (tmp_path / "x.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    command = ["tasks", "add", str(tmp_path / "x.jsonl"), "--inputs", "qestion", "--targets", "answer"]
    assert main([*command, "--output", str(output)]) == 2
    assert "no column 'qestion'; did you mean 'question'" in capsys.readouterr().err
    command = ["tasks", "add", str(tmp_path / "x.jsonl"), "--inputs", "answer", "--targets", "answer"]
    assert main([*command, "--output", str(output)]) == 2
    assert "column 'answer' is what is asked and what is to be answered; name two" in capsys.readouterr().err
    assert not list(output.iterdir())


def write_export(folder):
    rows = [
        {"inputs": f"in {i}", "targets": f"out {i}", "task_name": ["rte", "a/b"][i % 2], "task_source": "Flan2021",
         "template_type": ["zs_opt", "fs_opt"][i // 10]}
        for i in range(20)
    ]  # fmt: skip
    folder.mkdir()
    with (folder / "a.jsonl").open("w") as f:
        f.write("".join(json.dumps(r) + "\n" for r in rows[:5]) + "not json\n")
    with gzip.open(folder / "b.jsonl.gz", "wt") as f:
        f.write(
            "".join(
                json.dumps({k if k in ("inputs", "targets") else f"_{k}": v for k, v in r.items()}) + "\n"
                for r in rows[5:12]
            )
        )
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.Table.from_pylist(rows[12:]), folder / "c.parquet")
    return rows


def test_an_export_becomes_tasks(output, tmp_path, capsys):
    rows = write_export(tmp_path / "export")
    assert main(["tasks", "import-export", str(tmp_path / "export"), "--output", str(output)]) == 0
    out = capsys.readouterr().out
    assert "4 tasks, 20 examples, 1 bad rows" in out and "a.jsonl:6" in out
    for name, task_name, kind in (("export_rte_zs_opt", "rte", "zs_opt"), ("export_a_b_fs_opt", "a/b", "fs_opt")):
        wanted = [
            (r["inputs"], r["targets"]) for r in rows if (r["task_name"], r["template_type"]) == (task_name, kind)
        ]
        assert [(r.inputs, r.targets) for r in rendered(name)] == wanted
        assert tables.load_tables()[name].num_examples == len(wanted) == 5
    assert main(["tasks", "import-export", str(tmp_path / "export"), "--output", str(output)]) == 0  # again, not twice
    assert len(rendered("export_rte_zs_opt")) == 5


def test_what_is_no_export_is_refused(output, tmp_path, capsys):
    assert main(["tasks", "import-export", str(tmp_path / "none"), "--output", str(output)]) == 2
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n' * 200)
    assert main(["tasks", "import-export", str(tmp_path / "x.jsonl"), "--output", str(output)]) == 2
    assert "more than 100 bad rows; is this an export?" in capsys.readouterr().err


def test_a_refused_export_leaves_nothing_and_spoils_nothing(tmp_path, capsys):
    bad, output = tmp_path / "bad.jsonl", tmp_path / "mine" / "here"
    bad.write_text('{"inputs": "x"}\n')
    assert main(["tasks", "import-export", str(bad), "--output", str(output)]) == 2
    assert not output.exists()
    good = tmp_path / "good.jsonl"
    good.write_text(json.dumps({"inputs": "1 + 1", "targets": "2", "task_name": "sum"}) + "\n")
    assert main(["tasks", "import-export", str(good), "--output", str(output)]) == 0
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert main(["tasks", "import-export", str(bad), "--output", str(output)]) == 2
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


def test_quoted_values_are_read_back_as_they_are():
    import tomllib

    values = {"a": 'x "y" \\ \n \x7f \u05d0 {}', "b": ["1", "\t"], "c": {"train": "train[1:]"}, "d": True, "e": 3}
    assert tomllib.loads(user_file.section("s", values)) == {"s": values}


@pytest.mark.parametrize(
    "folder", ["C# course", "a{split}b", "[set A]", "na\u00efve \u6570", 'say "hi"', "back\\slash", "*star", "5%", "~"]
)  # fmt: skip
def test_odd_folders_are_read_from(folder, output, tmp_path):
    (tmp_path / folder).mkdir()
    path = tmp_path / folder / "x#1.jsonl"
    path.write_text('{"q.1": "What?", "a": 1234567.0}\n')
    command = ["tasks", "add", str(path), "--inputs", "q.1", "--targets", "a", "--output", str(output)]
    assert main(command) == 0
    assert [(r.inputs, r.targets) for r in rendered("own_x_1")] == [("What?", "1234567")]


def test_urls_of_files_and_links_mean_their_file(output, tmp_path):
    (tmp_path / "real.csv").write_text("q,a\nWhat?,that\n")
    (tmp_path / "link.CSV").symlink_to(tmp_path / "real.csv")
    for path in ((tmp_path / "real.csv").as_uri(), str(tmp_path / "link.CSV")):
        assert main(["tasks", "add", path, "--inputs", "q", "--targets", "a", "--output", output.as_uri()]) == 0
    assert len(rendered("own_link")) == len(rendered("own_real")) == 1


def test_what_a_file_holds_is_said_when_it_is_added(output, tmp_path, capsys):
    path = tmp_path / "x.jsonl"
    rows = '{"q": "a", "a": "b"}\n\n{"q": "a", "a": "b"}\n{"q": "c", "a": NaN}\n{"q": "d"}\n{"q": 1\n{"q": "e"}\n'
    path.write_text(rows)
    assert main(["tasks", "add", str(path), "--inputs", "q", "--targets", "a", "--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert "2 rows; repeated: 1; left out: 4 (" in said and "x.jsonl:4: 'a' is nan, not a number; " in said
    assert "x.jsonl:5: no column 'a'; " in said and "x.jsonl:6: not JSON" in said and "x.jsonl:7" not in said
    path.write_bytes("q,a\ncafé,b\n".encode("cp1252"))
    path = path.rename(tmp_path / "y.csv")
    before = sorted(output.rglob("*"))
    assert main(["tasks", "add", str(path), "--inputs", "q", "--targets", "a", "--output", str(output)]) == 2
    assert "y.csv:2: not UTF-8" in capsys.readouterr().err and sorted(output.rglob("*")) == before


def test_what_the_user_has_edited_stays(output, tmp_path, capsys):
    (tmp_path / "x.jsonl").write_text('{"q": "a", "a": "b"}\n')
    add = ["tasks", "add", str(tmp_path / "x.jsonl"), "--inputs", "q", "--targets", "a", "--output", str(output)]
    assert main(add) == 0
    block = output / "templates" / "own.toml"
    block.write_text(block.read_text().replace('["{inputs}", "{targets}"]]', '["Say: {inputs}", "{targets}"]]'))
    assert main([*add, "--name", "y"]) == 0
    assert [r.inputs for r in rendered("own_y")] == ["Say: a"]

    write_export(tmp_path / "export")
    again = ["tasks", "import-export", str(tmp_path / "export"), "--output", str(output)]
    assert main([*again, "--collection", "own"]) == 2  # the table of `tasks add`
    assert main(again) == 0 and main(again) == 0
    table, mine = output / "tables" / "export.toml", output / "data" / "export" / "mine.jsonl"
    mine.write_text("{}\n")
    assert main(again) == 2 and mine.exists()
    mine.unlink()
    table.write_text(edited := table.read_text() + "# mine\n")
    capsys.readouterr()
    assert main(again) == 2 and table.read_text() == edited
    assert "export.toml: edited, or not made by this command" in capsys.readouterr().err


def add(output, path, *more, inputs="q", targets="a"):
    return main(["tasks", "add", str(path), "--inputs", inputs, "--targets", targets, "--output", str(output), *more])


def of_split(name, split):
    tables._load.cache_clear()
    return [(r.inputs, r.targets) for r in render.render_rows(tables.load_tables()[name], "zsopt", split)]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_share_of_the_rows_is_a_split_and_stays_when_rows_are_appended(kind, output, tmp_path, capsys):
    path = tmp_path / f"x.{kind}"
    rows = [(f"What comes after {n}?", f"{n + 1}") for n in range(300)] + [("What comes after 1?", "two")]

    def write(rows):
        lines = ["q,a"] if kind == "csv" else []
        path.write_text("\n".join(lines + [f"{q},{a}" if lines else json.dumps({"q": q, "a": a}) for q, a in rows]))

    write(rows)
    assert add(output, path, "--validation_share", "0.2", "--test_share", "0.1") == 0
    said = capsys.readouterr().out
    splits = {split: of_split("own_x", split) for split in ("train", "validation", "test")}
    assert f"301 rows ({', '.join(f'{split} {len(found)}' for split, found in splits.items())})" in said
    assert sorted(pair for found in splits.values() for pair in found) == sorted(rows)
    assert 30 < len(splits["validation"]) < 90 and 10 < len(splits["test"]) < 60
    assert tables.load_tables()["own_x"].num_examples == len(splits["train"])
    asked = [{inputs for inputs, _ in found} for found in splits.values()]
    assert not asked[0] & (asked[1] | asked[2])  # the same question is on one side, whatever its answer
    write([*rows, *((f"What comes before {n}?", f"{n - 1}") for n in range(300))])
    assert all(of_split("own_x", split)[: len(found)] == found for split, found in splits.items())


def test_other_files_are_the_other_splits(output, tmp_path, capsys):
    (tmp_path / "x.csv").write_text("id,q,a\n1,one,1\n2,two,2\n")
    (tmp_path / "dev [1].csv").write_text("id,q,a\n1,three,3\n1,three,3\n1,,3\n")
    (tmp_path / "t.jsonl").write_text('{"q": "two", "a": 4.0, "more": "x"}\n')
    files = ("--validation", str(tmp_path / "dev [1].csv"), "--test", str(tmp_path / "t.jsonl"))
    assert add(output, tmp_path / "x.csv", *files) == 0
    said = capsys.readouterr().out
    assert f"validation: 2 rows of {tmp_path}/dev [1].csv; repeated: 1; left out: 1 (" in said
    assert "t.jsonl; 1 of them ask what a row of x.csv asks" in said and "metric number, for numbers" in said
    assert of_split("own_x", "train") == [("one", "1"), ("two", "2")]
    assert of_split("own_x", "validation") == [("three", "3")] * 2 and of_split("own_x", "test") == [("two", "4")]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--validation", "w.csv"], "w.csv:2: no column 'q' (it has Q, a)"),
        (["--validation", "none.csv"], "no file "),
        (["--validation", "empty.csv"], "empty.csv: no row with both texts"),
        (["--validation_share", "0.5", "--test_share", "0.5"], "add up to 1: they must be below 1"),
        (["--validation_share", "0.0001"], "none of its 2 rows falls into 'validation'"),
        (["--metric", "acuracy"], "no metric 'acuracy'; did you mean 'accuracy'"),
        (
            ["--metric", "number"],
            "metric number compares numbers, and 2 of 2 answers are none; exact_match fits short answers",
        ),
        (["--metric", "pearson"], "metric pearson compares numbers, and 2 of 2 answers are none"),
        (["--options", "o"], "no column 'o'"),
        (["--options", "q"], "x.csv:2: 'q' is not a list of two options or more"),
    ],
)
def test_what_cannot_be_a_split_is_refused_and_nothing_is_written(more, said, output, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in (("x", "q,a\none,I\ntwo,II\n"), ("v", "a,q\n1,one\n"), ("w", "Q,a\none,1\n"), ("empty", "q,a\n")):
        (tmp_path / f"{name}.csv").write_text(text)
    assert add(output, "x.csv", *more) == 2
    assert said in capsys.readouterr().err and not list(output.rglob("*"))


@pytest.mark.parametrize(
    ("answers", "metric", "options"),
    [
        (["yes", "no"] * 6, "accuracy", ["no", "yes"]),
        (["3", "$1,200.50", "-4%", "1e5"], "number", None),
        (["Paris", "Rome", "Oslo"], "exact_match", None),
        (["yes", "no", "maybe"], "exact_match", None),  # each once: not known to be labels
        (["It was a long story about a dog.", "Nobody came to the party of the year."], "rouge", None),
    ],
)
def test_the_metric_follows_the_answers(answers, metric, options, output, tmp_path, capsys):
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"q": f"{n}?", "a": a}) + "\n" for n, a in enumerate(answers)))
    assert add(output, tmp_path / "x.jsonl") == 0
    assert f"metric {metric}, for " in capsys.readouterr().out
    assert add(output, tmp_path / "x.jsonl", "--metric", "bleu", "--name", "y") == 0
    tables._load.cache_clear()
    rows = tables.load_tables()
    assert (rows["own_x"].metrics, rows["own_y"].metrics) == ((metric,), ("bleu",))
    made = [record for _, _, record in sources.rows(rows["own_x"], "train")]
    assert all(record.get("options") == options for record in made)


@pytest.mark.parametrize("kind", ["jsonl", "tsv"])
def test_options_of_a_column_are_listed(kind, output, tmp_path, capsys):
    rows = [("Which is a colour?", ["red", "dog"], "red"), ("Which is an animal?", ["red", "dog", "two"], "dog")]
    if kind == "tsv":
        lines = ["q\to\ta", *("\t".join([q, "|".join(o), a]) for q, o, a in rows)]
    else:
        lines = [json.dumps({"q": q, "o": o, "a": a}) for q, o, a in rows]
        lines.append('{"q": "Which?", "o": ["a", "b"], "a": "c"}')
    (tmp_path / f"x.{kind}").write_text("\n".join(lines) + "\n")
    assert add(output, tmp_path / f"x.{kind}", "--options", "o") == 0
    said = capsys.readouterr().out
    assert "metric accuracy" in said and (kind == "tsv" or "'a' is 'c', which is none of 'o'" in said)
    made = rendered("own_x")
    assert len(made) == len(rows) + (kind == "jsonl")
    assert all(
        option in example.inputs for example, (_, options, _) in zip(made, rows, strict=False) for option in options
    )


@pytest.mark.parametrize(
    ("answers", "wanted"),
    [([0, 1], ["5", "6"]), ([5, 6], ["5", "6"]), (["5", "6"], ["5", "6"]), ([5, 1], None)],
)
def test_an_answer_is_the_index_of_an_option_or_its_text(answers, wanted, output, tmp_path, capsys):
    lines = [json.dumps({"q": f"Which, {n}?", "o": [5, 6], "a": a}) for n, a in enumerate(answers)]
    (tmp_path / "x.jsonl").write_text("\n".join(lines) + "\n")
    assert add(output, tmp_path / "x.jsonl", "--options", "o") == (0 if wanted else 2)
    if not wanted:
        assert "is the index of an option in 1 of 2 rows, and the text" in capsys.readouterr().err
        return
    tables._load.cache_clear()
    made = [record for _, _, record in sources.rows(tables.load_tables()["own_x"], "train")]
    assert [record["answer"] for record in made] == wanted


def test_what_add_counts_is_what_a_task_reads(output, tmp_path, capsys):
    """Cells that a task does not read may be empty, as may what Excel writes behind the last column."""
    files = {
        "wide.tsv": "id\tq\ta\tnote\n1\tone\t1\t\n2\ttw\\no\t2\tx\n",
        "excel.csv": "sep=;\r\nq;a;;\r\none;1;;\r\ntw\\no;2;;\r\n;;;\r\n",
        "order.csv": "a,q\n1,one\n2,tw\\no\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content.encode())
    for name in ("wide.tsv", "excel.csv"):
        assert add(output, tmp_path / name, "--validation", str(tmp_path / "order.csv")) == 0
        assert "\n2 rows\n" in capsys.readouterr().out
        second = "tw\no" if name.endswith("tsv") else "tw\\no"
        task = f"own_{name.partition('.')[0]}"
        assert of_split(task, "train") == [("one", "1"), (second, "2")]
        assert of_split(task, "validation") == [("one", "1"), ("tw\\no", "2")]


@pytest.mark.parametrize("command", [["add"], ["import-export"]])
def test_tables_that_cannot_be_read_are_refused_before_anything_is_written(command, tmp_path, monkeypatch, capsys):
    (tmp_path / "a.jsonl").write_text('{"inputs": "a", "targets": "b", "task_name": "t", "template_type": "zs_opt"}\n')
    columns = ["--inputs", "inputs", "--targets", "targets"] if command == ["add"] else []
    for folder in ("/none/such", "~nosuchuser/x"):
        monkeypatch.setenv("FLANX_TABLES", folder)
        argv = ["tasks", *command, str(tmp_path / "a.jsonl"), *columns, "--output", str(tmp_path / "o")]
        assert main(argv) == 2
        assert folder in capsys.readouterr().err and not (tmp_path / "o").exists()
