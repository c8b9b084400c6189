"""Decoding: equal to teacher forcing, to Hugging Face, to itself in any batch, bucket and mesh."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flanx.decoding import beam_search, decode, kv_cache, length_buckets, loglikelihood, row_block, slot
from flanx.decoding.length_buckets import Batching
from flanx.errors import UserError
from flanx.models import palm, t5

V = 96
MODEL = t5.T5(
    vocab_size=V, emb_dim=32, num_heads=2, head_dim=16, mlp_dim=48, num_encoder_layers=1, num_decoder_layers=1
)


@functools.cache
def params() -> Any:
    """Random parameters, drawn with numpy; large enough that outputs vary and end-of-sequence turns up."""
    shapes = jax.eval_shape(lambda key: nn.unbox(MODEL.init(key)), jax.random.key(0))
    rng = np.random.default_rng(12)
    drawn = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.35, x.dtype), shapes)
    drawn["decoder"]["logits_dense"]["kernel"] = drawn["decoder"]["logits_dense"]["kernel"].at[:, 1].mul(3.0)
    return drawn


def prompts(count: int = 21, longest: int = 40) -> list[list[int]]:
    """Token lists of many lengths, each with its end of sequence."""
    rng = np.random.default_rng(1)
    return [[*rng.integers(3, V, size=rng.integers(1, longest)).tolist(), 1] for _ in range(count)]


def run(given: list[list[int]] | None = None, **options: Any) -> list[decode.Output]:
    """Decodes with small shapes."""
    settings = {"max_new": 12, "batching": Batching(8, (64,))} | options
    return decode.generate(MODEL, params(), given if given is not None else prompts(), **settings)


def forced(given: list[list[int]], targets: list[list[int]], model: t5.T5 = MODEL, drawn: Any = None) -> np.ndarray:
    """Log-probabilities f32[B, T, V] with the right answer fed at every step, in one pass without a cache."""
    inputs = length_buckets.pad_rows(given, len(given), 64)
    wanted = length_buckets.pad_rows(targets, len(given), 13)
    batch = {
        "encoder_input_tokens": inputs,
        "encoder_segment_ids": (inputs > 0).astype(np.int32),
        "encoder_positions": np.broadcast_to(np.arange(64, dtype=np.int32), inputs.shape),
        "decoder_input_tokens": np.pad(wanted, ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": wanted,
        "decoder_segment_ids": np.ones_like(wanted),
        "decoder_positions": np.broadcast_to(np.arange(13, dtype=np.int32), wanted.shape),
    }
    return np.asarray(jax.jit(lambda p, b: jax.nn.log_softmax(model.logits(p, b)))(drawn or params(), batch))


def test_greedy_follows_teacher_forcing() -> None:
    outputs = run()
    wanted = forced(prompts(), [[*o.tokens[0], 1] for o in outputs]).argmax(-1)
    for row, output in enumerate(outputs):
        tokens = output.tokens[0] + ([1] if output.ended[0] else [])
        assert wanted[row, : len(tokens)].tolist() == tokens
    assert any(o.ended[0] for o in outputs) and not all(o.ended[0] for o in outputs)


SAMPLED = decode.Sample(0.9, top_k=20, top_p=0.9)  # one method, so that what it compiles to is shared


@pytest.mark.parametrize(("method", "samples"), [(decode.Sample(), 1), (SAMPLED, 3)], ids=["greedy", "sampled"])
def test_batched_equals_alone_refilled_and_bucketed(method: decode.Sample, samples: int) -> None:
    whole = run(method=method, samples=samples)
    assert len({len(o.tokens[0]) for o in whole}) > 2
    backwards = run(prompts()[::-1], method=method, samples=samples)[::-1]
    assert backwards == whole
    assert run(method=method, samples=samples, batching=Batching(8, (64,), refill=2)) == whole
    assert run(method=method, samples=samples, batching=Batching(8, (16, 64))) == whole
    assert run(prompts()[4:5], method=method, samples=samples) == whole[4:5]


def test_samples_that_take_turns_in_few_lanes_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    given, drawn = prompts()[:9], {"method": SAMPLED, "samples": 7, "scored": True}
    whole = run(given, **drawn)
    assert len({len(tokens) for output in whole for tokens in output.tokens}) > 4
    monkeypatch.setattr(decode, "STOP_PERIOD", 2)
    monkeypatch.setattr(decode, "lanes_of", lambda samples: 3)
    monkeypatch.setattr(row_block, "on_one_cpu", lambda: True)
    monkeypatch.setattr(row_block, "block_rows", lambda rows, length: rows)
    begun: list[int] = []
    restart = slot.restart_samples

    def watched(state: Any, begins: Any, *others: Any, **named: Any) -> Any:
        begun.append(int(begins.sum()))
        return restart(state, begins, *others, **named)

    monkeypatch.setattr(slot, "restart_samples", watched)
    for refill in (0, 2):
        found = run(given, batching=Batching(3, (64,), refill=refill), **drawn)
        assert [(o.tokens, o.ended) for o in found] == [(o.tokens, o.ended) for o in whole]
        np.testing.assert_allclose([o.scores for o in found], [o.scores for o in whole], atol=1e-4)
    assert sum(begun) == 2 * 9 * (7 - 3)

    def stop(tokens: list[int]) -> bool:
        return sum(token % 3 == 0 for token in tokens) >= 2

    cut = run(given, batching=Batching(3, (64,)), stop=stop, **drawn)
    monkeypatch.undo()
    assert [o.tokens for o in cut] == [o.tokens for o in run(given, stop=stop, **drawn)]


def test_lanes_are_half_of_many_samples() -> None:
    assert [slot.lanes_of(samples) for samples in (1, 2, 8, 9, 40, 41)] == [1, 2, 8, 8, 20, 21]


def test_sampling_depends_on_the_seed_and_stays_within_its_bounds() -> None:
    drawn = {"method": SAMPLED, "samples": 3}
    assert run(**drawn, seed=1) != run(**drawn, seed=2)
    assert run(**drawn, seed=1) == run(**drawn, seed=1)
    several = run(**drawn)
    assert all(len(o.tokens) == 3 for o in several)
    assert any(len({tuple(t) for t in o.tokens}) > 1 for o in several)


def test_every_sample_and_every_position_has_noise_of_its_own() -> None:
    """So hot that every token is nearly as likely as any other: what is drawn twice has had the same noise."""
    for output in run(prompts(8), method=decode.Sample(1e3), samples=3):
        assert len({tuple(tokens) for tokens in output.tokens}) == 3
        assert all(len(set(tokens)) > len(tokens) / 2 for tokens in output.tokens)


def test_sampling_draws_from_the_right_distribution() -> None:
    logits = jnp.log(jnp.asarray([0.5, 0.3, 0.15, 0.05]))
    keys = jax.random.split(jax.random.key(0), 8000).reshape(8000, 1)
    many = jnp.broadcast_to(logits, (8000, 1, 4))

    def shares(method: decode.Sample) -> np.ndarray:
        return np.bincount(np.asarray(method.pick(many, keys)).ravel(), minlength=4) / 8000

    np.testing.assert_allclose(shares(decode.Sample(1.0)), [0.5, 0.3, 0.15, 0.05], atol=0.02)
    np.testing.assert_allclose(shares(decode.Sample(1.0, top_k=2)), [0.625, 0.375, 0, 0], atol=0.02)
    np.testing.assert_allclose(shares(decode.Sample(1.0, top_p=0.6)), [0.625, 0.375, 0, 0], atol=0.02)
    for certain in (decode.Sample(1.0, top_k=1), decode.Sample(1.0, top_p=1e-6), decode.Sample(1e-3), decode.Sample()):
        assert shares(certain)[0] == 1
    np.testing.assert_allclose(shares(decode.Sample(0.5)), np.square([0.5, 0.3, 0.15, 0.05]) / 0.365, atol=0.02)


def test_an_encoder_is_held_once_for_all_samples() -> None:
    filled, _ = jax.eval_shape(lambda p: MODEL.prefill(p, jnp.zeros((3, 24), jnp.int32), 5), params())
    shared = kv_cache.shared_leaves(MODEL, params(), 5)
    for leaf, same in zip(jax.tree.leaves(filled), shared, strict=True):
        assert same == (24 in leaf.shape[1:])  # what has the prompt's length is the encoder's


def test_a_decoder_only_model_follows_teacher_forcing_alone_and_in_samples() -> None:
    model = palm.PaLM(vocab_size=V, emb_dim=32, num_heads=2, head_dim=16, mlp_dim=64, num_layers=1)
    shapes = jax.eval_shape(lambda key: nn.unbox(model.init(key)), jax.random.key(0))
    rng = np.random.default_rng(3)
    weights = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.3, x.dtype), shapes)
    given = prompts(5, 12)
    settings = {"max_new": 8, "batching": Batching(8, (16,)), "eos_id": -1}
    found = decode.generate(model, weights, given, **settings)
    rows = [prompt + output.tokens[0] for prompt, output in zip(given, found, strict=True)]
    targets = length_buckets.pad_rows(rows, len(rows), 24)
    batch = {
        "decoder_target_tokens": targets,
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        "decoder_segment_ids": np.ones_like(targets),
        "decoder_positions": np.broadcast_to(np.arange(24, dtype=np.int32), targets.shape),
        "decoder_loss_weights": np.ones_like(targets),
        "decoder_causal_attention": np.zeros_like(targets),
    }
    best = np.asarray(jax.jit(model.logits)(weights, batch)).argmax(-1)
    for row, (prompt, output) in enumerate(zip(given, found, strict=True)):
        start = len(prompt)
        assert best[row, start : start + 8].tolist() == output.tokens[0]
    certain = decode.Sample(1.0, top_k=1)
    several = decode.generate(model, weights, given, samples=2, method=certain, **settings)
    assert [o.tokens for o in several] == [[o.tokens[0]] * 2 for o in found]


@functools.cache
def hugging_face() -> Any:
    """The same parameters in Hugging Face's T5."""
    torch = pytest.importorskip("torch", reason="the peer; pip install flanx[hf]")
    transformers = pytest.importorskip("transformers", reason="the peer; pip install flanx[hf]")
    config = transformers.T5Config(
        vocab_size=V, d_model=32, d_kv=16, d_ff=48, num_heads=2, num_layers=1, num_decoder_layers=1,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0, dropout_rate=0.0,
        scale_decoder_outputs=False,
    )  # fmt: skip
    ours = params()
    state = {
        "shared.weight": ours["token_embedder"]["embedding"],
        "lm_head.weight": ours["decoder"]["logits_dense"]["kernel"].T,
    }
    for side in ("encoder", "decoder"):
        tree = ours[side]
        state[f"{side}.embed_tokens.weight"] = state["shared.weight"]
        state[f"{side}.final_layer_norm.weight"] = tree[f"{side}_norm"]["scale"]
        bias = tree["relpos_bias"]["rel_embedding"].T
        state[f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = bias
        for i in range(1):
            layer, place = tree[f"layers_{i}"], f"{side}.block.{i}.layer"
            norms = ["pre_attention_layer_norm", "pre_mlp_layer_norm"]
            parts = [("attention", "SelfAttention")]
            if side == "decoder":
                norms = ["pre_self_attention_layer_norm", "pre_cross_attention_layer_norm", "pre_mlp_layer_norm"]
                parts = [("self_attention", "SelfAttention"), ("encoder_decoder_attention", "EncDecAttention")]
            for j, norm in enumerate(norms):
                state[f"{place}.{j}.layer_norm.weight"] = layer[norm]["scale"]
            for j, (name, theirs) in enumerate(parts):
                for key, letter in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o")):
                    state[f"{place}.{j}.{theirs}.{letter}.weight"] = layer[name][key]["kernel"].T
            for key in ("wi_0", "wi_1", "wo"):
                state[f"{place}.{len(norms) - 1}.DenseReluDense.{key}.weight"] = layer["mlp"][key]["kernel"].T
    model = transformers.T5ForConditionalGeneration(config).eval()
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())  # transformers 5 ties it whatever is asked
    model.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in state.items()}, strict=True)
    return model


