"""Suites by name: wrong names and wrong files are reported, and the hash of every suite is what it has been."""

import dataclasses
import json
import pathlib
import shutil

import pytest

from flanx.errors import UserError
from flanx.evals import registry
from flanx.evals.spec import Family, Item, Spec, Suite, hashed

HASHES = json.loads(pathlib.Path(__file__).with_name("golden").joinpath("suite_hashes.json").read_text())


def test_hashes_on_the_sample_data_have_not_changed() -> None:
    assert set(registry.names()) <= set(HASHES)
    assert {name: registry.load(name, registry.SAMPLE).hash for name in HASHES} == HASHES


def test_a_later_field_changes_the_hash_only_where_it_is_used() -> None:
    suite = registry.load("gsm8k_cot", registry.SAMPLE)
    assert "fallback" not in hashed(suite.spec) and "max_new" in hashed(suite.spec)
    changed = dataclasses.replace(suite, spec=dataclasses.replace(suite.spec, fallback="none"))
    assert changed.hash != suite.hash and hashed(changed.spec)["fallback"] == "none"


def test_every_spec_has_its_family_and_the_groups_that_its_tasks_have() -> None:
    for name in registry.names():
        spec = registry.resolve(name)
        tasks = set(registry.find(name)[1].tasks(spec))
        assert tasks >= set(spec.tasks) and all(set(members) <= tasks for _, members in spec.groups)
    assert [group for group, _ in registry.resolve("bbh_cot[navigate]").groups] == ["nlp", "alg"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bbh_dirct", "no evaluation suite 'bbh_dirct'; did you mean 'bbh_direct'"),
        ("bbh_direct[3]", "bbh_direct has no task '3'; the first 3 items are 'bbh_direct[:3]'"),
        ("bbh_direct[navigat]", "bbh_direct has no task 'navigat'; did you mean 'navigate'"),
        ("bbh_direct[:x]", "needs a number of items"),
        ("mmlu_test_hendrycks+sc", "'.sc' needs a suite that generates"),
        ("mmlu_test_hendrycks+beam4", "'.beam4' needs a suite that generates"),
        ("gsm8k_cot+beams", "in one pair of brackets, the decoding method after it, as in 'gsm8k_cot"),
        ("mgsm_direct_8_shot[de][:8]", "in one pair of brackets"),
        ("gsm8k_cot+beam1", "'.beam1' needs at least two samples or beams"),
        ("gsm8k_cot+sc0", "'.sc0' needs at least two samples or beams"),
        ("", "no evaluation suite ''"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        registry.resolve(name)


@pytest.mark.parametrize(
    ("file", "text", "name", "message"),
    [
        ("mmlu/data/test/astronomy_test.csv", "Q,a,b,c,B\n", "mmlu_test_direct", "test.csv:1: 5 columns, expected 6"),
        ("mmlu/data/test/astronomy_test.csv", "Q,a,b,c,d,E\n", "mmlu_test_direct", "the last column is 'E'"),
        ("mmlu/data/test/astronomy_test.csv", "Q,a,,c,d,B\n", "mmlu_test_direct", "an option is empty"),
        ("mmlu/data/test/astronomy_test.csv", "", "mmlu_test_direct", "has no items of astronomy; allow them"),
        ("mgsm/mgsm_de.tsv", "Wie viele?\n", "mgsm_cot", r"mgsm_de.tsv:1: 1 columns, expected 2"),
        ("mgsm/exemplars.json", "{}", "mgsm_cot", "no exemplars for 'de'"),
        ("gsm8k/test.jsonl", '{"question": "x"}\n', "gsm8k_cot", r"test.jsonl:1: no column 'answer'"),
        ("gsm8k/test.jsonl", '{"question": "x", "answer": "5"}\n', "gsm8k_cot", "'answer' has no '#### '"),
        ("gsm8k/test.jsonl", "{\n", "gsm8k_cot", r"test.jsonl:1: not JSON"),
        ("gsm8k/gsm8k-cot.yaml", "a: [", "gsm8k_cot", "gsm8k-cot.yaml: not YAML: while parsing"),
        ("gsm8k/gsm8k-cot.yaml", "fewshot_config: 3", "gsm8k_cot", "no key 'fewshot_config.samples'"),
        ("bbh/bbh/navigate.json", '{"examples": [{"input": "x"}]}', "bbh_direct", "example 0: no text column 'target'"),
        ("bbh/cot-prompts/navigate.txt", "-----\nDo.\n\nQ: a\nA: b\n", "bbh_direct", "exemplar 1 needs"),
        ("tydiqa/tydiqa-goldp-v1.1-dev.json", '{"data": [{}]}', "tydiqa", "not SQuAD's form: KeyError 'paragraphs'"),
    ],
)  # fmt: skip
def test_wrong_files_are_named(tmp_path: pathlib.Path, file: str, text: str, name: str, message: str) -> None:
    shutil.copytree(registry.SAMPLE_DIR, tmp_path / "data")
    (tmp_path / "data" / file).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        _load_there(tmp_path / "data", name)


def test_missing_exemplars_of_gsm8k_name_their_address(tmp_path: pathlib.Path) -> None:
    shutil.copytree(registry.SAMPLE_DIR, tmp_path / "data")
    (tmp_path / "data" / "gsm8k" / "gsm8k-cot.yaml").unlink()
    with pytest.raises(UserError, match=r"put https://raw.*/gsm8k-cot.yaml there, set DATA_DIR"):
        _load_there(tmp_path / "data", "gsm8k_cot")


def _load_there(folder: pathlib.Path, name: str) -> Suite:
    """A suite of the tasks that a copy of our samples has."""
    sample = registry.load(name, registry.SAMPLE)
    return registry.load(f"{name}[{','.join(sample.spec.tasks)}]", str(folder))


def test_bytes_that_are_no_text_and_twice_given_ids(tmp_path: pathlib.Path) -> None:
    shutil.copytree(registry.SAMPLE_DIR, tmp_path / "data")
    path = tmp_path / "data" / "tydiqa" / "tydiqa-goldp-v1.1-dev.json"
    path.write_text(path.read_text().replace("finnish-s2-1", "finnish-s2-0"))
    with pytest.raises(UserError, match="id 'finnish-s2-0' of fi occurs twice"):
        _load_there(tmp_path / "data", "tydiqa")
    (tmp_path / "data" / "gsm8k" / "test.jsonl").write_bytes(b'{"question": "\xff"}\n')
    with pytest.raises(UserError, match="not UTF-8"):
        _load_there(tmp_path / "data", "gsm8k_cot")


def test_a_language_without_rows_is_an_error_unless_named() -> None:
    folder = str(registry.SAMPLE_DIR)
    with pytest.raises(UserError, match="TyDiQA: 0 exemplars for 'ar'"):
        registry.load("tydiqa", folder)
    loaded = registry.load("tydiqa", folder, allow_missing=("ar", "bn", "id", "ko", "ru", "te"))
    assert {item.task for item in loaded.items} == {"fi", "sw"}


@pytest.mark.parametrize("change", [lambda raw: b"\xef\xbb\xbf" + raw, lambda raw: raw.replace(b"\n", b"\r\n")])
@pytest.mark.parametrize(
    "name", ["bbh_direct", "bbh_cot", "mmlu_test_direct", "mmlu_test_cot", "mgsm_cot", "gsm8k_cot", "tydiqa"]
)
def test_a_mark_and_line_ends_of_windows_change_no_item(tmp_path: pathlib.Path, change, name: str) -> None:
    shutil.copytree(registry.SAMPLE_DIR, tmp_path / "plain")
    shutil.copytree(registry.SAMPLE_DIR, tmp_path / "windows")
    for path in (tmp_path / "windows").rglob("*"):
        if path.suffix in (".json", ".jsonl", ".csv", ".tsv", ".txt"):
            path.write_bytes(change(path.read_bytes()))
    missing = ("ar", "bn", "id", "ko", "ru", "te") if name == "tydiqa" else ()
    name = name if missing else f"{name}[{','.join(registry.load(name, registry.SAMPLE).spec.tasks)}]"
    plain, windows = (registry.load(name, str(tmp_path / which), missing) for which in ("plain", "windows"))
    assert [dataclasses.replace(item, location="") for item in windows.items] == [
        dataclasses.replace(item, location="") for item in plain.items
    ]
    assert windows.hash == plain.hash


def test_a_family_of_open_names_is_asked_after_the_suites_that_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(name: str) -> Spec | None:
        return Spec(name, "letters", split=name.partition(":")[2]) if name.startswith("letters:") else None

    def items(spec: Spec, folder: pathlib.Path, task: str) -> list[Item]:
        return [Item(task, f"{spec.split}-{n}", f"{task}{n}?", (task,), "exact") for n in range(3)]

    letters = Family("letters", lambda spec: ("a", "b"), lambda folder, task, spec: True, items, parse=parse,
                     needs_data=lambda spec: False)  # fmt: skip
    monkeypatch.setattr(registry, "FAMILIES", (*registry.FAMILIES, letters))
    monkeypatch.delenv("FLANX_IMPORTS")  # no module of a user's that might have the name
    suite = registry.load("letters:dev[b,:2]+sc4", "")
    assert [item.id for item in suite.items] == ["dev-0", "dev-1"] and suite.spec.samples == 4
    assert registry.resolve("letters:dev[b,:2]", ["a", "c"]).allow_missing == ("a",)
    with pytest.raises(UserError, match="letters:dev has no task 'c'"):
        registry.resolve("letters:dev[c]")
    with pytest.raises(UserError, match="no evaluation suite 'leters:dev'"):
        registry.resolve("leters:dev")


def test_two_suites_of_one_name_are_refused_with_both_places(monkeypatch: pytest.MonkeyPatch) -> None:
    other = dataclasses.replace(
        registry.find("tydiqa")[1], location=lambda spec: "mine/suites/qa.toml:3", specs=lambda: registry.tydiqa.specs()
    )
    monkeypatch.setattr(registry, "FAMILIES", (*registry.FAMILIES, other))
    message = r"two suites are named 'tydiqa': flanx/evals/families \(tydiqa\) and mine/suites/qa.toml:3; rename one"
    with pytest.raises(UserError, match=message):
        registry.resolve("bbh_cot")


def test_a_name_of_an_earlier_version_is_the_suite_of_the_new_name() -> None:
    assert registry.resolve("mgsm_direct[de,:8]+sc8") == registry.resolve("mgsm_direct_8_shot[de,:8]+sc8")
    assert "mgsm_direct" not in registry.names()


def test_what_a_task_scores_by_its_own_functions_is_not_ranked() -> None:
    for metric, suffix in (("seqio", "rank"), ("lm_eval", "rank_normalized"), ("lm_eval", "likelihood")):
        with pytest.raises(UserError, match=f"score what is generated; leave '.{suffix}' out"):
            registry._decoding(f"mine+{suffix}", Spec("mine", "mine", metric=metric), suffix, None)
    assert registry._decoding("mine+likelihood", Spec("mine", "mine", metric="seqio"), "likelihood", None)
