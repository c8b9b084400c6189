"""One answer to "which tasks, which rates": equal shares in a store and under SeqIO, and nothing held out in either."""

import json
import pathlib
import random

import pytest

from flanx.cli.main import main
from flanx.data import store
from flanx.data.pipeline.mixture import Mixture
from flanx.data.store import selection as store_selection
from flanx.data.task import select, spec, tables
from flanx.errors import UserError

TABLES = tables.load_tables()
SHIPPED = sorted(tables.load_mixtures())


def as_store(tasks: dict[str, spec.TaskSpec]) -> store.Store:
    """A store that holds exactly what the tables say, as far as a mixture reads it: no volume is behind it."""

    def entry(task: spec.TaskSpec) -> dict:
        examples = task.num_examples or (10**9 if task.cap else 1)  # what `select` takes an unknown size for
        counts = dict.fromkeys(task.versions, examples)
        parts = {style: [{"volume": 0, "start": 0, "examples": n}] for style, n in counts.items()}
        keys = ("collection", "group", "category", "cap", "held_out", "cot", "licence", "num_examples")
        return {key: getattr(task, key) for key in keys} | {"parts": parts}

    manifest = {
        "hash": "", "missing": {}, "tasks": {name: entry(task) for name, task in tasks.items()},
        "vocabulary": {"spec": "byte", "size": 259, "fingerprint": "byte-0"},
    }  # fmt: skip
    return store.Store(pathlib.Path("tables"), manifest)


STORE = as_store(TABLES)


def in_store(name: str, opened: store.Store = STORE) -> dict[tuple[str, str], float]:
    """Share of all draws of each (task, style) when a store is read."""
    return {(source.task.name, source.style): source.weight for source in Mixture(name).resolve(opened).sources}


def under_seqio(name: str) -> dict[tuple[str, str], float]:
    """The same of the mixture that SeqIO's registry holds."""
    seqio = pytest.importorskip("seqio")
    mixture = seqio.MixtureRegistry.get(name)
    total = sum(mixture.get_rate(task) for task in mixture.tasks)
    return {(task.source.spec.name, task.source.style): mixture.get_rate(task) / total for task in mixture.tasks}


