"""From answers to scores: one item, one task, one suite, the paper's normalized average; confidence by bootstrap.

All scores are percentages. A suite's score is the unweighted mean over its tasks (paper.md section 3).
"""

import dataclasses
import hashlib
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from flanx.errors import UserError
from flanx.evals import answers

BOOTSTRAPS = 1000
CONFIDENCE = 95  # per cent, of the intervals

# --- the normalized average ------------------------------------------------------------------------------------------

HEADLINE = ("mmlu_direct", "mmlu_cot", "bbh_direct", "bbh_cot", "tydiqa", "mgsm_cot")

_CHOICE = "chance among the options"
_ZERO = "free answers"
_FIT = "recovered by fit to the printed normalized averages (not printed in the paper)"
# benchmark -> (lower bound, source)
BOUNDS = {"mmlu": (25.0, _CHOICE), "tydiqa": (0.0, _ZERO), "mgsm": (0.0, _ZERO)}
# BBH is normalized task by task, then averaged; the same bounds for direct and rationale prompts.
BBH_BOUNDS = {
    "boolean_expressions": (50.0, _FIT),
    "causal_judgement": (50.0, _FIT),
    "date_understanding": (17.2, _FIT),
    "disambiguation_qa": (33.2, _FIT),
    "dyck_languages": (1.2, _FIT),
    "formal_fallacies": (50.0, _FIT + "; 25 misses by up to 0.6"),
    "geometric_shapes": (11.6, _FIT),
    "hyperbaton": (50.0, _FIT),
    "logical_deduction_five_objects": (20.0, _FIT),
    "logical_deduction_seven_objects": (14.3, _FIT),
    "logical_deduction_three_objects": (33.3, _FIT),
    "movie_recommendation": (25.0, _FIT),
    "multistep_arithmetic_two": (0.0, _FIT),
    "navigate": (50.0, _FIT),
    "object_counting": (0.0, _FIT),
    "penguins_in_a_table": (0.0, _FIT + "; 20 misses by about 0.25"),
    "reasoning_about_colored_objects": (11.9, _FIT),
    "ruin_names": (25.0, _FIT),
    "salient_translation_error_detection": (16.7, _FIT),
    "snarks": (50.0, _FIT),
    "sports_understanding": (50.0, _FIT),
    "temporal_sequences": (25.0, _FIT),
    "tracking_shuffled_objects_five_objects": (20.0, _FIT),
    "tracking_shuffled_objects_seven_objects": (14.3, _FIT),
    "tracking_shuffled_objects_three_objects": (33.3, _FIT),
    "web_of_lies": (50.0, _FIT),
    "word_sorting": (0.0, _FIT),
}


def normalize(score: float, bound: float) -> float:
    """Per cent of the way from `bound` to 100; negative below it."""
    return 100 * (score - bound) / (100 - bound)


def normalized(benchmark: str, score: float, tasks: Mapping[str, float]) -> float:
    """The normalized score of one of the six; BBH needs the scores of all its 27 tasks, and raises without them."""
    family = benchmark.partition("_")[0]
    if family != "bbh":
        return normalize(score, BOUNDS[family][0])
    absent = sorted(set(BBH_BOUNDS) - set(tasks))
    if absent:
        raise UserError(f"{benchmark}: no score of {', '.join(absent)}; the normalized average wants all 27 sub-tasks")
    return float(np.mean([normalize(tasks[task], bound) for task, (bound, _) in BBH_BOUNDS.items()]))


def normalized_average(scores: Mapping[str, float], tasks: Mapping[str, Mapping[str, float]]) -> float:
    """The mean of the six normalized scores; `tasks` holds the per-task scores of the BBH suites."""
    absent = [name for name in HEADLINE if name not in scores]
    if absent:
        raise UserError(f"the normalized average wants all six scores; absent: {', '.join(absent)}")
    return float(np.mean([normalized(name, scores[name], tasks.get(name, {})) for name in HEADLINE]))