def theirs(given: list[list[int]], **options: Any) -> list[list[int]]:
    """What `generate` of Hugging Face gives, without padding and end of sequence."""
    import torch

    rows = torch.from_numpy(length_buckets.pad_rows(given, len(given), 64).astype(np.int64))
    with torch.inference_mode():
        out = hugging_face().generate(
            input_ids=rows, attention_mask=(rows > 0).long(), max_new_tokens=12, do_sample=False, **options
        )
    return [[t for t in row[1:].tolist() if t not in (0, 1)] for row in out]


def ours(tokens: list[int]) -> list[int]:
    """Token 0, which pads there, may be written by a random model; it is left out on both sides."""
    return [t for t in tokens if t != 0]


def test_greedy_equals_hugging_face() -> None:
    hugging_face()
    assert [ours(o.tokens[0]) for o in run()] == theirs(prompts(), num_beams=1)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("beams", "penalty"),
    [
        (3, 2.0),
        pytest.param(4, 1.0, marks=SLOW),
        pytest.param(2, 1.0, marks=SLOW),
        pytest.param(4, 0.6, marks=SLOW),
        pytest.param(3, 0.0, marks=SLOW),
    ],
)
def test_beam_equals_hugging_face(beams: int, penalty: float) -> None:
    hugging_face()
    method = beam_search.Beam(beams, penalty)
    found = beam_search.search(MODEL, params(), prompts(), max_new=12, method=method, batching=Batching(24, (64,)))
    wanted = theirs(prompts(), num_beams=beams, length_penalty=penalty, num_return_sequences=beams)
    kept = [ours(o.tokens[i]) if i < len(o.tokens) else [] for o in found for i in range(beams)]
    assert kept == wanted
    assert all(o.scores == sorted(o.scores, reverse=True) for o in found)


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_with_as_many_beams_as_sequences_the_best_are_found(penalty: float) -> None:
    """All sequences of up to three of six tokens, each scored by teacher forcing."""
    model = dataclasses.replace(MODEL, vocab_size=6)
    shapes = jax.eval_shape(lambda key: nn.unbox(model.init(key)), jax.random.key(0))
    rng = np.random.default_rng(3)
    drawn = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.3, x.dtype), shapes)
    others = [token for token in range(6) if token != 1]
    sequences = [[1], *([a, 1] for a in others), *([a, b, c] for a in others for b in others for c in range(6))]
    given = [4, 2, 5, 1]
    logp = forced([given] * len(sequences), sequences, model, drawn)
    sums = [sum(logp[i, j, token] for j, token in enumerate(each)) for i, each in enumerate(sequences)]
    order = np.argsort([-total / len(each) ** penalty for total, each in zip(sums, sequences, strict=True)])
    wanted = [[token for token in sequences[i] if token != 1] for i in order[:8]]
    (found,) = beam_search.search(
        model, drawn, [given], max_new=3, method=beam_search.Beam(30, penalty), batching=Batching(8, (64,))
    )
    assert found.tokens[:8] == wanted and len({len(tokens) for tokens in wanted}) > 1


