"""Settings mean something or are refused, before anything is read or written."""

import argparse
import math
import pathlib
import re

import pytest

from flanx import config, evaluate, lora, optim, settings, train, train_step
from flanx.data.pipeline import mixture
from flanx.errors import UserError

FILES = ["runs/train.gin", "models/t5_1_1/tiny.gin"]
GIVEN = {
    "STORE_DIR": "'store'",
    "VOCABULARY": "'byte'",
    "MIXTURE_OR_TASK_NAME": "'suite_text'",
    "MODEL_DIR": "'run'",
    "TRAIN_STEPS": "6",
    "TASK_FEATURE_LENGTHS": "{'inputs': 64, 'targets': 24}",
}


def parse(**changes: str) -> None:
    config.parse(
        FILES, [f"{k}={v}" for k, v in (GIVEN | {k.replace("__", "."): v for k, v in changes.items()}).items()]
    )


REFUSED = [
    *(("TRAIN_STEPS", value) for value in ("-5", "1.5", "'1'", "[]", "True", "1e400", "float", "10**3")),
    *(("BATCH_SIZE", value) for value in ("0", "-1", "'64'", "1.5", "None", "99999999999999999999", "100000000")),
    *(("SEED", value) for value in ("-1", "1.5", "[]", "5000000000")),
    *(("LEARNING_RATE", value) for value in ("-1", "'1e-3'", "None", "[]", "1e400", "(0.001,)")),
    *(("DROPOUT_RATE", value) for value in ("10", "1.0", "-0.1", "'a'")),
    *(("NUM_TASKS", value) for value in ("2.5", "-1", "[]")),
    *(("COT_RATIO", value) for value in ("-1", "2", "'0.1'")),
    *(("NUM_PARTITIONS", value) for value in ("0", "'a'", "None", "1.5")),
    *(("EVAL_PERIOD", value) for value in ("0", "1.5", "'a'")),
    *(("CHECKPOINT_PERIOD", value) for value in ("0", "None", "'a'", "-1")),
    *(
        ("STORE_DIR", value)
        for value in ("5", "''", r"'a\x00b'", r"'a\nb'", "'gs:'", "'~nosuchuser/x'", repr("x" * 300))
    ),
    *(("MODEL_DIR", value) for value in ("'http://b/x'", "'s3:///x'", "None", "' '", "'gs:x'")),
    *(("VOCABULARY", value) for value in ("5", "None", "''")),
    *(("MIXTURE_OR_TASK_NAME", value) for value in ("5", "None")),
    *(("TASK_FEATURE_LENGTHS", value) for value in ("None", "[]", "(128, 64)", "{'inputs': 64.5, 'targets': 24}")),
    ("EVALUATOR", "'x'"),
    ("ACTIVATION_DTYPE", "5"),
    ("checkpoint.SaveCheckpointConfig.keep", "0"),
    ("checkpoint.SaveCheckpointConfig.timeout", "-1"),
    ("train.train.log_period", "0"),
    ("train.train.fork", "'yes'"),
    ("mixture.Mixture.caps", "{'suite_text': 'many'}"),
    ("mixture.Mixture.rates", "[('suite_text', 1)]"),
    ("t5.T5.num_encoder_layers", "-1"),
    ("t5.T5.num_heads", "'a'"),
    ("t5.T5.num_heads", "1e30"),
    ("checkpoint.SaveCheckpointConfig.timeout", "1e30"),
    ("train/batches.DatasetConfig.batch_size", "2"),
]


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_a_value_that_means_nothing_is_refused_by_name(name, value):
    with pytest.raises(UserError) as caught:
        parse(**{name: value})
    message = str(caught.value)
    assert name.rpartition(".")[2].rpartition("/")[2] in message and len(message.splitlines()) <= 5, message


@pytest.mark.parametrize("text", ["1e6", "1000000.0", "1_000_000"])
def test_a_whole_number_is_taken_however_it_is_written(text):
    parse(TRAIN_STEPS=text)
    steps = config.value("TRAIN_STEPS")
    assert (steps, type(steps)) == (1_000_000, int)


@pytest.mark.parametrize(
    ("function", "name", "values"),
    [
        (optim.muon, "beta", (1.0, -0.1, math.nan, "0.9")),
        (optim.muon, "adam_learning_rate", (-1e-3, math.inf, "1e-3")),
        (optim.muon, "consistent_rms", (0, -0.2, "0.2")),
        (lora.Adapter, "rank", (0, -1, 1.5, None)),
        (lora.Adapter, "alpha", (0, -16.0, math.nan)),
        (lora.Adapter, "dropout", (1.0, -0.1, 5)),
        (lora.Adapter, "start", ("", "a\0", "~nosuchuser/x")),
        (train.train, "compilation_cache", ("", "~nosuchuser/x", 5)),
        (evaluate.evaluate, "step", (-1, 1.5, "3")),
    ],
)
def test_a_value_of_what_few_runs_bind_is_refused_too(function, name, values):
    for value in values:
        with pytest.raises(settings.Wrong):
            settings.check(function, name, value)


