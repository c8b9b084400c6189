"""Files that grow line by line: what a kill truncated is left out, what is damaged is named."""

import pathlib

import pytest

from flanx import files
from flanx.errors import UserError

TEXTS = ["plain", "two\nlines\r", "\u2028 and \x85 end no line", "বাংলা", "\ud800"]


def test_every_cut_leaves_the_lines_before_it(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "rows.jsonl"
    whole = "".join(files.json_line({"text": text}) for text in TEXTS).encode()
    for end in range(len(whole) + 1):
        path.write_bytes(whole[:end])
        found = files.read_jsonl(path)
        assert found == [{"text": text.replace("\ud800", "?")} for text in TEXTS[: whole[:end].count(b"\n")]]
        files.truncate_jsonl(path)
        with open(path, "a", encoding="utf-8") as file:
            file.write(files.json_line({"text": "next"}))
        assert files.read_jsonl(path) == [*found, {"text": "next"}]
    assert files.read_jsonl(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'{"a": 1}\n{"a": \n{"a": 2}\n', "rows.jsonl:2: not a JSON object"),
        (b'{"a": 1}\n[1]\n', "rows.jsonl:2: not a JSON object"),
        (b'{"a": "\xff"}\n', "not UTF-8"),
    ],
)
def test_damage_is_named(tmp_path: pathlib.Path, raw: bytes, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(raw)
    with pytest.raises(UserError, match=message):
        files.read_jsonl(path)