# --- one item --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Mark:
    """What one item earned: exact match, F1, and whether no answer was found or its logits were broken.

    exact is 0 or 1, or the likelihood of the gold answer where that is the score.
    """

    exact: float
    f1: float
    failed: bool
    broken: bool
    answer: str | None


def mark_generated(
    texts: Sequence[str],
    targets: Sequence[str],
    kind: str,
    cot: bool,
    language: str,
    broken: bool,
    passage: bool,
) -> Mark:
    """Marks the samples of one item: their answers are put to the vote, and the winner is compared."""
    if broken:
        return Mark(0.0, 0.0, False, True, None)
    if passage:
        text = texts[0].strip()
        exact = max(float(passage_form(text, language) == passage_form(t, language) != "") for t in targets)
        return Mark(exact, max(passage_f1(text, t, language) for t in targets), not text, False, text or None)
    text, answer = vote(texts, kind, cot, language)
    found = [answers.same(text, target, kind, cot, language) for target in targets]
    right = any(found)
    return Mark(float(right), float(right), answer is None and not right, False, answer)


def vote(texts: Sequence[str], kind: str, cot: bool, language: str) -> tuple[str, str | None]:
    """The first text with the most frequent answer, and that answer; texts without one have no vote."""
    found = [(text, answers.extract(text, kind, cot, language)) for text in texts]
    counts = Counter(answer for _, answer in found if answer is not None)
    if not counts:
        return texts[0], None
    winner = counts.most_common(1)[0][0]  # of equals, the one that came first
    return next(pair for pair in found if pair[1] == winner)


def mark_ranked(
    scores: Sequence[float | None], options: Sequence[str], targets: Sequence[str], by_length: bool
) -> Mark:
    """Marks a ranking: the option of the highest log-probability, per UTF-8 byte if `by_length`."""
    if any(score is None or not np.isfinite(score) for score in scores):
        return Mark(0.0, 0.0, False, True, None)
    weights = [len(option.strip().encode()) if by_length else 1 for option in options]
    best = options[int(np.argmax([score / weight for score, weight in zip(scores, weights, strict=True)]))]
    return Mark(float(best in targets), float(best in targets), False, False, best)


def mark_likelihood(score: float | None, tokens: int) -> Mark:
    """The geometric mean of the probabilities of the gold answer's tokens, of the sum of their logarithms."""
    if score is None or not np.isfinite(score):
        return Mark(0.0, 0.0, False, True, None)
    mean = float(np.exp(score / tokens))
    return Mark(mean, mean, False, False, None)


def passage_form(text: str, language: str) -> str:
    """SQuAD's normal form: lower case, no punctuation, single blanks; English articles go as well."""
    text = "".join(c for c in text.lower() if c not in string.punctuation and unicodedata.category(c)[0] != "P")
    if language == "en":
        text = re.sub(r"\b(a|an|the)\b", " ", text)
    return " ".join(text.split())


def passage_f1(text: str, target: str, language: str) -> float:
    """F1 of the words of two answers in normal form."""
    ours, theirs = passage_form(text, language).split(), passage_form(target, language).split()
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0


# --- a suite ---------------------------------------------------------------------------------------------------------


def interval(tasks: Mapping[str, Sequence[float]], seed: str) -> tuple[float, float]:
    """The bootstrap interval of the mean over tasks, items drawn anew inside each task."""
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "little"))
    means = np.zeros(BOOTSTRAPS)
    for marks in tasks.values():
        values, counts = np.unique(np.asarray(marks, np.float64), return_counts=True)
        drawn = rng.multinomial(len(marks), counts / len(marks), size=BOOTSTRAPS)
        means += drawn @ values / len(marks)
    means *= 100 / len(tasks)
    edge = (100 - CONFIDENCE) / 2
    low, high = np.percentile(means, [edge, 100 - edge])
    return float(low), float(high)


def mean(values: Sequence[float]) -> float:
    """The mean as a plain number; 0 of nothing."""
    return float(np.mean(values)) if len(values) else 0.0
