"""Validation while training: the numbers of unpacked rows on any mesh, transformers' loss, and what a run records."""

import contextlib
import dataclasses
import json
import math
import pathlib
import shutil
import signal
import types
import unittest.mock
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flanx
from flanx import validation
from flanx.checkpoint import Checkpoints
from flanx.cli import main
from flanx.convert import flanx_format
from flanx.data import store, vocabulary
from flanx.data.pipeline.batches import Batches, DatasetConfig
from flanx.data.pipeline.mixture import Mixture
from flanx.data.store.assemble import write_store
from flanx.errors import UserError
from flanx.models.palm import PaLM
from flanx.models.t5 import T5
from flanx.partition import Partitioner
from flanx.storage import open_storage
from flanx.train_metrics import MetricsLog, read_metrics
from flanx.train_step import Trainer, TrainState
from flanx.validation import ValidationBatches, ValidationConfig, Validator
from tests import drawn, run_case, store_maker

LENGTHS = {"inputs": 40, "targets": 12}
SIZES = {"vocab_size": 259, "emb_dim": 16, "num_heads": 2, "head_dim": 8, "mlp_dim": 32}
MODELS = {
    "encoder_decoder": T5(**SIZES, num_encoder_layers=1, num_decoder_layers=1, dropout_rate=0.1),
    "decoder_only": PaLM(**SIZES, num_layers=1),
}
TASKS = {"cot/cot_a": 30, "cot/cot_b": 9, "niv2/niv2_c": 60}


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> store.Store:
    """A store, in whose folder `validation` are the validation splits of two of its tasks and a test split."""
    folder = tmp_path_factory.mktemp("store")
    made = store_maker.make(folder, TASKS, lengths=(14, 5))
    splits = {"cot/cot_a:validation": 23, "niv2/niv2_c:validation": 40, "cot/cot_b:test": 5}
    store_maker.make(folder / "validation", splits, lengths=(14, 5))
    return made


def make_validator(opened: store.Store, packing: str, devices: int = 1, rows: int = 8, limit: int = 100) -> Validator:
    """Of all splits of the store."""
    like = Batches(opened, Mixture("cot"), LENGTHS, rows, packing=packing)
    held = store.open_store(opened.path / "validation")
    trainer = Trainer(MODELS[packing], optax.sgd(0.1), label_smoothing=0.1, loss_normalizing_factor="tokens")
    partitioner = Partitioner(devices=jax.devices()[:devices])
    return Validator(ValidationBatches(held, list(held.tasks), like, limit, rows), trainer, partitioner, "byte", 2, 10)


def evaluate(validator: Validator, params: dict) -> dict:
    with validator._partitioner.scope():
        placed = jax.device_put(params, validator._partitioner.everywhere())
        return validator.evaluate(placed)


def by_hand(opened: store.Store, packing: str, params: dict) -> dict[str, dict[str, float]]:
    """The numbers of each task, one example to a row, from the definition."""
    held, model, found = store.open_store(opened.path / "validation"), MODELS[packing], {}
    for name, task in held.tasks.items():
        (part,) = task.parts["zsopt"]
        pairs = [held.example(part, i) for i in range(part.examples)]
        pairs = [[cut(side, LENGTHS[key]) for side, key in zip(pair, LENGTHS, strict=True)] for pair in pairs]
        rows = [[pair] for pair in pairs]
        batch = drawn.decoder_only(rows, 52) if packing == "decoder_only" else drawn.encoder_decoder(rows, 40, 12)
        logits = np.asarray(model.logits(params, batch), np.float64)
        targets, weights = np.asarray(batch["decoder_target_tokens"]), np.asarray(batch["decoder_loss_weights"])
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        losses = -np.take_along_axis(log_p, targets[..., None], -1)[..., 0] * weights
        texts = [vocabulary.load("byte").decode(pair[1]) for pair in pairs]
        found[name.removesuffix(":validation")] = {
            "loss": losses.sum() / weights.sum(),
            "bits_per_byte": losses.sum() / math.log(2) / sum(len(text.encode()) for text in texts),
            "accuracy": ((logits.argmax(-1) == targets) * weights).sum() / weights.sum(),
            "tokens": int(weights.sum()),
        }
    return found


