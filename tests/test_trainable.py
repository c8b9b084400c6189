"""Parts of a model: which names patterns train, and that what is frozen has no gradient, no state and does not move."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flanx import optim, trainable
from flanx.errors import UserError
from flanx.models.palm import PaLM
from flanx.train_step import Trainer
from tests.test_train_step import FAST, ONE, SIZES, batch

NAMES = ("encoder/layers_0/mlp/wo/kernel", "decoder/layers_1/mlp/wo/kernel", "token_embedder/embedding")
TREE = {"decoder": {"layers_0": {"w": 1, "v": 2}, "norm": 3}, "table": 4}


@pytest.mark.parametrize(
    ("patterns", "trained"),
    [
        (["decoder/.*"], [False, True, False]),
        (["!token_embedder/.*"], [True, True, False]),
        (["decoder/.*", "encoder/.*", "!.*layers_0/.*"], [False, True, False]),
        ([".*", "!.*/layers/.*", "encoder/.*"], [True, False, True]),
        ([".*"], [True, True, True]),
    ],
)
def test_the_last_pattern_that_fits_decides(patterns, trained):
    assert [trainable.is_trained(trainable.check(patterns), name) for name in NAMES] == trained


def test_a_tree_is_split_and_joined():
    trained, frozen = trainable.split(TREE, ("decoder/.*", "!.*/v"))
    assert trained == {"decoder": {"layers_0": {"w": 1}, "norm": 3}}
    assert frozen == {"decoder": {"layers_0": {"v": 2}}, "table": 4}
    assert trainable.join(trained, frozen) == TREE
    assert trainable.describe(("table",), jax.tree.map(jnp.ones, TREE)).startswith("trains 4 of 10 parameters (40.00%)")


def test_patterns_that_train_nothing_are_refused():
    for patterns, message in (
        ([], "TRAINABLE is empty"),
        (["("], "not a regular expression"),
        (["tabel"], "'tabel' fits no parameter; did you mean 'table'"),
        (["table", "!.*"], "leaves nothing to train"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            trainable.expect_names(trainable.check(patterns), TREE)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"(": 0.1}, "not a regular expression"),
        ({"!decoder/.*": 0.1}, "takes away"),
        ({"decoder/.*": -1.0}, "has the factor -1.0; give a number, 0 or more"),
        ({"decoder/.*": float("nan")}, "has the factor nan"),
        ({"decodr/.*": 0.1}, "'decodr/.*' fits no parameter that is trained"),
        ({"token_embedder/.*": 0.1}, "'token_embedder/.*' fits no parameter that is trained"),  # it is frozen
    ],
)
def test_factors_of_rates_that_change_nothing_or_are_none_are_refused(rates, message):
    with pytest.raises(UserError, match=re.escape(message)):
        Trainer(
            PaLM(**SIZES, num_layers=1), optim.adamw(1e-2), trainable=["decoder/.*"], rate_multipliers=rates
        ).abstract_state(ONE)


@pytest.mark.parametrize("optimizer", ["adafactor", "adamw"])
def test_what_is_frozen_stays_to_the_bit_and_rates_are_multiplied(optimizer):
    """A hundred steps; the state holds the trained parameters alone."""
    rule = getattr(optim, optimizer)(1e-2)
    patterns, rates = ["decoder/.*", "!.*/attention/.*"], {".*": 1.0, ".*/mlp/.*": 0.0}
    model = PaLM(**SIZES, num_layers=1)
    made = Trainer(model, rule, trainable=patterns, rate_multipliers=rates, loss_normalizing_factor="tokens")
    state = jax.jit(made.init, compiler_options=FAST)()
    before = trainable.flat(jax.device_get(state.params))
    moments = {n for n in before if trainable.is_trained(patterns, n)}
    paths = jax.tree_util.tree_leaves_with_path(state.opt_state)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]
    assert {n for n in before if any(f"/{name}".endswith(f"/{n}") for name in names)} == moments
    step, rows = jax.jit(made.step, compiler_options=FAST), jax.tree.map(jnp.asarray, batch("decoder_only"))
    for _ in range(100):
        state, _ = step(state, rows)
    after = trainable.flat(jax.device_get(state.params))
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved == {name for name in moments if "/mlp/" not in name} != set()
    shapes = made.abstract_state(ONE)
    assert jax.tree.structure(shapes) == jax.tree.structure(state)
