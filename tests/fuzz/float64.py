"""What the fused experts compute, written from docs/numerics.md and docs/formats.md alone, in float64.

Nothing of `mxfp4moe.reference` is used, so that a fault of the definition shows too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from fuzz.bounded import (
    EPS16,
    EPS32,
    Array,
    Bounded,
    add,
    clamp,
    dot,
    exactly,
    gated,
    multiply,
    rounded,
    soft_clamp,
)

ROUNDINGS = {  # unit, largest finite number, smallest positive one
    "float32": (EPS32, 3.4028234663852886e38, 2.0**-149),
    "float16": (2.0**-11, 65504.0, 2.0**-24),
    "bfloat16": (EPS16, 3.3895313892515355e38, 2.0**-133),
}


SMALL_GROUP = 16


class Options(NamedTuple):
    activation: str = "silu"
    alpha: float | None = None
    limit: float | None = None
    weight_on_input: bool = False


# --- elements -----------------------------------------------------------------------------------------------


def _minifloat(codes: Array, exponent_bits: int, mantissa_bits: int) -> Array:
    """Values of sign, exponent and mantissa with the usual bias; no code is special."""
    codes = codes.astype(np.int64)
    mantissa = codes & (1 << mantissa_bits) - 1
    exponent = codes >> mantissa_bits & (1 << exponent_bits) - 1
    negative = codes >> mantissa_bits + exponent_bits & 1
    significand = mantissa + (exponent > 0) * (1 << mantissa_bits)
    shift = np.maximum(exponent, 1) - ((1 << exponent_bits - 1) - 1) - mantissa_bits
    return np.where(negative, -1.0, 1.0) * np.ldexp(significand.astype(np.float64), shift)


def e2m1(packed: Array) -> Array:
    """The values of bytes that hold two codes each, the low half first."""
    return _minifloat(np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1), 2, 1)


def e4m3(codes: Array) -> Array:
    return np.where((codes & 127) == 127, np.nan, _minifloat(codes, 4, 3))


def e5m2(codes: Array) -> Array:
    special = np.where(codes & 3, np.nan, np.where(codes & 128, -np.inf, np.inf))
    return np.where((codes & 124) == 124, special, _minifloat(codes, 5, 2))


def e8m0(codes: Array) -> Array:
    return np.where(codes == 255, np.nan, np.ldexp(1.0, codes.astype(np.int64) - 127))


def to_bfloat16(values: Array) -> Array:
    """Rounded to nearest, ties to even, as float64."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    up = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    result = up.astype(np.uint32).view(np.float32).astype(np.float64)
    return np.where(np.isnan(values.astype(np.float64)), np.nan, result)


# --- matrices -----------------------------------------------------------------------------------------------


class Matrix(NamedTuple):
    """Weights of one expert as the kernels multiply them, and the scales of sums over them, both [N, K]."""

    weights: Array
    scales: Array
    offsets: Array | None = None
    """[N, K]: what each weight is more, and scales the sums of what it multiplies."""


def sums_of(x: Bounded, of: Matrix) -> Bounded:
    """x [T, K] times the matrix; what offsets add is computed apart."""
    sums = dot(x, of.weights, of.scales)
    if of.offsets is None:
        return sums
    return add(sums, dot(x, np.ones(of.offsets.shape), of.offsets))


