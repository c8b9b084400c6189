"""Every gin file under gin/ parses and resolves; every model and recipe builds its training step abstractly."""

import inspect
import pathlib
import re
from collections.abc import Iterable

import jax
import pytest
from gin import config_parser

from flanx import config, gin_files, train, trainable
from flanx.cli.main import main
from flanx.data.pipeline.batches import Batches, DatasetConfig
from flanx.data.store.build import build_store
from flanx.data.task import tables
from flanx.evals import registry
from flanx.plan import planned_run as plan
from flanx.sweep import published_recipes
from flanx.sweep.grid import Sweep
from tests import store_maker

GIN = config.gin_folder()
TINY = "models/t5_1_1/tiny.gin"
RUN = {"STORE_DIR": "'store'", "MODEL_DIR": "'run'", "VOCABULARY": "'byte'", "TRAIN_STEPS": "10"}
RUN["TASK_FEATURE_LENGTHS"] = "{'inputs': 64, 'targets': 16}"


def files(folder: str) -> list[str]:
    """The gin files of a folder and below, as --gin_file names them."""
    return sorted(p.relative_to(GIN).as_posix() for p in (GIN / folder).rglob("*.gin"))


def bind(values: dict[str, str]) -> list[str]:
    """Bindings as the command line gives them."""
    return [f"{name}={value}" for name, value in values.items()]


def scan(names: Iterable[str]) -> gin_files.Scan:
    """What reading `names` defines and reads."""
    found = gin_files.Scan([str(GIN)])
    for name in names:
        found.read(name, "test")
    return found


def whole(name: str) -> str:
    """The text of a sweep with that of the sweeps that it includes."""
    text = (GIN / name).read_text()
    return text + "".join(whole(included) for included in re.findall(r'^include "(sweeps/\w+\.gin)"', text, re.M))


ROWS = published_recipes.load()
RECIPES = [row.gin for row in ROWS.values()]
DOORS = ["runs/train.gin", "runs/evaluate.gin", "runs/store.gin", plan.DEFAULTS]
SWEEPS = [name for name in files("sweeps") if "axes = " in whole(name)]
# of the recipes that differ only in data, parent and time, one is built
STEP = ("MODEL", "BATCH_SIZE", "DROPOUT_RATE", "LEARNING_RATE", "palm.PaLM.prefix_lm")
DISTINCT = list(
    {str([getattr(row.fields.get(name), "value", None) for name in STEP]): row.gin for row in ROWS.values()}.values()
)


def test_no_gin_file_escapes_these_tests():
    named = {name for sweep in SWEEPS for name in re.findall(r'"([\w/]+\.gin)"', (GIN / sweep).read_text())}
    given = [*RECIPES, *SWEEPS, *named, *files("models"), *files("mixtures"), *files("evals"), *files("runs")]
    reached = {pathlib.Path(path).relative_to(GIN).as_posix() for path in scan(given).files}
    assert sorted(reached | set(files("t5x"))) == files(".")


def read(name: str) -> plan.PlannedRun:
    """A model's file or a recipe's as `flanx plan` reads it."""
    yours = (
        {n: "'yours'" for n, f in published_recipes.find(name).fields.items() if f.value == "yours"}
        if "rec" in name
        else {}
    )
    return plan.read([name], bind(yours))


def build(run: plan.PlannedRun, step: bool) -> None:
    """Traces initialization and one training step on the run's own batch; nothing is computed."""
    state = jax.eval_shape(run.trainer.init)
    own = {name: leaf for name, leaf in trainable.flat(state.params).items() if "/lora_" not in name}
    assert sum(leaf.size for leaf in own.values()) == run.model.num_params()
    if step:
        after, metrics = jax.eval_shape(run.trainer.step, state, run.batch())
        shapes = [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)] for tree in (after, state)]
        assert shapes[0] == shapes[1]
        assert metrics["loss"].shape == ()


@pytest.mark.parametrize("name", DISTINCT)
def test_recipes_build_their_step(name):
    build(read(name).scanned(), step=True)  # layers scanned: one is traced for all


@pytest.mark.parametrize("name", files("models"))
def test_models_build_their_state(name):
    build(read(name).scanned(), step=False)


@pytest.mark.parametrize("name", [name for name in files("runs") if name not in (*DOORS, "runs/model.gin")])
def test_what_goes_on_top_of_a_run_builds_its_step(name):
    build(plan.read(["runs/train.gin", TINY, "mixtures/suite.gin", name], bind(RUN)), step=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*files("models"), *DISTINCT])
def test_models_and_recipes_build_their_step_layer_by_layer(name):
    build(read(name), step=True)


@pytest.mark.parametrize("name", files("mixtures"))
def test_mixtures_name_what_there_is(name):
    config.parse(["runs/train.gin", TINY, name], bind(RUN))
    known = {*tables.load_mixtures(), *(task.collection for task in tables.load_tables().values())}
    assert config.parameter(DatasetConfig, "mixture").name in known


def test_collections_of_named_mixtures_exist_and_have_rates():
    collections = {task.collection for task in tables.load_tables().values()} | {"dialog"}  # dialog: a part of Muffin
    for name, section in tables.load_mixtures().items():
        assert set(section["collections"]) <= collections, name
        assert set(section.get("rates", section["collections"])) == set(section["collections"]), name


