"""What to say of a name that is not there: how many names there are, and those most like it."""

from __future__ import annotations

import heapq
from collections.abc import Collection

from mxfp4moe._json import shorten

_NUM_SHOWN = 3
_MOST_CHARACTERS = 200  # of a name that are compared


def none_among(name: str, names: Collection[str]) -> str:
    """``none among 12; near: 'a', 'b'``, where names share at least half of `name` at their ends."""
    target = name[:_MOST_CHARACTERS]
    scored = ((_common_ends(target, other[:_MOST_CHARACTERS]), other) for other in names)
    best = heapq.nlargest(_NUM_SHOWN, (pair for pair in scored if 2 * pair[0] >= len(target)))
    near = f"; near: {', '.join(shorten(other) for _, other in best)}" if best else ""
    return f"none among {len(names)}{near}"


def _common_ends(a: str, b: str) -> int:
    """How many characters two names have in common at the beginning and, apart from these, at the end."""
    begin = _common_beginning(a, b)
    return begin + _common_beginning(a[begin:][::-1], b[begin:][::-1])


def _common_beginning(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