def assert_equal(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for key, share in one.items():
        assert share == pytest.approx(other[key], rel=1e-9, abs=1e-15), key


@pytest.fixture
def own_mixtures(tmp_path, monkeypatch):
    """Writes sections into a mixtures.toml of the user's; registers all of them with SeqIO again."""
    seqio = pytest.importorskip("seqio")
    from flanx.seqio import tasks

    def write(sections: dict[str, dict]) -> None:
        lines = []
        for name, section in sections.items():
            lines.append(f"[{name}]")
            for key, value in section.items():
                pairs = ", ".join(f"{k} = {v!r}" for k, v in value.items()) if isinstance(value, dict) else ""
                lines.append(f"{key} = {'{' + pairs + '}' if isinstance(value, dict) else json.dumps(value)}")
        (tmp_path / "tables").mkdir(exist_ok=True)
        (tmp_path / "tables" / "mixtures.toml").write_text("\n".join(lines) + "\n")
        monkeypatch.setenv("FLANX_TABLES", str(tmp_path))
        tables._load_mixtures.cache_clear()
        monkeypatch.setattr(seqio.TaskRegistry, "_REGISTRY", {})
        monkeypatch.setattr(seqio.MixtureRegistry, "_REGISTRY", {})
        tasks.register_all()

    yield write
    tables._load_mixtures.cache_clear()


# ---- both paths, side by side ----------------------------------------------------------------------------------------


def test_shipped_mixtures_have_the_same_shares_in_a_store_and_under_seqio(own_mixtures):
    own_mixtures({})
    for name in SHIPPED:
        assert_equal(in_store(name), under_seqio(name))


def drawn(number: int) -> dict:
    """A mixture drawn by its number: some collections, each setting of mixtures.toml present or not."""
    draw = random.Random(number)
    homes = ["muffin", "cot", "dialog", "program_synthesis", "suite_text", "suite_number"]
    homes += ["niv2", "t0_sf"] if number % 10 == 0 else []  # many tasks: in some
    collections = draw.sample(homes, draw.randint(1, 4))
    section: dict = {"collections": collections}
    if draw.random() < 0.6:
        parts = [draw.choice((0, draw.randint(1, 50))) for _ in collections]
        parts[0] = parts[0] or 1
        section["rates"] = {c: 100 * part / sum(parts) for c, part in zip(collections, parts, strict=True)}
    if draw.random() < 0.6:
        names = [*collections, *draw.sample(sorted(TABLES), 20)]
        section["caps"] = {name: draw.choice((0, 1, 50, 5000, 30000)) for name in draw.sample(names, 8 % len(names))}
        section["caps"][collections[0]] = 1000
    if draw.random() < 0.6:
        section["styles"] = {"zsopt": 1, "fsopt": draw.choice((0, 1, 2.5)), "zsnoopt": draw.choice((0, 3))}
    if draw.random() < 0.6:
        section["inversion"] = draw.choice((0.0, 0.1, 0.3, 1.0, {"muffin": 0.2}, {"cot": 0.3, "dialog": 0.1}))
    return section


@pytest.mark.parametrize("count", [20, pytest.param(260, marks=pytest.mark.slow)])  # of which 200 are sound
def test_drawn_mixtures_have_the_same_shares_in_a_store_and_under_seqio(own_mixtures, count):
    sections, refused = {}, 0
    mixtures = {f"drawn_{number}": drawn(number) for number in range(count)}
    for name, section in mixtures.items():
        try:
            select.resolve(select.MixtureSpec(name), select.of_tables(TABLES), mixtures)
        except UserError:  # a collection with a rate and the cap 0
            refused += 1
        else:
            sections[name] = section
    assert len(sections) >= count * 10 // 13, refused
    own_mixtures(sections)
    for name in sections:
        assert_equal(in_store(name), under_seqio(name))


def test_rates_of_0_caps_of_0_styles_and_inversion_count_under_seqio(own_mixtures):
    own_mixtures({
        "no_muffin": {"collections": ["cot", "muffin"], "rates": {"muffin": 0, "cot": 100}},
        "no_gsm8k": {"collections": ["cot"], "caps": {"cot_gsm8k": 0}},
        "zero_shot": {"collections": ["cot"], "styles": {"zsopt": 1}},
        "never_inverted": {"collections": ["cot"], "inversion": 0.0},
    })  # fmt: skip
    assert {TABLES[task].collection for task, _ in under_seqio("no_muffin")} == {"cot"}
    assert {task for task, _ in under_seqio("no_gsm8k")} == {n for n in TABLES if n.startswith("cot_")} - {"cot_gsm8k"}
    assert {style for _, style in under_seqio("zero_shot")} == {"zsopt", "zsopt_inverted"}

    def inverted(name: str) -> float:
        return sum(share for (_, style), share in under_seqio(name).items() if style.endswith(spec.INVERTED))

    assert any(TABLES[task].inversions for task, _ in under_seqio("never_inverted"))
    assert inverted("never_inverted") == 0
    assert inverted("cot") == pytest.approx(0.3 / 1.3)
    assert inverted("muffin") == pytest.approx(3 * 0.3 / 1.3 / 80, rel=0.1)  # three tasks of 80: dialog


@pytest.mark.parametrize("bad", ['colections = ["cot"]', "rates = {cot = 1.0}"])
def test_a_wrong_section_is_refused_wherever_mixtures_are_read(tmp_path, monkeypatch, bad):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "mixtures.toml").write_text(f"# mine\n[mine]\n{bad}\n")
    monkeypatch.setenv("FLANX_TABLES", str(tmp_path))
    tables._load_mixtures.cache_clear()
    for read in (
        lambda: Mixture("mine").resolve(STORE),
        lambda: select.find_specs("mine"),
        lambda: store_selection.find(["mine"]),
    ):
        with pytest.raises(UserError, match=r"mixtures.toml:2: mixture 'mine' (has unknown key|needs 'collections')"):
            read()
    tables._load_mixtures.cache_clear()


# ---- held out --------------------------------------------------------------------------------------------------------

