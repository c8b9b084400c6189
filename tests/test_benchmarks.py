"""Every item of the real benchmark files renders; gold answers and published rationales all read back as right."""

import hashlib
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

from flanx.errors import UserError
from flanx.evals import answers, registry
from flanx.evals.families import bbh, mgsm, mmlu
from flanx.evals.spec import Suite

ROOT = pathlib.Path(__file__).resolve().parent.parent
GOLDENS = pathlib.Path(__file__).with_name("corpus") / "prompts.toml"
# suite -> number of items: 6,511 of BBH, 14,042 of MMLU, 2,750 of MGSM (with English), 1,319 of GSM8K
COUNTS = {
    "bbh_direct": 6511,
    "bbh_cot": 6511,
    "bbh_zero_shot": 6511,
    "bbh_zero_shot_cot": 6511,
    "mmlu_test_direct": 14042,
    "mmlu_test_cot": 14042,
    "mmlu_test_zero_shot": 14042,
    "mmlu_test_hendrycks": 14042,
    "mmlu_test_lm_eval": 14042,
    "mmlu_test_text": 14042,
    f"mgsm_cot[{','.join(mgsm.LANGUAGES)}]": 2750,
    f"mgsm_direct_8_shot[{','.join(mgsm.LANGUAGES)}]": 2750,
    "mgsm_en_sw_cot": 500,
    "mgsm_en_sw_zero_shot": 500,
    "gsm8k_cot": 1319,
    "gsm8k_cot_mgsm_exemplars": 1319,
    "gsm8k_zero_shot": 1319,
    "gsm8k_zero_shot_cot": 1319,
}


def prompt_hash(loaded: Suite) -> str:
    """Hash of all prompts and gold answers, byte for byte."""
    digest = hashlib.sha256()
    for item in loaded.items:
        digest.update("\0".join([item.id, item.prompt(), *item.targets, *item.options, "\n"]).encode())
    return digest.hexdigest()[:16]


@pytest.mark.parametrize("name", COUNTS)
def test_prompts_are_the_golden_ones(name: str, data_dir: pathlib.Path) -> None:
    if name == "gsm8k_cot" and not (data_dir / "gsm8k" / "gsm8k-cot.yaml").is_file():
        pytest.skip("no gsm8k/gsm8k-cot.yaml of lm-evaluation-harness in the data folder")
    loaded = registry.load(name, str(data_dir))
    assert len(loaded.items) == COUNTS[name]
    assert prompt_hash(loaded) == tomllib.loads(GOLDENS.read_text())["real"][name]


@pytest.mark.parametrize("name", ["bbh_direct", "mmlu_test_direct", f"mgsm_direct_8_shot[{','.join(mgsm.LANGUAGES)}]"])
def test_gold_answers_score_all_in_direct_mode(name: str, data_dir: pathlib.Path) -> None:
    for item in registry.load(name, str(data_dir)).items:
        gold = item.targets[0]
        assert answers.same(gold, gold, item.kind, False, item.language), item.id
        assert answers.same(f" {gold}.\n", gold, item.kind, False, item.language), item.id


def test_gold_rationales_of_gsm8k_score_all(data_dir: pathlib.Path) -> None:
    from flanx.evals import files

    rows = [record for _, record in files.read_lines(data_dir / "gsm8k" / "test.jsonl", "GSM8K")]
    items = registry.load("gsm8k_zero_shot", str(data_dir)).items
    for item, row in zip(items, rows, strict=True):
        assert answers.same(row["answer"], item.targets[0], "number", True), item.id


@pytest.mark.parametrize("task", bbh.KIND)
def test_published_rationales_of_bbh_score_all(task: str, data_dir: pathlib.Path) -> None:
    _, shots = bbh.exemplars(data_dir, task)
    assert len(shots) == 3
    for _, rationale, gold in shots:
        assert answers.extract(rationale, bbh.KIND[task], True) is not None
        assert answers.same(rationale, gold, bbh.KIND[task], True)


def test_published_rationales_of_mmlu_score_all(data_dir: pathlib.Path) -> None:
    total = 0
    for subject in mmlu.SUBJECTS:
        _, shots = mmlu.cot_exemplars(data_dir, subject)
        for shot in shots:
            rationale = shot.partition("\nA: ")[2]
            # The gold letter is in the last "The answer is (X)" and nowhere else in the file.
            gold = re.findall(r"answer is \(?([A-E])\b", rationale)[-1]
            assert answers.extract(rationale, "letter", True) == gold, (subject, rationale)
            total += 1
    assert total == 57 * 5 - 3  # three subjects have four exemplars


