"""Statistics of ballots: win rates, ratings, agreement, position bias; for people together and for each judge.

A judge model sees every pair twice, with the sides swapped; its verdict on a pair is the common one, or a tie if they
differ. Verdicts of models are never pooled with people's.
"""

import itertools
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from flanx.compare import rating
from flanx.compare.ballot import BAD, LEFT, MODEL, PEOPLE, RIGHT, TIE, Ballot, Rater
from flanx.compare.pairing import Comparison, Pair
from flanx.evals import metrics
from flanx.evals.families import open_ended

Verdicts = Mapping[str, Mapping[str, int | str]]  # {rater: {pair: candidate, TIE or BAD}}


def verdicts(made: Comparison, rater: Rater) -> dict[str, int | str]:
    """{pair: the rater's verdict}; for both orders, the common verdict, else TIE."""
    found: dict[str, list[int | str]] = {}
    for ballot in rater.ballots.values():
        found.setdefault(ballot.pair, []).append(ballot.verdict(made.by_id[ballot.pair]))
    return {pair: said[0] if len({*said}) == 1 else TIE for pair, said in found.items()}


def results(made: Comparison, raters: Sequence[Rater]) -> list[dict[str, Any]]:
    """Every result as a record with "what" and "raters" ("people", or a judge's name), in display order."""
    people = {rater.name: verdicts(made, rater) for rater in raters if rater.kind == PEOPLE}
    groups: dict[str, Verdicts] = {"people": people} if people else {}
    groups |= {rater.name: {rater.name: verdicts(made, rater)} for rater in raters if rater.kind == MODEL}
    found: list[dict[str, Any]] = [_rater(rater, made) for rater in raters]
    for name, said in groups.items():
        rows = [*win_rates(made, said), *_ratings(made, said), *_agreement(said)]
        found += [{**row, "raters": name} for row in rows]
    found += [{**row, "raters": name} for name, row in _positions(raters)]
    if people:
        found += [
            {**with_people(people, said[name]), "raters": name} for name, said in groups.items() if name != "people"
        ]
    return found


def _rater(rater: Rater, made: Comparison) -> dict[str, Any]:
    times = [ballot.seconds for ballot in rater.ballots.values() if ballot.seconds]
    return {
        "what": "rater",
        "raters": rater.name,
        "kind": rater.kind,
        "pairs": len({pair for pair, _ in rater.ballots}),
        "of": len(made.pairs),
        "changed": rater.changed,
        "notes": sum(bool(ballot.note.strip()) for ballot in rater.ballots.values()),
        "median_seconds": statistics.median(times) if times else None,
    }


# ---- win rates -------------------------------------------------------------------------------------------------------


def win_rates(made: Comparison, said: Verdicts) -> Iterator[dict[str, Any]]:
    """A record for every two candidates: over all tasks (""), per task, and per part of the open-ended suite."""
    known = {*made.tasks}
    tasks = {"": known, **{task: {task} for task in sorted(known) if task}}
    tasks |= {part: {*members} for part, members in open_ended.parts(known).items()}
    for a, b in itertools.combinations(range(len(made.candidates)), 2):
        pairs = [pair for pair in made.pairs if {*pair.sides} == {a, b}]
        for task, members in tasks.items():
            row = _win_rate(a, b, [pair for pair in pairs if made.tasks[pair.prompt] in members], said)
            if row["pairs"]:
                yield {"what": "win_rate", "a": made.candidates[a], "b": made.candidates[b], "task": task, **row}


def _win_rate(a: int, b: int, pairs: Iterable[Pair], said: Verdicts) -> dict[str, Any]:
    """How often a is preferred to b, in percent, ties and "both bad" counting as half.

    A pair with several raters counts once, with the mean over them. The 95% interval is Wilson's (`metrics.interval`);
    None for fewer than four pairs.
    """
    counts: Counter[int | str] = Counter()
    means = []
    for pair in pairs:
        verdicts_ = [each[pair.id] for each in said.values() if pair.id in each]
        if verdicts_:
            counts.update(verdicts_)
            means.append(metrics.mean(_share(a, verdict) for verdict in verdicts_))
    interval = metrics.interval({"": means}) if means else None
    return {
        "pairs": len(means),
        "ballots": counts.total(),
        "a_wins": counts[a],
        "b_wins": counts[b],
        "ties": counts[TIE],
        "both_bad": counts[BAD],
        "win_rate": 100 * metrics.mean(means),
        "low": interval and interval[0],
        "high": interval and interval[1],
    }


def _share(candidate: int, verdict: int | str) -> float:
    return 0.5 if verdict in (TIE, BAD) else float(verdict == candidate)


# ---- ratings ---------------------------------------------------------------------------------------------------------


