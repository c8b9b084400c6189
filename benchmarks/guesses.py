"""By how much each guess about the authors' evaluation moves the scores of one set of outputs.

    python benchmarks/guesses.py --data DIR        # 50 items of each task; our samples without --data

The paper states neither prompts of direct suites nor stops, extraction and lengths (docs/evaluation.md). A stub answers
every item as T5 models do: half of the answers are right, and each is plain, bare (a letter without brackets), the
text of its option, followed by an invented next question on the same line, truncated, or repeated to the end. The same
outputs are then scored as our spec has it, and with one guess changed. A table in Markdown, scores in percent.
"""

import argparse
import dataclasses
import itertools
import random
from collections.abc import Callable, Sequence

from flanx.errors import UserError
from flanx.evals import answers, marking, metrics, registry
from flanx.evals.answer_choices import options_of
from flanx.evals.generations import Generation
from flanx.evals.spec import Item, Spec, Suite

SUITES = ("mmlu_test_direct", "mmlu_test_cot", "bbh_direct", "bbh_cot", "tydiqa", "mgsm_cot", "gsm8k_cot")
FORMS = ("plain", "plain", "bare", "text", "runaway", "truncated", "loop")
RATIONALE = "First we look at what is asked. There are 3 things, and then 4 more, which makes 7 of them in all. "
SHORT = 64  # words of an output that a shorter limit would leave
LEAST = 40  # outputs per suite: the items of our samples are answered several times

Scored = Callable[[Spec, Generation], float]


def wrong(item: Item, draw: random.Random) -> str:
    """An answer of the right kind that is not correct."""
    options = [f"({letter})" for letter in options_of(item.query)] if item.kind == "letter" else []
    words = answers.choices.WORDS.get(item.kind, ())
    others = [option for option in (*options, *words) if option.lower() not in [t.lower() for t in item.targets]]
    return draw.choice(others) if others else str(draw.randint(1000, 9999)) if item.kind == "number" else "unknown"


def output(item: Item, cot: bool, form: str, draw: random.Random) -> tuple[str, bool]:
    """The stub's output, and whether it ended."""
    said = draw.choice(item.targets) if draw.random() < 0.5 else wrong(item, draw)
    options = options_of(item.query) if item.kind == "letter" else {}
    if form == "bare":
        said = said.strip("()")
    elif form == "text":
        said = options.get(said.strip("()"), said)
    text = f"{RATIONALE * draw.randint(1, 4)}So we get {said}. The answer is {said}." if cot else said
    if form == "truncated":
        words = text.split()
        return " ".join(words[: draw.randint(1, max(len(words) - 1, 1))]), False
    if form == "loop":
        return " ".join([text] * 12), False
    if form == "runaway":
        return f"{text} {item.query.partition(':')[0][:20]}: What is 2 + 3? A: The answer is {wrong(item, draw)}.", True
    return text, True


def rows(suite: Suite) -> list[Generation]:
    """The stub's generations, the same in every run."""
    found = []
    for copy, item in itertools.product(range(-(-LEAST // len(suite.items))), suite.items):
        draw = random.Random(f"{suite.spec.name} {item.task} {item.id} {copy}")
        text, ended = output(item, suite.spec.cot, draw.choice(FORMS), draw)
        counts = {"prompt_tokens": 1, "prompt_unknown": 0, "target_tokens": 1, "target_unknown": 0}
        shape = {"shots": len(item.shots), "cut": False, "kind": item.kind, "language": item.language}
        found.append(
            Generation(id=item.id, task=item.task, prompt=item.prompt(0), targets=list(item.targets), outputs=[text],
                       ended=[ended], **counts, **shape)
        )  # fmt: skip
    return found


def score(spec: Spec, given: Sequence[Generation], scored: Scored) -> float:
    """The mean over tasks, in percent."""
    tasks: dict[str, list[float]] = {}
    for row in given:
        tasks.setdefault(row.task, []).append(scored(spec, row))
    return 100 * metrics.mean(metrics.mean(values) for values in tasks.values())


def by_grade(spec: Spec, row: Generation) -> float:
    return marking.grade(spec, row).exact


def by_string(spec: Spec, row: Generation) -> float:
    """Exact match of the whole output, or of what follows "answer is"."""
    said = marking.texts(spec, row)[0].rpartition("answer is")[2].strip(" .\n")
    return float(said in [target.strip() for target in row.targets])


def without_options(spec: Spec, row: Generation) -> float:
    """Scored without knowledge of the options' texts."""
    texts, ends = marking.texts(spec, row), marking.ends(spec, row)
    return marking.grade_generated(texts, row.targets, row.kind, spec.cot, row.language, {}, ends).exact


def last_mention(spec: Spec, row: Generation) -> float:
    """A rationale that announces no answer is credited for what its last sentence mentions."""
    text = marking.texts(spec, row)[0]
    last = (answers.sentences(answers.plain(text)) or [""])[-1]
    if spec.metric == "f1" or not spec.cot or answers.read(text, row.kind, True, row.language).value is not None:
        return by_grade(spec, row)
    return float(any(answers.same(last, gold, row.kind, False, row.language) or False for gold in row.targets))


def shorter(row: Generation) -> Generation:
    words = row.outputs[0].split()
    return dataclasses.replace(row, outputs=[" ".join(words[:SHORT])], ended=[len(words) <= SHORT and row.ended[0]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=registry.SAMPLE, help="folder of benchmark data (default: our samples)")
    parser.add_argument("--quick", action="store_true", help="as every benchmark has it: one suite")
    args = parser.parse_args()
    head = ("no stops", "no closing sentence", "last mention", "string match", "options unknown", f"{SHORT} words")
    print(f"| suite | ours | {' | '.join(head)} |\n|{'---|' * (len(head) + 2)}")
    for name in SUITES[:1] if args.quick else SUITES:
        try:
            suite, mark = registry.load(f"{name}[:50]", args.data), ""
        except UserError:
            suite, mark = registry.load(f"{name}[:50]", registry.SAMPLE), " (sample)"
        spec, given = suite.spec, rows(suite)
        ours = score(spec, given, by_grade)
        changed = [
            score(dataclasses.replace(spec, stop=()), given, by_grade),
            score(dataclasses.replace(spec, fallback="none"), given, by_grade),
            score(spec, given, last_mention),
            score(spec, given, by_string),
            score(spec, given, by_grade if spec.metric == "f1" else without_options),
            score(spec, list(map(shorter, given)), by_grade),
        ]
        print(f"| `{name}`{mark} | {ours:.1f} | {' | '.join(f'{each - ours:+.1f}' for each in changed)} |", flush=True)


if __name__ == "__main__":
    main()
