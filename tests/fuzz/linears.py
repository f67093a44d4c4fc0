"""Random matrices by hidden states against float64: formats, shapes, special values, strides, dtypes."""

from __future__ import annotations

from typing import Any

import numpy as np

import mxfp4moe as mx
from fuzz import float64
from fuzz.bounded import Array, misses
from fuzz.calls import (
    FLOATS,
    TABLES,
    chance,
    choose,
    random_experts,
    random_target,
    same_bits,
    spoiled,
    strided,
)
from fuzz.cases import Rng
from mxfp4moe import config


def random_matrix(rng: Rng, special: bool) -> dict[str, Any]:
    """Arguments of `pack_linear`: the down projection of a random expert, or weights of format float32."""
    arrays = random_experts(rng, special)
    values = {
        name: arrays.get(f"w2_{name}")
        for name in ("scales", "zero_points", "offsets", "tensor_scale", "bias")
    }
    values["weight"] = arrays["w2"]
    arguments = {name: None if value is None else value[0] for name, value in values.items()}
    format = float64.format_of(arrays, "w2")
    shape = arrays.get("block_shape") if format == "fp8_block" else None
    arguments |= {"format": format, "block_shape": shape}
    if arguments["format"] == "bf16" and chance(rng, 0.5):
        arguments |= {"format": "float32", "tensor_scale": None}
    return arguments


def run_linear(rng: Rng) -> str:
    """Check a call, and that other forms of it give the same bits."""
    special, table = chance(rng, 0.4), choose(rng, TABLES)
    arguments = random_matrix(rng, special)
    with config._use_kernels(table):
        linear = mx.pack_linear(**arguments, num_threads=int(rng.integers(1, 4)))
        tokens = int(rng.integers(0, 40))
        hidden = rng.standard_normal((tokens, linear.shape[1])).astype(choose(rng, FLOATS))
        if special and tokens and chance(rng, 0.5):
            hidden = spoiled(rng, hidden)
        given, dtype = strided(rng, hidden), choose(rng, FLOATS)
        result = linear(given, dtype=dtype, num_threads=int(rng.integers(1, 4)))
        check(result, hidden, arguments)
        target = random_target(rng, result.shape)
        assert linear(given, out=target.out) is target.out
        if target.out.dtype == result.dtype:
            assert same_bits(target.out, result)
        target.check()
        if tokens:
            t = int(rng.integers(tokens))
            assert same_bits(linear(given[t], dtype=dtype), result[t]), f"token {t} alone"
    return f"matrix in {arguments['format']}, {table}" + (", special" if special else "")


def check(result: Array, hidden: Array, arguments: dict[str, Any]) -> None:
    """Compare a result with the float64 evaluation."""
    expected = float64.stored(float64.linear(hidden, arguments), result.dtype)
    wrong = misses(result, expected)
    if wrong.any():
        first = tuple(map(int, np.argwhere(wrong)[0]))
        got, value, error = result[first], expected.value[first], expected.error[first]
        raise AssertionError(
            f"{wrong.sum()} of {wrong.size} values of {arguments['format']}, "
            f"first at {first}: got {got}, expected {value} within {error}"
        )
