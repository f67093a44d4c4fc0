"""Draws the figures of docs/performance.md, which are in bench/figures.json, as SVG files of docs/images/.

Usage: python bench/speed_plots.py [FOLDER]

It also prints the rows of the page's tables. After a new run, write its figures into figures.json and the
rows into the page.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
WIDTH, HEIGHT = 680, 340
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 74, 52  # the margins of the plot area
INK, GRID = "#1f2933", "#d9dee3"


def text(x: float, y: float, words: str, *, anchor: str = "middle", size: int = 14) -> str:
    """A line of text; `anchor` says which of its points is at x: start, middle or end."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(words)}</text>'


def height(value: float, highest: float) -> float:
    """The y coordinate of a value on an axis from 0 to `highest`."""
    return HEIGHT - BOTTOM - value / highest * (HEIGHT - TOP - BOTTOM)


def frame(title: str, subtitle: str, ticks: Iterable[float], highest: float) -> list[str]:
    """The title, and a line across the plot for each tick of the y axis."""
    parts = [
        text(LEFT, 22, title, anchor="start", size=17),
        text(LEFT, 42, subtitle, anchor="start", size=13),
    ]
    for tick in ticks:
        y = height(tick, highest)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="{GRID}"/>')
        parts.append(text(LEFT - 8, y + 5, f"{tick:g}", anchor="end", size=13))
    return parts


def columns(tokens: list[str]) -> dict[str, float]:
    """The x coordinate of the middle of each number of tokens, and their names below the plot."""
    step = (WIDTH - LEFT - RIGHT) / len(tokens)
    return {number: LEFT + (index + 0.5) * step for index, number in enumerate(tokens)}


def token_axis(places: Mapping[str, float]) -> list[str]:
    """The numbers of tokens below the plot."""
    parts = [text(x, HEIGHT - BOTTOM + 20, number) for number, x in places.items()]
    return [*parts, text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, "tokens in a call", size=13)]


def legend(names: Mapping[str, str]) -> list[str]:
    """The name of each colour, in a line below the title."""
    parts, x = [], float(LEFT)
    for name, colour in names.items():
        parts.append(f'<rect x="{x:.0f}" y="52" width="12" height="12" fill="{colour}"/>')
        parts.append(text(x + 17, 63, name, anchor="start", size=13))
        x += 42 + 7.2 * len(name)
    return parts


def document(label: str, parts: Iterable[str]) -> str:
    """An SVG document on white, which reads on pages of any colour."""
    body = "\n".join(f"  {part}" for part in parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}"\n'
        f'     height="{HEIGHT}" role="img" font-family="system-ui, sans-serif" fill="{INK}">\n'
        f"  <title>{escape(label)}</title>\n"
        f'  <rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>\n{body}\n</svg>\n'
    )


def beside_peers(layer: dict[str, Any]) -> str:
    """Bars: the time that each peer takes for a call, where this package takes 1."""
    colours = {"mxfp4moe": "#0b6e8a", "onnxruntime": "#e0a030", "llama.cpp": "#9aa5b1"}
    title = "Time of a call beside other software (mxfp4moe = 1, lower is faster)"
    parts = frame(title, f"A layer of gpt-oss-20b, {layer['about']}", range(6), 5)
    places, bar = columns(list(layer["best_ms"])), 28
    for tokens, middle in places.items():
        times = {"mxfp4moe": 1.0} | {name: layer["times_faster"][name][tokens] for name in list(colours)[1:]}
        for index, (name, value) in enumerate(times.items()):
            x, y = middle + (index - 1.5) * bar, height(value, 5)
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{bar - 2}" height="{HEIGHT - BOTTOM - y:.1f}"'
                f' fill="{colours[name]}"/>'
            )
            if name != "mxfp4moe":
                parts.append(text(x + bar / 2 - 1, y - 4, f"{value:.2f}", size=11))
    return document(title, [*parts, *legend(colours), *token_axis(places)])


def shares(layers: Mapping[str, dict[str, Any]]) -> str:
    """Lines: the share of the roofline over the number of tokens."""
    colours = {
        "gpt-oss-20b, avx512": "#0b6e8a",
        "gpt-oss-20b, avx2": "#7fc4d6",
        "Qwen3, avx512": "#b4530a",
        "Qwen3, avx2": "#f0b070",
    }
    title = "Share of the roofline (1: as fast as memory or arithmetic allow)"
    parts = frame(title, f"One layer, {layers['gpt-oss-20b']['about']}", [0, 0.25, 0.5, 0.75, 1, 1.25], 1.25)
    places = columns(list(layers["gpt-oss-20b"]["best_ms"]))
    lines = [layer[key] for layer in layers.values() for key in ("share", "avx2_share")]
    for colour, line in zip(colours.values(), lines, strict=True):
        points = [(places[tokens], height(value, 1.25)) for tokens, value in line.items()]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>' for x, y in points]
    return document(title, [*parts, *legend(colours), *token_axis(places)])


def rows(layer: dict[str, Any]) -> str:
    """The rows of the table of a layer in docs/performance.md."""
    lines = []
    for tokens, ms in layer["best_ms"].items():
        ratios = [layer["share"], layer["fma_share"], *layer["times_faster"].values(), layer["avx2_share"]]
        cells = [tokens, _three(ms), *(f"{values[tokens]:.2f}".lstrip("0") for values in ratios)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _three(ms: float) -> str:
    """Three significant digits, without a zero before the point."""
    return f"{ms:.2f}".lstrip("0") if ms < 10 else f"{ms:.3g}"


def main() -> None:
    """Write the drawings, print the tables."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images"
    layers = json.loads((ROOT / "bench" / "figures.json").read_text())
    (folder / "speed.svg").write_text(beside_peers(layers["gpt-oss-20b"]))
    (folder / "roofline.svg").write_text(shares(layers))
    print("\n\n".join(rows(layer) for layer in layers.values()))


if __name__ == "__main__":
    main()