def test_beam_batched_equals_alone() -> None:
    method = beam_search.Beam(3, 2.0)
    whole = beam_search.search(MODEL, params(), prompts(), max_new=12, method=method, batching=Batching(24, (64,)))
    alone = beam_search.search(MODEL, params(), prompts()[2:3], max_new=12, method=method, batching=Batching(24, (64,)))
    assert alone[0].tokens == whole[2].tokens
    with pytest.raises(UserError, match="at least 2 beams"):
        beam_search.Beam(1)


def test_option_scores_equal_the_model_s_log_probabilities() -> None:
    given = prompts(5)
    options = [[[5], [6], [7, 8, 9]], [[1]], [[4, 4], [5]], [[9, 1], [10, 1], [11]], [[3], [3]]]
    found = loglikelihood.score(MODEL, params(), given, options, batching=Batching(lengths=(64,)))
    pairs = [(prompt, option) for prompt, each in zip(given, options, strict=True) for option in each]
    wanted = forced(*map(list, zip(*pairs, strict=True)))
    sums = [value for each in found for value in each]
    for row, (_, option) in enumerate(pairs):
        assert sums[row] == pytest.approx(sum(wanted[row, i, token] for i, token in enumerate(option)), abs=1e-4)
    with pytest.raises(UserError, match="prompt 1 has an empty option"):
        loglikelihood.score(MODEL, params(), given[:2], [[[1]], [[]]])
    with pytest.raises(UserError, match="prompt 0 has no options"):
        loglikelihood.score(MODEL, params(), given[:1], [[]])


