"""Named functions from a raw record to fields, for the few data sets that no `fields` operation can read.

Each is an entry of FUNCTIONS: what it reads, what it writes, and the function itself. It receives only the columns it
names and the row's own draw; it returns the written fields, or None to skip the row.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flanx.data.task.row import Draw

Columns = dict[str, Any]
MAX_TURNS = 40  # maximum number of dialog turns in a prompt


@dataclass(frozen=True)
class Function:
    """`run(columns, draw) -> fields or None`, with the names it reads and writes."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    run: Callable[[Columns, Draw], Columns | None]


def _speak(turns: list[str], draw: Draw) -> str:
    """A dialog as lines, with randomly drawn names for the two speakers."""
    names = SPEAKERS[draw("speakers", len(SPEAKERS))]
    return "\n".join(f"{names[i % 2]}{turn.strip()}" for i, turn in enumerate(turns))


SPEAKERS = (
    ("A: ", "B: "), ("Person 1: ", "Person 2: "), ("Speaker A: ", "Speaker B: "), ("User: ", "Assistant: "),
    ("- ", "- "), ("Human: ", "AI: "), ("Caller: ", "Agent: "), ("One: ", "Two: "), ("Q: ", "A: "), ("> ", "< "),
)  # fmt: skip


def answer_turn(turns: list[str], draw: Draw, step: int, first: int) -> Columns | None:
    """The dialog before a drawn turn, and that turn. `step` 2 stays with one speaker; `first` is the earliest turn."""
    turns = [str(turn) for turn in turns if str(turn).strip()]
    places = range(first, min(len(turns), MAX_TURNS), step)
    if not places:
        return None
    place = places[draw("turn", len(places))]
    return {"dialog": _speak(turns[:place], draw), "answer": turns[place]}


def _wiki_dialog(columns: Columns, draw: Draw) -> Columns | None:
    """The first utterance only announces the subject; then questions and answers alternate."""
    return answer_turn(columns["utterances"][1:], draw, step=2, first=1)


def _qrecc(columns: Columns, draw: Draw) -> Columns | None:
    """Only conversations of more than six turns (paper.md 1.5)."""
    return answer_turn(columns["context"], draw, step=2, first=1) if columns["turn_id"] > 6 else None


def _task_master(columns: Columns, draw: Draw) -> Columns | None:
    return answer_turn(columns["text"], draw, step=1, first=1)


def _mark_pronoun(columns: Columns, draw: Draw) -> Columns:
    """Marks the pronoun at word `span2_index` with asterisks (it may occur in the text more than once)."""
    words = columns["text"].split(" ")
    pronoun = columns["span2_text"]
    index = columns["span2_index"]
    if 0 <= index < len(words) and words[index].lower().startswith(pronoun.lower()):
        words[index] = f"*{words[index][: len(pronoun)]}*{words[index][len(pronoun) :]}"
    return {"text": " ".join(words), "pronoun": pronoun, "noun": columns["span1_text"]}


_LETTERED = re.compile(r"\s*\(([A-H])\)\s*")


def _lettered_options(columns: Columns, draw: Draw) -> Columns | None:
    """Splits `question (A) one (B) two ...`; only questions with four options."""
    question, *rest = _LETTERED.split(columns["input"].replace("\\n", "\n"))
    options = [text.strip() for text in rest[1::2]]
    if len(options) != 4 or not question.strip():
        return None
    return {"question": question.strip(), "options": options, "answer": columns["output"].strip()}


def _last_word(columns: Columns, draw: Draw) -> Columns | None:
    text, _, word = columns["passage"].strip().rpartition(" ")
    return {"sentence": text, "answer": word} if text and word else None


def _first_conversation(columns: Columns, draw: Draw) -> Columns | None:
    """A drawn question about a story, with the questions and answers before it."""
    questions, answers = columns["questions"], columns["answers"]["input_text"]
    if not questions or len(questions) != len(answers):
        return None
    place = draw("question", min(len(questions), MAX_TURNS))
    before = [f"Q: {q}\nA: {a}" for q, a in zip(questions[:place], answers[:place], strict=True)]
    return {
        "text": columns["story"],
        "history": "\n".join(before) or "(nothing yet)",
        "question": questions[place],
        "answer": answers[place],
    }


def _squad_answer(columns: Columns, draw: Draw) -> Columns:
    texts = columns["answers"]["text"]
    return {"answer": texts[0] if texts and not columns["is_impossible"] else "unanswerable"}


def _niv2(columns: Columns, draw: Draw) -> Columns:
    """One of the outputs, and one of the task's worked examples if any is not this instance."""
    outputs = columns["outputs"]
    out = {
        "definition": columns["definition"],
        "input": columns["input"],
        "answer": outputs[draw("output", len(outputs))] if outputs else "",
    }
    if examples := [e for e in columns["examples"] if e["explanation"].strip()]:
        worked = examples[draw("worked", len(examples))]
        out |= {"worked_input": worked["input"], "worked_output": worked["output"], "worked_why": worked["explanation"]}
    return out


def _table(*rows: tuple[str, Callable[[Columns, Draw], Columns | None], str, str]) -> dict[str, Function]:
    return {name: Function(tuple(reads.split()), tuple(writes.split()), run) for name, run, reads, writes in rows}


FUNCTIONS = _table(
    ("wiki_dialog", _wiki_dialog, "utterances", "dialog answer"),
    ("qrecc", _qrecc, "context turn_id", "dialog answer"),
    ("task_master", _task_master, "text", "dialog answer"),
    ("mark_pronoun", _mark_pronoun, "text span1_text span2_text span2_index", "text pronoun noun"),
    ("lettered_options", _lettered_options, "input output", "question options answer"),
    ("last_word", _last_word, "passage", "sentence answer"),
    ("conversation", _first_conversation, "story questions answers", "text history question answer"),
    (
        "niv2",
        _niv2,
        "definition input outputs examples",
        "definition input answer worked_input worked_output worked_why",
    ),
    ("squad_answer", _squad_answer, "answers is_impossible", "answer"),
)
