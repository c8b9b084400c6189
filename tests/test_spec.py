"""The tables load, and every wrong table is refused with file, line and reason."""

import pathlib
import subprocess
import sys

import pytest

from flanx.data.task import tables
from flanx.errors import UserError

COLLECTIONS = '[mine]\nrole = "extra"\n[mine.defaults]\nsplits = {train = "train"}\ncolumns = ["question", "answer"]\n'
BLOCK = '[plain]\nnone = ["{question}", "{answer}"]\nprompts = [["Q: {question}", "{answer}"]]\n'
ROW = '[one]\nsource = "jsonl:one.jsonl"\ntemplates = "plain"\n'


def write(root: pathlib.Path, rows: str = ROW, block: str = BLOCK, collections: str = COLLECTIONS) -> pathlib.Path:
    for name, text in {
        "tables/mine.toml": rows,
        "templates/plain.toml": block,
        "tables/collections.toml": collections,
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("FLANX_TABLES", str(tmp_path))
    return tmp_path


def test_our_own_tables_load():
    counts = tables.collections()
    assert counts["collections"]["cot"] == 9
    assert counts["total"] == sum(counts["collections"].values())


def test_a_folder_of_the_user_adds_a_task(root):
    write(root)
    task = tables.load_tables()["mine_one"]
    assert (task.dataset, task.collection, task.role) == ("one", "mine", "extra")
    assert task.names == {"question", "answer"}
    assert task.location.endswith("mine.toml:1")


def test_the_inner_folder_of_tables_is_refused_with_the_one_to_give(root, monkeypatch):
    write(root)
    monkeypatch.setenv("FLANX_TABLES", str(root / "tables"))
    with pytest.raises(UserError, match=f"{root}/tables is the inner folder; give the one that holds it, {root}$"):
        tables.load_tables()


def test_a_folder_of_the_user_lays_keys_over_our_row(root):
    text = '[gsm8k]\ntemplates = "plain"\n'
    write(root)
    (root / "tables" / "cot.toml").write_text(text)
    task = tables.load_tables()["cot_gsm8k"]
    assert task.templates == ("plain",)
    assert task.source == "tsv:cot/gsm8k_train.tsv"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": ROW + 'kap = 3\n'}, r"mine.toml:1: unknown key 'kap'; did you mean 'cap'"),
        ({"rows": ROW + 'cap = "many"\n'}, r"mine.toml:1: cap is 'many', not of type int"),
        ({"rows": '[one]\ntemplates = "plain"\n'}, r"mine.toml:1: mine_one needs 'source'"),
        ({"rows": ROW.replace("jsonl:", "arrow:")}, r"unknown source 'arrow'; known: suite, tsv"),
        ({"rows": ROW.replace('"plain"', '"plane"')}, r"no template block 'plane'; did you mean 'plain'"),
        ({"rows": ROW + 'styles = ["zsop"]\n'}, r"unknown style 'zsop'"),
        ({"rows": ROW + 'splits = {dev = "dev"}\n'}, r"unknown split 'dev'"),
        ({"rows": ROW + 'fields = "kep(a)"\n'}, r"mine.toml:1: fields: unknown operation 'kep'; did you mean 'keep'"),
        ({"rows": ROW + 'fields = "keep(question)"\n'}, r"plain:0 names the field 'answer', which mine_one does"),
        ({"rows": ROW + "cap = \n"}, r"mine.toml:4: "),
        ({"rows": 'x = 1\n'}, r"'x' is outside a section"),
        ({"rows": '["a b"]\nsource = "jsonl:x"\n'}, r"'a b' is not a name"),
        ({"block": BLOCK.replace("none", "noon")}, r"plain.toml:1: unknown key 'noon'"),
        ({"block": BLOCK.replace("{question}", "{question", 1)}, r"plain.toml:1: plain:none: a single '{'"),
        ({"block": BLOCK.replace('"{answer}"]]', '"yes"]]')}, r"plain:0: the target has no field"),
        ({"block": BLOCK.replace('["Q: {question}", "{answer}"]', '["Q"]')}, r"a prompt is \[input, target\]"),
        ({"block": '[plain]\nprompts = [["{question}", "{answer}"]]\n'}, r"a block needs `none`"),
        ({"collections": COLLECTIONS.replace("extra", "more")}, r"collections.toml:1: role is one of"),
        ({"collections": COLLECTIONS.replace("[mine.", "total = 2\n[mine.")}, r"mine has 1 rows instead of 2"),
        ({"collections": COLLECTIONS.replace("mine", "main")}, r"no collection 'mine'"),
    ],
)  # fmt: skip
def test_wrong_tables_are_refused_with_place_and_reason(tmp_path, change, message, monkeypatch):
    root, style = write(tmp_path, **change), tables.roots()[0] / "templates" / "style.toml"
    (root / "templates" / "style.toml").write_bytes(style.read_bytes())
    monkeypatch.setattr(tables, "roots", lambda: [root])  # alone: ours take a tenth of a second, and load above
    with pytest.raises(UserError, match=message):
        tables.load()


def test_one_name_in_two_files_is_refused(root):
    write(root)
    (root / "tables" / "mine.csv").write_text("name,source,templates\none,jsonl:a,plain\n")
    with pytest.raises(UserError, match=r"mine.toml:1: mine_one is defined at .*mine.csv:2 too"):
        tables.load()


def test_csv_rows(root):
    write(root)
    header = "name,source,templates,splits,cap,cot\n"
    (root / "tables" / "mine.csv").write_text(header + "two,jsonl:a,plain,train=train[5%:] test=dev,7,true\n")
    task = tables.load_tables()["mine_two"]
    assert (task.splits, task.cap, task.cot) == ({"train": "train[5%:]", "test": "dev"}, 7, True)
    (root / "tables" / "mine.csv").write_text(header + "two,jsonl:a,plain,,many,\n")
    with pytest.raises(UserError, match=r"mine.csv:2: cap is 'many'"):
        tables.read(tables.roots())


def test_loading_imports_neither_tensorflow_nor_seqio_nor_our_package_of_tasks():
    code = "import sys; from flanx.data.task import tables; tables.load_tables(); print(' '.join(sys.modules))"
    modules = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert "flanx.data.task.tables" in modules
    assert not {"tensorflow", "seqio", "jax", "numpy", "flanx.tasks"} & set(modules)
