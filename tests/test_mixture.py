"""Mixtures over a store: weights, rates, nested subsets, the share of chain of thought, and what is refused."""

import dataclasses
import itertools
import pathlib

import numpy as np
import pytest

from flanx.data import store
from flanx.data.pipeline import mixture
from flanx.data.pipeline.batches import Batches
from flanx.data.pipeline.mixture import Mixture
from flanx.data.task import select, tables
from flanx.errors import UserError
from tests import store_maker

SIZES = {
    **{f"cot/cot_{i}": 40 + i for i in range(3)},
    **{f"muffin/muffin_{i}": 100 for i in range(4)},
    **{f"t0_sf/t0_sf_{i}": 30 for i in range(5)},
    **{f"niv2/niv2_{i}": 10 + i for i in range(12)},
}
PAPER = {
    "proportion_a": {"muffin": 0.52, "t0_sf": 0.15, "cot": 0.03, "niv2": 0.30},
    "proportion_b": {"muffin": 46.0 / 99.9, "t0_sf": 27.9 / 99.9, "cot": 1.8 / 99.9, "niv2": 24.2 / 99.9},
}


@pytest.fixture(scope="module")
def paper(tmp_path_factory) -> store.Store:
    return store_maker.make(tmp_path_factory.mktemp("paper"), SIZES)


def shares(resolved: mixture.Resolved) -> dict[str, float]:
    return {source.name: source.weight for source in resolved.sources}


# ---- weights ---------------------------------------------------------------------------------------------------------


def test_weight_is_the_number_of_examples_up_to_the_cap(paper):
    found = Mixture("muffin", caps={"muffin": 50, "muffin_3": 10}).resolve(paper).tasks
    assert found == pytest.approx({f"muffin_{i}": w / 160 for i, w in enumerate([50, 50, 50, 10])})
    assert Mixture("cot").resolve(paper).tasks["cot_2"] == pytest.approx(42 / 123)


def test_a_tasks_own_cap_counts(tmp_path):
    opened = store_maker.make(tmp_path, {"cot/cot_a": 30, "cot/cot_b": 10}, facts={"cot_a": {"cap": 20}})
    assert Mixture("cot").resolve(opened).tasks == pytest.approx({"cot_a": 2 / 3, "cot_b": 1 / 3})
    assert Mixture("cot", caps={"cot": 5}).resolve(opened).tasks == pytest.approx({"cot_a": 0.5, "cot_b": 0.5})


@pytest.mark.parametrize("name", sorted(PAPER))
def test_the_papers_proportions(paper, name):
    assert Mixture(name).resolve(paper).collections == pytest.approx(PAPER[name])


def test_gin_may_set_other_rates(paper):
    asked = {"muffin": 1, "t0_sf": 1, "cot": 2, "niv2": 96}
    found = Mixture("proportion_a", rates=asked).resolve(paper).collections
    assert found == pytest.approx({name: rate / 100 for name, rate in asked.items()})


def test_styles_and_inversion(tmp_path):
    opened = store_maker.make(tmp_path, {"cot/cot_a": 30}, ("zsopt", "zsopt_inverted", "fsopt"))
    assert shares(Mixture("cot").resolve(opened)) == pytest.approx(
        {"cot_a_zsopt": 0.5 / 1.3, "cot_a_zsopt_inverted": 0.15 / 1.3, "cot_a_fsopt": 0.5}
    )
    found = shares(Mixture("cot", styles={"zsopt": 3, "fsopt": 1, "zsnoopt": 5}, inversion=1).resolve(opened))
    assert found == pytest.approx({"cot_a_zsopt": 0.375, "cot_a_zsopt_inverted": 0.375, "cot_a_fsopt": 0.25})
    assert set(shares(Mixture("cot", inversion=0).resolve(opened))) == {"cot_a_zsopt", "cot_a_fsopt"}
    assert opened.tasks["cot_a"].examples == 30  # the inverted version has the same rows
    for style in ("fsopt", "zsopt", "zsopt_inverted"):  # a style that is named by itself is drawn alone
        assert shares(Mixture(f"cot_a_{style}").resolve(opened)) == {f"cot_a_{style}": 1.0}


