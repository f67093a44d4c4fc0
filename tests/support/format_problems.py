"""Problems in every weight format, made from those of problems.py."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from problems import Problem, Shape, bfloat16, exact_problem, pack_nibbles, random_problem

from mxfp4moe import reference
from mxfp4moe.reference import ExpertArrays

# Name, of the weights' dtype where a format has several, the block shape of fp8_block; of integers the size
# of groups, the dtype of scales, and whether there are zero points, or offsets.
FORMATS: dict[str, dict[str, Any]] = {
    "mxfp4": {"format": "mxfp4"},
    "mxfp8-e4m3": {"format": "mxfp8", "dtype": ml_dtypes.float8_e4m3fn},
    "mxfp8-e5m2": {"format": "mxfp8", "dtype": ml_dtypes.float8_e5m2},
    "nvfp4": {"format": "nvfp4"},
    "fp8_block-128": {"format": "fp8_block", "block_shape": (128, 128)},
    "fp8_block-24x64": {"format": "fp8_block", "block_shape": (24, 64)},
    "fp8_block-rows": {"format": "fp8_block", "block_shape": (1, None)},
    "fp8_block-tensor": {"format": "fp8_block", "block_shape": (None, None)},
    "bf16": {"format": "bf16"},
    "int4": {"format": "int4", "group_size": 32, "scales": bfloat16, "zeros": False},
    "int4-zeros": {"format": "int4", "group_size": 32, "scales": np.float16, "zeros": True},
    "int8-rows": {"format": "int8", "group_size": None, "scales": np.float32, "zeros": False},
    "int8-zeros": {"format": "int8", "group_size": 32, "scales": bfloat16, "zeros": True},
    "int4-offsets": {"format": "int4", "group_size": 32, "scales": np.float32, "zeros": "offsets"},
    "int8-halves": {"format": "int8", "group_size": 16, "scales": np.float32, "zeros": False},
}
FREE_SIZES = tuple(name for name in FORMATS if name.startswith(("fp8_block", "bf16", "int8-rows")))
# Formats that may have tensor scales, and need none.
SCALABLE = tuple(name for name in FORMATS if not name.startswith(("nvfp4", "fp8_block", "int")))


def exact_format_problem(
    rng: np.random.Generator, shape: Shape, name: str, **options: Any
) -> tuple[Problem, Problem]:
    """An exact problem in MXFP4, and the same one in another format."""
    if FORMATS[name]["format"] == "int4":
        options["largest_code"] = 5  # 3.0: integers of four bits hold multiples of 1/2 up to that
    mxfp4 = exact_problem(rng, shape, **options)
    return mxfp4, mxfp4._replace(arrays=exact_arrays(rng, mxfp4.arrays, name))


def scale_rows(arrays: ExpertArrays, block_shape: Any, matrix: str) -> np.ndarray:
    """Row of the scales of each row of `matrix`."""
    rows = getattr(arrays, matrix).shape[1]
    apart = matrix == "w13" and arrays.gate_up_layout == "concatenated"
    part = rows // 2 if apart else rows
    block = block_shape[0] or part
    return np.arange(rows) // part * -(-part // block) + np.arange(rows) % part // block


def dequantized(arrays: ExpertArrays) -> dict[str, np.ndarray]:
    """w13 (rows as they are) and w2 in float64."""
    plain = arrays._replace(gate_up_layout="concatenated") if arrays.format == "mxfp4" else arrays
    both = [reference.moe._expert_weights(plain, e) for e in range(len(arrays.w13))]
    return {name: np.stack([getattr(w, name) for w in both]).astype(np.float64) for name in ("w13", "w2")}


def exact_arrays(rng: np.random.Generator, arrays: ExpertArrays, name: str) -> ExpertArrays:
    """The weights of MXFP4 `arrays`, which must be multiples of 1/2 up to 12, exactly in another format.

    Scales are random powers of two.
    """
    how = FORMATS[name]
    format = how["format"]
    if format == "mxfp4":
        return arrays
    weights = dequantized(arrays)
    result: dict[str, Any] = {"format": format, "w13_scales": None, "w2_scales": None}
    for matrix, w in weights.items():
        experts, rows, k = w.shape
        if format == "bf16":
            result[matrix] = w.astype(bfloat16)
        elif format == "mxfp8":
            exponents = rng.integers(-2, 2, (experts, rows, k // 32))
            result[matrix + "_scales"] = (127 + exponents).astype(np.uint8)
            result[matrix] = (w * np.ldexp(1.0, -exponents.repeat(32, axis=-1))).astype(how["dtype"])
        elif format == "nvfp4":
            halves = 2 if matrix == "w13" else 1
            exponents = rng.integers(-3, 4, (experts, halves))
            factors = np.ldexp(1.0, exponents)
            scales = getattr(arrays, matrix + "_scales").astype(np.float64)
            scales = np.ldexp(1.0, scales.astype(int) - 127).repeat(2, axis=-1)
            gate_or_up = np.arange(rows) * halves // rows
            if matrix == "w13" and arrays.gate_up_layout == "interleaved":
                gate_or_up = np.arange(rows) % 2
            scales = scales / factors[:, gate_or_up, None]
            result[matrix] = getattr(arrays, matrix)
            result[matrix + "_scales"] = scales.astype(ml_dtypes.float8_e4m3fn)
            result[matrix + "_tensor_scale"] = factors.astype(np.float32).reshape((experts, 2)[:halves])
        elif format in ("int4", "int8"):
            result |= _exact_integers(rng, matrix, w, getattr(arrays, matrix + "_scales"), how)
        else:
            block_k = how["block_shape"][1] or k
            by_row = scale_rows(arrays, how["block_shape"], matrix)
            exponents = rng.integers(-2, 2, (experts, by_row.max() + 1, -(-k // block_k)))
            factors = np.ldexp(1.0, exponents)
            by_weight = factors[:, by_row].repeat(block_k, axis=-1)[..., :k]
            result[matrix] = (w / by_weight).astype(ml_dtypes.float8_e4m3fn)
            result[matrix + "_scales"] = factors.astype(np.float32)
            result["block_shape"] = how["block_shape"]
    converted = arrays._replace(**result)
    for matrix, w in dequantized(converted).items():
        assert np.array_equal(
            w,
            np.concatenate([weights[matrix][:, 0::2], weights[matrix][:, 1::2]], axis=1)
            if matrix == "w13" and arrays.gate_up_layout == "interleaved"
            else weights[matrix],
        )
    return converted


def _exact_integers(
    rng: np.random.Generator, matrix: str, w: np.ndarray, mx_scales: np.ndarray, how: dict[str, Any]
) -> dict[str, np.ndarray]:
    """Integers that are `w`, with scales of a half or a quarter; of four bits, of half of the MX scales."""
    shape = (*w.shape[:-1], w.shape[-1] // (how["group_size"] or w.shape[-1]))
    if how["format"] == "int4":
        scales, zeros = np.ldexp(0.5, mx_scales.astype(int) - 127), np.full(shape, 8)
        spare = range(6, 10)  # zero points such that codes of -6 to 6 are not below 0 or above 15
    else:
        scales, zeros, spare = rng.choice([0.5, 0.25], shape), np.zeros(shape, int), range(-79, 80)
    if how["zeros"]:
        zeros = rng.choice(spare, shape)
    codes = w.reshape(*shape, -1) / scales[..., None] + zeros[..., None]
    assert (codes == np.rint(codes)).all()
    codes = codes.reshape(w.shape)
    dtype = np.uint8 if how["format"] == "int4" else np.int8
    assert (codes.astype(dtype) == codes).all()
    return {
        matrix: pack_nibbles(codes.astype(dtype)) if how["format"] == "int4" else codes.astype(dtype),
        matrix + "_scales": scales.astype(how["scales"]),
        **_zeros_or_offsets(matrix, zeros.astype(dtype), scales, how),
    }


def _zeros_or_offsets(
    matrix: str, zeros: np.ndarray, scales: np.ndarray, how: dict[str, Any]
) -> dict[str, np.ndarray]:
    """The zero points of integers, or the offsets that they stand for, if there are any."""
    if how["zeros"] != "offsets":
        return {matrix + "_zero_points": zeros} if how["zeros"] else {}
    counted = zeros.astype(np.int32) + (0 if how["format"] == "int4" else 128)
    return {matrix + "_offsets": (-counted * scales).astype(how["scales"])}


def with_tensor_scales(rng: np.random.Generator, arrays: ExpertArrays) -> ExpertArrays:
    """The same weights, a random power of two of each matrix moved to a tensor scale."""
    result: dict[str, Any] = {}
    for matrix, halves in (("w13", 2), ("w2", 1)):
        weights, scales = getattr(arrays, matrix), getattr(arrays, matrix + "_scales")
        experts, rows = weights.shape[:2]
        exponents = rng.integers(-3, 4, (experts, halves))
        gate_or_up = np.arange(rows) * halves // rows
        if matrix == "w13" and arrays.gate_up_layout == "interleaved":
            gate_or_up = np.arange(rows) % 2
        by_row = exponents[:, gate_or_up, None]
        if scales is None:
            result[matrix] = (weights.astype(np.float64) * np.ldexp(1.0, -by_row)).astype(weights.dtype)
        else:
            result[matrix + "_scales"] = (scales.view(np.uint8) - by_row).astype(np.uint8)
        factors = np.ldexp(np.float32(1), exponents)
        result[matrix + "_tensor_scale"] = factors.reshape((experts, 2)[:halves])
    return arrays._replace(**result)


def format_problem(rng: np.random.Generator, shape: Shape, name: str, **options: Any) -> Problem:
    """Random weights of order 1 / sqrt(K) in a format; hidden states as in `random_problem`."""
    how = FORMATS[name]
    if how["format"] == "mxfp4":
        return random_problem(rng, shape, **options)
    m, k, i, e, _ = shape
    even = Shape(m, -(-k // 32) * 32, -(-i // 32) * 32, e, shape.top_k)
    problem = random_problem(rng, even, **options)
    arrays = problem.arrays
    cut: dict[str, Any] = {"format": how["format"], "w13_scales": None, "w2_scales": None}
    if arrays.w13_bias is not None:
        cut["w13_bias"] = arrays.w13_bias[:, : 2 * i]
    if arrays.w2_bias is not None:
        cut["w2_bias"] = arrays.w2_bias[:, :k]
    for matrix, rows, columns in (("w13", 2 * i, k), ("w2", k, i)):
        w = rng.standard_normal((e, rows, columns)) / np.sqrt(columns)
        cut.update(_random_matrix(rng, w, matrix, how, arrays))
    hidden = np.ascontiguousarray(problem.hidden_states[:, :k])
    return problem._replace(hidden_states=hidden, arrays=arrays._replace(**cut))


def _random_matrix(
    rng: np.random.Generator, w: np.ndarray, matrix: str, how: dict[str, Any], arrays: ExpertArrays
) -> dict[str, Any]:
    """Codes and scales for weights like `w`: values that vary, not the best quantization."""
    experts, rows, k = w.shape
    format, deviation = how["format"], 1 / np.sqrt(k)
    if format == "bf16":
        return {matrix: w.astype(bfloat16)}
    if format == "mxfp8":
        exponents = rng.integers(-2, 2, (experts, rows, k // 32)) + round(np.log2(deviation))
        values = w * np.ldexp(1.0, -exponents.repeat(32, axis=-1))
        return {matrix: values.astype(how["dtype"]), matrix + "_scales": (127 + exponents).astype(np.uint8)}
    if format == "nvfp4":
        halves = 2 if matrix == "w13" else 1
        tensor = rng.uniform(0.5, 2, (experts, halves)).astype(np.float32) * np.float32(deviation / 3)
        return {
            matrix: rng.integers(0, 256, (experts, rows, k // 2), dtype=np.uint8),
            matrix + "_scales": rng.uniform(0.5, 2, (experts, rows, k // 16)).astype(ml_dtypes.float8_e4m3fn),
            matrix + "_tensor_scale": tensor.reshape((experts, 2)[:halves]),
        }
    if format in ("int4", "int8"):
        return _random_integers(rng, matrix, w.shape, how)
    rows_of = scale_rows(arrays._replace(**{matrix: w}), how["block_shape"], matrix)
    block_k = how["block_shape"][1] or k
    scales = rng.uniform(0.5, 2, (experts, rows_of.max() + 1, -(-k // block_k))).astype(np.float32)
    scales *= np.float32(deviation / 32)
    values = w / scales[:, rows_of].repeat(block_k, axis=-1)[..., :k]
    return {
        matrix: values.astype(ml_dtypes.float8_e4m3fn),
        matrix + "_scales": scales,
        "block_shape": how["block_shape"],
    }


def _random_integers(
    rng: np.random.Generator, matrix: str, shape: tuple[int, ...], how: dict[str, Any]
) -> dict[str, Any]:
    """Random codes, scales and zero points of weights of order 1 / sqrt(K)."""
    experts, rows, k = shape
    groups = experts, rows, k // (how["group_size"] or k)
    if how["format"] == "int4":
        codes, magnitude = rng.integers(0, 256, (experts, rows, k // 2), dtype=np.uint8), 5
        zeros = rng.integers(0, 16, groups).astype(np.uint8)
    else:
        codes, magnitude = rng.integers(-127, 128, shape).astype(np.int8), 73
        zeros = rng.integers(-128, 128, groups).astype(np.int8)
    scales = rng.uniform(0.5, 2, groups) / magnitude / np.sqrt(k)
    return {
        matrix: codes,
        matrix + "_scales": scales.astype(how["scales"]),
        **_zeros_or_offsets(matrix, zeros, scales * rng.uniform(0.9, 1.1, groups), how),
    }
