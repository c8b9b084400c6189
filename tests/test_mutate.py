"""The table of breaks: each is found once in the code as it is, and leaves Python behind."""

import ast
import pathlib

import pytest

from tests import mutate


def test_every_break_is_once_in_its_file_and_leaves_python():
    breaks = mutate.load()  # ends with the break whose text is not there once: change `find` with the code
    for each in breaks:
        ast.parse((mutate.ROOT / each.file).read_text(encoding="utf-8").replace(each.find, each.replace), each.what)
        assert mutate.tests_of(each), each.what
    assert len({each.what for each in breaks}) == len(breaks) >= 60


def test_tests_of_a_file_that_is_skipped_catch_nothing(tmp_path: pathlib.Path):
    """As without an extra; a test that is not there ends the check."""
    skipped = 'import pytest\n\npytest.importorskip("no_such_module")\n\ndef test_of_it():\n    assert False\n'
    (tmp_path / "test_extra.py").write_text(skipped)
    (tmp_path / "test_here.py").write_text("def test_that_fails():\n    assert False\n")
    assert mutate.run(tmp_path, ["test_extra.py::test_of_it"]) == []
    assert mutate.run(tmp_path, ["test_here.py"]) == ["test_here.py::test_that_fails"]
    with pytest.raises(RuntimeError, match="pytest ended with 4"):
        mutate.run(tmp_path, ["test_here.py::test_that_is_not_there"])