def _ratings(made: Comparison, said: Verdicts) -> list[dict[str, Any]]:
    """Bradley-Terry ratings of three or more candidates, best first; none until all are connected by comparisons."""
    count = len(made.candidates)
    wins = np.zeros((len(made.prompts), count, count))
    for each in said.values():
        for name, verdict in each.items():
            pair = made.by_id[name]
            for one, other in (pair.sides, pair.sides[::-1]):
                wins[pair.prompt, one, other] += _share(one, verdict)
    rated = wins[wins.sum(axis=(1, 2)) > 0]
    if count < 3 or not len(rated):
        return []
    try:
        found = rating.ratings(rated)
    except ValueError as error:
        return [{"what": "rating", "candidate": None, "missing": str(error)}]
    rows = [
        {"what": "rating", "candidate": name, "rating": each.points, "low": each.low, "high": each.high}
        for name, each in zip(made.candidates, found, strict=True)
    ]
    return sorted(rows, key=lambda row: -row["rating"])


# ---- agreement -------------------------------------------------------------------------------------------------------


def _agreement(said: Verdicts) -> list[dict[str, Any]]:
    """Agreement on pairs with two or more raters: the share of equal verdicts, and Krippendorff's alpha.

    Alpha is nominal, over the four possible verdicts on a pair; 1: full agreement, 0: as by chance, None: only one
    verdict occurs, so that chance would agree as well.
    """
    labels = [(rater, pair, str(verdict)) for rater, each in said.items() for pair, verdict in each.items()]
    rated: dict[str, list[str]] = {}
    for _, pair, verdict in labels:
        rated.setdefault(pair, []).append(verdict)
    shared = {pair: each for pair, each in rated.items() if len(each) > 1}
    if not shared:
        return []
    equal = [one == other for each in shared.values() for one, other in itertools.combinations(each, 2)]
    kinds = {verdict for each in shared.values() for verdict in each}
    return [
        {
            "what": "agreement",
            "pairs": len(shared),
            "equal": 100 * metrics.mean(equal),
            "alpha": alpha(labels) if len(kinds) > 1 else None,
        }
    ]


def alpha(labels: Sequence[tuple[str, str, str]]) -> float:
    """Krippendorff's alpha of (rater, unit, label); units with a single rater are excluded."""
    from nltk.metrics.agreement import AnnotationTask  # noqa: PLC0415  (half a second)

    return float(AnnotationTask(data=list(labels)).alpha())


def with_people(people: Verdicts, judge: Mapping[str, int | str]) -> dict[str, Any]:
    """A judge's agreement with the majority of people: the share of equal verdicts and Cohen's kappa, over pairs with a
    strict plurality verdict. Kappa is None if both give only a single verdict."""
    said: dict[str, Counter[int | str]] = {}
    for each in people.values():
        for pair, verdict in each.items():
            said.setdefault(pair, Counter())[verdict] += 1
    labels = []
    for pair, counts in said.items():
        (first, most), *others = counts.most_common(2)
        if pair in judge and not (others and others[0][1] == most):
            labels.append((pair, str(first), str(judge[pair])))
    same = metrics.mean(one == other for _, one, other in labels)
    return {
        "what": "judge_agreement",
        "pairs": len(labels),
        "equal": 100 * same if labels else None,
        "kappa": _kappa(labels) if labels else None,
    }


def _kappa(labels: Sequence[tuple[str, str, str]]) -> float | None:
    """Cohen's kappa of two raters' labels of the same units."""
    if len({label for _, one, other in labels for label in (one, other)}) < 2:
        return None
    from nltk.metrics.agreement import AnnotationTask  # noqa: PLC0415

    data = [(rater, unit, label) for unit, *both in labels for rater, label in zip("ab", both, strict=True)]
    return float(AnnotationTask(data=data).kappa())


# ---- position --------------------------------------------------------------------------------------------------------


def _positions(raters: Sequence[Rater]) -> Iterator[tuple[str, dict[str, Any]]]:
    """How often the answer shown on the left is preferred, for people together and for each judge.

    Each candidate is on the left in half of its pairs, so 50 means no bias. `consistent`: the share of pairs seen by a
    judge in both orders that got the same verdict.
    """
    people = [ballot for rater in raters if rater.kind == PEOPLE for ballot in rater.ballots.values()]
    groups = {"people": people} if people else {}
    groups |= {rater.name: [*rater.ballots.values()] for rater in raters if rater.kind == MODEL}
    for name, ballots in groups.items():
        decided = [float(ballot.choice == LEFT) for ballot in ballots if ballot.choice in (LEFT, RIGHT)]
        interval = metrics.interval({"": decided}) if decided else None
        yield (
            name,
            {
                "what": "position",
                "ballots": len(decided),
                "left": 100 * metrics.mean(decided) if decided else None,
                "low": interval and interval[0],
                "high": interval and interval[1],
                "consistent": _consistent(ballots),
            },
        )


def _consistent(ballots: Iterable[Ballot]) -> float | None:
    """The share of pairs shown in both orders whose choices pick the same answer, in percent."""
    by_order = {(ballot.pair, ballot.swapped): ballot.choice for ballot in ballots}
    other = {LEFT: RIGHT, RIGHT: LEFT}
    same = [
        other.get(by_order[pair, True], by_order[pair, True]) == choice
        for (pair, swapped), choice in by_order.items()
        if not swapped and (pair, True) in by_order
    ]
    return 100 * metrics.mean(same) if same else None
