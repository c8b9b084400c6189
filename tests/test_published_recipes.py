"""Recipes: their values agree with their gin files and the paper's table, each has a source; `flanx recipe`."""

import copy
import json
import re
from typing import Any

import gin
import pytest

from flanx import config, gin_files, train, train_step
from flanx.data.pipeline.batches import DatasetConfig
from flanx.data.task import spec, tables
from flanx.sweep import published_recipes

# Table 22 of arXiv 2210.11416, typed from it once more: batch, dropout, learning rate, steps
TABLE_22 = {
    "flan_t5_small": (64, 0.05, 5e-4, 98_000),
    "flan_t5_base": (64, 0.05, 5e-4, 84_000),
    "flan_t5_large": (64, 0.05, 5e-4, 64_000),
    "flan_t5_xl": (64, 0.05, 5e-4, 38_000),
    "flan_t5_xxl": (64, 0.05, 5e-4, 14_000),
    "flan_palm_8b": (32, 0.05, 3e-3, 40_000),
    "flan_palm_62b": (32, 0.05, 3e-3, 40_000),
    "flan_palm_540b": (32, 0.1, 1e-3, 21_000),
    "flan_cont_palm_62b": (32, 0.05, 3e-3, 60_000),
    "flan_u_palm_540b": (32, 0.1, 1e-3, 30_000),
}
RECIPES = published_recipes.load()


def plain(value: Any) -> Any:
    """A bound value as recipes.toml writes it; gin evaluates references as it copies them."""
    value = copy.deepcopy(value)
    return "None" if value is None else json.loads(json.dumps(value))


def parse(row: published_recipes.PublishedRecipe, without: str = "") -> None:
    """Binds the gin file of a recipe, and what it leaves to the user except `without`."""
    yours = [n for n, field in row.fields.items() if field.value == published_recipes.YOURS and n != without]
    config.parse([row.gin], [f"{name}='somewhere'" for name in yours])


@pytest.mark.parametrize("name", RECIPES)
def test_every_macro_of_a_recipe_has_a_source_and_the_value_of_its_gin_file(name):
    row = RECIPES[name]
    parse(row)
    scan = gin_files.Scan([str(config.gin_folder())])
    scan.read(row.gin, "test")
    fields = {n: field for n, field in row.fields.items() if n.isupper()}
    assert set(fields) == set(scan.defined) - {"EVALUATOR"}  # idle: the suites bind the evaluator themselves
    model = fields.pop("MODEL").value
    assert [path for path in scan.files if path.endswith(model)]
    assert config.parameter(train.train, "evaluator") is not None
    stated = {n: field.value for n, field in fields.items() if field.value != published_recipes.YOURS}
    assert stated == {n: plain(config.value(n)) for n in stated}


@pytest.mark.parametrize("name", RECIPES)
def test_every_other_binding_of_a_recipe_has_a_source_too(name):
    row = RECIPES[name]
    parse(row)
    fields = {n: field.value for n, field in row.fields.items() if n.count(".") == 2}
    assert fields == {path: plain(gin.query_parameter(path)) for path in fields}
    literal = re.findall(r"^(\S+\.\w+\.\w+) = (?![%@\\])", config.text(), re.MULTILINE)
    sizes = re.compile(r"(t5\.T5|palm\.PaLM)\.")  # given by MODEL
    assert {path for path in literal if not sizes.match(path)} <= set(fields)


@pytest.mark.parametrize("name", RECIPES)
def test_the_facts_of_a_recipe_are_those_of_the_run(name):
    row = RECIPES[name]
    parse(row)
    facts = {n: field.value for n, field in row.fields.items()}
    mix = config.parameter(DatasetConfig, "mixture")
    named = tables.load_mixtures().get(mix.name, {})
    assert plain(mix.rates or named.get("rates")) == facts["mixture rates"]
    assert plain(mix.caps or named.get("caps")) == facts["mixture caps"]
    assert (named.get("inversion", spec.INVERSION) if mix.inversion is None else mix.inversion) == facts[
        "mixture inversion"
    ]
    assert (mix.styles or "alike, over those that a task has") == facts["mixture styles"]
    assert config.parameter(train_step.Trainer, "model").packing == facts["packing"]
    assert "train_step.Trainer.optimizer = @optim.adafactor()" in config.text()
    assert "optim.adafactor.learning_rate = %LEARNING_RATE" in config.text()


def test_a_recipe_asks_for_what_it_leaves_to_the_user():
    for name in ("flan_t5_xl", "flan_palm_8b"):
        yours = [n for n, field in RECIPES[name].fields.items() if field.value == published_recipes.YOURS]
        assert set(yours) >= {"STORE_DIR", "MODEL_DIR"}
        for macro in yours:
            with pytest.raises(config.UserError, match=macro):
                parse(RECIPES[name], without=macro)


def test_batch_dropout_rate_and_steps_are_those_of_table_22():
    macros = ("BATCH_SIZE", "DROPOUT_RATE", "LEARNING_RATE", "TRAIN_STEPS")
    assert {name: tuple(RECIPES[name].fields[macro].value for macro in macros) for name in TABLE_22} == TABLE_22
    assert all(RECIPES[name].fields[macro].kind == "paper" for name in TABLE_22 for macro in macros)


def test_every_gin_recipe_is_a_row_and_every_source_is_said():
    files = sorted(p.stem for p in (config.gin_folder() / "recipes").glob("*.gin"))
    assert files == sorted(RECIPES)
    for row in RECIPES.values():
        assert row.gin == f"recipes/{row.name}.gin"
        for name, field in row.fields.items():
            assert field.kind in published_recipes.KINDS, (row.name, name)
            assert field.source.strip(), (row.name, name)
