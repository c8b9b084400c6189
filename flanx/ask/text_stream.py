"""Streams the text of an answer as its tokens arrive: emitted text is never retracted."""

from collections.abc import Callable, Sequence

HALF_A_CHARACTER = "\ufffd"  # what SentencePiece writes for an incomplete character's bytes


class TextStream:
    """Pieces of text that concatenate to what the tokens decode to, up to the first stop text.

    Characters that a later token could change are held back until it arrives: a prefix of a stop text or of the line
    break mark, an incomplete character, and the spaces that such a mark absorbs.

    Attributes:
      stopped: whether a stop text was reached; nothing follows.
      count: number of tokens in the text, including those of the stop text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = (), line_break: str = "") -> None:
        self._decode, self._stop, self._line_break = decode, tuple(stop), line_break
        self._given = ""
        self.stopped, self.count = False, 0

    def feed(self, tokens: Sequence[int], is_last: bool) -> str:
        """The new text, given all tokens so far; `is_last`: no more will come, so nothing is held back."""
        text = ""
        # Token by token if a stop text could end the answer: the first one to be complete counts.
        for count in range(self.count + 1, len(tokens)) if self._stop else ():
            if self._has_stopped(text := self._decode(tokens[:count])):
                tokens = tokens[:count]
                break
        else:
            text = self._decode(tokens)
            self._has_stopped(text)
        self.count = len(tokens)
        if self.stopped:
            text = text[: min(text.find(each) for each in self._stop if each in text)]
        elif not is_last:
            text = text[: len(text) - self._waiting(text)]
        new, self._given = text[len(self._given) :], text
        return new

    def _has_stopped(self, text: str) -> bool:
        self.stopped = any(each in text for each in self._stop)
        return self.stopped

    def _waiting(self, text: str) -> int:
        """How many characters at the end of the text may still change."""
        whole = text.rstrip(f"{HALF_A_CHARACTER} " if self._line_break else HALF_A_CHARACTER)
        most = len(text) - len(whole)
        for each in (*self._stop, self._line_break):
            starts = (n for n in range(len(each) - 1, 0, -1) if text.endswith(each[:n]))
            most = max(most, next(starts, 0))
        if self._line_break and most:
            whole = text[: len(text) - most].rstrip(" ")
            # the mark may become complete: a line break then follows the rest, and a stop text may contain it
            broken = f"{whole}\n"
            held = (n - 1 for each in self._stop for n in range(len(each), 0, -1) if broken.endswith(each[:n]))
            most = len(text) - len(whole) + max(held, default=0)
        return most