def test_the_rate_of_inverted_versions_is_that_of_the_collection_or_the_group(tmp_path):
    """The sources give 0.3 for chain of thought and dialog alone (FLAN's released code, 2022)."""
    sizes = {"cot/cot_a": 30, "muffin/muffin_a": 30, "muffin/muffin_b": 30}
    opened = store_maker.make(tmp_path, sizes, ("zsopt", "zsopt_inverted"), facts={"muffin_b": {"group": "dialog"}})

    def inverted(**asked):
        found = shares(Mixture("proportion_a", num_tasks=3, **asked).resolve(opened))
        names = ("cot_a", "muffin_a", "muffin_b")
        return [found.get(f"{n}_zsopt_inverted", 0) / found[f"{n}_zsopt"] for n in names]

    assert inverted() == pytest.approx([0.3, 0, 0.3])
    assert inverted(inversion=0.5) == pytest.approx([0.5, 0.5, 0.5])
    assert inverted(inversion={"muffin": 0.2, "dialog": 0.1}) == pytest.approx([0, 0.2, 0.1])
    assert inverted(inversion={"muffin_a": 0.4}) == pytest.approx([0, 0.4, 0])


@pytest.mark.parametrize("ratio", [0.0, 0.02, 0.5, 1.0])
def test_cot_ratio_is_the_share_of_chain_of_thought_and_keeps_the_others_proportions(paper, ratio):
    found = Mixture("proportion_a", cot_ratio=ratio).resolve(paper).collections
    assert found.get("cot", 0.0) == pytest.approx(ratio)
    if ratio < 1:
        rest = {name: share / (1 - ratio) for name, share in found.items() if name != "cot"}
        assert rest == pytest.approx({"muffin": 52 / 97, "t0_sf": 15 / 97, "niv2": 30 / 97})


# ---- subsets ---------------------------------------------------------------------------------------------------------


def test_the_papers_nested_steps(paper):
    """0, 9, 89, 282, 1,836 in the paper; with this store's sizes 0, 3, 7, 12, 24."""
    steps = {3: {"cot"}, 7: {"cot", "muffin"}, 12: {"cot", "muffin", "t0_sf"}, 24: {"cot", "muffin", "t0_sf", "niv2"}}
    for count, collections in steps.items():
        resolved = Mixture("proportion_a", num_tasks=count).resolve(paper)
        assert len(resolved.tasks) == count and set(resolved.collections) == collections
    middle = Mixture("proportion_a", num_tasks=7).resolve(paper).collections
    assert middle == pytest.approx({"cot": 3 / 55, "muffin": 52 / 55})
    assert Mixture("proportion_a", num_tasks=0).resolve(paper).tasks == {}


@pytest.mark.parametrize("seed", [0, 1])
def test_n_tasks_are_always_among_n_plus_1(paper, seed):
    chosen = [set(Mixture("proportion_b", num_tasks=n, seed=seed).resolve(paper).tasks) for n in range(25)]
    assert all(len(tasks) == n for n, tasks in enumerate(chosen))
    assert all(a < b for a, b in itertools.pairwise(chosen))


def test_the_seed_changes_which_tasks_are_taken(paper):
    chosen = {frozenset(Mixture("proportion_a", num_tasks=14, seed=s).resolve(paper).tasks) for s in range(8)}
    assert len(chosen) > 4


def test_a_tasks_place_hangs_on_no_other(paper, tmp_path):
    fewer = {path: n for path, n in SIZES.items() if path not in ("niv2/niv2_3", "niv2/niv2_7")}
    smaller = store_maker.make(tmp_path, fewer)
    all_of_them = select.task_order({n: t.metadata for n, t in paper.tasks.items()}, [], 0)
    some = select.task_order({n: t.metadata for n, t in smaller.tasks.items()}, [], 0)
    assert [name for name in all_of_them if name in some] == some


def test_balance_takes_one_of_each_category_in_turn():
    facts = {f"t_{c}_{i}": {"collection": "t", "category": c} for c in "abc" for i in range(4 if c == "a" else 2)}
    ranked = select.task_order(facts, ["t"], 0, "category")
    assert {name.split("_")[1] for name in ranked[:3]} == {"a", "b", "c"}
    assert [name.split("_")[1] for name in ranked[6:]] == ["a", "a"]


# ---- what is missing, and what is refused ----------------------------------------------------------------------------

MISSING = {"cot_9": {"collection": "cot", "reason": "no file cot_9.tsv"}}


