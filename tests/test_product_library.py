"""Which library multiplies in a decoding step: by processor and size, and the same tokens either way."""

import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flanx.decoding import decode, product_library
from tests.test_decode import MODEL, params, prompts

LARGE = {"kernel": jax.ShapeDtypeStruct((1024, 2048), jnp.float32)}  # 8 MiB


@pytest.fixture(autouse=True)
def _on_one_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As a command runs; the tests' CPU is eight devices."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    product_library._prefers_eigen.cache_clear()
    yield
    product_library._prefers_eigen.cache_clear()


def on_processor(flags: str, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    (folder / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: fpu {flags} sse4_2\n")
    monkeypatch.setattr(product_library, "CPU_INFO", folder / "cpuinfo")
    product_library._prefers_eigen.cache_clear()
    return product_library.has_eigen_steps(LARGE)


def test_eigen_is_for_all_but_the_smallest_models_on_avx2_alone(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert on_processor("avx avx2 fma", tmp_path, monkeypatch)
    assert not product_library.has_eigen_steps({"kernel": jax.ShapeDtypeStruct((1024, 2047), jnp.float32)})
    assert not on_processor("avx avx2 avx512f avx512bw", tmp_path, monkeypatch)
    assert not on_processor("asimd bf16", tmp_path, monkeypatch)
    with monkeypatch.context() as several:
        several.setattr(jax, "device_count", lambda: 2)
        assert not on_processor("avx avx2", tmp_path, monkeypatch)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert not on_processor("avx avx2", tmp_path, monkeypatch)


def test_the_compilers_defaults_remain_where_a_processor_or_an_option_is_not_known(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(product_library, "EIGEN", {"xla_cpu_no_such_option": ""})
    assert not on_processor("avx2", tmp_path, monkeypatch)
    monkeypatch.setattr(product_library, "CPU_INFO", tmp_path / "absent")
    assert not product_library.is_avx2_only()


def test_both_libraries_give_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for with_eigen in (True, False):
        monkeypatch.setattr(product_library, "has_eigen_steps", lambda params, chosen=with_eigen: chosen)
        found.append(decode.generate(MODEL, params(), prompts(6), max_new=8, scored=True))
    for ours, theirs in zip(*found, strict=True):
        assert ours.tokens == theirs.tokens
        np.testing.assert_allclose(ours.scores or [], theirs.scores or [], atol=2e-5)


def test_the_option_takes_ynnpack_out_of_a_program() -> None:
    shapes = jax.ShapeDtypeStruct((16, 512), jnp.float32), jax.ShapeDtypeStruct((512, 1024), jnp.float32)
    texts = [
        jax.jit(jnp.matmul, compiler_options=options).lower(*shapes).compile().as_text()
        for options in (None, product_library.EIGEN)
    ]
    assert ["ynn_fusion" in text for text in texts] == [True, False]
