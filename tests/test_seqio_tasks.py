"""Rows become SeqIO examples: chain-of-thought files, bad rows, absent files, names in the registries."""

import functools
import itertools
import json
import logging

import numpy as np
import pytest
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

import flanx.tasks  # noqa: F401  (registers)
from flanx.data import vocabulary
from flanx.data.task import fields, render, select, sources
from flanx.data.task import tables as task_tables
from flanx.errors import UserError
from flanx.seqio import tasks as register
from flanx.seqio.vocabularies import to_seqio

BYTE = vocabulary.load("byte")
GSM8K = task_tables.load_tables()["cot_gsm8k"]


def words(text):
    """About as many as the tokens of a SentencePiece vocabulary."""
    return len(text) // 4


def write_cot(folder, lines, name="gsm8k"):
    (folder / "cot").mkdir(exist_ok=True)
    (folder / "cot" / f"{name}_train.tsv").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return folder


def test_every_name_of_the_tables_is_in_a_registry_of_seqio():
    for name, task in task_tables.load_tables().items():
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


def test_a_task_without_an_example_says_so_and_ends_no_mixture_in_silence(tmp_path):
    write_cot(tmp_path, ["How many?\t1\tCount."])  # one row: no other that could be its exemplar
    write_cot(tmp_path, [f"How many is {i}?\t{i}\tCount." for i in range(30)], "creak")
    creak = register.make_task(task_tables.load_tables()["cot_creak"], "fsopt", BYTE, data_dir=tmp_path)
    task = register.make_task(GSM8K, "fsopt", BYTE, data_dir=tmp_path)
    data = seqio.Mixture("two", [(creak, 1.0), (task, 1.0)]).get_dataset(None, "train", num_epochs=None)
    with pytest.raises(tf.errors.OpError, match="task cot_gsm8k: no example of style fsopt in shard 1 of 1 of 'train'"):
        list(data.take(50).as_numpy_iterator())


def test_the_byte_vocabulary_of_the_tasks_is_that_of_a_store(monkeypatch):
    monkeypatch.setenv("FLANX_VOCABULARY", "byte")
    assert register.default_vocabulary.__wrapped__() == to_seqio(BYTE)  # T5X compares a model's with its task's


def test_shards_part_the_examples(tmp_path):
    write_cot(tmp_path, [f"How many is {i}?\t{i}\tCount to {i}." for i in range(30)])
    task = register.make_task(GSM8K, "fsopt", BYTE, data_dir=tmp_path)
    shards = [
        task.get_dataset(split="train", shuffle=False, sequence_length=None, shard_info=seqio.ShardInfo(i, 7))
        for i in range(7)
    ]
    parts = [{one["row"]: one["inputs_pretokenized"] for one in shard.as_numpy_iterator()} for shard in shards]
    assert [len(part) for part in parts] == [5, 5, 4, 4, 4, 4, 4]
    whole = task.get_dataset(split="train", shuffle=False, sequence_length=None)
    joined = {row: text for part in parts for row, text in part.items()}
    assert joined == {one["row"]: one["inputs_pretokenized"] for one in whole.as_numpy_iterator()}


def test_a_shard_renders_its_own_rows_only(tmp_path, monkeypatch):
    write_cot(tmp_path, [f"How many is {i}?\t{i}\tCount to {i}." for i in range(30)])
    made = []
    run = fields.Pipeline.run
    monkeypatch.setattr(fields.Pipeline, "run", lambda self, record, draw: made.append(1) or run(self, record, draw))
    assert len(list(render.render_rows(GSM8K, "zsopt", "train", tmp_path, shard=(1, 3)))) == len(made) == 10


