"""Stops self-consistency sampling once the remaining samples cannot change the vote (EARLY_VOTE).

Exact: the answer, and the sample that represents it, are the same as with all samples.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence

from flanx.evals import answers, marking
from flanx.evals.generations import Generation
from flanx.evals.spec import Spec


@dataclasses.dataclass
class EarlyVote:
    """The votes for a suite's items as their samples arrive.

    Attributes:
      rows: for each prompt, by number, the part of an item that grading reads.
    """

    spec: Spec
    rows: Sequence[Generation]
    _read: dict[int, dict[int, str | None]] = dataclasses.field(default_factory=dict)  # prompt -> {sample: its vote}

    def decided(self, number: int, samples: Mapping[int, tuple[str, bool]]) -> bool:
        """Whether {sample: (text, whether it ended)} of a prompt decide its vote."""
        votes = self._read.setdefault(number, {})
        for name in samples.keys() - votes.keys():
            text, ended = samples[name]
            row = dataclasses.replace(self.rows[number], outputs=[text], ended=[ended])
            votes[name] = marking.ballot(self.spec, row)[0]
        return is_decided(votes, self.spec.samples)


def is_decided(votes: Mapping[int, str | None], count: int) -> bool:
    """Whether the votes {sample number: answer or None} of some of `count` samples decide the result of `marking.vote`:
    an answer and its first sample.

    Ties go to the answer that an earlier sample gave. So all samples before the winner's first must be known; then no
    answer yet to come can win a tie, and a known one can only if its first sample is earlier.
    """
    names = sorted(votes)
    index, winner = marking.vote([answers.Answer(votes[name], answers.DIRECT) for name in names])
    if winner is None or names[index] != index:  # samples before it are missing
        return False
    counts, left = collections.Counter(votes[name] for name in names[index:]), count - len(votes)
    earlier = collections.Counter(votes[name] for name in names[:index])
    for answer in counts.keys() | earlier.keys():
        most = counts[answer] + earlier[answer] + left
        if answer not in (None, winner) and most + (answer in earlier) > counts[winner]:
            return False
    return counts[winner] >= left
