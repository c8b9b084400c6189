"""Adapters: the start is the base, merged is unmerged, a run saves the pairs alone, PEFT computes the same."""

import contextlib
import dataclasses
import functools
import itertools
import json
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flanx
from flanx import checkpoint, convert, lora, optim
from flanx.cli import convert as convert_command
from flanx.cli import main
from flanx.convert import flanx_format, hf, peft
from flanx.convert.adapter_merge import Pairs
from flanx.convert.lazy_tensor import in_memory
from flanx.convert.t5_shapes import T5Sizes
from flanx.errors import UserError
from flanx.models import adapter as adapters
from flanx.models import layers, palm, t5
from flanx.partition import Partitioner, rules
from flanx.storage import open_storage
from flanx.train_step import Trainer, TrainState
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
    """Parameters of the unrolled model, drawn with numpy."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: nn.unbox(model(kind).init(jax.random.key(0))))
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


# one of each kind in every run of the suite, every combination with the slow tests
QUICK = {("t5", False, "float32"), ("t5", True, "nf4"), ("palm", True, "int8")}
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
    plain = logits(model(kind, scan), layers.stack(base_params(kind)) if scan else base_params(kind), rows)
    first = logits(trainer.model, state.params, rows)
    if base != "float32" or made.dora:
        share = float(np.sqrt(np.mean(np.square(first - plain))) / np.std(plain))
        assert (0 if base == "float32" else BANDS[base] / 20) < share < BANDS[base], share
    else:
        np.testing.assert_array_equal(first, plain)
    assert len(state.params["decoder"]["decoder_norm"]["scale"].devices()) == (4 if scan else 1)
    state = disturb(state)
    unmerged = logits(trainer.model, state.params, rows)
    assert np.abs(unmerged - first).max() > 1e-2
    record = {"adapter": dataclasses.asdict(made), "initial_checkpoint_path": str(bases[kind])}
    run = tmp_path / "run"
    with contextlib.closing(checkpoint.Checkpoints(run)) as saved:
        saved.save(state, trainer.saved)
    (run / "run.json").write_text(json.dumps(record))
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=ONE.everywhere()), base_params(kind)
    )
    merged = logits(model(kind), checkpoint.load_params(run, target), rows)
    np.testing.assert_allclose(merged, unmerged, atol=1e-5 * max(1.0, np.abs(unmerged).max()), rtol=0)


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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # of peft 0.21 with transformers 5
@pytest.mark.parametrize("dora", [False, True])
def test_peft_loads_what_is_written_and_is_read(home, tmp_path, dora):
    """Logits of both within 1e-5; what peft saves is read back."""
    torch = pytest.importorskip("torch", reason="CI installs no torch")
    peft_package = pytest.importorskip("peft", reason="CI installs no peft")
    transformers = pytest.importorskip("transformers", reason="CI installs no transformers")
    run = home / "run"
    if dora:
        more = {"lora.Adapter.dora": True, "lora.Adapter.rs": True}
        run = train(tmp_path / "run", home / "hf", learning_rate=0.03, lora_targets=[".*"], bindings=more)
    assert main.main(["convert", str(run), str(tmp_path / "peft"), "--to", "peft"]) == 0
    plain = transformers.T5ForConditionalGeneration.from_pretrained(home / "hf", tie_word_embeddings=False)
    theirs = peft_package.PeftModel.from_pretrained(plain, tmp_path / "peft").eval()
    rng = np.random.default_rng(0)
    inputs, targets = rng.integers(3, 380, (2, 8)), rng.integers(3, 380, (2, 6))
    with torch.no_grad():
        wanted = theirs(input_ids=torch.tensor(inputs), decoder_input_ids=torch.tensor(targets)).logits.numpy()
    ones = {"encoder_segment_ids": np.ones_like(inputs), "decoder_segment_ids": np.ones_like(targets)}
    rows = {"encoder_input_tokens": inputs, "decoder_input_tokens": targets} | ones
    tokens = {name: jnp.asarray(array, jnp.int32) for name, array in rows.items()}

    def ours(folder: pathlib.Path) -> np.ndarray:
        loaded = flanx.load(folder, vocabulary="byte").predictor
        return np.asarray(loaded.model.logits(loaded.params, tokens))

    found, base = ours(run), ours(home / "hf")
    np.testing.assert_allclose(found, wanted, atol=1e-5 * max(1, np.abs(wanted).max()), rtol=0)
    assert np.abs(found - base).max() > 1e-3
    theirs.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(home / "hf")
    np.testing.assert_allclose(ours(tmp_path / "saved"), found, atol=1e-5)


def test_bad_adapters_are_refused(bases, tmp_path):
    cases: list[tuple[str, dict[str, Any]]] = [
        ("rank is 0", {"lora_rank": 0}),
        ("'quary' fits no layer; the layers are key, out, query, value, wi_0", {"lora_targets": ["quary"]}),
        ("no regular expression", {"lora_targets": ["("]}),
        ("base is 'int4'; known are", {"lora_base": "int4"}),
        ("alpha is 0.0: give a number above 0", {"lora_alpha": 0.0}),
        ("dropout is 1.0: give a share from 0 on, below 1", {"lora_dropout": 1.0}),
        ("dropout is -0.1: give a share", {"lora_dropout": -0.1}),
        ("give INITIAL_CHECKPOINT_PATH", {"initial_checkpoint_path": None}),
        ("ADAPTER and TRAINABLE exclude", {"trainable": ["decoder/.*"]}),
        ("restore_optimizer is of a parent", {"restore_optimizer": True}),
    ]
    for message, more in cases:
        with pytest.raises(UserError, match=message):
            train(tmp_path / "run", bases["own"], **more)
    assert not (tmp_path / "run" / "run.json").exists()


def test_folders_of_peft_that_do_not_fit_are_refused(bases, tmp_path):
    a, b = in_memory(np.ones((16, 8), np.float32)), in_memory(np.ones((8, 16), np.float32))
    pair = {"encoder/layers_0/attention/query": {"a": a, "b": b}}
    peft.write(open_storage(tmp_path / "peft"), Pairs(lora.Adapter(8), pair, str(bases["own"]), None, "here"))
    assert convert.open_checkpoint(tmp_path / "peft").pairs is not None
    good = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    sizes = dataclasses.replace(OWN, emb_dim=24)
    hf.write(open_storage(tmp_path / "wide"), draw(sizes), sizes, {})
    cases: list[tuple[str, dict[str, Any]]] = [
        (
            "another base .* is .16, 16. there and .24, 16.",
            {"base_model_name_or_path": str(tmp_path / "wide")},
        ),
        ("peft_type is 'IA3'", {"peft_type": "IA3"}),
        ("modules_to_save is .'lm_head'.", {"modules_to_save": ["lm_head"]}),
        ("r is 2, the matrices have .8.", {"r": 2}),
        ("names no base", {"base_model_name_or_path": None}),
        ("'lora_alpha' above 0", {"lora_alpha": -4}),
        ("'lora_alpha' above 0", {"lora_alpha": True}),
        ("has no magnitude, which DoRA has", {"use_dora": True}),
    ]
    note = tmp_path / "peft" / "flanx_convert.json"
    note.write_text(json.dumps({"base_fingerprint": "0" * 64}))
    with pytest.raises(UserError, match=r"has fingerprint .*, its own was 000"):
        convert.open_checkpoint(tmp_path / "peft")
    note.unlink()
    for message, change in cases:
        (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps(good | change))
        with pytest.raises(UserError, match=message):
            convert.open_checkpoint(tmp_path / "peft")
    damaged: list[tuple[str, dict[str, Any]]] = [
        ("has matrices .16, 8. and .2, 16. at rank 8", {"b": in_memory(np.ones((2, 16), np.float32))}),
        ("a magnitude, which only DoRA has", {"magnitude": in_memory(np.ones(16, np.float32))}),
    ]
    for number, (message, part) in enumerate(damaged):
        pairs = Pairs(lora.Adapter(8), {"encoder/layers_0/attention/query": {"a": a, "b": b} | part}, "", None, "here")
        peft.write(open_storage(tmp_path / f"damaged{number}"), dataclasses.replace(pairs, base=str(bases["own"])))
        with pytest.raises(UserError, match=message):
            convert.open_checkpoint(tmp_path / f"damaged{number}")
    with pytest.raises(UserError, match="is no adapter"):
        convert_command.write_pairs(convert.open_checkpoint(bases["own"]), open_storage(tmp_path / "none"))
