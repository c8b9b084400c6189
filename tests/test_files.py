"""Files that are complete or absent, and locks between processes."""

import os
import pathlib
import subprocess
import sys
import types

import pytest

from flanx import files
from flanx.errors import UserError


def test_a_file_is_replaced_only_when_its_block_ends(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "new folder" / "config.gin"
    files.write_atomic(path, "old, naïve")
    with pytest.raises(RuntimeError), files.open_atomic(path) as file:
        file.write(b"half")
        file.flush()
        assert path.read_text(encoding="utf-8") == "old, naïve"
        raise RuntimeError
    assert path.read_text(encoding="utf-8") == "old, naïve"
    files.write_atomic(path, b"new\r\n")
    assert path.read_bytes() == b"new\r\n"
    assert [p.name for p in path.parent.iterdir()] == ["config.gin"]


@pytest.mark.parametrize("durable", [True, False])
def test_a_durable_file_and_its_folder_are_forced_to_disk_before_the_old_one_is_gone(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    path, synced = tmp_path / "manifest.json", []
    path.write_text("old")
    monkeypatch.setattr(files.os, "fsync", lambda descriptor: synced.append((os.fstat(descriptor), path.read_text())))
    files.write_atomic(path, "new", durable)
    expected = [(path.stat().st_ino, "old"), (tmp_path.stat().st_ino, "new")] if durable else []
    assert [(status.st_ino, content) for status, content in synced] == expected


def test_a_url_is_not_a_folder() -> None:
    with pytest.raises(UserError, match="'gs://bucket/run' is a URL: open it with"):
        files.local_folder("gs://bucket/run")
    assert files.local_folder("out/run") == pathlib.Path("out/run")


def test_the_local_copy_of_a_bucket_s_folder_stands_for_it(monkeypatch) -> None:
    copy = types.SimpleNamespace(path=pathlib.Path("/tmp/copy"), complete=lambda folder: None)
    monkeypatch.setattr(files, "mirrors", {"gs://bucket/run": copy})
    assert files.local_folder("gs://bucket/run") == files.local_folder("gs://bucket/run/") == copy.path
    assert files.local_folder("gs://bucket/run/a/b") == copy.path / "a" / "b"
    assert files.shown("see /tmp/copy/a") == "see gs://bucket/run/a"
    with pytest.raises(UserError):
        files.local_folder("gs://bucket/running")


HOLD = """
import pathlib, sys
from flanx import files
with files.lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    input()
"""


def test_a_lock_is_refused_while_another_process_holds_it_and_free_after_its_death(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "store" / ".lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another build"), files.lock(path, busy="another build"):
            pass
        holder.kill()
        holder.wait()
    with files.lock(path, busy="another build"):
        pass
    with files.lock(path):
        pass


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for read in (files.open_regular, files.read_json, files.read_jsonl, files.json_lines):
        with pytest.raises(UserError, match="not a regular file"):
            read(tmp_path / "pipe")


def test_csv_has_empty_fields_for_none_and_no_formulas():
    assert files.csv_text(["a", "b"], [[1, None], ["x,y", 2.5]]) == 'a,b\n1,\n"x,y",2.5\n'
    cells = ["=1+1", "+a", "-a", "@a", "-1.5", "+2", "-", -3, "a=b"]
    assert files.csv_text(["=a"], [cells]) == "'=a\n'=1+1,'+a,'-a,'@a,-1.5,+2,-,-3,a=b\n"


def test_a_bar_in_a_cell_does_not_end_it():
    assert files.markdown_table(["a", "b"], [["x|y", 1]]) == "| a | b |\n| --- | --- |\n| x\\|y | 1 |"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "not a regular file"),
        (b"a = \xff", "not UTF-8"),
        ("a = 1".encode("utf-16"), "not UTF-8"),
        (b"a = = 1", "not TOML"),
        (b"a = " + b"[" * 3000, "not TOML"),
    ],
)
def test_a_file_that_is_no_toml_is_named(tmp_path: pathlib.Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "a.toml"
    os.mkfifo(path) if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.toml.*{said}"):
        files.read_toml(path)
    (tmp_path / "b.toml").write_bytes(b"\xef\xbb\xbfa = 1\n")
    assert files.read_toml(tmp_path / "b.toml") == {"a": 1}


def test_a_home_folder_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"'~nosuchuser/x': there is no home folder '~nosuchuser'"):
        files.local_path("~nosuchuser/x")