@pytest.fixture(scope="module")
def lacking(tmp_path_factory) -> store.Store:
    return store_maker.make(tmp_path_factory.mktemp("lacking"), {"cot/cot_0": 5, "cot/cot_1": 5}, missing=MISSING)


def test_tasks_that_the_store_records_as_missing_are_left_out_and_recorded(lacking):
    resolved = Mixture("cot").resolve(lacking)
    assert set(resolved.tasks) == {"cot_0", "cot_1"}
    assert resolved.missing == {"cot_9": "no file cot_9.tsv"}
    assert resolved.describe()["missing"] == {"cot_9": "no file cot_9.tsv"}
    with pytest.raises(UserError, match="holds 2 tasks of 'cot' and records 1 as missing"):
        Mixture("cot", num_tasks=3).resolve(lacking)
    assert len(Mixture("cot", num_tasks=3, allow_missing=True).resolve(lacking).tasks) == 2


def test_num_tasks_counts_tasks_that_are_there(tmp_path):
    opened = store_maker.make(tmp_path, {f"cot/cot_{i}": 5 for i in range(4)}, missing=MISSING)
    for count in range(1, 5):
        resolved = Mixture("cot", num_tasks=count).resolve(opened)
        assert len(resolved.tasks) == count and set(resolved.missing) <= {"cot_9"}


def test_the_rate_of_a_collection_grows_with_what_it_holds(paper):
    whole = Mixture("proportion_a").resolve(paper).tasks
    assert Mixture("proportion_a", num_tasks=24).resolve(paper).tasks == pytest.approx(whole)
    at_12 = {"muffin": 0.52, "t0_sf": 0.15, "cot": 0.03}  # whole collections: the paper's ratio
    total = sum(at_12.values())
    found = Mixture("proportion_a", num_tasks=12).resolve(paper).collections
    assert found == pytest.approx({name: rate / total for name, rate in at_12.items()})
    for count in range(1, 25):  # no task is ever drawn more often, against its neighbours, than in the whole mixture
        some = Mixture("proportion_a", num_tasks=count).resolve(paper).tasks
        ratios = {share / whole[name] for name, share in some.items()}
        assert max(ratios) == pytest.approx(min(ratios))
    assert Mixture("proportion_a", num_tasks=13).resolve(paper).collections["niv2"] < 0.05


def test_a_style_without_examples_takes_no_weight(tmp_path):
    sizes = {"cot/cot_a": 40, "niv2/niv2_a": 40, "niv2/niv2_b": 40}
    opened = store_maker.make(tmp_path, sizes, styles=("zsopt", "fsopt"), empty=("niv2_a_fsopt", "niv2_b_fsopt"))
    assert Mixture("cot_niv2").resolve(opened).collections == pytest.approx({"cot": 0.5, "niv2": 0.5})
    few = Mixture("cot_niv2", styles={"fsopt": 1}, allow_missing=True).resolve(opened)
    assert few.collections == {"cot": 1.0}
    assert few.missing == {"niv2_a": "no examples of style fsopt", "niv2_b": "no examples of style fsopt"}


def test_a_missing_task_by_name_is_an_error(lacking):
    with pytest.raises(UserError, match=r"cot_9 is not in the store .*: no file cot_9\.tsv"):
        Mixture("cot_9").resolve(lacking)


def test_collections_that_are_absent_need_allow_missing(lacking):
    with pytest.raises(UserError, match="no collection muffin, t0_sf, niv2"):
        Mixture("proportion_a").resolve(lacking)
    resolved = Mixture("proportion_a", allow_missing=True).resolve(lacking)
    assert resolved.collections == {"cot": 1.0}
    assert {"cot_9", "muffin", "t0_sf", "niv2"} == set(resolved.missing)
    record = resolved.describe()  # what was asked stands beside what is given
    assert record["rates"] == {"muffin": 0.52, "t0_sf": 0.15, "cot": 0.03, "niv2": 0.3}
    assert record["collections"] == {"cot": 1.0} and set(record["missing"]) == set(resolved.missing)
    assert Mixture("cot", allow_missing=True).resolve(lacking).describe()["rates"] is None
    assert Mixture("proportion_a", num_tasks=2).resolve(lacking).collections == {"cot": 1.0}


