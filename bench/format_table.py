"""From the file of `mxfp4moe bench --json` to a Markdown table: one line for each weight format.

Usage: mxfp4moe bench --shape qwen3-30b-a3b --format all --json | python bench/format_table.py

A cell is the best time of a call in ms and the best share of the roofline of that very call.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def tables(figures: dict[str, Any]) -> Iterator[str]:
    """A table for each layer and contender."""
    groups: dict[tuple[Any, ...], list[tuple[str, list[dict[str, Any]]]]] = {}
    for result in figures["results"]:
        shape = result["shape"]
        weights = 3 * shape["hidden_size"] * shape["intermediate_size"]
        line = f"| `{shape['format']}` | {result['expert_bytes'] / weights:.4f} |"
        sizes = tuple(shape[size] for size in ("hidden_size", "intermediate_size", "num_experts", "top_k"))
        for contender in result["contenders"]:
            cells = [row for row in result["cells"] if row["contender"] == contender["name"]]
            groups.setdefault((sizes, contender["name"]), []).append((line, cells))
    for (sizes, contender), lines in groups.items():
        hidden, intermediate, experts, top_k = sizes
        yield (
            f"hidden_size {hidden}, intermediate_size {intermediate}, {experts} experts, top_k {top_k}, "
            f"{figures['routing']} routing, {contender}, {figures['threads']} threads:"
        )
        yield ""
        tokens = [row["tokens"] for row in lines[0][1]]
        yield f"| format | bytes per weight | {' | '.join(_title(number) for number in tokens)} |"
        yield "|---" * (2 + len(tokens)) + "|"
        for line, cells in lines:
            yield f"{line} {' | '.join(_cell(row) for row in cells)} |"
        yield ""


def _title(tokens: int) -> str:
    return f"{tokens} token{'s' if tokens > 1 else ''}"


def _cell(row: dict[str, Any]) -> str:
    ms = f"{row['best_ms']:#.3g}" if row["best_ms"] < 100 else f"{row['best_ms']:.0f}"
    return f"{ms} ms ({100 * row['share_of_roofline']:.0f} %)"


if __name__ == "__main__":
    text = sys.stdin.read() if len(sys.argv) < 2 else Path(sys.argv[1]).read_text()
    print("\n".join(tables(json.loads(text))))
