"""A layer that is benchmarked in a moment, and the arguments of the command for it."""

from __future__ import annotations

from mxfp4moe.cli._bench import problem

TINY_SIZES = ["--hidden-size", "96", "--intermediate-size", "64", "--num-experts", "6", "--top-k", "2"]
TINY = ["bench", *TINY_SIZES, "--seconds", "0.02", "--threads", "1"]
TINY_SHAPE = problem.Shape("tiny", 96, 64, 6, 2, "swigluoai", limit=7.0, has_bias=True)
