"""`flanx reproduce`: stages and commands of a published row, where they run, and what is refused before that."""

import os
import pathlib
import re

import pytest

from flanx.cli import main
from flanx.errors import UserError
from flanx.evals import scores
from flanx.launch import record
from flanx.reproduction import row as rows
from flanx.reproduction.road import Road
from flanx.reproduction.row import Reproduction, published
from flanx.reproduction.table import stages
from flanx.storage import open_storage

TARGETS = """
[tpu]
project = "p-1"
zone = "us-west4-a"
bucket = "gs://b-1"
[pods]
cluster = "c-1"
zone = "us-west4-a"
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLANX_DATA_DIR", raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    (tmp_path / "targets.toml").write_text(TARGETS)


def planned(capsys, *words: str) -> dict[str, list[str]]:
    """{stage: its commands} of a dry run."""
    assert main.main(["reproduce", *words, "--dry_run"]) == 0
    found: dict[str, list[str]] = {}
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("["):
            commands = found.setdefault(line.split("] ")[1].split(":")[0], [])
        else:
            commands.append(line.strip())
    return found


def test_the_road_of_a_row_on_this_machine(capsys, tmp_path):
    folder, stages = tmp_path / "out" / "reproduce" / "flan_t5_small", planned(capsys, "flan-t5-small")
    names = "data fetch benchmarks store mixture plan parent launch evaluation curves report card"
    assert list(stages) == names.split() and not folder.exists()
    assert stages["fetch"] == [f"flanx tasks fetch proportion_b --data_dir={folder}/data"]
    assert stages["parent"] == [
        "flanx convert gs://t5-data/pretrained_models/t5x/t5_1_1_lm100k_small/checkpoint_1100000 "
        f"{folder}/parents/flan_t5_small --drop-optimizer"
    ]
    (train,) = stages["launch"]
    assert train.startswith("flanx launch local train --gin_file=recipes/flan_t5_small.gin ")
    for part in (
        f"--gin.STORE_DIR=\"'{folder}/store'\"",
        f"--gin.INITIAL_CHECKPOINT_PATH=\"'{folder}/parents/flan_t5_small'\"",
        "--gin.DATA_DIR=\"'hub'\"",
        "--env=JAX_PLATFORMS=cpu",
    ):
        assert part in train
    before, after = stages["evaluation"]
    assert f"CHECKPOINT_PATH=\"'{folder}/parents/flan_t5_small'\" --gin.OUTPUT_DIR" in before
    assert "checkpoints/checkpoint_CHOSEN'\"" in after
    scored = f"{folder.relative_to(tmp_path)}/scores/flan_t5_small"
    assert f" {scored}_before=T5-Small {scored}_after=Flan-T5-Small --csv=" in stages["report"][0]


def test_the_road_on_a_slice_keeps_everything_in_its_bucket(capsys):
    flags = ("--targets=targets.toml", "--target=tpu", "--topology=v5e:2x4", "--spot", "--yes")
    stages = planned(capsys, "flan_t5_small", *flags)
    (train,) = stages["launch"]
    assert train.startswith("flanx launch tpu-vm train ") and "JAX_PLATFORMS" not in train
    assert "--gin.MODEL_DIR=\"'gs://b-1/flan_t5_small/runs/flan_t5_small'\"" in train
    assert train.endswith(" --target=tpu --targets=targets.toml --topology=v5e:2x4 --spot --yes")
    assert "--topology=v5e:2x4" in stages["plan"][0] and "gs://b-1/flan_t5_small/store" in stages["store"][0]
    assert (
        "flanx launch xpk "
        in planned(capsys, "flan_t5_small", *flags[:1], "--target=pods", "--place=gs://b-2")["launch"][0]
    )


def test_a_place_is_the_same_from_any_folder(capsys, tmp_path):
    stages = planned(capsys, "flan_t5_small", "--place=there")
    assert f"STORE_DIR=\"'{tmp_path}/there/store'\"" in stages["store"][0]
    stages = planned(capsys, "flan_t5_small", "--place=gs://b-2/x/")
    assert "gs://b-2/x/store" in stages["store"][0]


def test_bindings_go_to_the_commands_that_know_them(capsys):
    stages = planned(
        capsys,
        *("flan_t5_small", "--gin.STORE_DIR='elsewhere'", "--gin.RENDERINGS=2", "--gin.TRAIN_STEPS=7", "--skip=parent"),
        *("--allow_missing", "--gin.SUITES=['mmlu_direct']"),
    )
    (build,), (train,) = stages["store"], stages["launch"]
    assert "RENDERINGS=2" in build and "STORE_DIR=\"'elsewhere'\"" in build and "TRAIN_STEPS" not in build
    assert "RENDERINGS" not in train and "STORE_DIR=\"'elsewhere'\"" in train and "TRAIN_STEPS=7" in train
    assert "INITIAL_CHECKPOINT_PATH" not in train and "allow_missing=True" in train
    assert stages["parent"] == [] and len(stages["benchmarks"]) == 1


def test_the_rehearsal_takes_the_recipe_itself_at_three_sizes(capsys, monkeypatch):
    for name in ("FLANX_TABLES", "TFDS_DATA_DIR", "FLANX_CACHE"):  # put back what the command sets
        monkeypatch.setenv(name, "")
    monkeypatch.delenv("FLANX_TABLES")
    stages = planned(capsys, "flan_t5_small", "--rehearse")
    assert len(stages["launch"]) == 3 and len(stages["evaluation"]) == 6 and len(stages["card"]) == 3
    assert all("--gin_file=recipes/flan_t5_small.gin " in line and "models/" not in line for line in stages["launch"])


def test_what_a_stage_makes_is_set_aside_before_it_is_done_anew(tmp_path):
    made = Reproduction(tmp_path, str(tmp_path / "p"), [published("flan_t5_small")], "data")
    folders = {stage.name: [os.path.relpath(path, tmp_path) for path in stage.makes] for stage in stages(made)}
    assert {name: found for name, found in folders.items() if found} == {
        "store": ["p/store"],
        "parent": ["p/parents/flan_t5_small"],
        "launch": ["p/runs/flan_t5_small"],
        "evaluation": ["p/scores/flan_t5_small_before", "p/scores/flan_t5_small_after"],
        "card": ["exports/flan_t5_small"],
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["flan_t5_smal"], "no recipe 'flan_t5_smal'; did you mean 'flan_t5_small'"),
        (["flan_t5_small", "--skip=stor"], "--skip=stor: no such stage; did you mean 'store'"),
        (["flan_t5_small", "--redo=lunch"], "--redo=lunch: no such stage; did you mean 'launch'"),
        (["flan_t5_small", "--skip=plan", "--redo=plan"], "--skip=plan and --redo=plan exclude each other"),
        (["flan_t5_small", "--targets=targets.toml", "--target=tpi"], "no target 'tpi'"),
        (["flan_t5_small", "--targets=targets.toml", "--target=pods"], "hosts of xpk do not see .*--place=gs://"),
        (["flan_t5_small", "--rehearse", "--target=tpu"], "leave --target out"),
        (["flan_t5_small", "--rehearse", "--processes=2"], "leave --processes out"),
        (["flan_t5_small", "--rehearse", "--benchmarks=x"], "leave --benchmarks out"),
        (["flan_t5_small", "--place=http://host/x"], "--place=http://host/x: give gs://BUCKET/FOLDER"),
        (["flan_t5_small", "--place=gs://"], "--place=gs:.*: give gs://BUCKET/FOLDER"),
        (["flan_t5_small", "--gin.TRAIN_STEP=3"], "no gin macro 'TRAIN_STEP'.*TRAIN_STEPS"),
        (["flan_palm_8b"], "gin macro 'VOCABULARY' has no value"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_made(words, message, capsys, tmp_path):
    assert main.main(["reproduce", *words]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said) and 1 <= len(said.splitlines()) <= 5
    assert not (tmp_path / "out").exists()


def fake_scores(folder: pathlib.Path, score: float) -> None:
    """A whole evaluation of one suite."""
    entry = {"score": score, "low": 0.0, "high": 100.0, "n": 100, "extraction_failed": 0.0, "flagged": False,
             "spec": "a", "tasks": {}, "metric": "accuracy"}  # fmt: skip
    folder.mkdir(parents=True)
    scores.write_scores(folder, {"mmlu_direct": entry}, {})


def test_the_checkpoint_is_the_one_that_held_out_scores_choose(tmp_path):
    made = Reproduction(tmp_path, str(tmp_path), [published("flan_t5_small")], "data", choose_by=["mmlu_direct"])
    (row,) = made.rows
    assert made.chosen(row).endswith("checkpoint_CHOSEN")
    for step, score in ((10, 30.0), (20, 50.0), (30, 40.0)):
        fake_scores(tmp_path / "runs" / row.name / "evals" / f"step_{step}", score)
    assert made.chosen(row) == f"{tmp_path}/runs/{row.name}/checkpoints/checkpoint_20"
    assert len(made.evaluate()) == 2
    average = Reproduction(tmp_path, str(tmp_path), [row], "data")  # six suites, of which there is one
    stage = next(stage for stage in stages(average) if stage.name == "evaluation")
    with pytest.raises(UserError, match="evaluation: no checkpoint has normalized_average among its held-out scores"):
        Road(tmp_path, [stage]).run()


def test_the_scores_of_a_run_in_a_bucket_are_read_when_it_is_done(tmp_path, monkeypatch):
    served = tmp_path / "served"
    monkeypatch.setattr(rows, "open_storage", lambda url: open_storage(url.replace("gs://b-1", str(served))))
    made = Reproduction(tmp_path, "gs://b-1", [published("flan_t5_small")], "data", choose_by=["mmlu_direct"])
    (row,) = made.rows
    for step, score in ((10, 50.0), (20, 30.0)):
        fake_scores(served / "runs" / row.name / "evals" / f"step_{step}", score)
    assert made.chosen(row).endswith("CHOSEN")
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "launch.json").write_text("{}")
    assert made.chosen(row) == f"gs://b-1/runs/{row.name}/checkpoints/checkpoint_10"


def test_a_launch_that_a_killed_road_left_is_ended_before_the_next(tmp_path):
    made = Reproduction(tmp_path, str(tmp_path), [published("flan_t5_small")], "data")
    (row,) = made.rows
    left = record.Record("flan-t5-small-train", "local", tmp_path / "launches" / "flan-t5-small-train")
    left.folder.mkdir(parents=True)
    left.write(stage=record.MADE)
    stop, launch = made.launched("train", row, "train", ([], []))
    assert stop == ["launch", "stop", "flan-t5-small-train", f"--folder={tmp_path}/launches"] and launch[1] == "local"
    left.write(stage=record.ENDED)
    assert len(made.launched("train", row, "train", ([], []))) == 1


@pytest.mark.parametrize(
    ("name", "after", "before"),
    [
        ("flan_t5_xxl", "Flan-T5-XXL", "T5-XXL"),
        ("flan_palm_540b", "Flan-PaLM 540B", "PaLM 540B"),
        ("flan_cont_palm_62b", "Flan-cont-PaLM", "cont-PaLM"),
        ("flan_u_palm_540b", "Flan-U-PaLM", "U-PaLM"),
        ("flan_collection_no_cot", "", ""),
    ],
)
def test_the_models_of_table_5_beside_a_row(name, after, before):
    row = rows.published(name)
    assert (row.after, row.before) == (after, before)
