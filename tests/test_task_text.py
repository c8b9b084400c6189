"""Text files as people have them, through the one reader and through the commands that use it."""

import codecs
import gzip
import json
import pathlib

import pytest

from flanx.data.task import text
from flanx.data.task.row import BadRow, lookup, text_of
from flanx.data.task.sources import instances
from flanx.errors import UserError

ROWS = [{"q": "Wie heißt 'ja' — auf Französisch?", "a": "oui\u2028x"}, {"q": "Zwei?", "a": "2"}]
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
CSV = "q,a\n" + "".join(f'"{row["q"]}",{row["a"]}\n' for row in ROWS)


def read(path: pathlib.Path) -> list:
    return [record for _, record in text.records(path)]


@pytest.mark.parametrize(
    "form",
    [
        lambda s: s.encode(),
        lambda s: codecs.BOM_UTF8 + s.encode(),
        lambda s: s.encode("utf-16"),
        lambda s: codecs.BOM_UTF16_BE + s.encode("utf-16-be"),
        lambda s: s.encode("utf-32"),
        lambda s: s.replace("\n", "\r\n").encode(),
        lambda s: s.replace("\n", "\r").encode(),
        lambda s: ("\n" + s.replace("\n", "\n\n")).encode(),
        lambda s: s.removesuffix("\n").encode(),
        lambda s: gzip.compress(s.encode()),
    ],
    ids=["utf8", "bom", "utf16", "utf16be", "utf32", "crlf", "cr", "blank", "no-end", "gz"],
)
@pytest.mark.parametrize(("name", "content"), [("x.JSONL", JSONL), ("x.ndjson", JSONL), ("x.csv", CSV)])
def test_every_form_of_a_file_gives_the_same_records(tmp_path, form, name, content):
    (tmp_path / name).write_bytes(form(content))
    assert read(tmp_path / name) == ROWS


def test_a_json_array_gives_its_elements_and_broken_lines_are_named(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(ROWS, indent=1))
    assert read(path) == ROWS
    path.write_text('{"a": 1}\n[2]\n{"a": \n')
    assert [str(r) if isinstance(r, BadRow) else r for r in read(path)][:2] == [{"a": 1}, "not a JSON object"]
    path.write_text('{\n "a": 1\n}\n')
    with pytest.raises(UserError, match=r"x.json:1: not JSON on one line"):
        read(path)


@pytest.mark.parametrize("second", ["a", "caf\u00e9", "cafe\u0301"])
def test_a_name_that_an_object_has_twice_is_a_bad_row(tmp_path, second):
    first = "a" if second == "a" else "caf\u00e9"
    twice = f'{{"q": 1, "{first}": "x", "{second}": "y"}}'
    path = tmp_path / "x.jsonl"
    path.write_text('{"q": 1, "a": "x"}\n' + twice + "\n", encoding="utf-8")
    good, bad = read(path)
    assert good == {"q": 1, "a": "x"} and str(bad) == f"not JSON: an object has '{second}' twice"
    (tmp_path / "x.json").write_text(f"[{twice}]", encoding="utf-8")
    with pytest.raises(UserError, match=r"x.json: not JSON: an object has '.*' twice"):
        read(tmp_path / "x.json")


def test_list_columns_are_joined_and_accents_stay_as_they_are(tmp_path):
    assert text_of(["red", 1.5, True]) == "red, 1.5, yes"
    for word in ("caf\u00e9", "cafe\u0301"):  # the vocabulary's business, not the reader's
        assert text_of(word) == word


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("q,a\nx,y\ncafé,z\n".encode("cp1252"), r"x.csv:3: not UTF-8 .byte 0xe9; as Windows-1252 it reads 'café,z'"),
        ("q,a\nx,y\n".encode("utf-16-le"), r"x.csv:1: holds zero bytes"),
        (gzip.compress(b"q,a\nx,y\n" * 99, mtime=0)[:-12], "x.csv: cannot be read"),
        (codecs.BOM_UTF16_LE + b"a\x00\x00\xd8b\x00", "x.csv: not UTF-16"),
        (b"q,a,q\n1,2,3\n", r"x.csv:1: two columns are named 'q'"),
    ],
)  # fmt: skip
def test_what_is_no_text_is_one_line(tmp_path, raw, message):
    (tmp_path / "x.csv").write_bytes(raw)
    with pytest.raises(UserError, match=message):
        read(tmp_path / "x.csv")


