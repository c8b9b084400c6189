"""A conversation in a terminal; if the input is not a terminal, an answer to each line.

On a terminal, control characters that could move its cursor or change its title are stripped from answers; elsewhere
they are written unchanged.
"""

import contextlib
import dataclasses
import re
import sys
import unicodedata
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

from flanx.ask import openai_api
from flanx.ask.engine import Engine, Failure
from flanx.ask.openai_api import Options
from flanx.ask.template import Template, Turn
from flanx.errors import UserError, nearest

HELP = """  a line is a message; one that ends with \\ continues on the next
  /new               begin again: earlier turns are forgotten
  /again             another answer to the last message, with the next seed
  /prompt            the last prompt as the model read it
  /set               the settings; /set temperature 0.7 changes one (top_k, top_p, max_tokens, seed, stop)
  /quit              the end, as Ctrl-D is; Ctrl-C stops an answer"""
SETTINGS = ("temperature", "top_k", "top_p", "max_tokens", "seed", "stop")


class Conversation:
    """One person's conversation with an engine.

    Attributes:
      turns: all turns so far, including answers.
      options: options for the next answer.
      prompt: the last prompt, as the model read it.
    """

    def __init__(self, engine: Engine, template: Template, options: Options, system: str = "") -> None:
        self.engine, self.template, self.options, self.system = engine, template, options, system
        self.turns: list[Turn] = []
        self.prompt = ""

    def ask(self, text: str) -> Generator[str, None, None]:
        """The pieces of the answer to a message, which is added to the turns with as much of the answer as was read.

        Raises UserError for a prompt that is too long or empty, and Failure; neither adds a turn.
        """
        turns = [*self.turns, Turn("user", text)]
        prompt = openai_api.chat_prompt(self.template, turns, self.system)
        request = dataclasses.replace(self.options, n=1).request(self.engine, prompt, self.template.stop)
        self.prompt = prompt
        pieces, said, has_failed = self.engine.stream(request), "", False
        try:
            for piece in pieces:
                said += piece.text
                yield piece.text
        except Failure:
            has_failed = True
            raise
        finally:  # also on Ctrl-C
            pieces.close()
            if not has_failed:
                self.turns = [*turns, Turn("assistant", said)]

    def ask_again(self) -> Generator[str, None, None]:
        """Replaces the last answer with another one to the same message, with the next seed. Raises UserError."""
        if not self.turns:
            raise UserError("nothing has been asked")
        if not self.options.temperature:
            raise UserError("at temperature 0 every answer is the same: /set temperature 0.7")
        last = self.turns[-2].text
        self.turns = self.turns[:-2]
        self.options = dataclasses.replace(self.options, seed=(self.options.seed + 1) % 2**32)
        return self.ask(last)

    def set(self, words: Sequence[str]) -> str:
        """Changes a setting, ["temperature", "0.7"], and returns all settings as text. Raises UserError."""
        if words:
            name, value = words[0], " ".join(words[1:])
            if name not in SETTINGS:
                raise UserError(f"no setting '{name}'{nearest(name, SETTINGS)} (settings: {', '.join(SETTINGS)})")
            self.options = dataclasses.replace(self.options, **{name: parse(name, value)})
        return "  ".join(f"{name} {_shown(getattr(self.options, name))}" for name in SETTINGS)


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(repr, value)) or "none"
    return "as long as it may be" if value is None else repr(value) if isinstance(value, str) else f"{value}"


def parse(name: str, text: str) -> Any:
    """A setting's value from its text; "" or "none": the longest answer, no stop text. Raises UserError."""
    if name == "stop":
        return () if text in ("", "none") else text.replace("\\n", "\n")
    if name == "max_tokens" and text in ("", "none"):
        return None
    try:
        value: Any = float(text) if name in ("temperature", "top_p") else int(text)
    except ValueError:
        value = text
    return openai_api.option(name, value)


def printable(text: str) -> str:
    """The text without control characters (except line breaks and tabs) and without
    bidirectional marks."""
    return "".join(
        c if c in "\n\t" or (unicodedata.category(c) != "Cc" and c not in _TURNS) else "\N{REPLACEMENT CHARACTER}"
        for c in text
    )


_TURNS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def answer_lines(conversation: Conversation, lines: Iterable[str]) -> None:
    """Answers each line separately, as `flanx infer` does a file of prompts, on standard output; an empty line with an
    empty line.

    Raises UserError naming the line, and Failure.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():  # answer n stays on line n
            sys.stdout.write("\n")
            continue
        conversation.turns = []
        try:
            for text in conversation.ask(line.rstrip("\r\n")):
                sys.stdout.write(text)
                sys.stdout.flush()
        except UserError as error:
            raise UserError(f"line {number}: {error}") from None
        sys.stdout.write("\n")
        sys.stdout.flush()


def decoded(stream: Iterable[bytes]) -> Iterator[str]:
    """The lines of a pipe as UTF-8, regardless of locale, without a byte order mark. Raises UserError naming a line
    that is not UTF-8."""
    for number, line in enumerate(stream, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"line {number}: not UTF-8 (byte 0x{line[error.start]:02x}); convert the input: iconv -f WINDOWS-1252 "
                "-t UTF-8"
            ) from None


def talk(conversation: Conversation) -> None:
    """Reads messages and commands until the end of the input."""
    with contextlib.suppress(ImportError):  # not available in every Python
        import readline  # noqa: F401, PLC0415  (gives `input` line editing and history)

    print("/help lists commands", file=sys.stderr)
    while True:
        try:
            text = _read()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n/quit or Ctrl-D ends", file=sys.stderr)
            continue
        if text.strip() in ("/quit", "/exit"):
            return
        try:
            if text.startswith("/"):
                _command(conversation, text)
            elif text.strip():
                _show(conversation.ask(text))
        except (UserError, Failure) as error:
            print(f"{error}", file=sys.stderr)
            if isinstance(error, Failure) and error.kind in ("closed", "error"):
                raise


def _read() -> str:
    """A message; a trailing backslash continues it on the next line."""
    text = input("> ")
    while text.endswith("\\"):
        text = f"{text[:-1]}\n{input('. ')}"
    return text


def _command(conversation: Conversation, text: str) -> None:
    """Executes a line that begins with /. Raises UserError for an unknown command."""
    name, *words = text.split()
    if name == "/new":
        conversation.turns = []
    elif name == "/again":
        _show(conversation.ask_again())
    elif name == "/prompt":
        print(printable(conversation.prompt) or "nothing has been asked")
    elif name == "/set":
        print(conversation.set(words))
    elif name == "/help":
        print(HELP)
    else:
        raise UserError(f"no command '{name}'{nearest(name, COMMANDS)}; a message does not begin with /")


COMMANDS: Mapping[str, None] = dict.fromkeys(re.findall(r"^  (/\w+)", HELP, re.MULTILINE))


def _show(pieces: Generator[str, None, None]) -> None:
    """Writes an answer as it arrives; Ctrl-C ends it."""
    try:
        for text in pieces:
            sys.stdout.write(printable(text))
            sys.stdout.flush()
        print()
    except KeyboardInterrupt:
        print("\n(stopped)", file=sys.stderr)
    finally:
        pieces.close()
