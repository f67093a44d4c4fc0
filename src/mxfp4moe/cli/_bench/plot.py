"""A roofline plot of every measured call."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mxfp4moe.cli._bench.report import Result

_MARKERS = "osD^v<>P"


def unusable(path: str) -> str:
    """Why there can be no plot at `path`; empty if there can."""
    if importlib.util.find_spec("matplotlib") is None:
        return "the package matplotlib is not installed (pip install 'mxfp4moe[bench]')"
    try:
        canvas = importlib.import_module("matplotlib.backend_bases").FigureCanvasBase
    except ImportError as error:
        return f"the package matplotlib cannot be imported: {error}"
    suffix = Path(path).suffix[1:].lower()
    if suffix not in canvas.filetypes:
        return (
            f"expected a name that ends in .png or .{', .'.join(sorted(canvas.filetypes.keys() - {'png'}))}"
        )
    return ""


def save(results: Sequence[Result], file: BinaryIO, file_format: str) -> None:
    """Draw FLOP/s over FLOPs per byte of weights: a colour for each contender, a marker for each shape."""
    figure_class = importlib.import_module("matplotlib.figure").Figure  # needs no display
    figure = figure_class(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    colours: dict[str, str] = {}
    for result, marker in zip(results, _MARKERS * len(results), strict=False):
        for row in result["cells"]:
            colour = colours.setdefault(row["contender"], f"C{len(colours)}")
            seconds = np.array(row["call_seconds"])
            intensity = row["flops"] / np.array(row["call_bytes"])
            axes.scatter(intensity, row["flops"] / seconds, 12, c=colour, marker=marker, alpha=0.5, lw=0)
    _draw_roofs(axes, results, colours)
    for name, colour in colours.items():
        axes.scatter([], [], c=colour, label=name)
    for result, marker in zip(results, _MARKERS * len(results), strict=False):
        shape = result["shape"]
        axes.scatter([], [], c="grey", marker=marker, label=f"{shape['name']}, {shape['format']}")
    axes.set(xscale="log", yscale="log", xlabel="FLOPs per byte of weights", ylabel="FLOP/s")
    axes.grid(visible=True, which="both", alpha=0.2)
    axes.legend()
    figure.savefig(file, dpi=150, format=file_format.lower())


def _draw_roofs(axes: Any, results: Sequence[Result], colours: dict[str, str]) -> None:
    """One roof for each instruction set: the best bandwidth and peak of the run."""
    cells = [row for result in results for row in result["cells"]]
    intensities = [row["flops"] / nbytes for row in cells for nbytes in row["call_bytes"]]
    low, high = min(intensities) / 2, max(intensities) * 2
    x = np.geomspace(low, high, 200)
    bandwidth = max(result["read_bytes_per_s"] for result in results)
    for isa in results[0]["peak_flop_per_s"]:
        peak = max(result["peak_flop_per_s"][isa] for result in results)
        axes.plot(x, np.minimum(bandwidth * x, peak), color=colours[isa], lw=1)