def cut(side: np.ndarray, limit: int) -> list[int]:
    return side.tolist() if len(side) <= limit else [*side[: limit - 1].tolist(), 1]


@pytest.mark.parametrize("packing", ["encoder_decoder", pytest.param("decoder_only", marks=pytest.mark.slow)])
def test_the_numbers_are_those_of_unpacked_rows_on_any_mesh_and_in_any_batch(opened, packing):
    params = jax.tree.map(np.asarray, drawn.params(MODELS[packing]))
    wanted = by_hand(opened, packing, params)
    first = evaluate(make_validator(opened, packing), params)
    assert first["examples"] == 23 + 40 + 5 and set(first["tasks"]) == {"cot_a", "niv2_c", "cot_b:test"}
    for task, numbers in wanted.items():
        assert first["tasks"][task] == pytest.approx(numbers, rel=1e-5), task
    tokens = sum(each["tokens"] for each in wanted.values())
    for key in ("loss", "accuracy"):
        assert first[f"macro_{key}"] == pytest.approx(sum(each[key] for each in wanted.values()) / 3, rel=1e-5)
        whole = sum(each[key] * each["tokens"] for each in wanted.values()) / tokens
        assert first[key] == pytest.approx(whole, rel=1e-5)
    both = [wanted["cot_a"], wanted["cot_b:test"]]
    assert first["collections"]["cot"]["tokens"] == sum(each["tokens"] for each in both)
    if packing == "decoder_only":
        return  # one model on another mesh is enough
    other = evaluate(make_validator(opened, packing, devices=4, rows=4), params)
    for name in ("loss", "macro_loss", "bits_per_byte", "accuracy", "macro_accuracy", "tokens", "examples"):
        assert other[name] == pytest.approx(first[name], rel=1e-5)


def test_the_loss_is_transformers_own_on_the_same_batch(opened):
    pytest.importorskip("torch", reason="torch is in the extra hf")
    pytest.importorskip("transformers", reason="transformers is in the extra hf")
    import torch

    from tests.test_t5_transformers import theirs_with

    model = T5(**SIZES, num_encoder_layers=2, num_decoder_layers=2)
    params = drawn.params(model)
    held = store.open_store(opened.path / "validation")
    like = Batches(opened, Mixture("cot"), LENGTHS, 8)
    batches = ValidationBatches(held, ["cot_a:validation"], like, 100, 8)
    mine = evaluate(
        Validator(batches, Trainer(model, optax.sgd(0.1)), Partitioner(devices=jax.devices()[:1]), "byte", None, 1),
        params,
    )
    part = held.tasks["cot_a:validation"].parts["zsopt"][0]
    pairs = [held.example(part, i) for i in range(part.examples)]
    pairs = [[cut(side, limit) for side, limit in zip(pair, (40, 12), strict=True)] for pair in pairs]
    batch = drawn.encoder_decoder([[pair] for pair in pairs], 40, 12)
    tokens = {name: torch.tensor(np.array(array)).long() for name, array in batch.items()}
    labels = tokens["decoder_target_tokens"].masked_fill(tokens["decoder_loss_weights"] == 0, -100)
    theirs = theirs_with(model, params)(
        input_ids=tokens["encoder_input_tokens"],
        attention_mask=tokens["encoder_segment_ids"],
        decoder_input_ids=tokens["decoder_input_tokens"],
        labels=labels,
    )
    assert mine["loss"] == pytest.approx(theirs.loss.item(), abs=1e-4)


