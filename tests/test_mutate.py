"""The table of breaks: each is found once in the code as it is, and leaves Python behind."""

import ast

from tests import mutate


def test_every_break_is_once_in_its_file_and_leaves_python():
    breaks = mutate.load()  # ends with the break whose text is not there once: change `find` with the code
    for each in breaks:
        ast.parse((mutate.ROOT / each.file).read_text(encoding="utf-8").replace(each.find, each.replace), each.what)
        assert mutate.tests_of(each), each.what
    assert len({each.what for each in breaks}) == len(breaks) >= 60
