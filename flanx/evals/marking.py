"""Grading: from the raw generation of one item to what it scores."""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from flanx.evals import answers, metrics
from flanx.evals.generations import Generation
from flanx.evals.spec import Spec


@dataclasses.dataclass(frozen=True)
class Grade:
    """The score of one item.

    Attributes:
      exact: 0 or 1, or the likelihood of the gold answer where that is the score; f1: 0 to 1.
      failed: no answer could be extracted; non_finite: logits or log-probabilities were not finite.
      answer: the answer that was compared.
    """

    exact: float
    f1: float
    failed: bool
    non_finite: bool
    answer: str | None


NON_FINITE = Grade(0.0, 0.0, False, True, None)


def grade(spec: Spec, row: Generation) -> Grade:
    """Grades one item by its spec."""
    if spec.scoring == "likelihood":
        return grade_likelihood(row.option_scores[0], row.target_tokens)
    if spec.scoring != "generate":
        return grade_ranked(row.option_scores, row.options, row.targets, spec.scoring == "rank_normalized")
    if row.broken:
        return NON_FINITE
    texts = [answers.until_stop(text, spec.stop) for text in row.outputs]
    return grade_generated(texts, row.targets, row.kind, spec.cot, row.language, spec.metric == "f1")


def grade_generated(
    texts: Sequence[str],
    targets: Sequence[str],
    kind: str,
    cot: bool,
    language: str,
    passage: bool,
) -> Grade:
    """Grades the samples of one item: the majority answer is compared with the gold ones; `passage`: as a passage."""
    if passage:
        text = texts[0].strip()
        exact = max(
            float(metrics.passage_form(text, language) == metrics.passage_form(t, language) != "") for t in targets
        )
        return Grade(exact, max(metrics.passage_f1(text, t, language) for t in targets), not text, False, text or None)
    text, answer = vote(texts, kind, cot, language)
    found = [answers.same(text, target, kind, cot, language) for target in targets]
    right = any(found)
    return Grade(float(right), float(right), answer is None and not right, False, answer)


def vote(texts: Sequence[str], kind: str, cot: bool, language: str) -> tuple[str, str | None]:
    """The first text with the most frequent answer, and that answer; texts without an answer do not count."""
    found = [(text, answers.extract(text, kind, cot, language)) for text in texts]
    counts = Counter(answer for _, answer in found if answer is not None)
    if not counts:
        return texts[0], None
    winner = counts.most_common(1)[0][0]  # in a tie the first
    return next(pair for pair in found if pair[1] == winner)


def grade_ranked(
    scores: Sequence[float | None], options: Sequence[str], targets: Sequence[str], by_length: bool
) -> Grade:
    """Grades a ranking: the option of the highest log-probability, per UTF-8 byte if `by_length`."""
    finite = [score for score in scores if score is not None and math.isfinite(score)]
    if len(finite) < len(scores):
        return NON_FINITE
    weights = [len(option.strip().encode()) if by_length else 1 for option in options]
    best = options[int(np.argmax([score / weight for score, weight in zip(finite, weights, strict=True)]))]
    return Grade(float(best in targets), float(best in targets), False, False, best)


def grade_likelihood(score: float | None, tokens: int) -> Grade:
    """The geometric mean of the probabilities of the gold answer's tokens, from the sum of their logarithms."""
    if score is None or not math.isfinite(score):
        return NON_FINITE
    likelihood = math.exp(score / tokens)
    return Grade(likelihood, likelihood, False, False, None)
