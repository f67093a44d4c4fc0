"""Regular expressions that a file holds: refused where matching a name could take very long.

Python's matcher tries every way in which repetitions can share a text. Where a repeated group can match in
several ways that grows exponentially with the text, and with r repetitions side by side as its r-th power.
Each group multiplies it by the number of its alternatives, each optional part by two.
"""

from __future__ import annotations

import math
import re

_MAX_LENGTH = 1000
_MAX_WIDE = 3  # repetitions of other than digits: a name of 120 characters has 300,000 ways to share them
_MAX_REPEATS = 16
_MAX_CHOICES = 1000  # ways through all alternatives and optional parts
_ATOMS = r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{\d*,?\d*\}|\(\?[a-zA-Z-]+[:)]|."
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
    alternatives, open_groups = [1], [0]  # of each group; the first is the whole text
    atoms: list[str] = re.findall(_ATOMS, text, re.DOTALL)
    for before, atom in zip(["", *atoms], atoms, strict=False):
        if atom[:2] == "(?" and "x" in atom:
            raise ValueError("expected no verbose expression, whose spaces hide what is repeated")
        if atom[0] == "(" and atom[-1] != ")":
            open_groups.append(len(alternatives))
            alternatives.append(1)
        elif atom == ")" and len(open_groups) > 1:
            open_groups.pop()
        elif atom == "|":
            alternatives[open_groups[-1]] += 1
        elif atom == "?" and before[-1:] not in ("(", "*", "+", "?", "}"):
            alternatives.append(2)
        if atom not in ("*", "+") and not (atom[0] == "{" and atom[-1] == "}" and len(atom) > 2):
            continue
        if before == ")":
            raise ValueError("expected no repeated group, which may take exponential time")
        repeats += 1
        wide += before not in _DIGITS
    if wide > _MAX_WIDE or repeats > _MAX_REPEATS:
        expected = f"at most {_MAX_WIDE} repetitions of other than digits, and {_MAX_REPEATS} in all"
        raise ValueError(f"expected {expected}, got {wide} and {repeats}")
    if math.prod(alternatives) > _MAX_CHOICES:
        raise ValueError(f"expected at most {_MAX_CHOICES} ways through alternatives and optional parts")
