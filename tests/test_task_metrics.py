"""Metrics of the tasks against published values and values worked out by hand."""

import pytest

from flanx.data.task import spec
from flanx.evals.task_metrics import CORPUS, LEAD, METRICS, misfit


@pytest.mark.parametrize(
    ("name", "target", "prediction", "wanted"),
    [
        ("exact_match", "a  b", "a b", {"exact_match": 100.0}),
        ("exact_match", "a b", "A b", {"exact_match": 0.0}),
        ("accuracy", "Yes", "yes.", {"accuracy": 100.0}),
        ("number", "1,200", "It costs $1200.0.", {"number": 100.0}),
        ("number", "0.5", "1/2", {"number": 100.0}),
        ("number", "12", "21", {"number": 0.0}),
        ("number", "12", "none", {"number": 0.0}),
        ("final_answer", "So. The answer is 1,000.", "Hm. So the answer is $1000.", {"final_answer": 100.0}),
        ("final_answer", "So. The answer is 10.", "Hm, 10", {"final_answer": 100.0, "no_final_answer": 100.0}),
        ("final_answer", "So. The answer is (B).", "Hence the answer is (B).", {"final_answer": 100.0}),
        ("final_answer", "So. The answer is no.", "The answer is yes.", {"final_answer": 0.0}),
        ("squad", "the Red House", "red house", {"em": 100.0, "f1": 100.0}),
        ("squad", "red house", "red hut", {"em": 0.0, "f1": 50.0}),
        ("rouge", "a b c d", "a c d", {"rouge1": 600 / 7, "rougeL": 600 / 7}),
        # the example of rouge-score's README: precision 6/8 and recall 6/9, then 5/8 and 5/9
        ("rouge", "The quick brown fox jumps over the lazy dog", "The quick brown dog jumps on the log.",
         {"rouge1": 1200 / 17, "rougeL": 1000 / 17}),
        ("rouge", "a b", "b a", {"rouge1": 100.0, "rougeL": 50.0}),
        ("bleu", "one two three four five", "one two three four five", {"bleu": 100.0}),
        ("bleu", "one two", "three", {"bleu": 0.0}),
        # 5 of 6 words, 3 of 5 pairs, 2 of 4 triples, 1 of 3 runs of four; no brevity penalty
        ("bleu", "the cat sat on a mat", "the cat sat on the mat", {"bleu": 100 * (5 / 6 * 3 / 5 * 2 / 4 / 3) ** 0.25}),
        ("bleu", "The cat sat on a mat", "the cat sat on a mat",
         {"bleu": 100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25}),
    ],
)  # fmt: skip
def test_metrics_by_hand(name, target, prediction, wanted):
    found = METRICS[name]([target], [prediction])
    assert {key: found[key] for key in wanted} == pytest.approx(wanted)


def test_pearson():
    assert METRICS["pearson"](["0", "2", "4"], ["1", "2", "3"]) == {"pearson": pytest.approx(100)}
    assert METRICS["pearson"](["0", "2"], ["x", "y"]) == {"pearson": 0.0}
    # by hand: covariance 8, variances 10 and 10
    assert METRICS["pearson"](["1", "2", "3", "4", "5"], ["2", "1", "4", "3", "5"]) == {"pearson": pytest.approx(80)}
    assert METRICS["pearson"]([], []) == {"pearson": 0.0} == METRICS["pearson"](["1"], ["1"])


def test_every_named_metric_exists():
    assert set(spec.METRICS) == set(METRICS)


def test_what_leads_is_a_value_and_what_is_no_corpus_metric_is_a_mean_over_items():
    targets = ["1 b c d e", "2 x y z", "3, the answer is 2"]
    said = ["1 b c d", "2 x y z", "4, the answer"]
    for name, metric in METRICS.items():
        lead = LEAD.get(name, name)
        whole = metric(targets, said)[lead]
        each = [metric([target], [text])[lead] for target, text in zip(targets, said, strict=True)]
        assert (whole == pytest.approx(sum(each) / 3)) == (name not in CORPUS), name


LONG = ["the cat sat on the mat today", "a dog ran over the green hill", "nobody ever came to see the old house"]


@pytest.mark.parametrize(
    ("metric", "targets", "said"),
    [
        ("accuracy", LONG, "accuracy compares whole answers, and these are free text"),
        ("exact_match", LONG, "free text"),
        ("accuracy", LONG[:1] * 9, ""),  # one of few answers, however long
        ("rouge", LONG, ""),
        ("accuracy", ["yes", "no"], ""),
        ("pearson", ["1.5", "low"], "1 of 2 answers are none, as 'low'"),
        ("number", ["1.5", "3", "unknown"], ""),
        ("number", ["1.5", "low", "high"], "2 of 3 answers are none"),
    ],
)  # fmt: skip
def test_a_metric_that_does_not_fit_says_so(metric, targets, said):
    assert said in misfit(metric, targets) if said else misfit(metric, targets) == ""
