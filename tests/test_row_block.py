"""Encoding by blocks of rows: the cache of one pass, on a CPU alone."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flanx.decoding import length_buckets, row_block
from tests.test_decode import MODEL, params, prompts


def test_blocks_give_the_cache_of_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = jnp.asarray(length_buckets.pad_rows(prompts(12), 12, 48))
    whole, token = jax.jit(lambda p, x: MODEL.prefill(p, x, 5))(params(), inputs)
    monkeypatch.setattr(row_block, "block_rows", lambda rows, length: 3)
    blocked = jax.jit(functools.partial(row_block.prefill, MODEL, max_new=5))
    text = blocked.lower(params(), inputs).as_text()
    found, first = blocked(params(), inputs)
    assert "stablehlo.while" in text
    assert jax.tree.structure(found) == jax.tree.structure(whole)
    for ours, theirs in zip(jax.tree.leaves((found, first)), jax.tree.leaves((whole, token)), strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_a_block_is_what_the_cores_have_work_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert row_block.block_rows(64, 512) == 64  # the tests' CPU is eight devices
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(row_block, "cores", lambda: 2)
    assert [row_block.block_rows(64, length) for length in (64, 512, 640, 2048, 8192)] == [32, 4, 2, 1, 1]
    assert [row_block.block_rows(rows, 512) for rows in (1, 2, 4, 5, 6, 7, 10, 16)] == [1, 2, 4, 5, 3, 7, 2, 4]
    monkeypatch.setattr(row_block, "cores", lambda: 64)
    assert row_block.block_rows(64, 512) == 64 and row_block.block_rows(64, 2048) == 32
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert row_block.block_rows(64, 2048) == 64


def test_cores_are_those_of_the_process() -> None:
    assert 1 <= row_block.cores() <= (os.cpu_count() or 1)
