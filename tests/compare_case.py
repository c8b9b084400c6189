"""Candidates and comparisons made up for tests."""

import json
import pathlib
from collections.abc import Mapping, Sequence

from flanx.compare import pairing
from flanx.compare.ballot import Ballot, Rater
from flanx.compare.candidate import Answer, Candidate
from flanx.compare.pairing import Comparison, Pair

TASKS = ("creativity", "planning")
HOSTILE = [
    "</script><script>document.title = 'broken'</script><img src=x onerror=\"document.title='broken'\">",
    "شرح قصير: الماء أثقل من الزيت \u202eabc",
    "x" * 20_000,
    "<b>bold</b> &amp; \u2028 {prompt} {0} %s ${1}\n\n\ttabbed\n" + "e\u0301\u0302\u0303" * 40,
]


def candidate(name: str, answers: Mapping[str, str] | Sequence[str]) -> Candidate:
    """Answers to prompts "p0", "p1", ... of two tasks in turn, or to those of a mapping."""
    found = answers if isinstance(answers, Mapping) else {f"p{n}": text for n, text in enumerate(answers)}
    keyed = {(prompt, 0): Answer(prompt, text, TASKS[n % 2]) for n, (prompt, text) in enumerate(found.items())}
    return Candidate(name, f"runs/{name}", keyed)


def comparison(prompts: int = 8, names: Sequence[str] = ("ours", "theirs"), seed: int = 0) -> Comparison:
    """A comparison in which candidate `name` answers prompt n by "<name's number> to n"."""
    made = [candidate(name, [f"{number} to {n}" for n in range(prompts)]) for number, name in enumerate(names)]
    return pairing.make(made, seed)


def side(pair: Pair, preferred: int) -> str:
    """The choice that names a candidate."""
    return "left" if pair.left == preferred else "right"


def rater(name: str, said: Mapping[Pair, int | str], kind: str = "people", swapped: bool = False) -> Rater:
    """A rater who prefers these candidates, or says "tie" or "bad"."""
    found = Rater(name, kind)
    for pair, verdict in said.items():
        choice = verdict if isinstance(verdict, str) else side(pair, verdict)
        if swapped and choice in ("left", "right"):
            choice = {"left": "right", "right": "left"}[choice]
        found.take(Ballot(pair.id, choice, swapped, seconds=2.0))
    return found


def write_answers(path: pathlib.Path, answers: Sequence[str], prompts: Sequence[str] = ()) -> str:
    """A file as `flanx infer` writes it."""
    lines = [
        {"index": n, "inputs": prompts[n] if prompts else f"p{n}", "prediction": text} for n, text in enumerate(answers)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)