def test_every_example_is_in_one_row_and_a_limit_takes_them_at_even_distances(opened):
    held = store.open_store(opened.path / "validation")
    like = Batches(opened, Mixture("cot"), LENGTHS, 4)
    made = ValidationBatches(held, ["cot_a:validation", "niv2_c:validation"], like, 10, 4)
    assert made.examples == 20 and made.tasks == {"cot_a": "cot", "niv2_c": "niv2"}
    seen = set()
    for number in range(made.count):
        batch = made.batch(number)
        assert batch["decoder_task_ids"].shape == (4, 12)
        tokens, positions, ids = (batch[f"encoder_{n}"] for n in ("input_tokens", "positions", "segment_ids"))
        seen |= {tuple(tokens[r, c : c + 4]) for r, c in np.argwhere((positions == 0) & (ids > 0))}
    assert seen == {
        store_maker.mark(f"{name} zsopt 0", i * size // 10)
        for name, size in (("cot_a:validation", 23), ("niv2_c:validation", 40))
        for i in range(10)
    }
    assert ValidationBatches(held, ["cot_a:validation"], like, 10, 64).batch(0)["decoder_task_ids"].max() == 1


def opening(opened: store.Store, capsys: pytest.CaptureFixture, steps: int = 1000, **asked) -> str:
    """What a run says as it opens its validation."""
    dataset = DatasetConfig(Mixture("cot"), str(opened.path), "byte", LENGTHS, 8)
    batches = dataset.open(259, "encoder_decoder", 0)
    trainer = Trainer(MODELS["encoder_decoder"], optax.sgd(0.1))
    of_run = (pathlib.Path(), dataset, batches, trainer, Partitioner(devices=jax.devices()[:1]), steps, None)
    ValidationConfig(**asked).open(*of_run)
    return capsys.readouterr().out


def test_what_is_validated_on_is_said_and_what_is_not_there_is_refused(opened, tmp_path, capsys, monkeypatch):
    assert opening(opened, capsys) == "validation: 23 examples of 1 tasks (1 tasks have no such split), at the end\n"
    every = "every 100 steps and at the end\n"
    assert opening(opened, capsys, names=["cot_b:test", "niv2"], period=100, examples=3).endswith(f"2 tasks, {every}")
    assert opening(opened, capsys, names="cot_?:test") == "validation: 5 examples of 1 tasks, at the end\n"
    assert opening(opened, capsys, names=[]) == opening(opened, capsys, names=None) == ""
    with pytest.raises(UserError, match=r"VALIDATION: 'cot_b' is not in .*validation; did you mean 'cot_b:test'"):
        opening(opened, capsys, names=["cot_b"])
    monkeypatch.setattr(validation, "LEAST", 4)  # of a short run 2% of the steps, three forward passes a step
    taken = int(0.06 * 10 * 8 * Batches(opened, Mixture("cot"), LENGTHS, 8).examples_per_row)
    assert f"validation: {taken} examples" in opening(opened, capsys, steps=10) and 4 < taken < 23
    shutil.copytree(opened.path, tmp_path / "old", ignore=shutil.ignore_patterns("validation"))
    old = store.open_store(tmp_path / "old")
    assert opening(old, capsys).startswith("validation: none, as ")
    with pytest.raises(UserError, match="holds no splits to validate on"):
        opening(old, capsys, names=["cot_a"])


def test_tensorboard_has_the_losses_of_a_validation(tmp_path, monkeypatch):
    log, tags = MetricsLog(tmp_path), []
    monkeypatch.setattr(log, "_summary", lambda value: tags.extend((v.tag, v.simple_value) for v in value))
    monkeypatch.setattr(log._summary, "Value", dataclasses.make_dataclass("Value", ["tag", "simple_value"]), raising=0)
    monkeypatch.setattr(log, "_event", lambda **_: type("Event", (), {"SerializeToString": lambda self: b""})())
    numbers = {"loss": 2.0, "bits_per_byte": 1.0, "accuracy": 0.5, "tokens": 3}
    log.write(5, {"validation": numbers | {"collections": {"cot": numbers | {"loss": 1.5}}, "tasks": {}}})
    log.close()
    assert tags == [("validation/loss", 2.0), ("validation/cot/loss", 1.5)]


@pytest.fixture(scope="module")
def split_store(tmp_path_factory) -> str:
    """The store of `run_case` with a validation split of 60 examples."""
    folder, words = tmp_path_factory.mktemp("split") / "store", vocabulary.load("byte")
    made = shutil.copytree(run_case.store_dir(), folder)
    plain = store.open_store(made)
    part = plain.tasks["own_a"].parts["zsopt"][0]
    pairs = [plain.example(part, i) for i in range(60)]
    facts = {"own_a:validation": {"collection": "own", "cap": 1000, "held_out": False, "cot": False}}
    write_store(folder / "validation", facts, {("own_a:validation", "zsopt"): [pairs]}, words)
    return str(folder)


def validations(folder: pathlib.Path) -> list[tuple[int, dict]]:
    """(step, validation without its seconds) of a run's records, in their order in the file."""
    found = [(each["step"], each["validation"]) for each in read_metrics(folder) if "validation" in each]
    return [(step, {key: value for key, value in each.items() if key != "seconds"}) for step, each in found]


def test_a_validation_is_due_every_period_and_at_the_end(opened, monkeypatch):
    validator, watch = make_validator(opened, "encoder_decoder"), unittest.mock.MagicMock()  # a period of 2, 10 steps
    monkeypatch.setattr(validator, "_train_steps", 7)
    monkeypatch.setattr(validator, "evaluate", lambda params: {"loss": params})
    for step in range(8):
        assert not validator(step, types.SimpleNamespace(params=step / 2), watch)
    assert [call.args for call in watch.write_validation.call_args_list] == [
        (2, {"loss": 1.0}), (4, {"loss": 2.0}), (6, {"loss": 3.0}), (7, {"loss": 3.5})
    ]  # fmt: skip
    assert watch.flush.call_count == 4  # the records of steps before it come first


@pytest.mark.slow
def test_a_run_validates_every_period_and_at_the_end_and_a_killed_one_has_the_same_records(tmp_path, split_store):
    bound = {"STORE_DIR": split_store, "VALIDATION_PERIOD": 3}
    said = run_case.run(run_case.command(tmp_path / "one", **bound))
    wanted = validations(tmp_path / "one")
    assert [step for step, _ in wanted] == [3, 6, 8]
    assert "one  step 8/8  validation loss" in said
    assert wanted[-1][1]["examples"] == 60 and wanted[-1][1]["loss"] < wanted[0][1]["loss"]
    assert run_case.losses(tmp_path / "one") == run_case.losses(run_case.undisturbed())  # training is as without

    code = run_case.signalled(run_case.command(tmp_path / "two", **bound, CHECKPOINT_PERIOD=6), 6, signal.SIGTERM)
    ((status, said),) = run_case.finish([run_case.launch(code)])  # saved at 6, and stopped before its validation
    assert status == 75, said
    assert [step for step, _ in validations(tmp_path / "two")] == [3]
    run_case.run(run_case.command(tmp_path / "two", **bound, CHECKPOINT_PERIOD=6))
    assert validations(tmp_path / "two") == wanted
    done = json.loads((tmp_path / "two" / "done.json").read_text())
    assert done == {"step": 8, "train_steps": 8}


@pytest.mark.parametrize(
    ("losses", "verdicts"),
    [
        ([2.0, 1.0, 1.5, 1.2, 0.9], [validation.BEST, validation.BEST, None, validation.STOP, validation.BEST]),
        ([1.0, 1.0, 1.0], [validation.BEST, None, validation.STOP]),
        ([float("nan"), 3.0], [None, validation.BEST]),
    ],
)
def test_a_verdict_goes_by_the_losses_up_to_the_step(losses, verdicts):
    known = {10 * (i + 1): loss for i, loss in enumerate(losses)}
    assert [validation.judge(known, step, 2) for step in known] == verdicts
    assert validation.STOP not in [validation.judge(known, step, None) for step in known]


def test_stopping_early_without_anything_to_go_by_is_refused(opened, capsys):
    for asked, message in (
        ({"patience": 2}, "VALIDATION_PATIENCE = 2 counts validations: give 1 or more, and a period"),
        ({"patience": 0, "period": 3}, "VALIDATION_PATIENCE = 0"),
        ({"names": None, "keep_best": True}, "nothing is validated on"),
    ):
        with pytest.raises(UserError, match=message):
            opening(opened, capsys, **asked)


def test_the_best_state_of_a_fork_is_its_own(tmp_path):
    """What was kept before the fork at that step, or a later one, is of other settings."""

    def keep(settings: str, losses: dict[int, float], weight: float) -> None:
        (tmp_path / "run.json").write_text(settings)
        watch = types.SimpleNamespace(validation_losses=lambda: losses)
        config = validation.ValidationConfig(period=1, keep_best=True)
        state = TrainState(jnp.int32(max(losses)), {"w": jnp.full(2, weight)}, ())
        validation.Judge(lambda *_: None, config, tmp_path, None)(max(losses), state, cast(Any, watch))

    def kept() -> tuple[int, float]:
        with contextlib.closing(Checkpoints(tmp_path / validation.BEST)) as saved:
            tensors = flanx_format.read(open_storage(tmp_path / validation.BEST), optimizer=False)
            return saved.latest() or 0, float(tensors["target/w"].read()[0])

    keep("{}", {4: 3.0, 6: 1.0}, 0.5)
    assert kept() == (6, 0.5)
    keep("{}", {4: 3.0, 6: 1.0}, 0.5)  # it was killed, and is at step 6 again
    assert kept() == (6, 0.5)
    keep('{"fork": 1}', {4: 3.0, 5: 2.0}, 0.25)
    assert kept() == (5, 0.25)
    keep('{"fork": 2}', {4: 3.0, 5: 2.0}, 0.75)
    assert kept() == (5, 0.75)


@pytest.mark.slow
def test_a_run_stops_early_keeps_its_best_state_and_is_done(tmp_path, split_store):
    bound = {"STORE_DIR": split_store, "VALIDATION_PERIOD": 2, "VALIDATION_PATIENCE": 2, "KEEP_BEST": True}
    command = run_case.command(tmp_path / "run", **bound, LEARNING_RATE=0.0, TRAIN_STEPS=20)
    said = run_case.run(command)
    assert "stops at step 6: 2 validations brought no lower loss" in said
    assert [step for step, _ in validations(tmp_path / "run")] == [2, 4, 6] and run_case.newest(tmp_path / "run") == 6
    assert run_case.newest(tmp_path / "run" / "best") == 2
    kept, last = (flanx.load(tmp_path / name).predictor.fingerprint() for name in ("run/best", "run"))
    assert kept == last  # at a rate of nothing
    sessions = [json.loads(line) for line in (tmp_path / "run" / "sessions.jsonl").read_text().splitlines()]
    assert [(each["step"], "ended" in each) for each in sessions] == [(0, False), (6, True)]
    assert "already done (step 6)" in run_case.run(command)
    (tmp_path / "run" / "done.json").unlink()
    assert "stops at step 6" in run_case.run(command)


def test_a_run_that_names_what_its_store_lacks_is_refused_before_its_first_step(tmp_path, capsys):
    assert main.main(run_case.command(tmp_path / "run", VALIDATION=["own_a"])[3:]) == 2
    said = capsys.readouterr().err
    assert "VALIDATION" in said and said.count("\n") == 1, said
    assert not (tmp_path / "run" / "run.json").exists()
