"""Items made ready for a model: prompts in tokens, shortened where they do not fit, and counted where they are."""

import dataclasses
from typing import Any

from flanx.data.vocabulary import Vocabulary
from flanx.evals import generations
from flanx.evals.spec import Item, Spec


@dataclasses.dataclass(frozen=True)
class Request:
    """An item made ready for the model: its tokens, and what had to go to make them fit."""

    item: Item
    tokens: list[int]
    text: str
    shots: int
    cut: bool

    def row(self, words: Vocabulary) -> generations.Row:
        """What is known of an item before the model speaks."""
        item, target = self.item, words.encode(self.item.targets[0])
        return generations.Row(
            id=item.id,
            task=item.task,
            prompt=self.text,
            targets=list(item.targets),
            kind=item.kind,
            language=item.language,
            shots=self.shots,
            cut=self.cut,
            prompt_tokens=len(self.tokens),
            prompt_unknown=self.tokens.count(words.unk_id),
            target_tokens=len(target),
            target_unknown=target.count(words.unk_id),
        )


def fit(item: Item, spec: Spec, words: Vocabulary, longest: int, count: Any = None) -> Request:
    """The item's prompt in at most `longest` tokens, end of sequence included.

    Exemplars go first, one at a time (`spec.drop`); where that is not enough, or not allowed, the prompt's beginning.
    `count` gives the number of tokens of a piece of text; it saves encoding prompts that are far too long.
    """
    shots = len(item.shots)
    if spec.drop != "none" and count is not None:
        order = item.shots[::-1] if spec.drop == "first" else item.shots
        free = longest - 1 - count(item.head) - count(item.query)
        while shots and sum(map(count, order[:shots])) > free + 8 * (shots + 1):  # pieces may count a little more
            shots -= 1
    while True:
        text = item.prompt(shots, spec.drop)
        tokens = words.encode(text)
        if len(tokens) < longest or not shots or spec.drop == "none":
            break
        shots -= 1
    cut = len(tokens) >= longest
    return Request(item, [*(tokens[-(longest - 1) :] if cut else tokens), words.eos_id], text, shots, cut)
