"""Matrices in every weight format, as the arguments of `pack_linear`: down projections of experts."""

from __future__ import annotations

from typing import Any

import numpy as np
from format_problems import FORMATS, exact_format_problem, format_problem
from problems import Shape

from mxfp4moe import reference
from mxfp4moe.reference import ExpertArrays

Arguments = dict[str, Any]

MATRICES = (*FORMATS, "float32")


def of_down_projection(arrays: ExpertArrays) -> Arguments:
    """The down projection of the first expert."""
    each = {
        "weight": arrays.w2,
        "scales": arrays.w2_scales,
        "bias": arrays.w2_bias,
        "tensor_scale": arrays.w2_tensor_scale,
        "zero_points": arrays.w2_zero_points,
    }
    first = {name: None if array is None else array[0] for name, array in each.items()}
    return {**first, "format": arrays.format, "block_shape": arrays.block_shape}


def exact_matrix(rng: np.random.Generator, name: str, rows: int, k: int) -> Arguments:
    """Weights that are multiples of 1/2 up to 12, with a bias of small integers; k is a multiple of 32."""
    shape, of_problem = Shape(1, -(-rows // 32) * 32, k, 1, 1), "bf16" if name == "float32" else name
    _, problem = exact_format_problem(rng, shape, of_problem, bias="w2")
    arguments = cut_rows(of_down_projection(problem.arrays), rows)
    if name == "float32":  # of up to three terms: the last bits are those of 2**-12
        bits = rng.integers(-(2**11), 2**11, (rows, k))
        weight = arguments["weight"].astype(np.float32) + np.ldexp(bits, -12).astype(np.float32)
        arguments |= {"format": "float32", "weight": weight}
    return arguments


def random_matrix(rng: np.random.Generator, name: str, rows: int, k: int) -> Arguments:
    """Weights of order 1 / sqrt(K), with a bias of order 1; any sizes that the format allows."""
    even = -(-rows // 32) * 32
    if name == "float32":
        weight = rng.standard_normal((rows, k), np.float32) / np.float32(np.sqrt(k))
        bias = rng.standard_normal(rows, np.float32)
        return {"weight": weight, "scales": None, "bias": bias, "format": "float32"}
    arrays = format_problem(rng, Shape(1, even, k, 1, 1), name, bias="w2").arrays
    return cut_rows(of_down_projection(arrays), rows)


def cut_rows(arguments: Arguments, rows: int) -> Arguments:
    """The same matrix with fewer rows."""
    cut = {name: arguments[name][:rows] for name in ("weight", "bias") if arguments[name] is not None}
    scales = arguments["scales"]
    if scales is not None:
        if arguments["format"] == "fp8_block":
            scales = scales[: -(-rows // (arguments["block_shape"][0] or rows))]
        cut["scales"] = scales[:rows]
    if arguments.get("zero_points") is not None:
        cut["zero_points"] = arguments["zero_points"][:rows]
    return arguments | cut


def magnitude(hidden_states: np.ndarray, arguments: Arguments) -> np.ndarray:
    """What the magnitudes of all that is added up come to, in float64."""
    rounded = abs(reference.round_bfloat16(hidden_states))
    weights = np.eye(arguments_k(arguments), dtype=np.float32)
    exact = reference.linear_float64(weights, **(arguments | {"bias": None}))
    sums = rounded.astype(np.float64) @ abs(exact)
    return sums if arguments["bias"] is None else sums + abs(arguments["bias"].astype(np.float64))


def arguments_k(arguments: Arguments) -> int:
    """The columns of the matrix."""
    codes_per_byte = 2 if arguments["format"] in ("mxfp4", "nvfp4", "int4") else 1
    return int(arguments["weight"][0].size) * codes_per_byte
