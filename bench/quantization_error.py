"""What the weight formats cost and lose: bytes per weight and errors of random weights, as Markdown tables.

Prints the tables of docs/formats.md. The error of weights is ``||dequantized - w|| / ||w||`` of float32
weights, that of outputs the same distance between what an expert computes with the ones and the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np

import mxfp4moe as mx

SHAPE = (1024, 4096)
NUM_TOKENS, HIDDEN, INTERMEDIATE = 64, 1024, 512
STANDARD_DEVIATION = 0.02

Quantize = Callable[[np.ndarray], tuple[np.ndarray, ...]]
Dequantize = Callable[..., np.ndarray]


def fp8(block_shape: tuple[int | None, int | None]) -> tuple[Quantize, Dequantize]:
    """FP8 with a scale for each block of `block_shape`."""
    return (
        lambda w: mx.quantize_fp8_block(w, block_shape=block_shape),
        lambda values, scales: mx.dequantize_fp8_block(values, scales, block_shape=block_shape),
    )


def mxfp8(element: Any, scale_rule: Any = "floor") -> tuple[Quantize, Dequantize]:
    """MXFP8 of an element type."""
    return lambda w: mx.quantize_mxfp8(w, element=element, scale_rule=scale_rule), mx.dequantize_mxfp8


def mxfp4(scale_rule: Any = "floor") -> tuple[Quantize, Dequantize]:
    """MXFP4."""
    return lambda w: mx.quantize_mxfp4(w, scale_rule=scale_rule), mx.dequantize_mxfp4


def integers(bits: int, group_size: int | None, symmetric: bool = True) -> tuple[Quantize, Dequantize]:
    """Integers in groups, whose scales are bfloat16 numbers and stored as such."""
    quantize = mx.quantize_int4 if bits == 4 else mx.quantize_int8

    def quantized(w: np.ndarray) -> tuple[np.ndarray, ...]:
        codes, scales, zeros = quantize(w, group_size=group_size, symmetric=symmetric)
        return (codes, scales.astype(ml_dtypes.bfloat16), *([] if zeros is None else [zeros]))

    return quantized, mx.dequantize_int4 if bits == 4 else mx.dequantize_int8


FORMATS: dict[str, tuple[Quantize, Dequantize]] = {
    "`mxfp4`": mxfp4(),
    "`nvfp4`": (mx.quantize_nvfp4, mx.dequantize_nvfp4),
    "`mxfp8`, e4m3": mxfp8("e4m3"),
    "`mxfp8`, e5m2": mxfp8("e5m2"),
    "`fp8_block`, 128 x 128": fp8((128, 128)),
    "`fp8_block`, a row": fp8((1, None)),
    "`fp8_block`, a matrix": fp8((None, None)),
    "`int4`, groups of 32": integers(4, 32),
    "`int4`, groups of 64": integers(4, 64),
    "`int4`, groups of 128": integers(4, 128),
    "`int4`, groups of 128, zero points": integers(4, 128, symmetric=False),
    "`int4`, a row": integers(4, None),
    "`int8`, groups of 32": integers(8, 32),
    "`int8`, groups of 128": integers(8, 128),
    "`int8`, a row": integers(8, None),
    "`bf16`": (lambda w: (w.astype(ml_dtypes.bfloat16),), lambda w: w.astype(np.float32)),
}
RULES = ("floor", "ceil", "rceil", "even")


def weights() -> tuple[np.ndarray, np.ndarray]:
    """Gaussian weights, and as many of Student's t distribution, whose tails are heavy."""
    rng = np.random.default_rng(0)
    gaussian = rng.standard_normal(SHAPE) * STANDARD_DEVIATION
    heavy = rng.standard_t(4, SHAPE) * (
        STANDARD_DEVIATION / np.sqrt(2)
    )  # variance 2 with 4 degrees of freedom
    return gaussian.astype(np.float32), heavy.astype(np.float32)


def relative_error(w: np.ndarray, quantize: Quantize, dequantize: Dequantize) -> float:
    """Relative L2 distance of the weights that come back."""
    difference = dequantize(*quantize(w)).astype(np.float64) - w
    return float(np.linalg.norm(difference) / np.linalg.norm(w.astype(np.float64)))


def layer_output(hidden_states: np.ndarray, w: np.ndarray) -> np.ndarray:
    """What an expert makes of the hidden states: gate, up and down follow each other in `w`."""
    gate, up, down = w.reshape(3, -1)
    shape = (INTERMEDIATE, HIDDEN)
    gated, products = hidden_states @ gate.reshape(shape).T, hidden_states @ up.reshape(shape).T
    result: np.ndarray = (gated / (1 + np.exp(-gated)) * products) @ down.reshape(HIDDEN, INTERMEDIATE).T
    return result


def output_error(w: np.ndarray, quantize: Quantize, dequantize: Dequantize) -> float:
    """Relative L2 distance of the results of an expert, all of whose matrices are quantized."""
    hidden_states = np.random.default_rng(1).standard_normal((NUM_TOKENS, HIDDEN))
    matrices = w.reshape(-1)[: 3 * HIDDEN * INTERMEDIATE].reshape(3, -1)
    shapes = ((INTERMEDIATE, HIDDEN), (INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE))
    again = [
        dequantize(*quantize(np.ascontiguousarray(matrix.reshape(shape)))).reshape(-1)
        for matrix, shape in zip(matrices, shapes, strict=True)
    ]
    expected = layer_output(hidden_states, matrices.astype(np.float64))
    difference = layer_output(hidden_states, np.stack(again).astype(np.float64)) - expected
    return float(np.linalg.norm(difference) / np.linalg.norm(expected))


def percent(error: float) -> str:
    """Three digits."""
    return f"{100 * error:#.3g} %"


def format_table() -> Iterator[str]:
    """A line for each format."""
    gaussian, heavy = weights()
    yield "| format | bytes per weight | weights, Gaussian | heavy tails | outputs, Gaussian | heavy tails |"
    yield "|---|---|---|---|---|---|"
    for name, (quantize, dequantize) in FORMATS.items():
        nbytes = sum(a.nbytes for a in quantize(gaussian)) / gaussian.size
        errors = [
            percent(error(w, quantize, dequantize))
            for error in (relative_error, output_error)
            for w in (gaussian, heavy)
        ]
        yield f"| {name} | {nbytes:.4f} | {' | '.join(errors)} |"


def scale_rule_table() -> Iterator[str]:
    """A line for each scale rule of the MX formats."""
    makers = {"`mxfp4`": mxfp4, "`mxfp8`": lambda rule: mxfp8("e4m3", rule)}
    columns = [(name, kind) for name in makers for kind in ("Gaussian", "heavy tails")]
    yield f"| `scale_rule` | {' | '.join(f'{name}, {kind}' for name, kind in columns)} |"
    yield "|---" * (len(columns) + 1) + "|"
    data = dict(zip(("Gaussian", "heavy tails"), weights(), strict=True))
    for rule in RULES:
        errors = [percent(relative_error(data[kind], *makers[name](rule))) for name, kind in columns]
        yield f"| `{rule}` | {' | '.join(errors)} |"


if __name__ == "__main__":
    print("\n".join([*format_table(), "", *scale_rule_table()]))
