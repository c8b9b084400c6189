"""The run that is planned, read from gin: a model's file is enough, a recipe overrides the defaults."""

import pytest

from flanx.errors import UserError
from flanx.plan import planned_run


def test_a_models_file_is_enough_and_bindings_override_the_defaults() -> None:
    run = planned_run.read(["models/t5_1_1/tiny.gin"], ["BATCH_SIZE=8", "TRAIN_STEPS=3"])
    assert (run.batch_size, run.train_steps, run.lengths) == (8, 3, {"inputs": 2048, "targets": 512})
    assert run.tokens_per_step == 8 * 2560
    assert run.batch()["encoder_input_tokens"].shape == (8, 2048) and run.batch()["decoder_positions"].shape == (8, 512)
    assert run.scanned().model.num_params() == run.model.num_params()
    recipe = planned_run.read(["recipes/flan_palm_8b.gin"], [])
    assert recipe.batch_size == 32 and recipe.batch()["decoder_causal_attention"].shape == (32, 2560)


def test_other_lengths_than_inputs_and_targets_are_refused() -> None:
    with pytest.raises(UserError, match="give 'inputs' and 'targets'"):
        planned_run.read(["models/t5_1_1/tiny.gin"], ["TASK_FEATURE_LENGTHS={'inputs': 8}"])