@pytest.mark.parametrize("name", files("evals"))
def test_evaluations_name_suites_that_there_are(name):
    suites = {} if name != "evals/base.gin" else {"SUITES": "['bbh_cot']"}
    config.parse(["runs/train.gin", TINY, "mixtures/cot.gin", name], bind(RUN | suites))
    assert [registry.resolve(s) for s in config.value("SUITES")]
    alone = {k: RUN[k] for k in ("VOCABULARY", "TASK_FEATURE_LENGTHS")} | suites
    config.parse(["runs/evaluate.gin", TINY, name], bind(alone | {"OUTPUT_DIR": "'out'", "CHECKPOINT_PATH": "'c'"}))


def test_the_store_builder_resolves():
    names = {name: RUN[name] for name in ("STORE_DIR", "VOCABULARY")}
    config.parse(["runs/store.gin", "mixtures/proportion_b.gin"], bind(names))
    of_build = {name: config.parameter(build_store, name) for name in inspect.signature(build_store).parameters}
    assert (of_build["store_dir"], of_build["vocabulary"], of_build["tasks"]) == ("store", "byte", "proportion_b")


LONG = ("sweeps/figure4_home_larger.gin", "sweeps/figure5_home.gin")  # as figure4_home.gin, on which they are built


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LONG)) for n in SWEEPS])
def test_every_point_of_a_sweep_resolves(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what lies in out/ of a checkout is of other settings
    yours = ["--gin.DATA_DIR='sample'"] if "DATA_DIR" in scan([name]).defined else []
    assert main(["sweep", f"--gin_file={name}", "--dry_run", *yours]) == 0
    printed = capsys.readouterr().out.splitlines()
    config.parse([name], [flag.removeprefix("--gin.") for flag in yours])
    points = config.make(Sweep).points()
    assert len([line for line in printed if line.startswith("flanx train ")]) == len(points) > 1
    for point in points:
        config.parse(point.gin_files, point.all_bindings())
        assert [registry.resolve(s) for s in config.value("SUITES")]
        config.parameter(DatasetConfig, "mixture")
        zero = config.parameter(train.train, "train_steps") == 0
        assert zero or "NUM_TASKS=0" not in point.bindings
        assert not zero or config.value("INITIAL_CHECKPOINT_PATH")


def test_sweeps_take_other_sizes_from_a_second_file(capsys):
    files = ["sweeps/table3.gin", "sweeps/t5.gin"]
    assert main(["sweep", *(f"--gin_file={name}" for name in files), "--dry_run"]) == 0
    config.parse(files)
    points = config.make(Sweep).points()
    assert len(points) == 25
    assert points[-1].gin_files == ["recipes/flan_t5_xxl.gin"]
    assert "NUM_TASKS=1836" in points[-1].bindings


@pytest.mark.parametrize("name", files("t5x"))
def test_files_for_t5x_are_gin(name):
    """They are bound by T5X's program, which is not installed with flanx."""
    with open(GIN / name, encoding="utf-8") as text:
        assert len(list(config_parser.ConfigParser(text, gin_files.Recorder()))) > 2


def test_the_ablations_of_the_flan_collection_take_away_what_they_say(tmp_path):
    tasks = ("cot/cot_aqua", "muffin/muffin_rte", "muffin/muffin_qrecc", "t0_sf/t0_sf_dream", "niv2/niv2_task1")
    parts = {"muffin_qrecc": {"group": "dialog"}}
    lost = {"muffin_repair": {"collection": "muffin", "group": "program_synthesis", "reason": "never released"}}
    styles = ("zsopt", "zsopt_inverted", "fsopt")
    made = store_maker.make(tmp_path, dict.fromkeys(tasks, 20), styles=styles, facts=parts, missing=lost)
    config.parse(["sweeps/flan_collection.gin"])
    drawn = {}
    for point in config.make(Sweep).points():
        config.parse(point.gin_files, point.all_bindings())
        drawn[point.labels["collection"]] = config.parameter(DatasetConfig, "mixture").resolve(made)
    whole = drawn["flan_2022"]
    assert whole.collections == pytest.approx({"cot": 0.05, "muffin": 0.43, "niv2": 0.2, "t0_sf": 0.32})
    assert drawn["no_cot"].collections == pytest.approx({"muffin": 43 / 95, "niv2": 20 / 95, "t0_sf": 32 / 95})
    sources = {"flan_2021": "muffin", "t0_sf": "t0_sf", "niv2": "niv2", "cot": "cot", "dialog": "dialog"}
    assert drawn["equal"].collections == pytest.approx(dict.fromkeys(sources.values(), 1 / 5), abs=1e-3)
    assert drawn["equal"].missing == {"muffin_repair": "never released"}
    assert drawn["equal_no_programs"].collections == pytest.approx(dict.fromkeys(sources.values(), 1 / 5))
    for name, source in sources.items():  # the sixth is missing, so four stay
        left = dict.fromkeys((other for other in sources.values() if other != source), 1 / 4)
        assert drawn[f"equal_no_{name}"].collections == pytest.approx(left)
    Batches(made, drawn["equal_no_dialog"].mixture, {"inputs": 64, "targets": 16}, 4).batch(0)
    assert set(drawn["flan_2021"].collections) == {"muffin"} and set(drawn["super_ni"].collections) == {"niv2"}
    assert drawn["no_balancing"].collections["muffin"] == pytest.approx(2 / 5)

    def share(name: str, style: str) -> float:
        return sum(source.weight for source in drawn[name].sources if source.style.startswith(style))

    for percent in (0, 5, 10, 25, 50, 75, 90, 95, 100):
        assert share(f"few_shot_{percent}", "fs") == pytest.approx(percent / 100)
    assert share("no_few_shot", "fs") == 0
    assert share("flan_2022", "zsopt_inverted") > 0
    assert share("no_inversion", "zsopt_inverted") == 0
