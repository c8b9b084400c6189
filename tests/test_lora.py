"""Adapters: the start is the base, merged is unmerged, a run saves the pairs alone and is taken as a checkpoint."""

import contextlib
import dataclasses
import functools
import itertools
import json
import pathlib
import re
import signal
import subprocess
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flanx
from flanx import checkpoint, convert, lora, optim
from flanx.cli import main
from flanx.convert import flanx_format, hf, peft
from flanx.convert.t5_shapes import T5Sizes
from flanx.errors import UserError
from flanx.models import adapter as adapters
from flanx.models import layers, palm, t5
from flanx.partition import Partitioner, rules
from flanx.storage import open_storage
from flanx.train_step import Trainer, TrainState
from flanx.trainable import OF_ADAPTERS, flat, split
from tests import run_case
from tests.convert_case import draw

SIZES: dict[str, Any] = {"vocab_size": 56, "emb_dim": 24, "num_heads": 4, "head_dim": 8, "mlp_dim": 40}
RUN: dict[str, Any] = {
    "emb_dim": 16,
    "num_heads": 2,
    "head_dim": 8,
    "mlp_dim": 32,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
}
OWN = T5Sizes(vocab_size=384, gated=True, tied=False, **RUN)
ROWS, LENGTH = 4, 12
FOUR = Partitioner(2, rules(1, 2), devices=tuple(jax.devices()[:4]))
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # half of the compilation
ONE = Partitioner(1, devices=tuple(jax.devices()[:1]))
BANDS = {"float32": 1e-5, "bfloat16": 0.01, "int8": 0.02, "nf4": 0.2}  # of the logits' standard deviation


def model(kind: str, scan: bool = False) -> Any:
    if kind == "palm":
        return palm.PaLM(**SIZES, num_layers=1, scan_layers=scan)
    return t5.T5(**SIZES, num_encoder_layers=1, num_decoder_layers=1, scan_layers=scan)


def batch(packing: str, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shape = (ROWS, LENGTH)
    tokens = {f"decoder_{n}_tokens": rng.integers(3, 56, shape).astype(np.int32) for n in ("input", "target")}
    made = tokens | {f"decoder_{n}": np.ones(shape, np.int32) for n in ("segment_ids", "loss_weights")}
    if packing == "encoder_decoder":
        inputs = rng.integers(3, 56, shape).astype(np.int32)
        return made | {"encoder_input_tokens": inputs, "encoder_segment_ids": np.ones(shape, np.int32)}
    places = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), shape)
    return made | {"decoder_positions": places, "decoder_causal_attention": np.zeros(shape, np.int32)}


def logits(made: Any, params: Any, rows: Any) -> np.ndarray:
    return np.asarray(jax.jit(made.logits, compiler_options=FAST)(params, rows))


def begun(trainer: Trainer, path: pathlib.Path, partitioner: Partitioner = ONE) -> TrainState:
    with partitioner.scope():
        return lora.begin(trainer, trainer.abstract_state(partitioner), str(path), 0)


@functools.cache
def base_params(kind: str) -> Any:
    """Parameters of the unrolled model."""
    return drawn_params(model(kind))


