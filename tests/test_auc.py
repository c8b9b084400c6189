"""AUC: the area and its variance are those of scikit-learn and of DeLong's definition; few or equal items are said."""

import numpy as np
import pytest

from flanx.evals import auc, scores
from flanx.evals.spec import Spec
from tests.test_marking import generation

SPEC = Spec("comments", "comments", scoring="rank", metric="auc")


def rows(odds, answers, labels=()):
    """Items with log-odds of "yes", and whether that is the answer."""
    return [
        generation(
            id=str(number), kind="text", options=["yes", "no"], option_scores=[value - 1.0, -1.0],
            targets=["yes" if is_yes else "no"], labels=dict.fromkeys(labels[number] if labels else (), "yes"),
        )
        for number, (value, is_yes) in enumerate(zip(odds, answers, strict=True))
    ]  # fmt: skip


def test_the_area_is_scikit_learns_with_ties_and_extreme_odds():
    sklearn = pytest.importorskip("sklearn.metrics", reason="the peer is not a requirement")
    random = np.random.default_rng(0)
    answers = random.random(400) < 0.2
    for odds in (
        random.normal(size=400) + answers,
        np.round(random.normal(size=400) + answers),  # many ties
        60 + random.normal(size=400) + answers,  # likelihoods that round to 1
        np.zeros(400),
    ):
        found = auc.compute(SPEC, rows(odds.tolist(), answers))
        assert found["score"] == pytest.approx(100 * sklearn.roc_auc_score(answers, odds), abs=1e-9)
        assert found["positives"] == answers.sum()


def test_the_variance_is_the_definitions():
    """DeLong's structural components, counted pair by pair."""
    random = np.random.default_rng(1)
    positives, negatives = np.round(random.normal(1, 1, 13), 1), np.round(random.normal(0, 1, 29), 1)
    wins = (positives[:, None] > negatives) + 0.5 * (positives[:, None] == negatives)
    value, variance = auc.area(positives.tolist(), negatives.tolist())
    assert value == pytest.approx(wins.mean())
    assert variance == pytest.approx(wins.mean(1).var(ddof=1) / 13 + wins.mean(0).var(ddof=1) / 29)


def test_intervals_cover_the_true_area():
    """Two normal distributions a standard deviation apart: the area is the normal probability of 1 / sqrt(2)."""
    random, inside, tries = np.random.default_rng(2), 0, 1000
    for _ in range(tries):
        value, variance = auc.area(random.normal(1, 1, 30).tolist(), random.normal(0, 1, 90).tolist())
        low, high = auc.interval(value, variance) or (0, 0)
        inside += low <= 0.760250 <= high
    assert 0.925 <= inside / tries <= 0.975


def test_scores_of_a_suite_hold_the_area_and_one_for_each_label():
    labels = [("a",), ("a", "b"), ("a",), ("b",), ("a",), ("a",), ("a",), ("a",)]
    answers = [1, 1, 0, 1, 0, 1, 1, 0]
    entry = scores.summarize(SPEC, "h", rows([3.0, 2.0, -1.0, 0.5, 2.5, 0.0, 1.0, -2.0], answers, labels))
    assert entry["metric"] == "auc" and entry["score"] == pytest.approx(100 * 11 / 15)
    assert entry["metrics"]["accuracy"] == pytest.approx(100 * 7 / 8) and not entry["flagged"]
    assert entry["low"] is None and scores.interval_text(entry, " to ") == "no interval: one class has few items"
    of_a, of_b = (entry["slices"][name]["yes"] for name in ("a", "b"))
    assert (of_a["n"], of_a["positives"]) == (7, 4) and of_a["score"] == pytest.approx(100 * 9 / 12)
    assert (of_b["n"], of_b["positives"], of_b["low"]) == (2, 2, None) and "one class alone" in of_b["misfit"]


def test_one_class_alone_and_broken_items_are_said():
    entry = scores.summarize(SPEC, "h", rows([1.0, 2.0, 0.0, 4.0], [1, 1, 1, 1]))
    assert entry["flagged"] and "one class alone" in scores.flags(entry)[0]
    items = rows([1.0, 2.0, 0.0, 4.0], [1, 0, 1, 0])
    items[0].option_scores[1] = None
    entry = scores.summarize(SPEC, "h", items)
    assert entry["broken"] == 1 and entry["flagged"] and entry["score"] == 0.0
    assert entry["tasks"]["t"]["positives"] == 1
