"""A mixture over a store, read by SeqIO: the same examples in the same order, sharded and cut alike."""

import gin
import numpy as np
import pytest
import seqio

from flanx import config
from flanx.data.pipeline import mixture, sampling
from flanx.data.pipeline.batches import Batches
from flanx.seqio import store_task
from tests import store_maker

LENGTHS = {"inputs": 24, "targets": 8}


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    sizes = {"cot/cot_a": 30, "cot/cot_b": 10, "muffin/muffin_c": 20}
    return store_maker.make(tmp_path_factory.mktemp("store"), sizes, ("zsopt", "fsopt"))


def read(task: str, n: int, **options) -> list[tuple[list[int], list[int]]]:
    data = seqio.get_mixture_or_task(task).get_dataset(LENGTHS, "train", shuffle=False, **options)
    return [(e["inputs"].tolist(), e["targets"].tolist()) for e in data.take(n).as_numpy_iterator()]


def test_seqio_reads_the_draws_of_the_mixture(opened, monkeypatch):
    monkeypatch.setattr(sampling.Order.__init__, "__defaults__", (100,))
    task = store_task.store_mixture("cot_of_store", opened.path, mixture.Mixture("cot"), seed=5)
    assert set(task.output_features) == {"inputs", "targets"}
    own = Batches(opened, mixture.Mixture("cot"), LENGTHS, 250, seed=5, pack=False).batch(0)
    ours = [
        tuple(own[f"{name}_tokens"][row][own[f"{name.split('_')[0]}_segment_ids"][row] > 0].tolist() for name in names)
        for row in range(250)
        for names in [("encoder_input", "decoder_target")]
    ]
    found = read("cot_of_store", 250)
    assert found == ours  # over more than two chunks of draws
    assert max(len(i) for i, _ in found) == 24 and all(i[-1] == t[-1] == 1 for i, t in found)
    shards = [read("cot_of_store", 83, shard_info=seqio.ShardInfo(i, 3)) for i in range(3)]
    assert [e for row in zip(*shards, strict=True) for e in row] == ours[:249]


def test_seqios_converter_packs_it(opened):
    store_task.store_mixture("all_of_store", opened.path, mixture.Mixture("cot", cot_ratio=1.0))
    converter = seqio.EncDecFeatureConverter(pack=True)
    data = seqio.get_dataset("all_of_store", LENGTHS, feature_converter=converter, dataset_split="train", shuffle=False)
    row = next(iter(data.as_numpy_iterator()))
    assert row["encoder_input_tokens"].shape == (24,) and np.max(row["decoder_segment_ids"]) >= 1


def test_the_recipe_for_t5x_reads_a_store_and_its_live_form_a_mixture(opened):
    """T5X asks for the value of MIXTURE_OR_TASK_NAME several times: for vocabularies, training, evaluation."""
    folder = config.gin_folder() / "t5x"
    gin.clear_config()  # T5X parses with gin alone
    gin.parse_config_files_and_bindings([f"{folder}/recipe.gin"], [f"STORE_DIR='{opened.path}'", "MIXTURE='cot'"])
    first, second = (config.value("MIXTURE_OR_TASK_NAME") for _ in range(2))
    assert first == second != store_task.registered(opened.path, "cot", seed=1)
    store_task.store_mixture("by_hand", opened.path, "cot")
    assert read(first, 20) == read("by_hand", 20)
    with gin.unlock_config():
        gin.parse_config_file(f"{folder}/live.gin")
    assert config.value("MIXTURE_OR_TASK_NAME") == "cot" and "cot" in seqio.MixtureRegistry.names()
