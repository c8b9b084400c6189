"""Means, intervals, passage F1, and the paper's normalized average.

Scores are percentages. A suite's score is the unweighted mean over its tasks (paper.md section 3). Every function
gives the same number regardless of the order of items and tasks.
"""

import math
import re
import statistics
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flanx.errors import UserError

# Bumped when a change to comparison or a metric changes a score; extraction has `answers.EXTRACTOR_VERSION`.
SCORER_VERSION = 2

TOXIC = 0.5  # a text counts as toxic from this toxicity on: paper.md section 6
TOXICITY = ("any_toxic", "share_toxic")  # metrics for suites whose continuations a toxicity scorer reads
AUC = "auc"  # of the first option's likelihood against the second's

CONFIDENCE = 95  # percent, for intervals
LEAST_ITEMS = 4  # items that a task needs for an interval

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
    """Percent of the way from `bound` to 100; negative below it."""
    return 100 * (score - bound) / (100 - bound)


def normalized(benchmark: str, score: float, tasks: Mapping[str, float]) -> float:
    """The normalized score of one of the six; BBH raises UserError unless all its 27 tasks are scored."""
    family = benchmark.partition("_")[0]
    if family != "bbh":
        return normalize(score, BOUNDS[family][0])
    missing = sorted(set(BBH_BOUNDS) - set(tasks))
    if missing:
        raise UserError(f"{benchmark}: no score of {', '.join(missing)}; the normalized average needs all 27 sub-tasks")
    return mean(normalize(tasks[task], bound) for task, (bound, _) in BBH_BOUNDS.items())


def normalized_average(scores: Mapping[str, float], tasks: Mapping[str, Mapping[str, float]]) -> float:
    """The mean of the six normalized scores; `tasks` holds the per-task scores of the BBH suites."""
    missing = [name for name in HEADLINE if name not in scores]
    if missing:
        raise UserError(f"the normalized average needs all six scores; missing: {', '.join(missing)}")
    return mean(normalized(name, scores[name], tasks.get(name, {})) for name in HEADLINE)


def passage_form(text: str) -> str:
    """SQuAD 1.1's normal form: lower case, single spaces, without ASCII punctuation and the articles a, an, the.

    TyDiQA GoldP is scored this way in every language (google-research-datasets/tydiqa, gold_passage_baseline).
    """
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def unicode_form(text: str, language: str) -> str:
    """A form that is fair to every language: no punctuation in any script, articles removed only in English."""
    text = "".join(c for c in text.lower() if c not in string.punctuation and unicodedata.category(c)[0] != "P")
    if language == "en":
        text = re.sub(r"\b(a|an|the)\b", " ", text)
    return " ".join(text.split())


def words_f1(text: str, target: str) -> float:
    """Word-level F1 of two answers that are in normal form."""
    ours, theirs = text.split(), target.split()
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0


def passage_f1(text: str, target: str) -> float:
    """Word-level F1 of two answers after SQuAD's normalization."""
    return words_f1(passage_form(text), passage_form(target))


def average(scores: Iterable[float], how: str) -> float:
    """The average of task scores, in percent: "mean" or "harmonic"; the mean for `pooled` items.

    The harmonic mean is BBEH's (arXiv 2502.19187): over scores plus one, since a score may be 0. If all are 100 it is
    101, as in the authors' formula.
    """
    found = list(scores)
    return len(found) / math.fsum(1 / (score + 1) for score in found) if how == "harmonic" and found else mean(found)


def pooled(tasks: Mapping[str, Sequence[Any]], how: str) -> Mapping[str, Sequence[Any]]:
    """The scores of items by task; for an average over "items", all of them as one task."""
    return {"": [score for task in sorted(tasks) for score in tasks[task]]} if how == "items" else tasks


def slopes(scores: Sequence[float], how: str) -> list[float]:
    """The derivatives of `average` with respect to each score, times their number: 1 for a mean."""
    if how != "harmonic":
        return [1.0] * len(scores)
    whole = average(scores, how)
    return [(whole / (score + 1)) ** 2 for score in scores]


def interval(tasks: Mapping[str, Sequence[float]], how: str = "mean") -> tuple[float, float] | None:
    """The 95% interval, in percent, of the average over tasks; tasks are fixed, the items of each are a sample.

    Wilson's interval at the number of items that would give a single proportion the standard error of the mean over
    tasks (as surveys do with the effective sample size); for one task it is plain Wilson. In simulations it covers 93%
    to 97% on average, see tests.

    Args:
      tasks: {task: score of each item, 0 to 1}.
      how: the average over tasks; a harmonic one is linearized at the scores.

    Returns:
      (low, high), or None if a task has fewer than `LEAST_ITEMS` items.
    """
    least = min(len(scores) for scores in tasks.values())
    if least < LEAST_ITEMS:
        return None
    means = {task: mean(scores) for task, scores in tasks.items()}
    whole = average((100 * value for value in means.values()), how)
    center = min(max(whole / 100, 0.0), 1.0)
    weights = slopes([100 * means[task] for task in tasks], how)
    variance = (
        math.fsum(
            weight**2 * math.fsum((score - means[task]) ** 2 for score in scores) / (len(scores) - 1) / len(scores)
            for weight, (task, scores) in zip(weights, tasks.items(), strict=True)
        )
        / len(tasks) ** 2
    )
    spread = center * (1 - center)
    if spread == 0:  # all right, or all wrong
        items = float(sum(map(len, tasks.values())))
    else:
        items = max(spread / variance, least) if variance else float(least)
    z = statistics.NormalDist().inv_cdf(0.5 + CONFIDENCE / 200)
    middle = (center + z * z / (2 * items)) / (1 + z * z / items)
    half = z / (1 + z * z / items) * math.sqrt(spread / items + (z / (2 * items)) ** 2)
    low, high = min(max(middle - half, 0.0), center), max(min(middle + half, 1.0), center)  # rounding: 0 of 0 is 0
    return 100 * low, 100 * high


def mean(values: Iterable[float]) -> float:
    """The mean, correctly rounded and so independent of order; 0 if there are no values."""
    found = list(values)
    return math.fsum(found) / len(found) if found else 0.0
