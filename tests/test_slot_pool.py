"""Rows whose prompts come and go decode what each prompt decodes by itself."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flanx.decoding import decode
from flanx.decoding.decode import Sample
from flanx.decoding.slot_pool import SampleByRow, SlotPool
from flanx.models import palm
from tests import test_decode
from tests.test_decode import MODEL, params, prompts

METHODS = [Sample(), test_decode.SAMPLED, Sample(0.9), Sample(0.7, top_p=0.8), Sample(1.5, top_k=5)]
NEW = 12
PALM = palm.PaLM(vocab_size=test_decode.V, emb_dim=32, num_heads=2, head_dim=16, mlp_dim=48, num_layers=1)


@pytest.mark.parametrize("method", [*METHODS, Sample(1.0, top_k=1000), Sample(0.3, top_k=96), Sample(2.0, top_k=70)])
def test_rows_pick_what_their_methods_pick(method: Sample) -> None:
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(40, 1, test_decode.V)), jnp.float32) * 3
    keys = jax.random.split(jax.random.key(5), 40).reshape(40, 1)
    every = [method, *METHODS]
    picked = by_row([every[row % len(every)] for row in range(40)]).pick(logits, keys)
    wanted = method.pick(logits, keys)
    assert picked[:: len(every)].tolist() == wanted[:: len(every)].tolist()
    assert by_row([method] * 40).pick(logits, keys).tolist() == wanted.tolist()


def by_row(methods: list[Sample]) -> SampleByRow:
    columns = zip(*((each.temperature, each.top_k, each.top_p) for each in methods), strict=True)
    return SampleByRow(*(jnp.asarray(column) for column in columns))


def drain(pool: SlotPool, waiting: list[tuple], steps: int = 3) -> dict[tuple, decode.Output]:
    """Every (prompt, method, seed, sample) through the pool's rows: {its number: output}."""
    rows: dict[int, int] = {}
    found = {}
    numbers = iter(range(len(waiting)))
    left = len(waiting)
    while left:
        while pool.has_room and (number := next(numbers, None)) is not None:
            rows[pool.add(*waiting[number])] = number
        for row, progress in pool.step(steps).items():
            if progress.done:
                found[rows.pop(row)] = decode.Output([progress.tokens], [progress.ended], progress.non_finite)
                pool.release([row])
                left -= 1
    assert not pool.is_busy
    return found


def test_prompts_that_come_and_go_decode_as_alone() -> None:
    given = prompts()
    methods = [Sample(), test_decode.SAMPLED]
    asked = [(given[i], methods[i % 2], i // 2 % 2, i // 4 % 2) for i in range(len(given))]
    found = drain(SlotPool(MODEL, params(), rows=4, lengths=(16, 64), max_new=NEW), asked)
    for method in methods:
        for seed in range(2):
            whole = test_decode.run(method=method, samples=3, seed=seed) if method.draws else test_decode.run()
            for number, (_, used, its_seed, sample) in enumerate(asked):
                if used == method and its_seed == seed:
                    at = sample if method.draws else 0
                    assert found[number].tokens[0] == whole[number].tokens[at]
                    assert found[number].ended[0] == whole[number].ended[at]
    assert len({len(output.tokens[0]) for output in found.values()}) > 2


def test_a_row_that_is_released_early_is_taken_by_the_next_prompt() -> None:
    given = prompts(4)
    pool = SlotPool(MODEL, params(), rows=2, lengths=(64,), max_new=NEW, eos_id=-1)
    assert pool.step(1) == {}
    first, second = pool.add(given[0], Sample()), pool.add(given[1], Sample())
    assert not pool.has_room
    before = pool.step(2)
    assert [len(before[row].tokens) for row in (first, second)] == [2, 2]
    pool.release([first])
    assert pool.has_room and list(pool.step(1)) == [second]
    third = pool.add(given[2], Sample())
    assert third == first
    after = pool.step(NEW)
    wanted = test_decode.run(eos_id=-1)
    assert after[third].tokens == wanted[2].tokens[0] and after[second].tokens == wanted[1].tokens[0]
    assert after[second].done and not after[second].ended


@pytest.mark.parametrize("model", ["t5", pytest.param("palm", marks=pytest.mark.slow)])
def test_samples_of_a_prompt_share_its_encoding_whatever_it_is_padded_to(model: str) -> None:
    made, values = (
        (MODEL, params()) if model == "t5" else (PALM, jax.jit(lambda: nn.unbox(PALM.init(jax.random.key(3))))())
    )
    short, long = prompts(2)[0][:9], (prompts(2)[1] * 9)[:40]
    asked = [(prompt, test_decode.SAMPLED, 3, sample) for prompt in (short, long) for sample in range(3)]
    asked.append((long, test_decode.SAMPLED, 4, 0))  # another seed is another draw
    pool = SlotPool(made, values, rows=2, lengths=(16, 64), max_new=NEW)
    encoded, start = [], pool._start
    pool._start = lambda inputs, *more, **given: encoded.append(inputs.shape[1]) or start(inputs, *more, **given)
    found = drain(pool, asked)
    assert encoded == [16, 64, 64, 64]  # the second: the shapes of the rows
    for number, (prompt, method, seed, sample) in enumerate(asked):
        (alone,) = decode.generate(made, values, [prompt], max_new=NEW, method=method, samples=3, seed=seed)
        assert found[number].tokens[0] == alone.tokens[sample]
