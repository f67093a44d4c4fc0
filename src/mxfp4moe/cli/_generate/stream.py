"""Ids to text while they come: whole characters alone, and nothing of a text that ends the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_BROKEN = "�"  # what decoders make of bytes that are no UTF-8, or not yet


class TextStream:
    """Makes of ids, one after the other, the pieces of their text.

    Parameters
    ----------
    decode : callable
        From ids to text.
    stop : sequence of str
        Texts that end the stream; they are left out.

    Attributes
    ----------
    text : str
        All that has been given out.
    stopped : bool
        Whether one of the texts of `stop` has come.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode, self._stop = decode, [text for text in stop if text]
        self._ids: list[int] = []
        self._done = 0  # ids whose text has been taken
        self._base = 0  # where the ids begin that the next ones are decoded with
        self._held = ""
        self.text, self.stopped = "", False

    def add(self, token: int) -> str:
        """The piece of text that an id completes, which may be empty."""
        self._ids.append(token)
        before = self._decode(self._ids[self._base : self._done])
        both = self._decode(self._ids[self._base :])
        if len(both) <= len(before) or both.endswith(_BROKEN):
            return ""
        # Some decoders leave out the space of a first word: so the ids before are decoded again.
        self._base, self._done = self._done, len(self._ids)
        return self._give(both[len(before) :])

    def finish(self) -> str:
        """What is left, when no more ids come."""
        before = self._decode(self._ids[self._base : self._done])
        rest = self._decode(self._ids[self._base :])[len(before) :]
        self._done = len(self._ids)
        piece = self._give(rest)
        held, self._held = ("", "") if self.stopped else (self._held, "")
        self.text += held
        return piece + held

    def _give(self, piece: str) -> str:
        """A piece without what may be the beginning of a text that ends the stream, which is held back."""
        if self.stopped:
            return ""
        ready = self._held + piece.replace(_BROKEN, "")
        ends = [found for text in self._stop if (found := ready.find(text)) >= 0]
        if ends:
            self.stopped, keep = True, min(ends)
        else:
            keep = len(ready) - max((_overlap(ready, text) for text in self._stop), default=0)
        self._held = ready[keep:]
        self.text += ready[:keep]
        return ready[:keep]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


class IdStream:
    """Shows ids themselves, where there is no text to look for a stop in."""

    def __init__(self) -> None:
        self.text, self.stopped = "", False

    def add(self, token: int) -> str:
        """The id, after a space if it is not the first."""
        piece = f" {token}" if self.text else str(token)
        self.text += piece
        return piece

    def finish(self) -> str:
        """Nothing is left."""
        return ""
