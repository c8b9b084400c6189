"""Task metrics in SeqIO's form, `(targets, predictions) -> {name: percent}`, under the names that the tables use.

They serve task suites (`families.task`) and, under SeqIO and T5X, those libraries' own evaluators.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from flanx.data.task.spec import FREE_TEXT
from flanx.evals import answers
from flanx.evals.metrics import passage_f1, passage_form

Metric = Callable[[Sequence[str], Sequence[str]], dict[str, float]]


def _mean(values: Sequence[float]) -> float:
    return 100 * sum(values) / len(values) if values else 0.0


def exact_match(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """The same words, ignoring whitespace differences."""
    return {"exact_match": _mean([t.split() == p.split() for t, p in zip(targets, predictions, strict=True)])}


def accuracy(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """The same words, ignoring case, final full stops and whitespace."""

    def form(text: str) -> list[str]:
        return text.lower().rstrip(" .").split()

    return {"accuracy": _mean([form(t) == form(p) for t, p in zip(targets, predictions, strict=True)])}


def _final(text: str) -> str:
    return (answers.extract(text, "final", True) or text).strip().rstrip(".")


def final_answer(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """The text after the last "answer is", compared as a number if the target is one; and how often there is none."""
    correct, without = [], []
    for target, prediction in zip(targets, predictions, strict=True):
        gold = _final(target)
        kind = "number" if re.fullmatch(r"[-$]*\d[\d,./ ]*%?", gold) else "text"
        answer = answers.extract(prediction, "final", True)
        without.append(answer is None)
        correct.append(bool(answers.same((answer or prediction).rstrip(". "), gold, kind)))
    return {"final_answer": _mean(correct), "no_final_answer": _mean(without)}


def number(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """The same number, however written ("1,200.0" and "$1200"); a target that is not a number is compared as text."""
    same = [answers.same(p, t, "number") for t, p in zip(targets, predictions, strict=True)]
    return {"number": _mean([bool(each) for each in same])}


def squad(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Exact match and word-level F1 in SQuAD's normal form."""
    pairs = list(zip(targets, predictions, strict=True))
    return {
        "em": _mean([passage_form(t) == passage_form(p) for t, p in pairs]),
        "f1": _mean([passage_f1(p, t) for t, p in pairs]),
    }


def rouge(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """ROUGE-1 and ROUGE-L F-measure, from Google's rouge-score without stemming."""
    from rouge_score import rouge_scorer  # noqa: PLC0415  (over a second of import time that few evaluations need)

    scorer = rouge_scorer.RougeScorer(["rouge1", "rougeL"])
    scores = [scorer.score(target, prediction) for target, prediction in zip(targets, predictions, strict=True)]
    return {name: _mean([score[name].fmeasure for score in scores]) for name in ("rouge1", "rougeL")}


def bleu(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Corpus BLEU with one reference, from sacreBLEU with the settings of T5's own evaluation."""
    if not targets:
        return {"bleu": 0.0}
    import sacrebleu  # noqa: PLC0415

    scored = sacrebleu.corpus_bleu(
        list(predictions), [list(targets)], smooth_method="exp", tokenize="intl", use_effective_order=False
    )
    return {"bleu": scored.score}


def pearson(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Correlation of the first number in each text; a text without one counts as 0. 0 if either side is constant."""

    def first(text: str) -> float:
        match = re.search(r"-?\d+(\.\d+)?", text)
        return float(match[0]) if match else 0.0

    sides = [[first(text) for text in texts] for texts in (targets, predictions)]
    if min(len(set(side)) for side in sides) < 2:
        return {"pearson": 0.0}
    import scipy.stats  # noqa: PLC0415

    correlation: Any = scipy.stats.pearsonr(*sides)
    return {"pearson": 100 * float(correlation.statistic)}


METRICS: dict[str, Metric] = {
    "exact_match": exact_match,
    "accuracy": accuracy,
    "number": number,
    "final_answer": final_answer,
    "squad": squad,
    "rouge": rouge,
    "bleu": bleu,
    "pearson": pearson,
}
LEAD = {"squad": "em", "rouge": "rougeL"}  # which value of a metric is its score, if named differently
CORPUS = ("bleu", "pearson")  # over all answers together: not a mean over items, so no interval
NUMBERS = ("number", "pearson")
KIND = {"exact_match": "exact", "number": "number", "final_answer": "final"}  # how answers are read, see `answers`


def misfit(metric: str, targets: Sequence[str]) -> str:
    """Why a metric is meaningless for such answers, in one sentence; "" if it fits."""
    others = [target for target in targets if not re.search(r"\d", target)]
    if (metric == "pearson" and others) or (metric == "number" and 2 * len(others) > len(targets)):
        return f"{metric} compares numbers, and {len(others)} of {len(targets)} answers are none, as {others[0][:60]!r}"
    words = sorted(len(target.split()) for target in targets)
    is_free = 2 * len(set(targets)) > len(targets) and words[len(words) // 2] >= FREE_TEXT
    if metric in ("accuracy", "exact_match") and is_free:
        return f"{metric} compares whole answers, and these are free text (half have {FREE_TEXT} words or more)"
    return ""


def compute(names: Sequence[str], targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """The values of the metrics, in percent."""
    return {key: value for name in names for key, value in METRICS[name](targets, predictions).items()}
