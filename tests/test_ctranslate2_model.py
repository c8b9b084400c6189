"""A T5 in CTranslate2's form: what is refused by name, and the copies that the cache keeps."""

import pathlib

import flax.linen as nn
import jax
import numpy as np
import pytest

from flanx.convert import ctranslate2_model
from flanx.convert.lazy_tensor import LazyTensor, flatten, in_memory
from flanx.errors import UserError
from flanx.models.palm import PaLM
from flanx.models.t5 import T5

SIZES = {"vocab_size": 384, "emb_dim": 16, "num_heads": 3, "head_dim": 8, "mlp_dim": 24}
SIZES |= {"num_encoder_layers": 2, "num_decoder_layers": 2}
has_package = pytest.mark.skipif(
    not ctranslate2_model.is_installed(), reason="ctranslate2 (extra ctranslate2) is not installed"
)


def drawn(model: T5, seed: int = 0) -> dict[str, LazyTensor]:
    """Random parameters by their names."""
    shapes = flatten(jax.eval_shape(lambda key: nn.unbox(model.init(key)), jax.random.key(0)))
    draws = np.random.default_rng(seed)
    return {name: in_memory(draws.standard_normal(leaf.shape, np.float32) / 4) for name, leaf in shapes.items()}


@pytest.fixture
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("FLANX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ctranslate2"


def test_what_ctranslate2_does_not_compute_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctranslate2_model, "is_installed", lambda: True)
    with pytest.raises(UserError, match="which flanx only has for T5: PaLM needs"):
        ctranslate2_model.expect_supported(PaLM())
    for activations in (("relu", "relu"), ("linear",), ("gelu", "linear", "linear")):
        with pytest.raises(UserError, match="does not have mlp_activations"):
            ctranslate2_model.expect_supported(T5(**SIZES, mlp_activations=activations))
    for activations in (("gelu", "linear"), ("relu",), ("silu", "linear")):
        model = T5(**SIZES, mlp_activations=activations)
        assert ctranslate2_model.expect_supported(model) is model
    monkeypatch.setattr(ctranslate2_model, "is_installed", lambda: False)
    with pytest.raises(UserError, match=r"pip install 'flanx\[ctranslate2\]'"):
        ctranslate2_model.expect_supported(T5(**SIZES))


def test_a_copy_is_made_once_for_what_it_is_of(cache: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[pathlib.Path] = []

    def write(folder: pathlib.Path, *_: object) -> None:
        made.append(folder)
        (folder / "model.bin").write_bytes(b"values")

    monkeypatch.setattr(ctranslate2_model, "write", write)
    model, params = T5(**SIZES), drawn(T5(**SIZES))
    folder, mark = ctranslate2_model.cached(params, model, 1, "float32")
    assert ctranslate2_model.cached(params, model, 1, "float32") == (folder, mark)
    assert len(made) == 1 and folder.parent == cache
    started = T5(**SIZES, decoder_start_token_id=5)
    others = [
        ctranslate2_model.cached(*of)
        for of in ((params, started, 1, "float32"), (params, model, 2, "float32"), (params, model, 1, "int8"))
    ]
    others.append(ctranslate2_model.cached(drawn(model, 1), model, 1, "float32"))
    assert len({folder, *(each for each, _ in others)}) == 5 == len(made)
    assert not [each for each in cache.iterdir() if "partial" in each.name]


def test_a_damaged_copy_is_made_again_and_a_folder_of_others_is_left(
    cache: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ctranslate2_model, "write", lambda folder, *_: (folder / "model.bin").write_bytes(b"values"))
    model, params = T5(**SIZES), drawn(T5(**SIZES))
    folder, _ = ctranslate2_model.cached(params, model, 1, "int8")
    (folder / "model.bin").write_bytes(b"valueS")
    ctranslate2_model.cached(params, model, 1, "int8")
    assert (folder / "model.bin").read_bytes() == b"values"
    assert "is damaged; it is made again" in capsys.readouterr().out
    (folder / ctranslate2_model.MARK).unlink()
    with pytest.raises(UserError, match="is not flanx's"):
        ctranslate2_model.cached(params, model, 1, "int8")
    assert (folder / "model.bin").read_bytes() == b"values"


def test_parameters_that_are_not_finite_are_refused(cache: pathlib.Path) -> None:
    model = T5(**SIZES)
    params = drawn(model) | {"token_embedder/embedding": in_memory(np.full((384, 16), np.nan, np.float32))}
    with pytest.raises(UserError, match="'token_embedder/embedding' holds a NaN"):
        ctranslate2_model.cached(params, model, 1, "float32")
    assert not cache.exists()


@has_package
def test_int8_is_a_quarter_as_large(tmp_path: pathlib.Path) -> None:
    model = T5(**SIZES | {"emb_dim": 64, "mlp_dim": 256})
    sizes = {}
    for quantization in ("float32", "int8"):
        folder = tmp_path / quantization
        folder.mkdir()
        ctranslate2_model.write(folder, drawn(model), model, 1, quantization)
        sizes[quantization] = (folder / "model.bin").stat().st_size
    assert 3 < sizes["float32"] / sizes["int8"] < 4
