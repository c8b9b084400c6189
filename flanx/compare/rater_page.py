"""The rater's page as text: rater.html, .css and .js with the comparison embedded, without candidate names."""

import pathlib
from typing import Any

from flanx.compare.ballot import LONGEST, VERSION
from flanx.compare.pairing import Comparison
from flanx.web.page import page

TITLE = "Which answer is better?"


def served(made: Comparison) -> str:
    """The page for a server, which stores the ballots."""
    return _page(made, is_served=True)


def exported(made: Comparison) -> str:
    """The page as a standalone file: ballots stay in the browser until the rater saves them to a file."""
    return _page(made, is_served=False)


def _page(made: Comparison, is_served: bool) -> str:
    body, style, script = (_asset(kind) for kind in ("html", "css", "js"))
    data = {**blind(made), "served": is_served}
    return page(TITLE, body, style=style, script=script, data=data, connect=is_served)


def blind(made: Comparison) -> dict[str, Any]:
    """The page's view of a comparison: each text once, pairs as [id, prompt, left text, right text].

    Texts are numbered in the order in which pairs show them, so that numbers reveal nothing about candidates.
    """
    numbers: dict[str, int] = {}
    pairs = []
    for pair in made.pairs:
        texts = (made.prompts[pair.prompt], *(made.answers[pair.prompt][side] for side in pair.sides))
        pairs.append([pair.id, *(numbers.setdefault(text, len(numbers)) for text in texts)])
    return {"id": made.id, "version": VERSION, "texts": [*numbers], "pairs": pairs, "longest": LONGEST}


def _asset(kind: str) -> str:
    return pathlib.Path(__file__).with_name(f"rater.{kind}").read_text(encoding="utf-8")
