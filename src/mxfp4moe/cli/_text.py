"""Text for terminals: no line is longer than 80 columns, but for words that are longer themselves."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

WIDTH = 80


def paragraph(text: str) -> str:
    """`text` in lines; those after the first are indented by two."""
    lines = textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)
    return "\n".join(lines)


def table(columns: Mapping[str, Sequence[str]], numbers: Sequence[str] = ()) -> str:
    """A table of `columns` by their titles; those called in `numbers` are aligned to the right.

    If it is too wide, the widest columns get narrower, and their texts continue on further lines.
    """
    widths = {title: max(map(len, [title, *texts])) for title, texts in columns.items()}
    room = WIDTH - 2 * (len(widths) - 1)
    while sum(widths.values()) > room and max(widths.values()) > 1:
        widths[max(widths, key=lambda title: widths[title])] -= 1
    lines = []
    for row in zip(*([title, *texts] for title, texts in columns.items()), strict=True):
        cells = [_wrap(text, width) for text, width in zip(row, widths.values(), strict=True)]
        for number in range(max(map(len, cells))):
            parts = (
                (cell[number] if number < len(cell) else "")
                .rjust(width if title in numbers else 0)
                .ljust(width)
                for cell, (title, width) in zip(cells, widths.items(), strict=True)
            )
            lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_on_hyphens=False) or [""]