def test_csv_as_excel_writes_it(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(b'q;a\r\n"one\r\ntwo; ""three""";4\r\n;\r\n\r\nfive;6\r\n')
    assert read(path) == [{"q": 'one\ntwo; "three"', "a": "4"}, {"q": "five", "a": "6"}]
    path.write_text('q,a\nx,1\n"open,2\ny,3\n')
    rows = list(text.records(path))
    assert rows[0][1] == {"q": "x", "a": "1"}
    assert rows[1][0].endswith(":3") and "never closed" in str(rows[1][1]) and len(rows) == 2
    for cut in ('q,a\nx,1\ny,"open', 'q,a\nx,1\ny,"open\n', 'q;a\nx;1\ny;"open "" more'):  # a copy that stopped
        path.write_text(cut)
        rows = list(text.records(path))
        assert rows[1][0].endswith(":3") and "never closed" in str(rows[1][1]) and len(rows) == 2
    path.write_text('q,a\nx,1\ny,"closed"')
    assert read(path) == [{"q": "x", "a": "1"}, {"q": "y", "a": "closed"}]
    path.write_text("q,a\nx\ny,2,3\n")
    assert [str(row) for row in read(path)] == ["1 columns instead of 2 (q, a)", "3 columns instead of 2 (q, a)"]


@pytest.mark.parametrize(
    ("raw", "quoted", "cell"),
    [
        ('q\ta\n"Who said ""be""?"\tH\n', True, 'Who said "be"?'),
        ('q\ta\n"a\tb"\tH\n', True, "a\tb"),
        ('q\ta\r\n"a\nb"\tH\r\n', True, "a\nb"),
        ('"q"\t"a"\n"x"\t"H"\n"y"\t3\n', True, "x"),
        ('q\ta\n"To be" is by whom?\tH\n', False, '"To be" is by whom?'),
        ('q\ta\n"To be"\tH\nx\ty\n', False, '"To be"'),
        ('q\ta\nsay "hi"\tH\n', False, 'say "hi"'),
        ('q\ta\n5" of ""rain""\tH\n', False, '5" of ""rain""'),
    ],
)
def test_a_tsv_is_quoted_only_where_the_whole_file_says_so(tmp_path, raw, quoted, cell):
    path = tmp_path / "x.tsv"
    path.write_text(raw, newline="")
    assert text.is_quoted(path) is quoted and read(path)[0]["q"] == cell


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (1234567.0, "1234567"), (0.33333333, "0.33333333"), (1234567.89, "1234567.89"), (3.14159265, "3.14159265"),
        (12345678901234567890, "12345678901234567890"), (1e-5, "0.00001"), (1e22, "1e+22"), (1e20, "1" + "0" * 20),
        (-0.0, "0"), (2024.25, "2024.25"), ([1.5, "a", [True]], "1.5, a, yes"),
    ],
)  # fmt: skip
def test_values_keep_their_digits(value, said):
    assert text_of(value) == said


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), None, {"a": 1}, b"x", [None]])
def test_what_has_no_text_is_a_bad_row(value):
    with pytest.raises(BadRow):
        text_of(value)


def test_parquet_gives_the_digits_of_32_bits(tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "x.parquet"
    table = pa.table({"x": pa.array([3.8, float("nan"), None], pa.float32()), "y": [0.1, 0.2, 0.3]})
    parquet.write_table(table, path)
    rows = read(path)
    assert rows[0] == {"x": 3.8, "y": 0.1} and rows[2]["x"] is None
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="not a Parquet file"):
        read(path)


def test_columns_with_dots_and_accents_are_found():
    assert lookup({}, {"a.b": 1, "a": {"b": 2}}, "a.b") == 1 and lookup({}, {"a": {"b": 2}}, "a.b") == 2
    assert text.column_of("re\u0301ponse", ["q", "r\u00e9ponse"], "x:1") == "r\u00e9ponse"


def test_worked_examples_that_are_not_text():
    task = {"Definition": "Do.", "Positive Examples": [{"input": 3, "output": 4.5}], "Instances": []}
    assert list(instances(task, "x.json")) == []
    with pytest.raises(UserError, match=r"x\.json: a worked example whose 'output' is dict, not text"):
        list(instances({**task, "Positive Examples": [{"input": "a", "output": {}}]}, "x.json"))


def test_a_packed_file_that_swells_beyond_text_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "MOST_UNPACKED", 1 << 16)
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(b" " * 4_000_000))
    with pytest.raises(UserError, match="unpacks to more than 200 times its size"):
        read(path)