def matrix(arrays: dict[str, Any], name: str, expert: int) -> Matrix:
    """Matrix `name` of arguments of `pack_experts`, rows as they come."""
    format, codes = format_of(arrays, name), np.asarray(arrays[name][expert])
    scales, zeros, offsets = (
        None if arrays.get(f"{name}_{each}") is None else np.asarray(arrays[f"{name}_{each}"][expert])
        for each in ("scales", "zero_points", "offsets")
    )
    if format in ("int4", "int8"):
        return _integers(format, codes, np.asarray(scales), zeros, offsets)
    weights = _elements(format, codes)
    rows, k = weights.shape
    if format == "fp8_block":
        return Matrix(weights, _block_scales(arrays, name, np.asarray(scales), (rows, k)))
    if scales is not None:
        by_block = e4m3(scales.view(np.uint8)) if format == "nvfp4" else e8m0(scales.view(np.uint8))
        weights = weights * by_block.repeat(k // by_block.shape[-1], axis=-1)
        weights = weights.astype(np.float32).astype(np.float64)
    of_rows = np.ones(rows)
    if arrays.get(f"{name}_tensor_scale") is not None:
        tensor = np.atleast_1d(arrays[f"{name}_tensor_scale"][expert]).astype(np.float64)
        of_rows = tensor[_halves(arrays, rows)] if name == "w13" else tensor.repeat(rows)
    return Matrix(weights, np.broadcast_to(of_rows[:, None], (rows, k)))


def format_of(arrays: dict[str, Any], name: str) -> str:
    """The format of matrix `name`, which may be one of a pair."""
    format = arrays["format"]
    return format if isinstance(format, str) else format[name == "w2"]


def _integers(format: str, codes: Array, scales: Array, zeros: Array | None, offsets: Array | None) -> Matrix:
    """Codes minus zero points, or counted from the lowest one, and the scale of each one's group."""
    if format == "int4":
        codes = codes.view(np.uint8)  # files may say that the bytes have a sign
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(len(codes), -1)
    size = codes.shape[1] // scales.shape[1]
    lowest, middle = (0, 8) if format == "int4" else (-128, 0)
    by_column = scales.astype(np.float64).repeat(size, axis=1)
    if zeros is not None:
        numbers = codes.astype(np.float64) - zeros.astype(np.float64).repeat(size, axis=1)
    else:
        numbers = codes.astype(np.float64) - (middle if offsets is None else lowest)
    added = None if offsets is None else offsets.astype(np.float64).repeat(size, axis=1)
    if size == SMALL_GROUP and scales.shape[1] > 1:  # whose scales multiply the weights
        products = (numbers * by_column).astype(np.float32).astype(np.float64)
        return Matrix(products, np.ones(products.shape), added)
    return Matrix(numbers, by_column, added)


def _elements(format: str, codes: Array) -> Array:
    if format == "bf16":
        return to_bfloat16(codes)
    if format == "float32":
        return codes.astype(np.float64)
    bits = codes.view(np.uint8)
    if format in ("mxfp4", "nvfp4"):
        return e2m1(bits.reshape(len(bits), -1))
    return e5m2(bits) if codes.dtype == np.dtype(ml_dtypes.float8_e5m2) else e4m3(bits)


def _halves(arrays: dict[str, Any], rows: int) -> Array:
    """0 for rows of gate, 1 for rows of up; 0 for all without a gate."""
    row = np.arange(rows)
    if not arrays.get("gated", True):
        return row * 0
    return row % 2 if arrays.get("gate_up_layout") == "interleaved" else row * 2 // rows


def _block_scales(arrays: dict[str, Any], name: str, scales: Array, shape: tuple[int, int]) -> Array:
    rows, k = shape
    block_rows, block_k = arrays.get("block_shape") or (128, 128)
    row = np.arange(rows)
    if name == "w13" and arrays.get("gated", True) and arrays.get("gate_up_layout") != "interleaved":
        half = rows // 2
        per_half = -(-half // (block_rows or half))
        of_row = row // half * per_half + row % half // (block_rows or half)
    else:
        of_row = row // (block_rows or rows)
    of_column = np.arange(k) // (block_k or k)
    return scales.astype(np.float64)[of_row[:, None], of_column]


# --- experts ------------------------------------------------------------------------------------------------


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def _soft(limit: float) -> Callable[[Array], Array]:
    bound = float(np.float32(limit))
    return lambda x: x if bound == math.inf else bound * np.tanh(x / bound)


def _phi(x: Array) -> Array:
    return 0.5 * np.vectorize(math.erfc, otypes=[np.float64])(-x / math.sqrt(2))


def _phi_tanh(x: Array) -> Array:
    return 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def activate(gate: Bounded, up: Bounded, options: Options) -> Bounded:
    """The intermediate before it is rounded."""
    name, limit = options.activation, options.limit
    if limit is None:
        limit = {"swigluoai": 7.0, "situ": 25.0}.get(name, math.inf)
    if name == "situ":
        alpha = 4.0 if options.alpha is None else options.alpha
        return multiply(gated(gate, _sigmoid, _soft(alpha)), soft_clamp(up, _soft(limit)))
    if name == "silu_clamp":
        return multiply(clamp(gated(gate, _sigmoid), -math.inf, limit), clamp(up, -limit, limit))
    gate, up = clamp(gate, -math.inf, limit), clamp(up, -limit, limit)
    if name == "swigluoai":
        alpha = float(np.float32(1.702 if options.alpha is None else options.alpha))
        return multiply(gated(gate, lambda g: _sigmoid(alpha * g)), add(up, exactly(np.ones(up.value.shape))))
    return multiply(gated(gate, {"silu": _sigmoid, "gelu": _phi, "gelu_tanh": _phi_tanh}[name]), up)


def relu2(up: Bounded, options: Options) -> Bounded:
    """The intermediate of experts without a gate, before it is rounded."""
    limit = math.inf if options.limit is None else options.limit
    positive = clamp(clamp(up, -limit, limit), 0.0, math.inf)
    return multiply(positive, positive)


def expert_output(
    x: Bounded, arrays: dict[str, Any], expert: int, weight: Bounded, options: Options
) -> Bounded:
    """[T, K] of one expert, router weights [T, 1] applied."""
    w13, w2 = matrix(arrays, "w13", expert), matrix(arrays, "w2", expert)
    columns = arrays.get("w13_columns")
    if columns is not None:
        x = Bounded(x.value[:, columns[expert]], x.error[:, columns[expert]])
    sums = sums_of(x, w13)
    if options.weight_on_input:
        sums = multiply(sums, weight)
    if arrays.get("w13_bias") is not None:
        sums = add(sums, exactly(np.asarray(arrays["w13_bias"][expert])[None]))
    half = _halves(arrays, len(w13.weights))
    parts = [Bounded(sums.value[:, rows], sums.error[:, rows]) for rows in (half == 0, half == 1)]
    intermediate = activate(*parts, options) if arrays.get("gated", True) else relu2(parts[0], options)
    down = sums_of(rounded(intermediate, *ROUNDINGS["bfloat16"]), w2)
    if arrays.get("w2_bias") is not None:
        down = add(down, exactly(np.asarray(arrays["w2_bias"][expert])[None]))
    return down if options.weight_on_input else multiply(down, weight)


def fused_experts(
    hidden: Array, arrays: dict[str, Any], topk_weights: Array, local_ids: Array, options: Options
) -> Bounded:
    """What experts give for hidden states [T, K] and ids [T, top_k], -1 for dropped slots, unrounded."""
    with np.errstate(all="ignore"):
        x = to_bfloat16(hidden)
        weights = topk_weights.astype(np.float32).astype(np.float64)
        total = exactly(np.zeros(x.shape))
        for expert in np.unique(local_ids[local_ids >= 0]):
            for slot in range(local_ids.shape[1]):
                tokens = np.flatnonzero(local_ids[:, slot] == expert)
                if tokens.size == 0:
                    continue
                router_weight = exactly(weights[tokens, slot, None])
                part = expert_output(exactly(x[tokens]), arrays, int(expert), router_weight, options)
                total = _add_rows(total, tokens, part)
        return total


def linear(hidden: Array, arguments: dict[str, Any]) -> Bounded:
    """What a matrix gives for hidden states [T, K] and arguments of `pack_linear`, not rounded yet."""
    arrays = {"w2": [arguments["weight"]]}
    arrays |= {
        f"w2_{name}": [arguments[name]]
        for name in ("scales", "zero_points", "offsets", "tensor_scale")
        if arguments.get(name) is not None
    }
    arrays |= {name: arguments.get(name) for name in ("format", "block_shape")}
    with np.errstate(all="ignore"):
        sums = sums_of(exactly(to_bfloat16(hidden)), matrix(arrays, "w2", 0))
        bias = arguments.get("bias")
        return sums if bias is None else add(sums, exactly(bias[None].astype(np.float64)))


def _add_rows(total: Bounded, tokens: Array, part: Bounded) -> Bounded:
    added = add(Bounded(total.value[tokens], total.error[tokens]), part)
    total.value[tokens], total.error[tokens] = added
    return total


def stored(result: Bounded, dtype: Any) -> Bounded:
    """Rounded to the type of the result."""
    with np.errstate(all="ignore"):
        return rounded(result, *ROUNDINGS[np.dtype(dtype).name])
