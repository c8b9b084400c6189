"""What prompts begin with is read once: the answers and scores of reading each whole."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flanx.decoding import decode, loglikelihood, prefix
from flanx.decoding.length_buckets import Batching
from flanx.models import palm
from tests import test_decode

V = 96
PALM = palm.PaLM(vocab_size=V, emb_dim=32, num_heads=2, head_dim=16, mlp_dim=64, num_layers=2)


@functools.cache
def params() -> Any:
    """Random parameters."""
    shapes = jax.eval_shape(lambda key: nn.unbox(PALM.init(key)), jax.random.key(0))
    rng = np.random.default_rng(3)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.3, x.dtype), shapes)


def prompts() -> list[list[int]]:
    """Two tasks, whose prompts begin with 70 and 140 tokens of theirs and come in turns, and one of its own."""
    rng = np.random.default_rng(5)
    tasks = [rng.integers(3, V, size).tolist() for size in (70, 140)]
    rows = [tasks[n % 2] + rng.integers(3, V, rng.integers(1, 20)).tolist() for n in range(12)]
    return [*rows, rng.integers(3, V, 30).tolist()]


def test_prompts_are_grouped_by_what_they_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix, "COMPILATION", 200)
    given = prompts()
    groups = prefix.groups_of(PALM, given)
    assert sorted((len(group.prefix), group.numbers) for group in groups) == [
        (0, [12]), (64, [0, 2, 4, 6, 8, 10]), (128, [1, 3, 5, 7, 9, 11]),
    ]  # fmt: skip
    assert all(tuple(given[n][: len(group.prefix)]) == group.prefix for group in groups for n in group.numbers)
    equal = [given[0][:64]] * 9  # of which each keeps a token of its own
    assert prefix.groups_of(PALM, equal) == [prefix.Group(list(range(9)), ())]
    monkeypatch.setattr(prefix, "COMPILATION", 10_000)
    assert prefix.groups_of(PALM, given) == [prefix.Group(list(range(13)), ())]
    monkeypatch.setattr(prefix, "COMPILATION", 0)
    assert prefix.groups_of(PALM, []) == [prefix.Group([], ())]
    both_ways = dataclasses.replace(PALM, prefix_lm=True)
    for model in (both_ways, test_decode.MODEL):  # whose beginning depends on what follows
        assert prefix.groups_of(model, given) == [prefix.Group(list(range(13)), ())]


def test_answers_and_scores_are_those_of_whole_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    given, options = prompts(), [[[5, 6], [7]]] * 13
    seen: list[int] = []
    read = prefix.read
    monkeypatch.setattr(
        prefix, "read", lambda model, params, tokens, put: seen.append(len(tokens)) or read(model, params, tokens, put)
    )
    batching = Batching(8, (16, 32, 96, 160))
    settings = {"max_new": 6, "batching": batching, "eos_id": -1}

    def answers() -> Any:
        scores = loglikelihood.score_and_match(PALM, params(), given, options, batching=batching)
        return decode.generate(PALM, params(), given, **settings), scores

    whole = answers()
    assert set(seen) == {0}
    monkeypatch.setattr(prefix, "COMPILATION", 200)
    found = answers()
    assert set(seen) == {0, 64, 128}
    assert found[0] == whole[0]
    for (ours, matches), (theirs, wanted) in zip(found[1], whole[1], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
        np.testing.assert_array_equal(matches, wanted)


@pytest.mark.slow
def test_the_cache_after_a_prefix_is_that_of_the_whole() -> None:
    given = [prompt for prompt in prompts()[:12:2]]
    rest = np.zeros((6, 24), np.int32)
    whole = np.zeros((6, 96), np.int32)
    for row, prompt in enumerate(given):
        rest[row, : len(prompt) - 64], whole[row, : len(prompt)] = prompt[64:], prompt
    known = prefix.read(PALM, params(), given[0][:64], jnp.asarray)
    cache, token = PALM.prefill_after(params(), known, jnp.asarray(rest), 4)
    wanted, first = PALM.prefill(params(), jnp.asarray(whole), 4)
    np.testing.assert_array_equal(token, first)
    np.testing.assert_array_equal(cache["position"], wanted["position"])
    logits, _ = PALM.decode_step(params(), cache, token)
    expected, _ = PALM.decode_step(params(), wanted, first)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