def test_on_a_mesh_as_on_one_device() -> None:
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    over = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    placed = jax.device_put(params(), everywhere)
    found = decode.generate(
        MODEL, placed, prompts(), max_new=12, samples=3, method=SAMPLED,
        batching=Batching(8, (64,), device_put=lambda array: jax.device_put(array, over)),
    )  # fmt: skip
    assert found == run(samples=3, method=SAMPLED)


def test_nan_logits_are_named_and_stop_the_row() -> None:
    spoiled = jax.tree.map(lambda x: x, params())
    spoiled["token_embedder"] = {"embedding": params()["token_embedder"]["embedding"].at[50].set(jnp.nan)}
    given = [[5, 6, 1], [5, 50, 1], [7, 1]]
    found = decode.generate(MODEL, spoiled, given, max_new=12, batching=Batching(8, (64,)))
    assert [o.non_finite for o in found] == [False, True, False]
    clean = decode.generate(MODEL, params(), [given[0], given[2]], max_new=12, batching=Batching(8, (64,)))
    assert [50 in o.tokens[0] or o == c for o, c in zip([found[0], found[2]], clean, strict=True)] == [True, True]
    assert np.isnan(loglikelihood.score(MODEL, spoiled, [given[1]], [[[5]]])[0][0])
    for bad in (jnp.nan, jnp.inf):
        head = {"kernel": params()["decoder"]["logits_dense"]["kernel"].at[3, 7].set(bad)}
        spoiled = params() | {"decoder": params()["decoder"] | {"logits_dense": head}}
        assert all(
            o.non_finite for o in decode.generate(MODEL, spoiled, given, max_new=12, batching=Batching(8, (64,)))
        )


