"""Metrics of the tasks in SeqIO's form: `(targets, predictions) -> {name: per cent}`, by the names of the tables.

They serve SeqIO's and T5X's own evaluators during training; the paper's held-out scores come from `flanx.evals`.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

from flanx.evals import answers
from flanx.evals.metrics import passage_f1, passage_form

Metric = Callable[[Sequence[str], Sequence[str]], dict[str, float]]


def _mean(values: Sequence[float]) -> float:
    return 100 * sum(values) / len(values) if values else 0.0


def exact_match(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Same words, whatever the blanks between them."""
    return {"exact_match": _mean([t.split() == p.split() for t, p in zip(targets, predictions, strict=True)])}


def accuracy(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Same words without regard to case, final full stops and blanks."""

    def form(text: str) -> list[str]:
        return text.lower().rstrip(" .").split()

    return {"accuracy": _mean([form(t) == form(p) for t, p in zip(targets, predictions, strict=True)])}


def _final(text: str) -> str:
    return (answers.extract(text, "final", True) or text).strip().rstrip(".")


def final_answer(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """What stands after the last "answer is", as a number where the target is one; how often nothing stands there."""
    right, silent = [], []
    for target, prediction in zip(targets, predictions, strict=True):
        gold = _final(target)
        number = re.fullmatch(r"[-$]*\d[\d,./ ]*%?", gold) is not None
        said = answers.extract(prediction, "final", True)
        silent.append(said is None)
        right.append(bool(answers.same((said or prediction).rstrip(". "), gold, "number" if number else "text", True)))
    return {"final_answer": _mean(right), "no_final_answer": _mean(silent)}


def squad(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Exact match and F1 of words in SQuAD's normal form."""
    pairs = list(zip(targets, predictions, strict=True))
    return {
        "em": _mean([passage_form(t, "en") == passage_form(p, "en") for t, p in pairs]),
        "f1": _mean([passage_f1(p, t, "en") for t, p in pairs]),
    }


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())


def _longest(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for x in a:
        last = 0
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], last + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


def rouge(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """ROUGE-1 and ROUGE-L, F-measure, lower case, no stemming (so not the same digits as the Perl script)."""
    one, longest = [], []
    for target, prediction in zip(targets, predictions, strict=True):
        a, b = [[w for w in _words(text) if w[0].isalnum()] for text in (target, prediction)]
        both = max(1, len(a) + len(b))
        one.append(2 * sum((Counter(a) & Counter(b)).values()) / both)
        longest.append(2 * _longest(a, b) / both)
    return {"rouge1": _mean(one), "rougeL": _mean(longest)}


def bleu(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Corpus BLEU up to four words, one reference, lower case, add-one smoothing above single words."""
    hits, total, length, reference = [0] * 4, [0] * 4, 0, 0
    for target, prediction in zip(targets, predictions, strict=True):
        a, b = _words(target), _words(prediction)
        length, reference = length + len(b), reference + len(a)
        for n in range(4):
            grams = [Counter(tuple(w[i : i + n + 1]) for i in range(len(w) - n)) for w in (a, b)]
            hits[n] += sum((grams[0] & grams[1]).values())
            total[n] += max(0, len(b) - n)
    if not length or not hits[0]:
        return {"bleu": 0.0}
    logs = [math.log((h + (n > 0)) / (t + (n > 0))) for n, (h, t) in enumerate(zip(hits, total, strict=True))]
    return {"bleu": 100 * math.exp(sum(logs) / 4 + min(0.0, 1 - reference / length))}


def pearson(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Correlation of the numbers that stand first in the texts; a text without one counts as 0."""

    def number(text: str) -> float:
        found = re.search(r"-?\d+(\.\d+)?", text)
        return float(found[0]) if found else 0.0

    x, y = [number(t) for t in targets], [number(p) for p in predictions]
    if not x:
        return {"pearson": 0.0}
    mx, my = sum(x) / len(x), sum(y) / len(y)
    spread = math.sqrt(sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y))
    return {"pearson": 100 * sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / spread if spread else 0.0}


METRICS: dict[str, Metric] = {
    "exact_match": exact_match,
    "accuracy": accuracy,
    "final_answer": final_answer,
    "squad": squad,
    "rouge": rouge,
    "bleu": bleu,
    "pearson": pearson,
}