def test_bad_rows_are_named_counted_and_limited(tmp_path, caplog):
    write_cot(tmp_path, ["How many?\t3\tCount.", "no tabs here", "How many?\t\tCount.", "Which?\t4\tLook."])
    with caplog.at_level(logging.WARNING, "flanx"):
        assert len(list(sources.rows(GSM8K, "train", tmp_path))) == 2
    assert "gsm8k_train.tsv:2: 1 columns instead of 3 (question, answer, rationale)" in caplog.text
    assert "gsm8k_train.tsv:3: empty answer" in caplog.text
    assert "bad rows left out of 'train': 2" in caplog.text
    with pytest.raises(
        UserError, match=r"cot_gsm8k: more than 1 bad rows, the last at .*gsm8k_train.tsv:3: empty answer"
    ):
        list(sources.rows(GSM8K, "train", tmp_path, max_bad_rows=1))


def test_a_file_of_bad_rows_alone_is_an_error(tmp_path):
    write_cot(tmp_path, ["no tabs here", "nor here"])
    with pytest.raises(
        UserError, match=r"cot_gsm8k: every row of 'train' is bad, the last at .*gsm8k_train.tsv:2: 1 col"
    ):
        list(render.render_rows(GSM8K, "zsopt", "train", tmp_path))


def test_an_absent_file_names_the_task_and_the_file(tmp_path):
    assert sources.missing(GSM8K, tmp_path).startswith(f"task cot_gsm8k: no file {tmp_path}/cot/gsm8k_train.tsv")
    register.make_task(GSM8K, "zsopt", BYTE, data_dir=tmp_path)
    with pytest.raises(UserError, match=r"task cot_gsm8k: no file .*gsm8k_train.tsv"):
        next(render.render_rows(GSM8K, "zsopt", "train", tmp_path))


def test_a_split_is_read_where_another_one_is_absent(tmp_path):
    (tmp_path / "mmlu" / "data" / "test").mkdir(parents=True)
    (tmp_path / "mmlu" / "data" / "test" / "astronomy_test.csv").write_text("Which?,a,b,c,d,B\n")
    task = register.make_task(task_tables.load_tables()["mmlu_astronomy"], "zsopt", BYTE, data_dir=tmp_path)
    for provider in (task, register.Mixture("one", [(task, 1.0)])):
        assert len(list(provider.get_dataset(None, "test", num_epochs=1))) == 1
        with pytest.raises(UserError, match=r"no file .*astronomy_val.csv"):
            provider.get_dataset(None, "validation")


def test_few_shot_prompts_keep_to_the_limit_of_their_vocabulary(tmp_path):
    write_cot(tmp_path, [f"{'very ' * (i // 5)} long question {i}?\t{i}\tCount." for i in range(0, 500, 5)])
    rows = list(render.render_rows(GSM8K, "fsopt", "train", tmp_path, count=lambda text: len(BYTE.encode(text))))
    assert rows
    assert all(len(row.inputs.encode()) <= 1920 and row.shots >= 1 for row in rows)
    assert {row.shots for row in rows} >= {1, 5}


def test_real_sets(data_dir):
    """Every chain-of-thought set present: all rows, and 200 few-shot prompts."""
    for name, task in task_tables.load_tables().items():
        if task.collection != "cot" or sources.missing(task, data_dir):
            continue
        rows = list(render.render_rows(task, "zsopt", "train", data_dir, count=len))
        assert len(rows) > 0.99 * task.num_examples, name
        assert all(row.inputs and row.targets for row in rows)
        few = list(itertools.islice(render.render_rows(task, "fsopt", "train", data_dir, count=words), 200))
        assert len(few) == 200 and all(row.shots for row in few)


def test_registering_touches_no_data(monkeypatch):
    """`import flanx.tasks` reads no file of a task and no TFDS builder."""
    monkeypatch.delenv("FLANX_DATA_DIR", raising=False)
    monkeypatch.setattr(tfds, "builder", None)  # a call would fail
    monkeypatch.setattr(tfds, "load", None)
    monkeypatch.setattr(seqio.TaskRegistry, "_REGISTRY", {})
    monkeypatch.setattr(seqio.MixtureRegistry, "_REGISTRY", {})
    task_tables._load.cache_clear()
    fields.parse.cache_clear()
    register.register_all()
    assert len(seqio.TaskRegistry.names()) > 2 * 1836