def test_bad_requests() -> None:
    with pytest.raises(UserError, match="prompt 1 has 80 tokens, the longest allowed is 64"):
        run([[1], [5] * 80])
    with pytest.raises(UserError, match="temperature"):
        decode.Sample(temperature=-1.0)
    assert run([]) == []
    assert dataclasses.replace(decode.Sample(), top_k=3).top_k == 3


def test_lengths_are_used_that_are_worth_a_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    lists = [[1] * n for n in (3, 10, 12, 40, 41, 60)]
    assert length_buckets.buckets_of(lists, (4, 16, 64), 8) == {64: [3, 4, 5, 1, 2, 0]}
    many = lists + [[1] * 90] * 200 + [[1] * 200] * 100
    found = length_buckets.buckets_of(many, (4, 16, 64, 96, 128, 200, 256), 64)
    assert {length: len(numbers) for length, numbers in found.items()} == {200: 100, 96: 206}
    assert sorted(number for numbers in found.values() for number in numbers) == list(range(306))
    assert length_buckets.bucket_lengths(512) == (128, 256, 512) and length_buckets.bucket_lengths(96) == (96,)
    monkeypatch.setattr(row_block, "on_one_cpu", lambda: True)
    assert length_buckets.bucket_lengths(37) == (8, 16, 24, 32, 37)
    assert length_buckets.bucket_lengths(2048)[-4:] == (1952, 1984, 2016, 2048)
    lengths = np.random.default_rng(0).lognormal(5.5, 0.5, 6000).clip(1, 2048).astype(int)
    buckets = length_buckets.buckets_of([[1] * n for n in lengths], length_buckets.bucket_lengths(2048), 64)
    padded = sum(
        -(-len(numbers) // rows) * rows * length
        for length, numbers in buckets.items()
        for rows in [length_buckets.rows_of(len(numbers), 64, length)]
    )
    assert lengths.sum() < padded < 1.08 * lengths.sum() and len(buckets) < 24


def test_long_prompts_go_in_smaller_batches() -> None:
    assert [length_buckets.rows_of(1000, 64, length) for length in (64, 512, 1024, 2048)] == [64, 64, 32, 16]
    assert [length_buckets.rows_of(count, 64, 128) for count in (0, 5, 30, 63)] == [8, 8, 32, 64]
    assert [length_buckets.rows_of(count, 64, 512) for count in (64, 65, 76, 130)] == [64, 40, 40, 48]  # not 64 and one
    assert length_buckets.rows_of(1000, 4, 4096) == 4 and length_buckets.rows_of(1000, 64, 8192) == 8


def test_one_cpu_encodes_few_empty_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_block, "on_one_cpu", lambda: True)
    assert [length_buckets.rows_of(count, 64, 512) for count in (0, 1, 3, 5, 9, 33, 65)] == [1, 1, 3, 8, 12, 36, 36]
    assert [length_buckets.rows_of(count, 64, 2048) for count in (1, 17, 1000)] == [1, 12, 16]


