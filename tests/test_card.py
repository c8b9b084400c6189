"""The cards of an export: recipe, provenance, data with licences, scores with intervals, cost; no path of a machine."""

import json
import pathlib
from typing import Any

import pytest

from flanx import card
from flanx.convert.formats import OpenCheckpoint
from flanx.errors import UserError
from flanx.storage import open_storage
from flanx.sweep import published_recipes
from tests import run_maker
from tests.sweep_maker import entry

SETTINGS = {f"t5.T5.{name}": size for name, size in {"emb_dim": 16, "num_heads": 2, "head_dim": 8, "mlp_dim": 32,
            "num_encoder_layers": 1, "num_decoder_layers": 1, "vocab_size": 384}.items()}  # fmt: skip


def opened(folder: pathlib.Path, step: int = 1000, **more: Any) -> OpenCheckpoint:
    return OpenCheckpoint("flanx", open_storage(folder), {}, None, {}, open_storage(folder), {"step": step}, **more)


@pytest.fixture
def run(tmp_path: pathlib.Path) -> pathlib.Path:
    """A run of 1,000 steps from a parent of the hub, evaluated at its end, and before it."""
    folder = tmp_path / "run"
    run_maker.leave(folder)
    record = json.loads((folder / "run.json").read_text())
    record["settings"] |= SETTINGS
    record |= {"initial_checkpoint_path": "hf:org/small", "initial_checkpoint_step": 0,
               "initial_checkpoint_fingerprint": "f00d",
               "initial_checkpoint_source": {"hub": "org/small", "revision": "1" * 40, "files": {}}}  # fmt: skip
    record["data"] |= {"lengths": {"inputs": 32, "targets": 16}, "batch_size": 4,
                       "content": {"muffin_rte": "a", "cot_a": "b"}}  # fmt: skip
    record |= {"adapter": {"rank": 4}, "trainable": ["decoder/.*"]}
    record["data"]["store"]["vocabulary"] = "/home/someone/words.model"
    (folder / "run.json").write_text(json.dumps(record))
    for step, score in ((500, 11.0), (1000, 42.0)):
        (folder / "evals" / f"step_{step}").mkdir(parents=True)
        found = {"suites": {"bbh_cot": entry(score)}, "run": {}}
        (folder / "evals" / f"step_{step}" / "scores.json").write_text(json.dumps(found))
    return folder


def test_a_model_card_has_recipe_provenance_scores_and_cost(run):
    text = card.cards("mine", opened(run))[card.MODEL]
    assert text.startswith("---\nlibrary_name: transformers\n") and "base_model: org/small\n---\n\n# mine\n" in text
    assert "| `t5.T5.emb_dim` | `16` |" in text and "| `data.batch_size` | `4` |" in text
    assert "| `adapter.rank` | `4` |" in text and "| `trainable` | `['decoder/.*']` |" in text
    assert "| parent | hf:org/small |" in text and f"| parent's revision | {'1' * 40} |" in text
    assert "| vocabulary | words.model |" in text and "/home" not in text
    assert "| bbh_cot | exact_match | 42.0 | 40.0 to 44.0 |" in text and "11.0" not in text
    assert "| steps trained | 1,000 |" in text and "| tokens, padding included | 192,000 |" in text
    assert "| hours of training steps | 0.0556 |" in text  # 1,000 steps, 5 a second


def test_the_values_of_a_published_recipe_have_its_sources(run):
    recipe = published_recipes.find("flan_t5_small")
    record = json.loads((run / "run.json").read_text())
    parent = "/home/someone/t5_1_1_lm100k_small/checkpoint_1100000"
    record |= {
        "initial_checkpoint_path": parent,
        "initial_checkpoint_source": None,
        "adapter": {"start": "/home/x/run"},
    }
    record["data"]["mixture"]["asked"] = {"name": "proportion_b", "num_tasks": None}
    record["settings"] |= {"optim.adafactor.learning_rate": 5e-4, "t5.T5.dropout_rate": 0.05}
    (run / "run.json").write_text(json.dumps(record))
    text = card.cards("mine", opened(run))[card.MODEL]
    assert recipe.title in text and "`flanx recipe show flan_t5_small`" in text
    assert "| `mixture.name` | `proportion_b` | paper: table 23 and its caption" in text
    assert "| `t5.T5.dropout_rate` | `0.05` | paper: table 22 |" in text
    assert "| `mixture.num_tasks` | `None` | paper: all 1,836 |" in text
    assert "| `data.batch_size` | `4` | not the recipe's, which is `64` |" in text
    assert "| `adapter.start` | `run` |  |" in text and "/home" not in text


def test_scores_of_elsewhere_and_of_an_earlier_step_are_those_asked_for(run, tmp_path):
    text = card.cards("mine", opened(run, step=500))[card.MODEL]
    assert "| bbh_cot | exact_match | 11.0 |" in text and "| steps trained | 500 |" in text and "42.0" not in text
    (tmp_path / "more").mkdir()
    with pytest.raises(UserError, match=r"more has no scores\.json"):
        card.cards("mine", opened(run), [tmp_path / "more"])
    (tmp_path / "more" / "scores.json").write_text(json.dumps({"suites": {"own": entry(7.0)}, "run": {}}))
    text = card.cards("mine", opened(run), [tmp_path / "more"])[card.MODEL]
    assert "| own | exact_match | 7.0 |" in text and "| bbh_cot |" in text


def test_a_data_card_says_the_licence_of_every_task_that_was_read(run):
    text = card.cards("mine", opened(run))[card.DATA]
    assert "2 tasks, by the classes of their licences: 1 restricted, 1 unknown" in text
    assert "`both`, 2 tasks" in text
    assert "| muffin_rte | muffin | custom | restricted | super_glue/rte |  |  |" in text
    assert "| cot_a |  | not stated | unknown | of the user's own | 36 | 400 |" in text


def test_one_task_is_one_task(run):
    record = json.loads((run / "run.json").read_text())
    record["data"]["content"] = {"cot_a": "b"}
    (run / "run.json").write_text(json.dumps(record))
    assert "Mixture `both`, 1 task, by the classes" in card.cards("mine", opened(run))[card.DATA]


def test_what_no_run_made_says_so_and_names_its_origin(tmp_path):
    (tmp_path / "hf").mkdir()
    origin = {"hub": "org/small", "revision": "2" * 40, "files": {}}
    found = card.cards("mine", opened(tmp_path / "hf", origin=origin))
    assert f"Not known: hf:org/small@{'2' * 40} is not a run of flanx." in found[card.MODEL]
    assert "base_model: org/small" in found[card.MODEL] and "Not known here" in found[card.DATA]
    found = card.cards("mine", opened(tmp_path / "hf"))
    assert "base_model" not in found[card.MODEL] and "is not a run of flanx" in found[card.MODEL]


def test_a_run_without_its_batch_size_is_named(run):
    record = json.loads((run / "run.json").read_text())
    del record["data"]["batch_size"]
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"run\.json is damaged: batch_size"):
        card.cards("mine", opened(run))