def test_a_path_means_what_people_mean(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert settings.check(lora.Adapter, "start", "file:///runs/a") == "/runs/a"
    assert settings.check(train.train, "compilation_cache", "~/cache") == "/home/ada/cache"
    assert settings.path_flag("~/my.gin") == "/home/ada/my.gin"
    parse(MODEL_DIR="'~/run'", STORE_DIR="'file:///data/store'")
    assert config.value("MODEL_DIR") == "/home/ada/run"
    assert config.value("STORE_DIR") == "/data/store"


def test_all_that_is_missing_is_named_at_once():
    with pytest.raises(UserError) as caught:
        config.parse(["runs/train.gin"], [])
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 and all(name in lines[0] for name in ("STORE_DIR", "TRAIN_STEPS", "a --gin_file of models/"))
    with pytest.raises(UserError, match="models/"):
        config.parse(["runs/train.gin"], [f"{k}={v}" for k, v in GIVEN.items() if k != "MIXTURE_OR_TASK_NAME"])


def test_several_wrong_values_are_named_at_once():
    with pytest.raises(UserError) as caught:
        parse(TRAIN_STEPS="-1", BATCH_SIZE="0")
    assert {"TRAIN_STEPS", "BATCH_SIZE"} <= set(re.findall("[A-Z_]{8,}", str(caught.value)))


def test_every_number_that_gin_files_bind_has_a_range():
    from flanx import checkpoint, infer, partition, validation
    from flanx.convert import architecture
    from flanx.data import mixture_stats
    from flanx.data.pipeline import batches
    from flanx.data.store import build
    from flanx.decoding import decode
    from flanx.models import palm, t5

    bound = [
        train.train, evaluate.evaluate, infer.infer, train_step.Trainer, batches.DatasetConfig, decode.Sample, t5.T5,
        palm.PaLM, partition.Partitioner, checkpoint.SaveCheckpointConfig, build.build_store, lora.Adapter,
        validation.ValidationConfig, architecture.read_model, mixture.Mixture, mixture_stats.describe_mixture,
        *(getattr(optim, name) for name in ("adafactor", "adamw", "adamw_8bit", "adamw_bfloat16", "muon", "linear")),
        *(getattr(optim, name) for name in ("cosine", "constant", "rsqrt_with_warmup")),
    ]  # fmt: skip
    numbers = {
        n for f in bound for n, hint in settings.annotations(f).items() if re.search(r"\b(int|float)\b", str(hint))
    }
    numbers -= {"logical_axis_rules", "params", "suites", "tasks", "name"}  # tasks, name: of mixtures, with rates
    assert not sorted(numbers - set(settings.RANGES))


def test_a_range_says_what_it_holds():
    assert str(settings.BELOW_ONE) == "0 or more, below 1" and 1.0 not in settings.BELOW_ONE
    assert math.nan not in settings.RATE


def test_a_gin_file_that_includes_itself(tmp_path: pathlib.Path):
    (tmp_path / "self.gin").write_text(f'include "{tmp_path}/self.gin"\n')
    with pytest.raises(UserError, match="includes itself"):
        config.parse([str(tmp_path / "self.gin")])


@pytest.mark.parametrize("content", [b"A = '\xe9'\n", b"A\0 = 3", b"\xff\xfeA\0", b"A = " + b"[" * 3000 + b"]" * 3000])
def test_a_gin_file_that_is_none(content: bytes, tmp_path: pathlib.Path):
    (tmp_path / "a.gin").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.gin"):
        config.parse([str(tmp_path / "a.gin")])


def test_a_folder_that_is_a_number_is_refused_for_a_build_too():
    with pytest.raises(UserError, match="STORE_DIR is 5"):
        config.parse(["runs/store.gin"], ["STORE_DIR=5", "VOCABULARY='byte'", "MIXTURE_OR_TASK_NAME='suite_text'"])


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "a", "", "1e400", "0"])
def test_a_number_of_a_flag_is_finite_and_in_its_range(text):
    with pytest.raises(argparse.ArgumentTypeError, match="it takes a number, above 0"):
        settings.flag(float, settings.POSITIVE)(text)
    assert settings.flag(float, settings.POSITIVE)("0.5") == 0.5
    assert settings.flag(int, settings.COUNT)("3") == 3


@pytest.mark.parametrize("text", ["", " ", "~nosuchuser/x", "a\0b", "gs:x", "x" * 300])
def test_a_path_of_a_flag_is_one(text):
    with pytest.raises(argparse.ArgumentTypeError, match="it takes a"):
        settings.path_flag(text)


def test_a_path_that_exists_is_one_whatever_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gs:x").mkdir()
    assert [settings.path_flag(text) for text in ("gs:x", "./gs:y")] == ["gs:x", "./gs:y"]


@pytest.mark.parametrize("value", ["[1", "{1: 2", "((("])
def test_a_bracket_that_is_not_closed(value: str, tmp_path: pathlib.Path):
    (tmp_path / "a.gin").write_text(f"A = 1\nB = {value}\n")
    with pytest.raises(UserError, match=r"a\.gin:\d+: .*not closed\?"):
        config.parse([str(tmp_path / "a.gin")])
    (tmp_path / "b.gin").write_text("A = 1\nB = %A\n")
    with pytest.raises(UserError, match=r"--gin\.A="):
        config.parse([str(tmp_path / "b.gin")], [f"A={value}"])


def test_passwords_and_tokens_are_refused_as_runs_record_their_settings():
    for name, value in (("STORE_DIR", "https://me:secret@host/x"), ("MODEL_DIR", "hf_" + 30 * "a")):
        with pytest.raises(UserError, match="would be written into the run's records"):
            parse(**{name: repr(value)})


def test_a_switch_has_no_range_though_a_number_of_its_name_has_one():
    with pytest.raises(settings.Wrong, match=r"^True or False$"):
        settings.check(train_step.Trainer, "dropout", 0.1)


def test_a_list_of_names_and_rates_is_described():
    with pytest.raises(settings.Wrong, match=r"^a text or a list of texts or \(text, number\)$"):
        settings.check(mixture.Mixture, "name", ("cot", 0.5))
