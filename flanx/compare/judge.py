"""A model as judge: it sees the same pairs, each in both orders, and votes by the more probable of two letters.

A judge fills its own rater's file (`kind` "model"), and resumes with the pairs that are not in it. It never says "tie"
or "both bad"; a pair on which its two orders disagree counts as a tie (`tally.verdicts`). How often they agree is
reported, because a judge that goes by position is worthless.
"""

import datetime
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from flanx.compare import ballot
from flanx.compare.pairing import Comparison, Pair
from flanx.errors import UserError
from flanx.predictor import Predictor

PROMPT = (
    "Two assistants answered the same request. Which answer is better? Prefer the one that is correct, then the one "
    "that is more useful; longer is not better.\n\nRequest: {prompt}\n\nAnswer A: {first}\n\nAnswer B: {second}\n\n"
    "The better answer, A or B, is"
)
LETTERS = ("A", "B")
BATCH = 256  # pairs whose ballots are written together


def prompt_of(made: Comparison, pair: Pair, swapped: bool) -> str:
    """The judge's prompt for a pair; braces in texts are left alone."""
    first, second = (made.answers[pair.prompt][side].strip() or "(no answer)" for side in pair.sides)
    if swapped:
        first, second = second, first
    return PROMPT.format(prompt=made.prompts[pair.prompt].strip(), first=first, second=second)


def judge(made: Comparison, folder: pathlib.Path, name: str, predictor: Predictor, source: str = "") -> dict[str, int]:
    """Judges the pairs that this judge has not yet judged: {"judged", "too long", "before": number of pairs}.

    `name`: the rater's name; `source`: its checkpoint, fixed for that name. A pair whose prompt is too long for the
    judge, in either order, gets no ballot. Raises UserError if the name belongs to a person or another checkpoint, and
    for non-finite logits.
    """
    known = {rater.name: rater for rater in ballot.read(folder, made)}
    if name in known and known[name].kind != ballot.MODEL:
        raise UserError(f"'{name}' is the name of a person who rated: give the judge another one (NAME=CHECKPOINT)")
    if name in known and known[name].source != source:
        raise UserError(
            f"'{name}' judged before as {known[name].source or 'another checkpoint'}: give {source or 'this one'} a "
            "name of its own (NAME=CHECKPOINT)"
        )
    done = {*known[name].ballots} if name in known else set()
    todo = [pair for pair in made.pairs if not {(pair.id, False), (pair.id, True)} <= done]
    counts = {"judged": 0, "too long": 0, "before": len(made.pairs) - len(todo)}
    writer = ballot.Writer(folder, made, name, ballot.MODEL, source)
    for begin in range(0, len(todo), BATCH):
        fitting = list(_fitting(made, todo[begin : begin + BATCH], predictor))
        counts["too long"] += len(todo[begin : begin + BATCH]) - len(fitting)
        counts["judged"] += len(fitting)
        if fitting:
            writer.add(_ballots(fitting, predictor))
    return counts


def _fitting(
    made: Comparison, pairs: Sequence[Pair], predictor: Predictor
) -> Iterator[tuple[Pair, tuple[list[int], list[int]]]]:
    """The pairs whose prompts fit, with the tokens for both orders."""
    vocabulary, longest = predictor.vocabulary, predictor.lengths["inputs"]
    for pair in pairs:
        plain, swapped = (
            [*vocabulary.encode(prompt_of(made, pair, order)), vocabulary.eos_id] for order in (False, True)
        )
        if max(len(plain), len(swapped)) <= longest:
            yield pair, (plain, swapped)


def _ballots(pairs: Sequence[tuple[Pair, tuple[list[int], list[int]]]], predictor: Predictor) -> list[ballot.Ballot]:
    """The two ballots of each pair."""
    prompts = [tokens for _, both in pairs for tokens in both]
    scores = predictor.score(prompts, [LETTERS] * len(prompts))
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    found = []
    for number, score in enumerate(scores):
        pair, swapped = pairs[number // 2][0], bool(number % 2)
        if not np.isfinite(score).all():
            raise UserError(f"pair {pair.id}: the judge's logits hold a NaN or an infinity; its checkpoint is damaged")
        choice = ballot.LEFT if score[0] >= score[1] else ballot.RIGHT
        found.append(ballot.Ballot(pair.id, choice, swapped, time=now))
    return found