@pytest.mark.parametrize("samples", [1, 3])
def test_an_output_ends_with_its_stop_text_wherever_it_stands(samples: int) -> None:
    method = SAMPLED if samples > 1 else decode.Sample()
    whole = run(method=method, samples=samples)

    def stop(tokens: list[int]) -> bool:
        return sum(token % 3 == 0 for token in tokens) >= 3

    found = run(method=method, samples=samples, stop=stop, batching=Batching(8, (64,), refill=2))
    cut = 0
    for before, after in zip(whole, found, strict=True):
        for i in range(samples):
            tokens, ended = before.tokens[i], before.ended[i]
            ends = [n for n in range(len(tokens) + 1) if stop(tokens[:n])]
            assert after.tokens[i] == (tokens[: ends[0]] if ends else tokens)
            assert after.ended[i] == (ended or bool(ends))
            cut += bool(ends) and ends[0] < len(tokens)
    assert cut > 3
    assert run(prompts()[2:3], method=method, samples=samples, stop=stop) == found[2:3]


def test_samples_carry_the_log_probabilities_of_what_is_kept_of_them() -> None:
    def stop(tokens: list[int]) -> bool:
        return sum(token % 3 == 0 for token in tokens) >= 3

    for ends in (None, stop):
        plain = run(method=SAMPLED, samples=3, stop=ends)
        found = run(method=SAMPLED, samples=3, stop=ends, scored=True, batching=Batching(8, (64,), refill=2))
        assert [o.tokens for o in found] == [o.tokens for o in plain] and not any(o.scores for o in plain)
        for i in range(3):
            kept = [o.tokens[i] + [1] * (o.ended[i] and not (ends and ends(o.tokens[i]))) for o in found]
            logp = forced(prompts(), kept)  # at temperature 1, whatever they were drawn at
            for row, tokens in enumerate(kept):
                assert abs(found[row].scores[i] - sum(logp[row, n, t] for n, t in enumerate(tokens))) < 2e-3


def test_decoding_goes_no_further_than_the_stop_texts() -> None:
    seen: list[int] = []
    run(stop=lambda tokens: seen.append(len(tokens)) or len(tokens) > 1)
    assert max(seen) == decode.STOP_PERIOD < 12
