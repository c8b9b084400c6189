"""Rows of a source: bad ones are left out up to the limit, and row ids are those of the whole split."""

import pytest

from flanx.data.task import sources, spec
from flanx.errors import UserError

TASK = spec.TaskSpec(
    "mine_task", "mine", "extra", "mine.toml:1", "jsonl:mine.jsonl", {"train": "train"}, ("plain",), fields="keep(a)"
)
RAW = [(f"mine.jsonl:{n}", {"a": str(n)} if n % 2 else {"b": "no a"}) for n in range(10)]  # every other row is bad


def test_bad_rows_are_left_out_up_to_the_limit_and_refused_beyond_it():
    found = list(sources.rows(TASK, "train", max_bad_rows=5, raw=RAW))
    assert [(row, record) for row, _, record in found] == [(f"train:{n}", {"a": str(n)}) for n in (1, 3, 5, 7, 9)]
    with pytest.raises(UserError, match=r"mine_task: more than 4 bad rows, the last at mine.jsonl:8: no column 'a'"):
        list(sources.rows(TASK, "train", max_bad_rows=4, raw=RAW))


def test_a_split_of_bad_rows_alone_is_refused():
    with pytest.raises(UserError, match=r"every row of 'train' is bad, the last at mine.jsonl:8"):
        list(sources.rows(TASK, "train", raw=RAW[::2]))


def test_shards_have_the_rows_of_the_whole_split():
    whole = list(sources.rows(TASK, "train", raw=RAW[1::2]))
    shards = [list(sources.rows(TASK, "train", raw=RAW[1::2], shard=(index, 2))) for index in range(2)]
    assert sorted(shards[0] + shards[1]) == sorted(whole) and shards[0] == whole[::2]
