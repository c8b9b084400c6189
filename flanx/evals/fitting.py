"""Fits prompts to a model: encodes them and shortens those that are too long, recording what was dropped."""

import dataclasses
from collections.abc import Callable

from flanx.data.vocabulary import Vocabulary
from flanx.evals.generations import Generation
from flanx.evals.spec import Item, Spec


@dataclasses.dataclass(frozen=True)
class FittedPrompt:
    """An item's prompt as the model receives it.

    Attributes:
      tokens: including end of sequence; text: the whole prompt with the exemplars that are kept.
      shots: number of exemplars kept; cut: whether tokens at its beginning were dropped.
    """

    item: Item
    tokens: list[int]
    text: str
    shots: int
    cut: bool

    def generation(self, vocabulary: Vocabulary) -> Generation:
        """The item's generation, to which the model's outputs are still to be added."""
        item, target = self.item, vocabulary.encode(self.item.targets[0])
        return Generation(
            id=item.id,
            task=item.task,
            prompt=vocabulary.decode(self.tokens) if self.cut else self.text,
            targets=list(item.targets),
            kind=item.kind,
            language=item.language,
            shots=self.shots,
            cut=self.cut,
            shots_available=len(item.shots),
            prompt_tokens=len(self.tokens),
            prompt_unknown=self.tokens.count(vocabulary.unk_id),
            target_tokens=len(target),
            target_unknown=target.count(vocabulary.unk_id),
            labels=dict(item.labels),
        )


def fit(
    item: Item, spec: Spec, vocabulary: Vocabulary, longest: int, count: Callable[[str], int] | None = None
) -> FittedPrompt:
    """The item's prompt in at most `longest` tokens, including end of sequence.

    Exemplars are dropped one at a time (`spec.drop`); if that is not enough, or not allowed, the prompt's beginning is
    cut. `count` gives the number of tokens in a text; with it, prompts that are far too long are never encoded.
    """
    shots = len(item.shots)
    if spec.drop != "none" and count is not None:
        order = item.shots[::-1] if spec.drop == "first" else item.shots
        free = longest - 1 - count(item.head) - count(item.query)
        while shots and sum(map(count, order[:shots])) > free + 8 * (
            shots + 1
        ):  # texts encoded separately may take a few more tokens
            shots -= 1
    while True:
        text = item.prompt(shots, spec.drop)
        tokens = vocabulary.encode(text)
        if len(tokens) < longest or not shots or spec.drop == "none":
            break
        shots -= 1
    cut = len(tokens) >= longest
    return FittedPrompt(item, [*(tokens[-(longest - 1) :] if cut else tokens), vocabulary.eos_id], text, shots, cut)
