"""Damage of a folder is found and named."""

import pytest

from flanx import files
from flanx.convert import flanx_format
from flanx.errors import UserError
from flanx.storage import open_storage


def test_a_changed_missing_or_cut_file_is_named(tmp_path):
    (tmp_path / "d").mkdir()
    chunk = tmp_path / "d" / "0.0"
    chunk.write_bytes(b"\0" * 100)
    files.write_checksums(tmp_path)
    files.verify_checksums(tmp_path)
    for damage in (b"\0" * 99, b"\0" * 99 + b"\1", b""):
        chunk.write_bytes(damage)
        with pytest.raises(UserError, match=r"0\.0 has changed"):
            files.verify_checksums(tmp_path)
    chunk.unlink()
    with pytest.raises(UserError, match=r"0\.0 is missing"):
        files.verify_checksums(tmp_path)


def test_a_folder_without_a_record_is_taken_as_it_is(tmp_path):
    (tmp_path / "0.0").write_bytes(b"written")
    files.write_checksums(tmp_path)
    (tmp_path / "0.0").write_bytes(b"changed")
    with pytest.raises(UserError, match=r"0\.0 has changed"):
        files.verify_checksums(tmp_path)
    (tmp_path / files.CHECKSUMS).unlink()
    files.verify_checksums(tmp_path)


def test_a_damaged_checkpoint_is_not_converted(tmp_path):
    item = tmp_path / "checkpoint_3" / "default"
    item.mkdir(parents=True)
    (item / "_METADATA").write_text("{}")
    files.write_checksums(item.parent)
    (item / "_METADATA").write_text("[]")
    with pytest.raises(UserError, match="_METADATA has changed"):
        flanx_format.read(open_storage(item.parent))


@pytest.mark.parametrize("record", ['{"a": 5}', '{"a": [1]}', '{"a": [1, "x"]}', '{"a": {}}', "[]", ""])
def test_a_damaged_record_is_named(tmp_path, record):
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / files.CHECKSUMS).write_text(record)
    with pytest.raises(UserError, match=rf"{files.CHECKSUMS} is damaged"):
        files.verify_checksums(tmp_path)