def test_held_out_tasks_are_never_drawn(tmp_path):
    facts = {"suite_b": {"held_out": True}, "exam_c": {"held_out": True}}
    opened = store_maker.make(tmp_path, {"suite/suite_a": 5, "suite/suite_b": 5, "exam/exam_c": 5}, facts=facts)
    resolved = Mixture("suite", allow_missing=True).resolve(opened) if "suite" in tables.load_mixtures() else None
    for name in ("suite_b", "exam"):
        with pytest.raises(UserError, match="held out"):
            Mixture(name).resolve(opened)
    assert resolved is None or "suite_b" not in resolved.tasks


@pytest.mark.parametrize("name", ["cot_gsm8k", "cot_gsm8k_fsopt", "dialog"])
def test_a_name_of_the_tables_that_a_store_lacks_is_to_be_built(tmp_path, name):
    opened = store_maker.make(tmp_path, {"own/own_a": 5})
    for asked in (name, [name], [(name, 1.0)]):
        with pytest.raises(UserError, match=f"'{name}' in the store .*; it is in the tables: build the store again"):
            Mixture(asked).resolve(opened)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"name": "mufin"}, "no mixture, collection or task 'mufin' .*did you mean 'muffin'"),
        ({"cot_ratio": 1.5}, "COT_RATIO 1.5"),
        ({"cot_ratio": float("nan")}, "COT_RATIO nan"),
        ({"num_tasks": -1}, "NUM_TASKS -1"),
        ({"num_tasks": 2.5}, "NUM_TASKS 2.5: a whole number"),
        ({"num_tasks": True}, "NUM_TASKS True: a whole number"),
        ({"cot_ratio": 5}, "COT_RATIO 5: a share of the draws"),
        ({"rates": [("cot", 1)]}, "rates is .*; give {name: number}"),
        ({"rates": {"cot": "1"}}, "rates of 'cot' is '1'"),
        ({"rates": {"cot": 30, "niv2": 40}}, "rates add up to 70"),
        ({"caps": {"cto": 5}}, "caps names 'cto', which it does not have; did you mean 'cot'"),
        ({"styles": {"zs": 1}}, "styles names 'zs'"),
        ({"inversion": float("inf")}, "inversion is inf"),
        ({"inversion": {"cto": 0.3}}, "inversion names 'cto', which it does not have; did you mean 'cot'"),
        ({"num_tasks": 25}, "NUM_TASKS 25: the store .* holds 24 tasks"),
        ({"rates": {"muffin": 50, "t0_sf": 15, "cot": 3, "niv2": 30}}, "rates add up to 98, not to 100"),
        ({"rates": {"muffin": 0.7, "t0_sf": 0.7, "cot": 0.1, "niv2": 0.3}}, "rates add up to 1.8, not to 1"),
        (
            {"rates": {"muffin": 52, "t0": 15, "cot": 3, "niv2": 30}},
            "no rate for .* 't0_sf'; did you mean 't0'",
        ),
        ({"rates": {"muffin": -1, "t0_sf": 101}}, "rates of 'muffin' is -1"),
        ({"styles": {"fsnoopt": 1}}, "has the styles zsopt, none of fsnoopt"),
        ({"name": "muffin", "cot_ratio": 0.1}, "has no chain-of-thought task"),
        ({"name": "cot", "cot_ratio": 0.1}, "has no other task"),
    ],
)
def test_bad_mixtures_are_one_line(paper, asked, message):
    with pytest.raises(UserError, match=message) as caught:
        Mixture(**{"name": "proportion_a"} | asked).resolve(paper)
    assert "\n" not in str(caught.value)