def test_published_rationales_of_mgsm_score_all(data_dir: pathlib.Path) -> None:
    for language in mgsm.LANGUAGES:
        shots = mgsm.exemplars(data_dir, language)
        assert len(shots) == 8
        for _, rationale, number in shots:
            assert answers.extract(rationale, "number", True, language) == number, (language, rationale)
            assert answers.read(rationale, "number", True, language).source == answers.ANNOUNCED, (language, rationale)


def test_exemplars_join_up_to_the_published_files(data_dir: pathlib.Path) -> None:
    for task in bbh.KIND:
        text = (data_dir / "bbh" / "cot-prompts" / f"{task}.txt").read_text(encoding="utf-8")
        body = text.partition("-----\n")[2].strip()
        item = registry.load(f"bbh_cot[{task},:1]", str(data_dir)).items[0]
        made = (item.head + "".join(item.shots)).rstrip()
        assert re.sub(r"\s+", " ", made) == re.sub(r"\s+", " ", body)


def test_no_canary_line_in_any_prompt(data_dir: pathlib.Path) -> None:
    for item in registry.load("bbh_cot[:1]", str(data_dir)).items:
        assert "canary" not in item.prompt()


def test_the_eight_exemplars_of_gsm8k_are_not_test_problems(data_dir: pathlib.Path) -> None:
    asked = {item.query for item in registry.load("gsm8k_zero_shot", str(data_dir)).items}
    shots = registry.load("gsm8k_cot_mgsm_exemplars[:1]", str(data_dir)).items[0].shots
    assert len(shots) == 8 and not any(f"{shot.partition(chr(10))[0]}\nA:" in asked for shot in shots)


@pytest.mark.parametrize("name", [n for n in registry.names() if registry.resolve(n).family != "held_out"])
def test_samples_of_our_own_writing_ship_for_every_suite(name: str) -> None:
    loaded = registry.load(name, registry.SAMPLE)
    assert loaded.items
    for item in loaded.items:
        assert item.prompt().strip() or item.options  # whole sentences are compared without a prompt
        gold = item.targets[0]
        if not item.options and loaded.spec.metric != "open_ended":  # which has no right answer
            assert answers.same(gold, gold, item.kind, False, item.language) or item.kind == "text"
    assert prompt_hash(loaded) == tomllib.loads(GOLDENS.read_text())["sample"][name]


def test_a_missing_subject_is_an_error_unless_named(data_dir: pathlib.Path) -> None:
    with pytest.raises(UserError, match=r"MMLU abstract_algebra: no file .*abstract_algebra_val.csv"):
        registry.load("mmlu_direct", str(data_dir))
    with pytest.raises(UserError, match="none of its tasks has data"):
        registry.load("mmlu_direct", str(data_dir), allow_missing=mmlu.SUBJECTS)


def test_held_out_tasks_of_the_embedded_suite_need_no_data_and_no_seqio() -> None:
    code = """
import sys
from flanx import evaluate
from flanx.evals import registry
from flanx.evals.families import procedural
kinds = [registry.load(f"{kind}[:2]", "") for kind in procedural.KINDS]
every = registry.load("held_out[:2]", "")
assert sum(len(kind.items) for kind in kinds) == len(every.items) > 100
assert all(item.prompt().strip() and item.targets[0] for item in every.items)
assert registry.load("held_out[:2]", "").hash == every.hash
asked, plain = registry.load("suite_rule_trigger[:2]", ""), kinds[procedural.KINDS.index("suite_rule")]
assert [i.query for i in asked.items] == [i.query + "\\nstep by step" for i in plain.items]
assert asked.spec.cot and {i.kind for i in asked.items} == {"last"}
assert registry.resolve("suite_rule_trigger+sc").samples == 40
assert [name for name, _ in every.spec.groups] == list(procedural.KINDS)
graded = dict(registry.resolve("suite_composition").groups)
assert len(graded["words"]) == sum(map(len, graded.values())) - len(graded["words"]) - 11  # 11 are on numbers
assert sum(len(tasks) for _, tasks in every.spec.groups) == len({item.task for item in every.items})
assert not {"tensorflow", "seqio", "torch"} & set(sys.modules), "evaluation imports the build side"
assert not {"nltk", "sacrebleu"} & set(sys.modules), "scorers that no suite here needs, 1.2 s of every start"
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_benchmark_of_guesses_prints_a_row_of_signed_points() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/guesses.py", "--quick"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    head, _, row = (line.strip("| ").split(" | ") for line in done.stdout.splitlines())
    assert head[:2] == ["suite", "ours"] and row[0] == "`mmlu_test_direct`" and len(row) == len(head)
    assert 0 < float(row[1]) < 100
    points = dict(zip(head[2:], map(float, row[2:]), strict=True))
    assert points["string match"] < 0 and points["options unknown"] < 0 == points["last mention"]
