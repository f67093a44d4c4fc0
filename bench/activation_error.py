"""Errors of a layer of gpt-oss-20b by what activations are rounded to, as docs/performance.md shows them.

    python bench/activation_error.py

The hidden states are normal numbers, or of Student's t distribution with four degrees of freedom. Errors are
relative L2, against float64. Rows in brackets are roundings that no kernel has, computed in float64.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

import mxfp4moe as mx
from mxfp4moe import reference
from mxfp4moe.cli._bench import problem
from mxfp4moe.cli._bench.contenders import PEERS
from mxfp4moe.reference._precision import Precision
from mxfp4moe.reference.moe import ExpertOptions, evaluate_experts

TOKENS = 32
SHAPE = replace(problem.SHAPES["gpt-oss-20b"], num_experts=4)


def rounded(x: np.ndarray, block: int, outliers: int) -> np.ndarray:
    """`x` in blocks of eight bits, whose largest numbers are exact, as two terms would make them."""
    blocks = x.astype(np.float64).reshape(-1, block)
    magnitudes = np.sort(abs(blocks), axis=-1)
    amax = magnitudes[:, -1 - outliers, None]
    scale = np.where(amax > 0, amax / 127, 1)
    near = np.clip(np.rint(blocks / scale), -127, 127) * scale
    return np.where(abs(blocks) > amax, blocks, near).reshape(x.shape)


def as_kernels_round(x: np.ndarray) -> np.ndarray:
    """`x` rounded to eight bits as the kernels do it, in float32: of other ties than in float64."""
    values, scales = reference.quantize_activations(x.astype(np.float32))
    return (values.astype(np.float64) * scales[..., None]).reshape(x.shape)


def error(got: np.ndarray, expected: np.ndarray) -> str:
    """Relative L2."""
    return f"{np.linalg.norm(got.astype(np.float64) - expected) / np.linalg.norm(expected):.2e}"


def main() -> None:
    rng = np.random.default_rng(0)
    arrays = problem.random_arrays(SHAPE, rng)
    experts = problem.pack(SHAPE, arrays)
    weights = {
        name: np.stack([reference.dequantize_mxfp4(*each) for each in zip(*both, strict=True)])
        for name, both in (("w13", arrays[:2]), ("w2", arrays[2:4]))
    }
    plain = arrays._replace(**weights, w13_scales=None, w2_scales=None, format="bf16")
    options = ExpertOptions(SHAPE.activation, None, SHAPE.limit, False)
    size = TOKENS, SHAPE.hidden_size
    print("| hidden states | activations | error | on the same rounded activations |\n|---|---|---|---|")
    for name, values in (
        ("normal", rng.standard_normal(size)),
        ("Student's t", rng.standard_t(4, size)),
    ):
        hidden = values.astype(ml_dtypes.bfloat16)
        batch = problem.Router(SHAPE, "uniform", rng).draw(hidden)
        routed = batch.topk_weights, batch.topk_ids

        def exact(rounding: Any, hidden: np.ndarray = hidden, routed: Any = routed) -> np.ndarray:
            precision = Precision(np.dtype(np.float64), rounding)
            return evaluate_experts(rounding(hidden), plain, routed, options, precision)

        expected = exact(lambda x: x.astype(np.float64))
        call = partial(
            mx.fused_experts, hidden, experts, *routed, activation=SHAPE.activation, limit=SHAPE.limit
        )
        for title, activation_format in (("bfloat16", None), ("int8", "int8")):
            got = call(activation_format=activation_format, out=np.empty(size, np.float32))
            same = "" if activation_format is None else error(got, exact(as_kernels_round))
            print(f"| {name} | {title} | {error(got, expected)} | {same} |", flush=True)
        if not PEERS["llama.cpp"].missing():
            peer = PEERS["llama.cpp"](SHAPE, arrays, mx.get_num_threads())
            print(f"| {name} | llama.cpp | {error(peer.prepare(batch)(), expected)} | |", flush=True)
        for title, block, outliers in (
            ("blocks of 16", 16, 0),
            ("blocks of 8", 8, 0),
            ("one outlier of 32 in two terms", 32, 1),
            ("two outliers of 32", 32, 2),
        ):
            got = exact(lambda x, block=block, outliers=outliers: rounded(x, block, outliers))
            print(f"| {name} | ({title}) | {error(got, expected)} | |", flush=True)


if __name__ == "__main__":
    main()
