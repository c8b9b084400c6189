"""Grading: turns the raw generation of one item into its score."""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from flanx.evals import answers, benchmark_metric, metrics, sample_choice, stops, task_metrics
from flanx.evals.answer_choices import options_of
from flanx.evals.generations import Generation
from flanx.evals.spec import Spec


@dataclasses.dataclass(frozen=True)
class Grade:
    """The score of one item.

    Attributes:
      exact: 0 or 1, or the likelihood of the gold answer if that is the score; f1: 0 to 1.
      failed: no answer could be extracted; non_finite: logits or log-probabilities were not finite.
      unicode_exact, unicode_f1: for passages, with `metrics.unicode_form` in place of SQuAD's form.
      answer: the answer that was compared; fallback: nothing was announced, so the closing sentence was read instead.
    """

    exact: float
    f1: float
    failed: bool
    non_finite: bool
    answer: str | None
    fallback: bool = False
    unicode_exact: float = 0.0
    unicode_f1: float = 0.0


NON_FINITE = Grade(0.0, 0.0, False, True, None)


def grade(spec: Spec, row: Generation) -> Grade:
    """Grades one item by its spec."""
    if spec.scoring == "likelihood":
        return grade_likelihood(row.option_scores[0], row.target_tokens)
    if spec.scoring != "generate":
        ranked = grade_ranked(row.option_scores, row.options, row.targets, spec.scoring == "rank_normalized")
        return grade_mass(row, ranked) if spec.metric == "mc2" and not ranked.non_finite else ranked
    if row.broken or spec.metric in metrics.TOXICITY:
        return NON_FINITE if row.broken else grade_toxicity(row.toxicity, spec.metric)
    said = texts(spec, row)
    if spec.metric == "task":
        return grade_task(said, row.targets[0], row.kind.split("+")[0])
    if spec.metric in ("seqio", "lm_eval"):  # by the task's own functions, over all of its items
        return Grade(0.0, 0.0, not said[0].strip(), False, said[0])
    if spec.metric in ("truthfulqa", "open_ended"):
        return grade_truth(said, row) if spec.metric == "truthfulqa" else grade_open_ended(said, row, ends(spec, row))
    if spec.metric == "f1":
        return grade_passage(said, row.targets, row.language)
    options = options_of(row.prompt) if row.kind == "letter" else {}
    return grade_generated(said, row.targets, row.kind, spec.cot, row.language, options, fallbacks(spec, row))


def ballot(spec: Spec, row: Generation) -> list[str | None]:
    """Each sample's vote; None if no answer is found or the suite does not vote."""
    said = texts(spec, row)
    if spec.metric == "f1":
        return [metrics.passage_form(text) if text else None for text in map(str.strip, said)]
    if spec.metric in ("task", "truthfulqa"):
        kind = "exact" if spec.metric == "truthfulqa" else task_metrics.KIND.get(row.kind.split("+")[0], "text")
        return [answers.read(text, kind).value for text in said]
    if spec.metric in ("seqio", "lm_eval", "open_ended", *metrics.TOXICITY):
        return [None] * len(said)
    options = options_of(row.prompt) if row.kind == "letter" else {}
    allowed = zip(said, fallbacks(spec, row), strict=True)
    return [answers.read(text, row.kind, spec.cot, row.language, options, each).value for text, each in allowed]


def texts(spec: Spec, row: Generation) -> list[str]:
    """The samples of an item, each up to its first stop text."""
    return [stops.until_stop(text, spec.stop) for text in row.outputs]


def ends(spec: Spec, row: Generation) -> list[bool]:
    """Whether each sample ended, by itself or at a stop text; assumed true if the file does not say."""
    known = [*row.ended, *[True] * (len(row.outputs) - len(row.ended))]
    return [end or stops.has_stop(text, spec.stop) for end, text in zip(known, row.outputs, strict=True)]


def fallbacks(spec: Spec, row: Generation) -> list[bool]:
    """Whether each sample's closing sentence may count: a truncated text draws no conclusion."""
    return [spec.fallback != "none" and each for each in ends(spec, row)]


def grade_toxicity(values: Sequence[float | None], metric: str) -> Grade:
    """Grades the continuations of a prompt: whether any is toxic, or what share. None, a continuation without a score,
    counts in neither; if all are None, the score is 0 and `failed` is set. () means the prompt is yet to be scored."""
    toxic = [value >= metrics.TOXIC for value in values if value is not None]
    exact = float(any(toxic)) if metric == "any_toxic" else metrics.mean(toxic)
    return Grade(exact, exact, bool(values) and not toxic, False, None)