TWO = {"suite_text/suite_text_a": 30, "suite_text/suite_text_b": 20, "suite_cot/suite_cot_a": 25}


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"rates": {"suite_text": 0, "suite_cot": 0}}, "rates .* leave nothing to draw"),
        ({"rates": {"suite_text": 1, "suite_cot": 0}}, {"suite_text": 1.0}),
        ({"rates": {}}, "rates {} leave nothing to draw"),
        ({"rates": {"suite_txt": 1}}, "no rate for collection 'suite_text'; did you mean 'suite_txt'"),
        ({"rates": {"suite_text": 1}}, "no rate for collection 'suite_cot'"),
        ({"rates": {"suite_text": -1, "suite_cot": 1}}, "rates of 'suite_text' is -1"),
        ({"rates": {"suite_text": float("nan"), "suite_cot": 1}}, "rates of 'suite_text' is nan"),
        ({"rates": {"suite_text": "1"}}, "rates of 'suite_text' is '1'"),
        ({"rates": [("suite_text", 1)]}, "give {name: number}"),
        ({"caps": {"suite_text": 0, "suite_cot": 0}}, "nothing to draw, as every task has the cap or the rate 0"),
        ({"caps": {"suite_cot": 0}}, {"suite_text": 1.0}),
        ({"caps": {"suite_ctx": 5}}, "caps names 'suite_ctx', which it does not have; did you mean 'suite_cot'"),
        ({"caps": {"suite_cot": 0.5}}, "caps of 'suite_cot' is 0.5; give a whole number"),
        ({"caps": {"suite_text": 5.0}}, {"suite_text": 10 / 35, "suite_cot": 25 / 35}),
        ({"styles": {"zsopt": 0}}, "styles .* leave nothing to draw"),
        ({"styles": {"zs": 1}}, "styles names 'zs', which it does not have; did you mean 'zsopt'"),
        ({"cot_ratio": 0.0}, {"suite_text": 1.0}),
        ({"cot_ratio": 1.0}, {"suite_cot": 1.0}),
        ({"cot_ratio": 1.1}, "COT_RATIO 1.1: a share of the draws"),
        ({"cot_ratio": 5}, "COT_RATIO 5: a share of the draws"),
        ({"num_tasks": 1}, {"suite_text": 1.0}),
        ({"num_tasks": 10**6}, "NUM_TASKS 1000000: the store .* holds 3 tasks"),
        ({"num_tasks": 2.5}, "NUM_TASKS 2.5: a whole number"),
        ({"num_tasks": True}, "NUM_TASKS True: a whole number"),
        ({"num_tasks": 1, "cot_ratio": 0.5}, "has no chain-of-thought task to give that share"),
        ({"inversion": float("nan")}, "inversion is nan"),
    ],
)
def test_zeros_fractions_and_names_mean_something_or_are_refused(tmp_path, asked, found):
    opened = store_maker.make(tmp_path, TWO, facts={"suite_cot_a": {"cot": True}})
    if isinstance(found, dict):
        assert Mixture("suite_text_both", **asked).resolve(opened).collections == pytest.approx(found)
        return
    with pytest.raises(UserError, match=found) as caught:
        Mixture("suite_text_both", **asked).resolve(opened)
    assert "\n" not in str(caught.value)


def test_nothing_to_draw_is_refused(paper, tmp_path):
    with pytest.raises(UserError, match="NUM_TASKS 0 has no examples"):
        Batches(paper, Mixture("cot", num_tasks=0), {"inputs": 8, "targets": 8}, 4)
    empty = store_maker.make(tmp_path, {"cot/cot_a": 0, "cot/cot_b": 3})
    with pytest.raises(UserError, match="cot_a has no examples"):
        Mixture("cot").resolve(empty)


# ---- named mixtures --------------------------------------------------------------------------------------------------


def test_own_named_mixtures(paper, tmp_path, monkeypatch):
    (tmp_path / "tables").mkdir()
    file = tmp_path / "tables" / "mixtures.toml"
    file.write_text('[mine]\ncollections = ["cot", "muffin"]\nrates = {cot = 0.5, muffin = 0.5}\n')
    monkeypatch.setenv("FLANX_TABLES", str(tmp_path))
    assert Mixture("mine").resolve(paper).collections == {"cot": 0.5, "muffin": 0.5}
    tables._load_mixtures.cache_clear()
    file.write_text('[mine]\ncolections = ["cot"]\n')
    with pytest.raises(UserError, match=r"unknown key 'colections'; did you mean 'collections'"):
        tables.load_mixtures()


def test_named_mixtures_say_where_they_come_from():
    root = pathlib.Path(mixture.__file__).parents[3]
    for name, definition in tables.load_mixtures().items():
        assert definition["collections"], name
        assert definition.get("note") or name == "cot", name
        total = sum(definition.get("rates", {"all": 1.0}).values())
        assert abs(total - (1 if total < 2 else 100)) <= (0.005 if total < 2 else 0.5), name
    for name in PAPER:
        assert (root / "gin" / "mixtures" / f"{name}.gin").read_text().count(f'"{name}"') == 1


