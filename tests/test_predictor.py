"""A predictor: what it refuses, and that its answers are those of the decoding that it wraps."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

from flanx import checkpoint, coordination
from flanx.data import vocabulary
from flanx.decoding import beam_search, decode, loglikelihood
from flanx.decoding.length_buckets import Batching
from flanx.errors import UserError
from flanx.models.t5 import T5
from flanx.partition import Partitioner
from flanx.predictor import Prediction, Predictor

MODEL = T5(vocab_size=384, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=16, num_encoder_layers=1, num_decoder_layers=1)
BYTES = vocabulary.load("byte")
PROMPTS = [[*BYTES.encode(text), BYTES.eos_id] for text in ("a", "bcd", "what is it?")]
BATCHING = Batching(8, (48,))


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    params = nn.unbox(jax.jit(MODEL.init)(jax.random.key(0)))
    return Predictor(MODEL, params, BYTES, {"inputs": 48, "targets": 4}, batch_size=8, seed=3)


def answers(predictor: Predictor, *arguments: Any, **options: Any) -> list[Prediction]:
    predictions = dict(predictor.generate(PROMPTS, *arguments, **options))
    return [predictions[number] for number in range(len(PROMPTS))]


def test_samples_are_those_of_decoding_with_the_seed(predictor: Predictor) -> None:
    method = decode.Sample(1.0)
    options = {"max_new": 4, "samples": 2, "seed": 3, "method": method, "batching": BATCHING}
    wanted = decode.generate(MODEL, predictor.params, PROMPTS, **options)
    got = answers(predictor, method, samples=2, max_new=99)  # the longest output is lengths["targets"]
    assert [p.texts for p in got] == [[BYTES.decode(tokens) for tokens in o.tokens] for o in wanted]
    assert [p.ended for p in got] == [o.ended for o in wanted]
    assert got != answers(dataclasses.replace(predictor, seed=4), method, samples=2)


def test_every_batch_is_a_sign_that_the_process_goes_on(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordination, "position", {})
    answers(predictor, max_new=1)
    first = dict(coordination.position)
    assert first["stage"] == "prediction" and first["batch"] > 0
    predictor.score([[5, 1]], [["a"]])
    assert coordination.position["batch"] > first["batch"]


def test_a_stop_text_ends_an_output_and_beams_give_their_best(predictor: Predictor) -> None:
    whole = [p.texts[0] for p in answers(predictor)]
    assert max(map(len, whole)) > 1
    assert [p.texts[0] for p in answers(predictor, stop=lambda text: len(text) >= 1)] == [text[:1] for text in whole]
    method = beam_search.Beam(2)
    wanted = beam_search.search(MODEL, predictor.params, PROMPTS, max_new=4, method=method, batching=BATCHING)
    assert [p.texts for p in answers(predictor, method)] == [[BYTES.decode(o.tokens[0])] for o in wanted]


def test_scores_are_log_probabilities_of_texts(predictor: Predictor) -> None:
    options = [["x", "yz"], ["p", "q"], ["a", "b"]]
    encoded = [[BYTES.encode(option) for option in each] for each in options]
    wanted = loglikelihood.score(MODEL, predictor.params, PROMPTS, encoded, batching=BATCHING)
    np.testing.assert_array_equal(predictor.score(PROMPTS, options), wanted)


def test_parameters_of_a_checkpoint_are_on_the_mesh_and_answer_alike(predictor: Predictor, tmp_path: Any) -> None:
    checkpoint.save_params(tmp_path / "saved", predictor.params)
    empty = dataclasses.replace(predictor, params=None)
    with empty.restored(str(tmp_path / "saved"), Partitioner(num_partitions=2)) as restored:
        assert len(jax.tree.leaves(restored.params)[0].sharding.mesh.devices.flat) == 8
        assert answers(restored) == answers(predictor)
    with pytest.raises(UserError, match="no checkpoint: give a run"), empty.restored(None, Partitioner()):
        pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": {"inputs": 4}}, "give 'inputs' and 'targets', two tokens or more"),
        ({"batch_size": 0}, "EVAL_BATCH_SIZE is 0"),
        ({"vocabulary": vocabulary.load("byte", 200)}, "has 459 ids, the model's table has 384 rows"),
    ],
)
def test_what_does_not_fit_is_refused(predictor: Predictor, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(predictor, **change)
