"""Regular expressions that a file holds: refused where matching a name could take very long.

Python's matcher tries every way in which repetitions can share a text. Where a repeated group can match in
several ways that grows exponentially with the text, and with r repetitions side by side as its r-th power.
"""

from __future__ import annotations

import re

_MAX_LENGTH = 1000
_MAX_WIDE = 3  # repetitions of other than digits: a name of 120 characters has 300,000 ways to share them
_MAX_REPEATS = 16
_DIGITS = ("\\d", "[0-9]")  # of which names have few in a row


def compile_pattern(text: str) -> re.Pattern[str]:
    """Compile `text`; raise a ValueError, which re.error is not, if it is wrong or may take very long."""
    if len(text) > _MAX_LENGTH:
        raise ValueError(f"expected at most {_MAX_LENGTH} characters, got {len(text)}")
    _check_repeats(text)
    try:
        return re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from None


def _check_repeats(text: str) -> None:
    wide = repeats = 0
    atoms: list[str] = re.findall(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{\d*,?\d*\}|.", text, re.DOTALL)
    for before, atom in zip(["", *atoms], atoms, strict=False):
        if atom not in ("*", "+") and not (atom[0] == "{" and atom[-1] == "}" and len(atom) > 2):
            continue
        if before == ")":
            raise ValueError("expected no repeated group, which may take exponential time")
        repeats += 1
        wide += before not in _DIGITS
    if wide > _MAX_WIDE or repeats > _MAX_REPEATS:
        expected = f"at most {_MAX_WIDE} repetitions of other than digits, and {_MAX_REPEATS} in all"
        raise ValueError(f"expected {expected}, got {wide} and {repeats}")