HELD_OUT = {name for name, task in TABLES.items() if task.held_out}


def test_no_mixture_draws_a_held_out_task_even_where_it_lists_its_collection(own_mixtures):
    assert len(HELD_OUT) > 50
    own_mixtures({"sly": {"collections": ["cot", "mmlu", "bbh"]}})
    resolved = Mixture("sly").resolve(STORE)
    assert set(resolved.tasks) == {n for n, t in TABLES.items() if t.collection == "cot"}
    assert set(resolved.dropped) == {n for n, t in TABLES.items() if t.collection in ("mmlu", "bbh")}
    assert {task for task, _ in under_seqio("sly")} == set(resolved.tasks)
    for name in ("sly", *SHIPPED):
        assert not HELD_OUT & {task for task, _ in in_store(name)}
        assert not HELD_OUT & {task for task, _ in under_seqio(name)}
        assert not HELD_OUT & {task.name for task in select.find_specs(name)}
        assert not HELD_OUT & {row.name for row in store_selection.find([name])[0]}


@pytest.mark.parametrize("name", ["mmlu", "mmlu_astronomy", "mmlu_astronomy_zsopt", "gsm8k"])
def test_a_held_out_name_is_refused_for_training_and_for_a_store(name):
    with pytest.raises(UserError, match=f"'{name}' is held out for evaluation"):
        Mixture(name).resolve(STORE)
    if not name.endswith("zsopt"):
        with pytest.raises(UserError, match=f"'{name}' is held out for evaluation"):
            store_selection.find([name])


def test_a_held_out_collection_is_a_mixture_of_seqio_for_evaluation(own_mixtures):
    own_mixtures({})
    assert {task for task, _ in under_seqio("mmlu")} == {n for n, t in TABLES.items() if t.collection == "mmlu"}


# ---- names -----------------------------------------------------------------------------------------------------------


def tasks(**changes) -> dict[str, dict]:
    base = {"collection": "a", "examples": 10, "styles": {"zsopt": (10, 0)}}
    return {name: base | change for name, change in changes.items()}


def test_a_name_is_a_mixture_a_collection_a_group_a_task_or_a_pattern():
    known = tasks(a_x={}, a_y={"group": "talk"}, b_z={"collection": "b"}, b_held={"collection": "b", "held_out": True})
    mixtures = {"mix": {"collections": ["b", "a"]}, "talks": {"collections": ["b", "talk"]}}
    wanted = {
        "mix": ["b_z", "a_x", "a_y"], "talks": ["b_z", "a_y"], "a": ["a_x", "a_y"], "talk": ["a_y"],
        "b": ["b_z", "b_held"], "a_x": ["a_x"], "?_[xz]": ["a_x", "b_z"],
    }  # fmt: skip
    assert {name: select.find(name, known, mixtures) for name in wanted} == wanted
    with pytest.raises(UserError, match="no mixture, collection or task 'mx'; did you mean 'mix'"):
        select.find("mx", known, mixtures)
    for name, style in (("a_x", None), ("a_x_zsopt", "zsopt")):
        shares = select.resolve(select.MixtureSpec(name), known, mixtures).shares
        assert [(share.task, share.style) for share in shares] == [("a_x", style or "zsopt")]
    with pytest.raises(UserError, match="'a_x_fsopt'"):
        select.resolve(select.MixtureSpec("a_x_fsopt"), known, mixtures)


LISTED = {
    "cot_a": {"collection": "cot", "cot": True, "examples": 30, "styles": {"zsopt": 30, "zsopt_inverted": 30}},
    "muffin_b": {"collection": "muffin", "examples": 10},
    "muffin_c": {"collection": "muffin", "group": "dialog", "examples": 60},
    "niv2_d": {"collection": "niv2", "examples": 100},
    "niv2_held": {"collection": "niv2", "examples": 100, "held_out": True},
}