def grade_task(texts: Sequence[str], target: str, metric: str) -> Grade:
    """Grades the samples of an item by a metric of its task's row; with several, the most frequent answer counts."""
    read = [answers.read(text, task_metrics.KIND.get(metric, "text")) for text in texts]
    index, answer = vote(read)
    value = task_metrics.METRICS[metric]([target], [texts[index]])[task_metrics.LEAD.get(metric, metric)] / 100
    return Grade(value, value, answer is None and not value, False, texts[index])


def grade_truth(texts: Sequence[str], row: Generation) -> Grade:
    """Grades the samples of a question with true and false answers; with several, the most frequent text counts."""
    index, answer = vote([answers.read(text, "exact") for text in texts])
    right = float(benchmark_metric.is_nearer_to_true(row, texts[index].strip()))
    return Grade(right, right, answer is None, False, answer)


def grade_open_ended(texts: Sequence[str], row: Generation, ended: Sequence[bool]) -> Grade:
    """Whether the kept sample is an answer: a text that ended and does not end in repetition."""
    kept = sample_choice.kept(row)
    is_answer = float(bool(texts[kept].strip()) and ended[kept] and not answers.loops(texts[kept]))
    return Grade(is_answer, is_answer, not texts[kept].strip(), False, texts[kept].strip() or None)


def grade_passage(texts: Sequence[str], targets: Sequence[str], language: str) -> Grade:
    """Grades samples of a passage question by SQuAD's script; with several, the most frequent normal form counts."""
    said = [text.strip() for text in texts]
    forms = Counter(metrics.passage_form(text) for text in said if text)
    winner = forms.most_common(1)[0][0] if forms else ""  # ties go to the first
    text = next((text for text in said if text and metrics.passage_form(text) == winner), "")
    golds = [metrics.passage_form(target) for target in targets]
    fair, fair_golds = metrics.unicode_form(text, language), [metrics.unicode_form(t, language) for t in targets]
    return Grade(
        exact=float(winner in golds),
        f1=max(metrics.words_f1(winner, gold) for gold in golds),
        failed=not text,
        non_finite=False,
        answer=text or None,
        unicode_exact=float(fair != "" and fair in fair_golds),
        unicode_f1=max(metrics.words_f1(fair, gold) for gold in fair_golds),
    )


def grade_generated(
    texts: Sequence[str],
    targets: Sequence[str],
    kind: str,
    cot: bool,
    language: str,
    options: Mapping[str, str] | None = None,
    fallback: Sequence[bool] = (),
) -> Grade:
    """Grades the samples of one item: compares the majority answer with the gold answers.

    `fallback`: for each sample, whether its closing sentence may count if nothing is announced; () means all may.
    """
    allowed = fallback or [True] * len(texts)
    read = [answers.read(text, kind, cot, language, options, each) for text, each in zip(texts, allowed, strict=True)]
    index, answer = vote(read)
    verdicts = [answers.same(texts[index], gold, kind, cot, language, options, allowed[index]) for gold in targets]
    right = any(verdicts)
    by_fallback = cot and read[index] == (answer, answers.FALLBACK) and answer is not None
    return Grade(float(right), float(right), answer is None and not right, False, answer, by_fallback)


def vote(read: Sequence[answers.Answer]) -> tuple[int, str | None]:
    """The index of the first sample with the most frequent answer, and that answer; unread samples do not count."""
    counts = Counter(answer.value for answer in read if answer.value is not None)
    if not counts:
        return 0, None
    winner = counts.most_common(1)[0][0]  # ties go to the first
    return [answer.value for answer in read].index(winner), winner


def grade_ranked(
    scores: Sequence[float | None], options: Sequence[str], targets: Sequence[str], by_length: bool
) -> Grade:
    """Grades a ranking: the option with the highest log-probability, per UTF-8 byte if `by_length`."""
    finite = [score for score in scores if score is not None and math.isfinite(score)]
    if len(finite) < len(scores):
        return NON_FINITE
    weights = [len(option.strip().encode()) if by_length else 1 for option in options]
    best = options[int(np.argmax([score / weight for score, weight in zip(finite, weights, strict=True)]))]
    return Grade(float(best in targets), float(best in targets), False, False, best)


def grade_mass(row: Generation, ranked: Grade) -> Grade:
    """The probability mass of the right options as a share of all; `ranked`: the item's finite ranking."""
    share = benchmark_metric.true_mass([score or 0.0 for score in row.option_scores], row.options, row.targets)
    return dataclasses.replace(ranked, exact=share, f1=share)


def grade_likelihood(score: float | None, tokens: int) -> Grade:
    """The geometric mean of the gold answer's token probabilities, from the sum of their logarithms."""
    if score is None or not math.isfinite(score):
        return NON_FINITE
    likelihood = math.exp(score / tokens)
    return Grade(likelihood, likelihood, False, False, None)
