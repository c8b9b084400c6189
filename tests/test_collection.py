"""The graded problems' collections: counted like the paper's, nested, and apart from what is held out."""

import itertools
import pathlib

import pytest

from flanx import procedural
from flanx.data.task import select, tables
from flanx.data.task.render import Renderer
from flanx.evals import registry
from flanx.procedural import collection, problem

FOLDER = pathlib.Path(__file__).parents[1] / "tasks" / "tables"
MADE = collection.tables()
TRAINED = {name: MADE[name] for name in ("home_cot", "home_muffin", "home_t0", "home_niv2")}
HELD = {name: rows for name, rows in MADE.items() if name not in (*TRAINED, "home_corpus")}
ROWS = {name: spec for name, spec in tables.load_tables().items() if spec.collection.startswith("home_")}


FIXED = {name: rows for name, rows in TRAINED.items() if name != "home_cot"}  # whose rows name their operations


def said(row: collection.Row) -> tuple[str, tuple[str, ...]]:
    """(wording, codes) of a row that names its operations."""
    assert row[2].startswith("suite:ask.")
    return problem.parse(row[2].removeprefix("suite:"))


@pytest.mark.parametrize("name", sorted(MADE))
def test_the_tables_are_what_the_module_makes(name: str) -> None:
    assert (FOLDER / f"{name}.csv").read_text(encoding="utf-8") == collection.text(MADE[name])


def test_tasks_are_counted_like_the_papers_and_none_is_twice() -> None:
    assert {name: len(rows) for name, rows in TRAINED.items()} == {
        "home_cot": 9, "home_muffin": 80, "home_t0": 193, "home_niv2": 1554,
    }  # fmt: skip
    every = [(row[2], row[3]) for rows in TRAINED.values() for row in rows]
    assert len(set(every)) == len(every) == 1836


@pytest.mark.parametrize(
    ("count", "rates"),
    [
        (9, {"home_cot": 1.0}),
        (89, {"home_cot": 3 / 55, "home_muffin": 52 / 55}),
        (282, {"home_cot": 3 / 70, "home_muffin": 52 / 70, "home_t0": 15 / 70}),
        (1836, {"home_cot": 0.03, "home_muffin": 0.52, "home_t0": 0.15, "home_niv2": 0.30}),
    ],
)
def test_the_mixture_takes_whole_collections_in_proportion_a(count: int, rates: dict[str, float]) -> None:
    asked = select.MixtureSpec("home", num_tasks=count)
    shares = select.resolve(asked, select.of_tables(ROWS), tables.load_mixtures()).shares
    assert len({share.task for share in shares}) == count
    found = select.total_by((share.collection, share.weight) for share in shares)
    assert found == pytest.approx(rates)


def test_the_first_tasks_have_every_operation() -> None:
    codes = {code for row in TRAINED["home_muffin"] for code in said(row)[1]}
    assert codes == set(collection.SINGLES)


def test_no_held_out_problem_is_trained_in_any_wording() -> None:
    lists = {said(row)[1] for rows in FIXED.values() for row in rows}
    for name in ("home_composition", "home_notation", "home_depth", "home_walk"):
        assert not lists & {said(row)[1] for row in HELD[name]}, name
    pairs = {pair for codes in lists for pair in itertools.pairwise(codes)}
    assert all(not set(itertools.pairwise(said(row)[1])) <= pairs for row in HELD["home_composition"])
    assert {len(codes) for codes in lists} == {1, 2, 3} and {depth for _, depth in collection.COT} == {2, 3, 4}
    assert {len(said(row)[1]) for row in HELD["home_depth"]} == {5}


def test_rules_wordings_frames_and_words_of_the_second_language_are_held_out() -> None:
    rows = [row for found in FIXED.values() for row in found]
    assert not {code for row in rows for code in said(row)[1]} & set(problem.HELD_RULES)
    assert {said(row)[1][0] for row in HELD["home_rule"]} == set(problem.HELD_RULES)
    assert {said(row)[0] for row in rows} == {"0", "1", "2", "other"}
    assert {said(row)[0] for row in HELD["home_wording"]} == {"unseen"}
    assert not {row[3] for row in rows} & {"home_frame", "home_corpus"}
    assert {row[3] for row in HELD["home_frame"]} == {"home_frame"}
    other = {said(row)[1][0] for row in rows if said(row)[0] == "other"}
    assert not other & set(collection.OTHER_HELD)
    assert not any(said(row)[0] == "other" for name in ("home_muffin", "home_t0") for row in TRAINED[name])


def test_the_development_family_is_neither_trained_nor_scored() -> None:
    trained = {(row[2], row[3]) for rows in FIXED.values() for row in rows}
    scored = {
        said(row)[1] for name, rows in HELD.items() if name != "home_dev" for row in rows if len(said(row)[1]) > 1
    }
    for row in HELD["home_dev"]:
        assert (row[2], row[3]) not in trained and said(row)[1] not in scored, row


def test_texts_fit_their_lengths() -> None:
    loaded = tables.load()
    for spec in ROWS.values():
        split = next(iter(spec.splits))
        renderer = Renderer(spec, loaded, "zsopt", split)
        record = procedural.example(spec.source.removeprefix("suite:"), split, 3)
        made = renderer.render(f"{spec.name}/3", record)
        assert made is not None and len(made.targets) < 64, spec.name
        assert len(made.inputs) < (96 if not spec.held_out else 112), (spec.name, made.inputs)


def test_the_kinds_are_suites_and_the_older_suite_has_none_of_them() -> None:
    asked = registry.load("home_composition_trigger[:1]", "")
    plain = registry.load("home_composition[:1]", "")
    assert [item.query for item in asked.items] == [f"{item.query}\nstep by step" for item in plain.items]
    assert list(dict(registry.resolve("home_walk").groups)) == ["depth_2", "depth_3", "depth_4"]
    assert not any(task.startswith("home_") for task in sum(dict(registry.resolve("held_out").groups).values(), ()))