@pytest.mark.parametrize(
    ("names", "shares"),
    [
        (["muffin_b", "cot"], {"muffin_b": 10 / 40, "cot_a": 30 / 40}),  # by size, as of one collection
        (["muffin", "dialog", "niv2_*"], {"muffin_b": 10 / 170, "muffin_c": 60 / 170, "niv2_d": 100 / 170}),
        ([("cot", 0.3), ("niv2_*", 0.7)], {"cot_a": 0.3, "niv2_d": 0.7}),
        ([("muffin", 20), ("dialog", 70), ("cot", 10)], {"muffin_b": 0.2, "muffin_c": 0.7, "cot_a": 0.1}),
        ([["cot_a_zsopt", 0.5], ["muffin_b", 0.5]], {"cot_a": 0.5, "muffin_b": 0.5}),
    ],
)
def test_a_list_of_names_is_a_mixture_with_or_without_rates(names, shares):
    found = select.resolve(select.MixtureSpec(names), tasks(**LISTED), {})
    assert select.total_by((s.task, s.weight) for s in found.shares) == pytest.approx(shares)
    inverted = sum(share.weight for share in found.shares if share.style.endswith("_inverted"))
    cot = 0 if "cot_a_zsopt" in names[0] else shares.get("cot_a", 0)
    assert inverted == pytest.approx(cot * 0.3 / 1.3)  # the rate of its own collection, under any name of the list


def test_settings_of_a_mixture_count_for_a_list():
    asked = select.MixtureSpec(["cot", "muffin", "niv2"], num_tasks=3, cot_ratio=0.5, caps={"dialog": 5})
    found = select.resolve(asked, tasks(**LISTED), {})
    assert select.total_by((s.task, s.weight) for s in found.shares) == pytest.approx(
        {"cot_a": 0.5, "muffin_b": 0.5 * 10 / 15, "muffin_c": 0.5 * 5 / 15}
    )
    rated = select.MixtureSpec([("cot", 0.5), ("p3", 0.5)], allow_missing=True)
    found = select.resolve(rated, tasks(**LISTED), {})
    assert found.missing == {"p3": "has a rate and no tasks"} and {s.task for s in found.shares} == {"cot_a"}


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([], "an empty list"),
        (["cot", "muffim"], "'muffim' in the tables; did you mean 'muffin'"),
        (["cot", "cot"], "'cot' is listed twice"),
        (["cot", ("muffin", 0.5)], "'cot' has no rate and others have one"),
        ([("cot", 0.5), ("muffin", 0.2)], "rates add up to 0.7"),
        ([("muffin", 0.5), ("muffin_b", 0.5)], "'muffin' and 'muffin_b' have rates and share the task muffin_b"),
        ([("cot", -1), ("muffin", 2)], "rates of 'cot' is -1"),
        (["mix", "cot"], r"'mix' is a mixture with rates of its own; list its collections \(muffin, niv2\)"),
        (["niv2_held"], "held out"),
    ],
)
def test_a_wrong_list_is_refused(names, text):
    with pytest.raises(UserError, match=text):
        select.resolve(select.MixtureSpec(names), tasks(**LISTED), {"mix": {"collections": ["muffin", "niv2"]}})


def test_a_cap_of_0_leaves_a_task_out_and_a_rated_collection_of_such_tasks_is_refused():
    known = tasks(a_x={}, a_y={"cap": 0}, b_z={"collection": "b"})
    asked = select.MixtureSpec("a")
    assert [share.task for share in select.resolve(asked, known, {}).shares] == ["a_x"]
    mixtures = {"mix": {"collections": ["a", "b"], "caps": {"b": 0}, "rates": {"a": 50, "b": 50}}}
    with pytest.raises(UserError, match="'mix': collection 'b' has a rate, and its tasks have the cap 0"):
        select.resolve(select.MixtureSpec("mix"), known, mixtures)
    with pytest.raises(UserError, match="'a': nothing to draw"):
        select.resolve(select.MixtureSpec("a", caps={"a": 0}), known, {})


def test_the_command_and_the_store_find_the_same_tasks(capsys):
    for name in SHIPPED:
        assert main(["tasks", "list", name, "--json"]) == 0
        listed = [row["name"] for row in json.loads(capsys.readouterr().out)["tasks"]]
        assert listed == [row.name for row in store_selection.find([name])[0]]