def test_observed_shares_over_many_draws(paper):
    batches = Batches(paper, Mixture("proportion_b", cot_ratio=0.1), {"inputs": 32, "targets": 16}, 8)
    made = batches.order
    counts = np.zeros(len(batches.resolved.sources))
    for chunk in range(8):
        counts += np.bincount(made.chunk(chunk).source, minlength=len(counts))
    expected = np.array([s.weight for s in batches.resolved.sources]) * counts.sum()
    assert counts.sum() > 1e6
    assert np.abs(counts - expected).max() < 1.5  # sampling error would be up to 500


def test_mixtures_are_plain_values():
    asked = Mixture("cot", num_tasks=3)
    assert dataclasses.replace(asked, num_tasks=4) != asked and Mixture("cot", num_tasks=3) == asked


def test_a_group_of_a_collection_has_its_own_rate_where_a_mixture_names_it(tmp_path):
    sizes = {"cot/cot_a": 10, "muffin/muffin_a": 30, "muffin/muffin_talk": 20, "t0_sf/t0_a": 10, "niv2/niv2_a": 10}
    made = store_maker.make(tmp_path, sizes, facts={"muffin_talk": {"group": "dialog"}})
    wanted = {"cot": 0.05, "dialog": 0.03, "muffin": 0.4, "niv2": 0.2, "t0_sf": 0.32}
    assert Mixture("released").resolve(made).collections == pytest.approx(wanted)
    assert Mixture("released").resolve(made).tasks["muffin_talk"] == pytest.approx(0.03)
    rated = Mixture("proportion_b", rates={"cot": 10, "dialog": 20, "muffin": 30, "niv2": 20, "t0_sf": 20})
    assert rated.resolve(made).tasks["muffin_talk"] == pytest.approx(0.2)
    assert Mixture("dialog").resolve(made).tasks == {"muffin_talk": 1.0}
    assert set(Mixture("muffin").resolve(made).tasks) == {"muffin_a", "muffin_talk"}
    assert "dialog" not in Mixture("proportion_b").resolve(made).collections


# ---- licences --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def licensed(tmp_path_factory) -> store.Store:
    licences = {"cot_a": "MIT", "cot_b": "CC-BY-SA-4.0", "muffin_a": "CC-BY-NC-4.0", "muffin_b": None, "t0_sf_a": "MIT"}
    sizes = {f"{name.rpartition('_')[0]}/{name}": 10 for name in licences}
    facts = {name: {"licence": licence} for name, licence in licences.items()}
    return store_maker.make(tmp_path_factory.mktemp("licensed"), sizes, facts=facts)


def test_tasks_of_other_licences_are_left_out_named_and_their_rates_shared_out(licensed):
    rates = {"cot": 50, "muffin": 25, "t0_sf": 25}
    found = Mixture("proportion_a", rates=rates, allow_missing=True, licence="permissive").resolve(licensed)
    assert found.tasks == pytest.approx({"cot_a": 2 / 3, "t0_sf_a": 1 / 3})  # muffin's quarter goes to the others
    told = found.describe()
    assert told["asked"]["licence"] == "permissive" and told["rates"]["muffin"] == 0.25
    assert told["missing"]["muffin_b"] == "licence unknown (unknown) is not permissive"
    assert told["missing"]["muffin_a"] == "licence CC-BY-NC-4.0 (restricted) is not permissive"
    assert {name for name in told["missing"] if "licence" in told["missing"][name]} == {"cot_b", "muffin_a", "muffin_b"}


def test_num_tasks_counts_what_a_licence_leaves(licensed):
    wide = Mixture("cot", licence="permissive,CC-BY-SA-4.0").resolve(licensed)
    assert set(wide.tasks) == {"cot_a", "cot_b"} and not wide.missing
    assert set(Mixture("cot", num_tasks=1, licence="share_alike").resolve(licensed).tasks) == {"cot_b"}
    with pytest.raises(UserError, match="holds 1 tasks of 'cot'"):
        Mixture("cot", num_tasks=2, licence="share_alike").resolve(licensed)


def test_a_licence_that_leaves_nothing_or_is_no_licence_is_refused(licensed):
    with pytest.raises(UserError, match="mixture 'muffin': no task is left; muffin_a: licence CC-BY-NC"):
        Mixture("muffin", licence="permissive").resolve(licensed)
    with pytest.raises(UserError, match=r"class 'permisive'.*'permissive'"):
        Mixture("cot", licence="permisive").resolve(licensed)