def drawn_params(made: Any) -> Any:
    """Parameters drawn with numpy."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: nn.unbox(made.init(jax.random.key(0))))
    return jax.tree.map(lambda s: rng.normal(0, 0.2, s.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    """Checkpoints of parameters alone."""
    folder = tmp_path_factory.mktemp("bases")
    for kind in ("t5", "palm"):
        checkpoint.save_params(folder / kind, base_params(kind))
    hf.write(open_storage(folder / "own"), draw(OWN), OWN, {})
    return {kind: folder / kind for kind in ("t5", "palm", "own")}


def disturb(state: TrainState, seed: int = 2) -> TrainState:
    """The state with numbers in place of the zeros of B."""
    rng = np.random.default_rng(seed)

    def draw_b(path: Any, leaf: jax.Array) -> jax.Array:
        is_b = jax.tree_util.keystr(path, simple=True, separator="/").endswith("lora_b")
        return jnp.asarray(rng.normal(0, 0.1, leaf.shape), leaf.dtype) if is_b else leaf

    return state.replace(params=jax.tree_util.tree_map_with_path(draw_b, state.params))


# one of each model in every run of the suite, every combination with the slow tests
QUICK = {("t5", False, "float32"), ("palm", True, "nf4")}
EVERY = [
    pytest.param(*each, marks=() if each in QUICK else pytest.mark.slow)
    for each in itertools.product(("t5", "palm"), (False, True), adapters.BASES)
]


@pytest.mark.parametrize(("kind", "scan", "base"), EVERY)
def test_the_start_is_the_base_and_merged_is_unmerged(bases, tmp_path, kind, scan, base):
    rows = {name: jnp.asarray(array) for name, array in batch(model(kind).packing).items()}
    made = lora.Adapter(rank=3, targets=("query", "mlp/.*"), base=base, rs=scan, dora=kind == "palm")
    trainer = Trainer(model(kind, scan), optim.adamw(1e-2), adapter=made)
    state = begun(trainer, bases[kind], FOUR if scan else ONE)  # what four devices save, one reads
    whole = layers.stack(base_params(kind)) if scan else base_params(kind)
    if base == "float32":  # on the same devices: on others sums have another order
        placed = split(state.params, OF_ADAPTERS)[1]
        whole = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), whole, placed)
    plain = logits(model(kind, scan), whole, rows)
    first = logits(trainer.model, state.params, rows)
    if base != "float32" or made.dora:
        share = float(np.sqrt(np.mean(np.square(first - plain))) / np.std(plain))
        assert share < BANDS[base] and (base == "float32" or share > BANDS[base] / 20), share
    else:
        np.testing.assert_array_equal(first, plain)
    assert len(state.params["decoder"]["decoder_norm"]["scale"].devices()) == (4 if scan else 1)
    state = disturb(state)
    unmerged = logits(trainer.model, state.params, rows)
    assert np.abs(unmerged - first).max() > 1e-2
    run = saved_run(tmp_path / "run", trainer, state, bases[kind])
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=ONE.everywhere()), base_params(kind)
    )
    merged = logits(model(kind), checkpoint.load_params(run, target), rows)
    np.testing.assert_allclose(merged, unmerged, atol=1e-5 * max(1.0, np.abs(unmerged).max()), rtol=0)


PALM = {"attention/key", "attention/out", "attention/query", "attention/value", "mlp/wi_0", "mlp/wi_1", "mlp/wo"}


@pytest.mark.parametrize("kind", ["palm", pytest.param("t5", marks=pytest.mark.slow)])
def test_three_steps_of_a_scanned_model_give_the_unrolled_ones_adapter_and_leave_the_base(kind):
    rows = {name: jnp.asarray(array) for name, array in batch(model(kind).packing).items()}
    made = lora.Adapter(rank=3, targets=(".*",))
    after: list[Any] = []
    start = drawn_params(dataclasses.replace(model(kind), adapter=made))
    for scan in (False, True):
        trainer = Trainer(model(kind, scan), optim.adamw(1e-2), adapter=made, loss_normalizing_factor="tokens")
        first = layers.stack(start) if scan else start
        state = trainer.init_from_params(jax.tree.map(jnp.asarray, first))
        step = jax.jit(trainer.step, compiler_options=FAST)
        for _ in range(3):
            state, _ = step(state, rows)
        pairs, base = split(state.params, OF_ADAPTERS)
        jax.tree.map(np.testing.assert_array_equal, base, split(first, OF_ADAPTERS)[1])
        after.append(layers.unstack(pairs) if scan else pairs)
    assert jax.tree.structure(after[0]) == jax.tree.structure(after[1])
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), split(start, OF_ADAPTERS)[0], after[0])
    assert min(jax.tree.leaves(moved)) > 1e-3  # of every matrix
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), *after)
    if kind == "palm":
        assert {name.partition("layers_0/")[2].rpartition("/")[0] for name in flat(after[0])} == PALM


def saved_run(folder: pathlib.Path, trainer: Trainer, state: TrainState, base: pathlib.Path) -> pathlib.Path:
    """What a run with an adapter leaves."""
    with contextlib.closing(checkpoint.Checkpoints(folder)) as saved:
        saved.save(state, trainer.saved)
    record = {"adapter": dataclasses.asdict(trainer.adapter), "initial_checkpoint_path": str(base)}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def test_an_adapter_is_trained_on_from_a_run_and_from_a_folder_of_peft(bases, tmp_path):
    own = functools.partial(t5.T5, vocab_size=384, **RUN)
    made = lora.Adapter(rank=3, dora=True)
    trainer = Trainer(own(), optim.adamw(1e-2), adapter=made)
    state = trainer.init_from_params(jax.tree.map(jnp.asarray, drawn_params(trainer.model)))
    run = saved_run(tmp_path / "run", trainer, state, bases["own"])
    peft.write(open_storage(tmp_path / "peft"), convert.open_checkpoint(run).pairs)
    for start, scan in ((run, True), (tmp_path / "peft", False)):
        on = dataclasses.replace(made, start=str(start))
        found = begun(Trainer(own(scan_layers=scan), optim.adamw(1e-2), adapter=on), bases["own"])
        wanted = split(layers.stack(state.params) if scan else state.params, OF_ADAPTERS)[0]
        pairs, base = split(found.params, OF_ADAPTERS)
        assert jax.tree.structure(pairs) == jax.tree.structure(wanted)
        jax.tree.map(np.testing.assert_array_equal, pairs, wanted)
        table = convert.open_checkpoint(bases["own"]).tensors["target/token_embedder/embedding"].read()
        np.testing.assert_array_equal(base["token_embedder"]["embedding"], table)
        assert int(found.step) == 0
    sizes = dataclasses.replace(OWN, emb_dim=24)
    hf.write(open_storage(tmp_path / "wide"), draw(sizes), sizes, {})
    refused: list[tuple[str, dict[str, Any], pathlib.Path]] = [
        ("has rank 3, here 4: bind lora.Adapter.rank = 3", {"rank": 4}, bases["own"]),
        ("has dora True, here False", {"dora": False}, bases["own"]),
        (r"has other layers than LORA_TARGETS: bind LORA_TARGETS = \['decoder", {"targets": ("query",)}, bases["own"]),
        ("LORA_START .*own is not an adapter; a whole model is what", {"start": str(bases["own"])}, bases["own"]),
        ("is an adapter of another base than .*wide", {}, tmp_path / "wide"),
    ]
    for message, change, base in refused:
        on = dataclasses.replace(made, **{"start": str(run), **change})
        with pytest.raises(UserError, match=message):
            begun(Trainer(own(), optim.adamw(1e-2), adapter=on), base)


# ---- runs ------------------------------------------------------------------------------------------------------------

TRAINED: dict[str, Any] = {
    "vocabulary": "byte", "task_feature_lengths": {"inputs": 32, "targets": 16}, "batch_size": 8, 
    "checkpoint_period": 2, "dropout_rate": 0.1, "mixture": "own", "model": "t5_1_1/tiny",
}  # fmt: skip
BINDINGS: dict[str, Any] = {f"t5.T5.{name}": size for name, size in RUN.items()} | {"train.log_period": 1}


def train(folder: pathlib.Path, base: pathlib.Path | None, steps: int = 4, **more: Any) -> pathlib.Path:
    """A run of a T5 of one layer in this process; with a base one of its adapter."""
    bindings = BINDINGS | more.pop("bindings", {})
    if base is not None:
        more = {"gin_files": ["runs/lora.gin"], "initial_checkpoint_path": str(base), "lora_dropout": 0.1} | more
    options = {**TRAINED, "store_dir": run_case.store_dir(), "model_dir": folder, "train_steps": steps}
    return flanx.train(**options | more, bindings=bindings)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A base in Hugging Face's form, `hf`, and the run of an adapter beside it, `run`."""
    folder = tmp_path_factory.mktemp("lora")
    hf.write(open_storage(folder / "hf"), draw(OWN), OWN, {})
    (folder / "hf" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
    train(folder / "run", folder / "hf", learning_rate=0.03)
    return folder


def saved_names(run: pathlib.Path, step: int) -> set[str]:
    tensors = flanx_format.read(open_storage(run / f"checkpoints/checkpoint_{step}"), optimizer=False)
    return set(tensors)


@pytest.mark.slow
def test_a_run_saves_the_pairs_alone_and_resumes_bit_for_bit(home, tmp_path, capsys):
    names = saved_names(home / "run", 4)
    layers_of = ("encoder/layers_0/attention", "decoder/layers_0/self_attention")
    layers_of += ("decoder/layers_0/encoder_decoder_attention",)
    pairs = {f"target/{at}/{kernel}/lora_{ab}" for at in layers_of for kernel in ("query", "value") for ab in "ab"}
    assert names == pairs | {"state/step"}
    record = json.loads((home / "run" / "run.json").read_text())
    assert record["adapter"]["rank"] == 8 and len(record["initial_checkpoint_fingerprint"]) == 64
    train(tmp_path / "run", home / "hf", 2, learning_rate=0.03)
    assert "trains 1,536 of " in capsys.readouterr().out
    (tmp_path / "run" / "done.json").unlink()
    train(tmp_path / "run", home / "hf", 4, learning_rate=0.03)
    assert run_case.losses(tmp_path / "run") == run_case.losses(home / "run")
    with pytest.raises(UserError, match=r"adapter\.rank was 8, now 4"):
        train(tmp_path / "run", home / "hf", 6, learning_rate=0.03, lora_rank=4)
    with pytest.raises(UserError, match=r"run is another run: "):
        train(tmp_path / "run", None, 6, initial_checkpoint_path=str(home / "hf"))


@pytest.mark.slow
def test_an_adapter_that_was_killed_goes_on_bit_for_bit(tmp_path):
    def command(folder: pathlib.Path) -> list[str]:
        bound = {"INITIAL_CHECKPOINT_PATH": str(run_case.undisturbed()), "LORA_DROPOUT": 0.1, "LORA_BASE": "nf4"}
        return [*run_case.command(folder, **bound), "--gin_file=runs/lora.gin"]

    run_case.run(command(tmp_path / "whole"))
    killed = run_case.launch(run_case.signalled(command(tmp_path / "killed"), 5, signal.SIGKILL))
    assert run_case.finish([killed])[0][0] == -signal.SIGKILL
    assert 0 < run_case.newest(tmp_path / "killed") < 5
    run_case.run(command(tmp_path / "killed"))
    assert run_case.losses(tmp_path / "killed") == run_case.losses(tmp_path / "whole")
    ends = [flanx_format.read(open_storage(tmp_path / name), optimizer=False) for name in ("whole", "killed")]
    assert ends[0].keys() == ends[1].keys()
    for name, tensor in ends[0].items():
        np.testing.assert_array_equal(tensor.read(), ends[1][name].read())


@pytest.mark.slow
def test_bases_in_fewer_bits_score_within_the_bands_of_the_page():
    """Minutes: what docs/memory.md says of exact match on the embedded suite."""
    command = [sys.executable, "benchmarks/lora_bases.py"]
    said = subprocess.run(command, cwd=run_case.ROOT, capture_output=True, text=True, check=True).stdout
    found = {line["base"]: line["value"] for line in map(json.loads, re.findall(r"^\{.*\}$", said, re.MULTILINE))}
    page = (run_case.ROOT / "docs" / "memory.md").read_text()
    bands = dict(re.findall(r"^\| (\w+) \| [\d.]+ \| -[\d.]+ \| within (\d+) points \|$", page, re.MULTILINE))
    assert bands.keys() == {"bfloat16", "int8", "NF4"} and found["base"] < 20 and found["float32"] > 85
    for base, band in bands.items():
        assert found[base.lower()] > found["float32"] - float(band), (base, found)


@pytest.mark.slow
def test_an_adapter_is_taken_where_a_checkpoint_is(home, tmp_path, capsys):
    prompts = ["say a", "wxyz"]
    loaded = flanx.load(home / "run")
    pairs = [(prompt, ["abc", "xyz"]) for prompt in prompts]
    scores = np.array(loaded.score(pairs))
    assert np.abs(scores - flanx.load(home / "hf", lengths=loaded.lengths).score(pairs)).max() > 1e-3
    step = flanx.load(home / "run/checkpoints/checkpoint_4")
    np.testing.assert_array_equal(step.score(pairs), scores)
    for kind, how in (("flanx", ["--to", "flanx"]), ("hf2", ["--to", "hf", "--vocabulary", "byte"])):
        assert main.main(["convert", str(home / "run"), str(tmp_path / kind), *how]) == 0
    merged = flanx.load(tmp_path / "hf2", lengths=loaded.lengths)
    np.testing.assert_allclose(merged.score(pairs), scores, atol=1e-4)
    trained_on = train(tmp_path / "more", home / "run", 1)
    assert json.loads((trained_on / "run.json").read_text())["initial_checkpoint_step"] == 4
    moved = home.rename(home.with_name("moved"))
    try:
        with pytest.raises(UserError, match=r"the base of the adapter .*run.*: no folder '.*hf'"):
            flanx.load(moved / "run")
        assert main.main(["convert", str(moved / "run"), str(tmp_path / "again"), "--base", str(moved / "hf")]) == 0
        assert main.main(["convert", str(moved / "run"), str(tmp_path / "other"), "--base", str(tmp_path / "hf2")]) == 2
        assert "is an adapter of another base" in capsys.readouterr().err
        assert not (tmp_path / "other").exists()
    finally:
        moved.rename(home)


def test_bad_adapters_are_refused(bases, tmp_path):
    cases: list[tuple[str, dict[str, Any]]] = [
        ("LORA_RANK is 0", {"lora_rank": 0}),
        ("'quary' fits no layer; the layers are key, out, query, value, wi_0", {"lora_targets": ["quary"]}),
        ("not a regular expression", {"lora_targets": ["("]}),
        ("base is 'int4'; known are", {"lora_base": "int4"}),
        ("LORA_ALPHA is 0.0", {"lora_alpha": 0.0}),
        ("LORA_DROPOUT is 1.0", {"lora_dropout": 1.0}),
        ("LORA_DROPOUT is -0.1", {"lora_dropout": -0.1}),
        ("give INITIAL_CHECKPOINT_PATH", {"initial_checkpoint_path": None}),
        ("ADAPTER and TRAINABLE exclude", {"trainable": ["decoder/.*"]}),
        ("restore_optimizer continues the parent's training", {"restore_optimizer": True}),
    ]
    for message, more in cases:
        with pytest.raises(UserError, match=message) as caught:
            train(tmp_path / "run", bases["own"], **more)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "run.json").exists()
