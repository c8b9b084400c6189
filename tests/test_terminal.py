"""A conversation line by line, and what a line of a pipe gets."""

import builtins
import io

import pytest

from flanx.ask import template, terminal
from flanx.ask.engine import Engine, Failure
from flanx.ask.openai_api import Options
from flanx.ask.template import Turn
from flanx.errors import UserError
from tests import ask_case
from tests.ask_case import PROMPTS


@pytest.fixture(scope="module")
def engine():
    model = ask_case.model()
    with Engine(model.predictor, model.partitioner.scope, rows=4) as one:
        yield one


@pytest.fixture
def conversation(engine):
    return terminal.Conversation(engine, template.load("qa"), Options())


def talk(conversation, monkeypatch, *lines):
    """Types lines, then Ctrl-D; a class of exceptions among them is raised in its place."""
    given = iter(lines)

    def read(prompt):
        line = next(given, EOFError)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr(builtins, "input", read)
    terminal.talk(conversation)


def test_a_message_is_answered_and_the_next_comes_with_it(conversation, monkeypatch, capsys):
    talk(conversation, monkeypatch, PROMPTS[0], "", "/prompt", "b", "/prompt", "/new", PROMPTS[1], "/quit", "never")
    answer, last = ask_case.answers()[PROMPTS[0]], ask_case.answers()[PROMPTS[1]]
    said = capsys.readouterr().out
    assert said.startswith(f"{answer}\n{PROMPTS[0]}\n")
    assert f"\nQ: {PROMPTS[0]}\nA: {answer}\n\nQ: b\nA:\n{last}\n" in said and said.endswith(f"{last}\n")
    assert conversation.turns == [Turn("user", PROMPTS[1]), Turn("assistant", last)]


def test_a_line_that_ends_with_a_backslash_goes_on(conversation, monkeypatch, capsys):
    talk(conversation, monkeypatch, "Q: a\\", "A: b\\", "\\", "Q: c\\", "A:")
    assert conversation.prompt == PROMPTS[9] and capsys.readouterr().out == f"{ask_case.answers()[PROMPTS[9]]}\n\n"


def test_settings_are_shown_changed_and_refused(conversation, monkeypatch, capsys):
    lines = ["/again", PROMPTS[0], "/again", "/set", "/set stop \\n", "/set max_tokens 5", "/set temperature hot"]
    talk(conversation, monkeypatch, *lines, "/set heat 3", "/sett", "/set stop", "/set max_tokens none")
    out, err = capsys.readouterr()
    assert "temperature 0.0  top_k 0  top_p 1.0  max_tokens as long as it may be  seed 0  stop none\n" in out
    assert "max_tokens 5  seed 0  stop '\\n'" in out
    for message in (
        "nothing has been asked",
        "at temperature 0 every answer is the same",
        'temperature is "hot"; it takes a number',
        "no setting 'heat'",
        "no command '/sett'; did you mean '/set'",
    ):
        assert message in err
    assert conversation.options == Options()


def test_again_draws_with_the_next_seed(conversation, monkeypatch, capsys):
    settings = [f"/set {name} {value}" for name, value in ask_case.DRAWN.items()]
    talk(conversation, monkeypatch, *settings, "/set seed 4", PROMPTS[0], "/again")
    first, again = capsys.readouterr().out.splitlines()[-3:-1]
    assert again == ask_case.drawn()[0] != first
    assert conversation.options.seed == 5 and [turn.text for turn in conversation.turns] == [PROMPTS[0], again]


def test_control_c_ends_an_answer_and_not_the_conversation(conversation, monkeypatch, capsys):
    ask, stream = conversation.ask, conversation.engine.stream

    def interrupted(request):
        for number, piece in enumerate(stream(request)):
            yield piece
            if number == 1 and not conversation.turns:
                raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversation.engine, "stream", interrupted)
        talk(conversation, monkeypatch, PROMPTS[0], KeyboardInterrupt, "/prompt")
    out, err = capsys.readouterr()
    assert "(stopped)" in err and "/quit or Ctrl-D ends" in err and out.count(PROMPTS[0]) == 1
    part = conversation.turns[1].text
    assert 0 < len(part) < 24 and ask_case.answers()[PROMPTS[0]].startswith(part)
    conversation.turns = []
    assert "".join(ask(PROMPTS[1])) == ask_case.answers()[PROMPTS[1]]


def test_what_cannot_be_asked_leaves_no_turn(conversation, monkeypatch, capsys):
    talk(conversation, monkeypatch, "x" * 300)
    assert "the prompt has 301 tokens, the longest has 200" in capsys.readouterr().err and not conversation.turns

    def fail(request):
        yield from ()
        raise Failure("timeout", "no end after 1 seconds")

    monkeypatch.setattr(conversation.engine, "stream", fail)
    talk(conversation, monkeypatch, "x")
    assert "no end after 1 seconds" in capsys.readouterr().err and not conversation.turns


def test_each_line_of_a_pipe_is_asked_by_itself(conversation, capsys):
    lines = io.StringIO(f"{PROMPTS[0]}\r\n\n  \n{PROMPTS[1]}\n{PROMPTS[2]}")
    terminal.answer_lines(conversation, lines)
    first, second, third = (ask_case.answers()[prompt] for prompt in PROMPTS[:3])
    assert capsys.readouterr().out == f"{first}\n\n\n{second}\n{third}\n"
    with pytest.raises(UserError, match="line 2: the prompt has 301 tokens"):
        terminal.answer_lines(conversation, ["\n", "x" * 300])


def test_an_answer_cannot_steer_the_terminal():
    assert terminal.printable("a\x1b[2J\x07\x9b\u202eb\n\tc\r") == "a\ufffd[2J\ufffd\ufffd\ufffdb\n\tc\ufffd"