def test_a_mixture_goes_on_without_an_absent_file_and_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("FLANX_DATA_DIR", str(tmp_path))
    write_cot(tmp_path, [f"How many is {i}?\t{i}\tCount to {i}." for i in range(9)])
    tasks = [
        register.make_task(task, "fsopt", BYTE)
        for task in task_tables.load_tables().values()
        if task.collection == "cot"
    ]
    mixture = register.Mixture("cot", [(task, 1.0) for task in tasks])
    with caplog.at_level(logging.WARNING, "flanx"):
        data = mixture.get_dataset({"inputs": 64, "targets": 64}, "train", shuffle=False, num_epochs=1)
    assert "mixture cot leaves out task cot_esnli: no file" in caplog.text
    assert next(data.as_numpy_iterator())["inputs"].size
    monkeypatch.setenv("FLANX_DATA_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="mixture cot: no task has its data"):
        mixture.get_dataset({"inputs": 64, "targets": 64}, "train")


def by_task(name, tables):
    """Share of all draws of each task."""
    shares = register.shares(name, select.of_tables(tables.tasks))
    return select.total_by((task, share) for (task, _), share in shares.items())


def test_rates_of_the_paper_s_mixture():
    """Collections share as printed in table 23 (27.9 of 99.9 for T0-SF); inside one, min(examples, cap)."""
    tables = task_tables.load()
    weights = by_task("proportion_b", tables)
    assert len(weights) == 1836
    total = sum(weights.values())
    t0 = sum(w for name, w in weights.items() if tables.tasks[name].collection == "t0_sf")
    assert t0 / total == pytest.approx(27.9 / 99.9)
    large = tables.tasks["niv2_task002_quoref_answer_generation"]
    small = tables.tasks["niv2_task053_multirc_correct_bad_question"]
    assert (large.num_examples, small.num_examples) == (6500, 58)
    assert weights[large.name] / weights[small.name] == pytest.approx(5000 / 58)
    assert not [name for name in weights if tables.tasks[name].held_out]


def test_a_group_has_its_own_part_of_a_mixture_that_names_it():
    tables = task_tables.load()
    weights = by_task("released", tables)
    assert len(weights) == 1836
    talks = [w for name, w in weights.items() if tables.tasks[name].group == "dialog"]
    assert len(talks) == 3 and sum(talks) / sum(weights.values()) == pytest.approx(0.03)
    assert len(seqio.get_mixture_or_task("program_synthesis").tasks) == 5 * 2


def test_a_target_that_is_cut_ends_with_the_end_of_sequence(tmp_path):
    write_cot(tmp_path, [f"How many is {i}?\t{i}\t{'Count. ' * 20}" for i in range(5)])
    task = register.make_task(GSM8K, "zsopt", BYTE, data_dir=tmp_path)
    made = list(task.get_dataset({"inputs": 12, "targets": 9}, "train", shuffle=False).as_numpy_iterator())
    assert len(made) == 5
    for example in made:
        assert example["inputs"].size == 12 and example["targets"].size == 9
        assert example["inputs"][-1] == example["targets"][-1] == 1


def registered_over(tmp_path, monkeypatch, name, collections):
    """A mixture of the tables, without its other collections, that reads from `tmp_path`."""
    monkeypatch.setenv("FLANX_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("FLANX_VOCABULARY", "byte")
    register.default_vocabulary.cache_clear()
    tables = task_tables.load()
    tasks = {n: t for n, t in select.of_tables(tables.tasks).items() if t["collection"] in collections}
    parts = [(register.make_task(tables.tasks[task], style, BYTE), share)
             for (task, style), share in register.shares(name, tasks).items()]  # fmt: skip
    mixture = register.Mixture(name, parts)
    mixture.reshare = functools.partial(register._reshared, name, tasks)
    return mixture


def test_absent_tasks_and_empty_styles_leave_the_shares_as_asked(tmp_path, monkeypatch):
    """Two of nine CoT sets, one of them with a row too few for exemplars, and one NIV2 task: still 50 to 50."""
    write_cot(tmp_path, [f"How many is {i}?\t{i}\tCount." for i in range(30)], "creak")
    write_cot(tmp_path, ["How many?\t1\tCount."])
    name = next(n for n in task_tables.load_tables() if n.startswith("niv2_"))
    folder = tmp_path / "natural_instructions" / "tasks"
    folder.mkdir(parents=True)
    source = task_tables.load_tables()[name].source.partition(":")[2]
    rows = [{"input": f"in {i}", "output": [f"out {i}"]} for i in range(40)]
    task = {"Definition": "Do.", "Positive Examples": [], "Instances": rows}
    (folder / f"{source}.json").write_text(json.dumps(task))
    mixture = registered_over(tmp_path, monkeypatch, "cot_niv2", ("cot", "niv2"))
    shares = {}

    class Taken:
        def __init__(self, name, left):
            shares.update({task.name: rate for task, rate in left})

        def get_dataset(self, *unused):
            """Nothing: the rates are what is looked at."""

    monkeypatch.setattr(seqio, "Mixture", Taken)
    monkeypatch.setattr(register, "LIVE_PAIRS", 10**6)
    mixture.get_dataset({"inputs": 64, "targets": 64}, "train")
    assert "cot_gsm8k_fsopt" not in shares and shares["cot_gsm8k_zsopt"] > 0
    total = sum(shares.values())
    assert sum(rate for task, rate in shares.items() if task.startswith("cot_")) / total == pytest.approx(0.5)


def test_a_split_that_no_task_has_and_many_live_pairs_are_told(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("FLANX_DATA_DIR", str(tmp_path))
    write_cot(tmp_path, [f"How many is {i}?\t{i}\tCount." for i in range(9)])
    mixture = register.Mixture("one", [(register.make_task(GSM8K, "zsopt", BYTE), 1.0)])
    with pytest.raises(
        UserError, match="mixture one: no task has its data; the first: task cot_gsm8k: no split 'test'"
    ):
        mixture.get_dataset(None, "test")
    monkeypatch.setattr(register, "LIVE_PAIRS", 0)
    with caplog.at_level(logging.WARNING, "flanx"):
        mixture.get_dataset({"inputs": 64, "targets": 64}, "train")
    assert "store_mixture('mine', STORE_DIR, 'one')" in caplog.text


def test_seqio_scores_a_task_with_its_own_evaluator(tmp_path):
    (tmp_path / "gsm8k").mkdir()
    lines = ['{"question": "How many?", "answer": "Count. #### 3"}', '{"question": "How old?", "answer": "#### 1,400"}']
    (tmp_path / "gsm8k" / "test.jsonl").write_text("\n".join(lines))
    task = register.make_task(
        task_tables.load_tables()["gsm8k_test"], "zsopt", vocabulary.load("byte"), data_dir=tmp_path
    )
    seqio.TaskRegistry.add_provider("test_measure_gsm8k", task)
    evaluator = seqio.Evaluator("test_measure_gsm8k", feature_converter=seqio.EncDecFeatureConverter(pack=False),
                                eval_split="test", sequence_length={"inputs": 64, "targets": 16})  # fmt: skip
    said = ["The answer is 3.", "The answer is 1400."]
    metrics, _ = evaluator.evaluate(
        compute_metrics=True,
        predict_fn=lambda data, model_feature_shapes=None: [
            (i, (vocabulary.load("byte").encode(text) + [1] + 32 * [0])[:32]) for i, text in enumerate(said)
        ],
        score_fn=lambda data, model_feature_shapes=None: [],
    )
    assert metrics.result()[task.name]["final_answer"] == 100.0
