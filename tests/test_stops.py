"""Outputs end at the label of an invented next question, however a vocabulary writes line breaks, in every language."""

import json
import pathlib

import pytest

from flanx.data import vocabulary
from flanx.data.vocabulary import Vocabulary
from flanx.evals import marking, registry, stops
from flanx.evals.spec import Item, Spec
from tests.t5_vocabulary import LABELS
from tests.test_marking import generation


@pytest.mark.parametrize("language", LABELS)
def test_labels_stop_what_a_t5_vocabulary_writes(t5_like: Vocabulary, language: str) -> None:
    label = LABELS[language]
    for breaks in ("\n\n", "\n", " "):
        output = f"The answer is 5.{breaks}{label} 2 + 3\nA: The answer is 7."
        written = t5_like.decode(t5_like.encode(output))
        assert "\n" not in written
        for text in (output, written):
            assert stops.has_stop(text, (label,)) and stops.until_stop(text, (label,)) == "The answer is 5."


def test_stops_are_labels_outside_words_and_other_texts_as_written() -> None:
    assert not stops.has_stop("the FAQ: none", ("Q:",)) and not stops.has_stop("Q and A", ("Q:",))
    assert stops.until_stop("  Q: again Q: two", ("Q:",)) == "Q: again"  # none at the very beginning
    assert stops.until_stop("\n\nHelsinki\nOslo", ("\n", "Q:")) == "Helsinki"
    assert stops.until_stop("a b", ()) == "a b" and not stops.has_stop("Q: Q:", ())


def test_every_suite_with_exemplars_stops_at_a_label_that_its_prompts_have(t5_like: Vocabulary) -> None:
    for name in registry.names():
        spec = registry.resolve(name)
        if spec.scoring != "generate" or spec.family == "held_out":
            continue
        suite = registry.load(name, registry.SAMPLE)
        for item in suite.items:
            for text in item.shots[1:] or item.shots:
                assert stops.has_stop(f"5 {text}" if suite.spec.family != "tydiqa" else text, suite.spec.stop), name


def continued(item: Item, answer: str, vocab: Vocabulary) -> str:
    """An answer as a T5 writes it that continues with another question and another answer."""
    asks = item.query.partition(":")[0] + ":" if not item.query.startswith("Q:") else "Q:"
    asks = "Q:" if item.kind == "text" else asks
    return (
        f"{answer}\n\n{asks} 2 3\nA: The answer is 7."
        if vocab.spec == "byte"
        else f"{answer} {asks} 2 3 A: The answer is 7."
    )


@pytest.mark.parametrize(
    "name", ["mgsm_direct_8_shot", "mgsm_cot", "bbh_cot", "bbh_direct", "mmlu_cot", "tydiqa", "gsm8k_cot"]
)
@pytest.mark.parametrize("vocab", ["byte", "t5"])
def test_scores_survive_an_invented_next_question(name: str, vocab: str, t5_like: Vocabulary) -> None:
    suite = registry.load(name, registry.SAMPLE)
    for item in suite.items:
        gold = item.targets[0]
        answer = f"So. The answer is {gold}." if suite.spec.cot else gold
        output = continued(item, answer, vocabulary.load("byte") if vocab == "byte" else t5_like)
        change = {"prompt": item.prompt(), "targets": list(item.targets), "kind": item.kind, "language": item.language}
        row = generation(outputs=[output], ended=[True], task=item.task, **change)
        assert stops.has_stop(output, suite.spec.stop)
        assert marking.grade(suite.spec, row).exact == 1.0, output


def test_gold_rationales_are_read_before_a_next_exemplar(data_dir: pathlib.Path) -> None:
    """88 rationales of MGSM in eleven languages, each followed by the next exemplar after one line break or a blank."""
    data = json.loads((data_dir / "mgsm" / "exemplars.json").read_text(encoding="utf-8"))
    languages = list(data["MGSM_EXEMPLARS"])
    suite = registry.load(f"mgsm_cot[{','.join(languages)},:1]", str(data_dir))
    read = 0
    for language, shots in data["MGSM_EXEMPLARS"].items():
        pairs = [shots[str(n)] for n in range(1, 9)]
        for number, (pair, following) in enumerate(zip(pairs, [*pairs[1:], pairs[0]], strict=True)):
            rationale = pair["a"].replace("：", ":").partition(":")[2]
            gold = str(data["EXEMPLAR_NUMBER_ANSWERS"][number])
            for breaks in ("\n", " "):
                output = f"{rationale}{breaks}{following['q']}\n{following['a']}"
                assert stops.until_stop(output, suite.spec.stop).strip() == rationale.strip()
                row = generation(outputs=[output], ended=[True], task=language, language=language, targets=[gold])
                assert marking.grade(suite.spec, row).exact == 1.0, (language, number)
            read += 1
    assert read == 88


def test_a_spec_of_one_language_stops_at_its_label() -> None:
    spec: Spec = registry.load("mgsm_cot[de]", registry.SAMPLE).spec
    assert spec.stop[:2] == ("Q:", "Question:") and any("Frage" in text for text in spec.stop)
