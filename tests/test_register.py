"""Rows become SeqIO examples: chain-of-thought files, bad rows, absent files, names in the registries."""

import logging

import numpy as np
import pytest
import seqio

import flanx.tasks  # noqa: F401  (registers)
from flanx.data import example, register, source, spec, vocabulary
from flanx.errors import UserError

BYTE = vocabulary.load("byte")
GSM8K = spec.load_tables()["cot_gsm8k"]


def write_cot(folder, lines, name="gsm8k"):
    (folder / "cot").mkdir(exist_ok=True)
    (folder / "cot" / f"{name}_train.tsv").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return folder


def test_every_name_of_the_tables_is_in_a_registry_of_seqio():
    for name, task in spec.load_tables().items():
        assert seqio.get_mixture_or_task(name).name == name
        for style in task.styles:
            assert seqio.get_mixture_or_task(f"{name}_{style}").output_features.keys() == {"inputs", "targets"}


def test_examples_hold_tokens_texts_and_their_origin(tmp_path):
    write_cot(tmp_path, [f"How many is {i}?\t{i}\tCount.\\nThen say it." for i in range(300)])
    task = register.make_task(GSM8K, "zsopt", BYTE, data_dir=tmp_path)
    found = list(task.get_dataset(split="train", shuffle=False, sequence_length=None).as_numpy_iterator())
    assert len(found) == 300
    one = found[7]
    text = one["inputs_pretokenized"].decode()
    assert one["inputs"].dtype == np.int32
    assert one["inputs"].tolist() == [*BYTE.encode(text), 1]
    assert one["targets"].tolist() == [*BYTE.encode(one["targets_pretokenized"].decode()), 1]
    assert {key: one[key] for key in ("task", "dataset", "style", "shots", "row")} == {
        "task": b"cot_gsm8k",
        "dataset": b"gsm8k",
        "style": b"zsopt",
        "shots": 0,
        "row": b"train:7",
    }


def test_shards_part_the_examples(tmp_path):
    write_cot(tmp_path, [f"How many is {i}?\t{i}\tCount to {i}." for i in range(30)])
    task = register.make_task(GSM8K, "fsopt", BYTE, data_dir=tmp_path)
    shards = [
        task.get_dataset(split="train", shuffle=False, sequence_length=None, shard_info=seqio.ShardInfo(i, 7))
        for i in range(7)
    ]
    rows = [one["row"] for shard in shards for one in shard.as_numpy_iterator()]
    assert sorted(rows) == sorted(f"train:{i}".encode() for i in range(30))


def test_bad_rows_are_named_counted_and_limited(tmp_path, caplog):
    write_cot(tmp_path, ["How many?\t3\tCount.", "no tabs here", "How many?\t\tCount.", "Which?\t4\tLook."])
    with caplog.at_level(logging.WARNING, "flanx"):
        assert len(list(source.rows(GSM8K, "train", tmp_path))) == 2
    assert "gsm8k_train.tsv:2: 1 columns instead of 3 (question, answer, rationale)" in caplog.text
    assert "gsm8k_train.tsv:3: empty answer" in caplog.text
    assert "2 bad rows" in caplog.text
    with pytest.raises(
        UserError, match=r"cot_gsm8k: more than 1 bad rows, the last at .*gsm8k_train.tsv:3: empty answer"
    ):
        list(source.rows(GSM8K, "train", tmp_path, max_bad_rows=1))


def test_an_absent_file_names_the_task_and_the_file(tmp_path):
    assert source.missing(GSM8K, tmp_path).startswith(f"task cot_gsm8k: no file {tmp_path}/cot/gsm8k_train.tsv")
    register.make_task(GSM8K, "zsopt", BYTE, data_dir=tmp_path)
    with pytest.raises(UserError, match=r"task cot_gsm8k: no file .*gsm8k_train.tsv"):
        next(example.render_rows(GSM8K, "zsopt", "train", tmp_path))


def test_few_shot_prompts_keep_to_the_limit_of_their_vocabulary(tmp_path):
    write_cot(tmp_path, [f"{'very ' * (i // 5)} long question {i}?\t{i}\tCount." for i in range(0, 500, 5)])
    rows = list(example.render_rows(GSM8K, "fsopt", "train", tmp_path, count=lambda text: len(BYTE.encode(text))))
    assert rows
    assert all(len(row.inputs.encode()) <= 1920 and row.shots >= 1 for row in rows)
    assert {row.shots for row in rows} >= {1, 5}


def test_real_sets(data_dir):
    """Every chain-of-thought set present: all rows, both styles."""
    for name, task in spec.load_tables().items():
        if task.collection != "cot" or source.missing(task, data_dir):
            continue
        for style in task.styles:
            rows = list(example.render_rows(task, style, "train", data_dir, count=len))
            assert len(rows) > 0.95 * task.num_examples, name
            assert all(row.inputs and row.targets for row in rows)
