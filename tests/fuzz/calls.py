"""Random calls of `fused_experts`, within the bounds of the float64 evaluation or exactly as it says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

import mxfp4moe as mx
from fuzz import float64
from fuzz.bounded import Array, misses
from fuzz.cases import Campaign, Case
from mxfp4moe import _core, config

BFLOAT16, E4M3 = np.dtype(ml_dtypes.bfloat16), np.dtype(ml_dtypes.float8_e4m3fn)
E5M2, E8M0 = np.dtype(ml_dtypes.float8_e5m2), np.dtype(ml_dtypes.float8_e8m0fnu)
FLOATS = (BFLOAT16, np.dtype(np.float16), np.dtype(np.float32))
# What K and I are multiples of.
FORMATS = {"mxfp4": 32, "mxfp8": 32, "nvfp4": 16, "fp8_block": 1, "bf16": 1, "int4": 2, "int8": 1}
INTEGERS = ("int4", "int8")
ACTIVATIONS = tuple(name for name, (gated, *_) in _core.ACTIVATION_RULES.items() if gated)
ALPHAS = {"swigluoai": (None, 1.0, 0.3, -2.0), "situ": (None, 1.0, 0.3, 1e-3, 1e9)}
SPECIAL = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-42, 3e38, -(2.0**-120))
TABLES = [table.name for table in config._TABLES if table.supported]

Rng = np.random.Generator


def chance(rng: Rng, probability: float) -> bool:
    return bool(rng.random() < probability)


def choose(rng: Rng, values: Any) -> Any:
    return values[int(rng.integers(len(values)))]


# --- weights ------------------------------------------------------------------------------------------------


class Sizes(NamedTuple):
    num_experts: int
    hidden: int
    intermediate: int


def random_sizes(rng: Rng, formats: tuple[str, str]) -> Sizes:
    multiples = [_multiple(rng, format) for format in formats]
    hidden, intermediate = (each * int(rng.integers(1, 160 // each + 1)) for each in multiples)
    return Sizes(int(rng.integers(1, 7)), hidden, intermediate)


def random_formats(rng: Rng) -> tuple[str, str]:
    """The formats of w13 and of w2, which mostly are the same."""
    first, second = choose(rng, list(FORMATS)), choose(rng, list(FORMATS))
    return (first, second) if chance(rng, 0.3) else (first, first)


def _multiple(rng: Rng, format: str) -> int:
    """What K is a multiple of; that of integers mostly has several groups."""
    return choose(rng, (FORMATS[format], 32, 32, 64)) if format in INTEGERS else FORMATS[format]


def random_experts(rng: Rng, special: bool, formats: tuple[str, str] | None = None) -> dict[str, Any]:
    """Arguments of `pack_experts`; `special` puts extreme values among the weights and scales."""
    formats = formats or random_formats(rng)
    sizes = random_sizes(rng, formats)
    arrays: dict[str, Any] = {
        "format": formats[0] if formats[0] == formats[1] else formats,
        "gate_up_layout": choose(rng, ("concatenated", "interleaved")),
    }
    parts = 2
    if chance(rng, 0.2):
        parts = 1
        arrays |= {"gate_up_layout": "concatenated", "gated": False}
    if "fp8_block" in formats:
        rows = choose(rng, (None, 1, 16, 24, 32, 128, int(rng.integers(1, 200))))
        arrays["block_shape"] = (rows, choose(rng, (None, 32, 64, 128)))
    dtypes = {"mxfp8": choose(rng, (E4M3, E5M2)), "bf16": choose(rng, FLOATS)}
    has_tensor_scales = "nvfp4" in formats or chance(rng, 0.3)
    shapes = {"w13": (parts * sizes.intermediate, sizes.hidden), "w2": (sizes.hidden, sizes.intermediate)}
    for (name, (rows, k)), format in zip(shapes.items(), formats, strict=True):
        shape = (sizes.num_experts, rows, k)
        if format in INTEGERS:
            arrays |= _random_integers(rng, format, name, shape, special)
        else:
            arrays[name] = _random_codes(rng, format, shape, dtypes.get(format), special)
            arrays[f"{name}_scales"] = _random_scales(rng, arrays, name, shape, special)
        if has_tensor_scales and format not in ("fp8_block", *INTEGERS):
            factors = (sizes.num_experts, parts) if name == "w13" else (sizes.num_experts,)
            arrays[f"{name}_tensor_scale"] = _random_factors(rng, factors, special)
        if chance(rng, 0.4):
            bias = rng.standard_normal((sizes.num_experts, rows)).astype(choose(rng, (np.float32, BFLOAT16)))
            arrays[f"{name}_bias"] = spoiled(rng, bias) if special and chance(rng, 0.2) else bias
    if chance(rng, 0.2):
        columns = np.tile(np.arange(sizes.hidden), (sizes.num_experts, 1))
        arrays["w13_columns"] = rng.permuted(columns, axis=1).astype(choose(rng, (np.int32, np.int64)))
    return arrays


def _random_integers(
    rng: Rng, format: str, name: str, shape: tuple[int, int, int], special: bool
) -> dict[str, Any]:
    """Codes, and for each group a scale and perhaps a zero point or an offset."""
    experts, rows, k = shape
    sizes = [k, *(size for size in (16, 32, 64) if size < k and k % size == 0)]
    groups = (experts, rows, k // choose(rng, sizes))
    is_small = groups[2] > 1 and k // groups[2] == float64.SMALL_GROUP
    low, high, dtype = (0, 16, np.uint8) if format == "int4" else (-128, 128, np.int8)
    codes = rng.integers(low, high, shape).astype(dtype)
    scale_dtype = choose(rng, FLOATS)
    scales = rng.uniform(-2, 2, groups) / (high - low) / math.sqrt(k) * choose(rng, (1, 10))
    kind = choose(rng, ("neither", "offsets") if is_small else ("neither", "offsets", "zero_points"))
    arrays: dict[str, Any] = {
        name: codes[..., 0::2] | codes[..., 1::2] << 4 if format == "int4" else codes,
        f"{name}_scales": scales.astype(scale_dtype),
    }
    if kind == "zero_points":
        arrays[f"{name}_zero_points"] = rng.integers(low, high, groups).astype(dtype)
    if kind == "offsets":
        middle = rng.uniform(0.4, 0.6, groups) * (high - low)
        arrays[f"{name}_offsets"] = (-middle * scales).astype(scale_dtype)
    for each in (f"{name}_scales", f"{name}_offsets"):
        if each in arrays and special and chance(rng, 0.3):
            arrays[each] = spoiled(rng, arrays[each])
    return arrays


def _random_codes(rng: Rng, format: str, shape: tuple[int, ...], dtype: Any, special: bool) -> Array:
    if format in ("mxfp4", "nvfp4"):
        return rng.integers(0, 256, (*shape[:-1], shape[-1] // 2), np.uint8)
    values = rng.standard_normal(shape) / (math.sqrt(shape[-1]) if format == "bf16" else 1)
    if format == "bf16":
        values = values.astype(dtype)
        return spoiled(rng, values) if special and chance(rng, 0.3) else values
    codes = (values * choose(rng, (1, 20))).astype(dtype or E4M3).view(np.uint8)
    if special and chance(rng, 0.3):
        codes.reshape(-1)[rng.integers(codes.size, size=3)] = rng.integers(0, 256, 3)  # NaN and infinity too
    return codes.view(dtype or choose(rng, (E4M3, np.uint8)))


def _random_scales(rng: Rng, arrays: dict[str, Any], name: str, shape: tuple[int, ...], special: bool) -> Any:
    experts, rows, k = shape
    format = float64.format_of(arrays, name)
    if format == "bf16":
        return None
    if format == "fp8_block":
        block_rows, block_k = arrays["block_shape"]
        apart = name == "w13" and arrays["gate_up_layout"] == "concatenated" and arrays.get("gated", True)
        halves = 2 if apart else 1
        blocks = halves * -(-(rows // halves) // (block_rows or rows)), -(-k // (block_k or k))
        return _random_factors(rng, (experts, *blocks), special)
    if format == "nvfp4":
        scales = rng.uniform(0.25, 2, (experts, rows, k // 16)).astype(E4M3).view(np.uint8)
        low, high = 0, 256
    else:
        middle = 127 - round(math.log2(k) / 2)
        scales = rng.integers(middle - 2, middle + 2, (experts, rows, k // 32)).astype(np.uint8)
        low, high = choose(rng, ((0, 256), (0, 20), (235, 256)))
    if special and chance(rng, 0.4):
        where = rng.random(scales.shape) < choose(rng, (0.01, 0.3))
        scales[where] = rng.integers(low, high, int(where.sum()))
    return scales.view(choose(rng, (np.uint8, E4M3 if format == "nvfp4" else E8M0)))


def _random_factors(rng: Rng, shape: tuple[int, ...], special: bool) -> Array:
    factors = (rng.uniform(0.1, 1, shape) * choose(rng, (0.05, -0.1, 1))).astype(np.float32)
    return spoiled(rng, factors) if special and chance(rng, 0.3) else factors


def spoiled(rng: Rng, array: Array) -> Array:
    """One to three elements replaced by extreme ones."""
    result = array.copy()
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(rng.integers(1, 4)):
            result.reshape(-1)[rng.integers(result.size)] = np.float32(choose(rng, SPECIAL)).astype(
                result.dtype
            )
    return result


def as_given(rng: Rng, arrays: dict[str, Any]) -> dict[str, Any]:
    """The same arguments in another form: a list with an array for each expert, or a pair (gate, up)."""
    given = dict(arrays)
    has_scales = given["w13_scales"] is not None
    names = [f"w13{each}" for each in ("", "_scales", "_zero_points", "_offsets")]
    names = [name for name in names if given.get(name) is not None]
    if arrays["gate_up_layout"] == "concatenated" and arrays.get("gated", True) and chance(rng, 0.3):
        for name in names:
            half = given[name].shape[1] // 2
            given[name] = given[name][:, :half], np.ascontiguousarray(given[name][:, half:])
        given["w13_scales"] = given["w13_scales"] if has_scales else None
    elif chance(rng, 0.3):
        for name in names:
            given[name] = list(given[name])
    elif chance(rng, 0.3):
        given["w13"] = np.asfortranarray(given["w13"])
    return given


# --- calls --------------------------------------------------------------------------------------------------


class Inputs(NamedTuple):
    hidden: Array
    weights: Array
    ids: Array
    expert_map: Array | None

    def local_ids(self) -> Array:
        ids = self.ids.astype(np.int64)
        return (
            ids if self.expert_map is None else np.where(ids < 0, -1, self.expert_map.astype(np.int64)[ids])
        )


def random_inputs(rng: Rng, num_experts: int, hidden_size: int, special: bool) -> Inputs:
    tokens = int(choose(rng, (0, 1, 1, 2, 3, 5, 8, 15, 16, 17, 33, 70)))
    top_k = int(choose(rng, (0, 1, 1, 2, 2, 3, 4, 7)))
    leading = choose(rng, ((tokens,), (tokens, 1), (1, tokens))) if tokens != 1 or chance(rng, 0.5) else ()
    expert_map, num_ids = None, num_experts
    if chance(rng, 0.3):
        num_ids = num_experts + int(rng.integers(0, 5))
        expert_map = rng.integers(-1, num_experts, num_ids).astype(choose(rng, (np.int64, np.int32, np.int8)))
    hot = int(rng.integers(1, num_ids + 1))  # of so many experts all tokens choose
    ids = rng.integers(-1 if chance(rng, 0.3) else 0, hot, (*leading, top_k))
    ids = ids.astype(choose(rng, (np.int32, np.int64, np.int16, np.int8)))
    hidden = rng.standard_normal((*leading, hidden_size)) * choose(rng, (1, 1, 0.01, 30))
    weights = rng.uniform(-0.2, 1, (*leading, top_k)).astype(choose(rng, (np.float32, np.float64, BFLOAT16)))
    hidden = hidden.astype(choose(rng, FLOATS))
    if special and hidden.size and chance(rng, 0.3):
        hidden = spoiled(rng, hidden)
    if special and weights.size and chance(rng, 0.2):
        weights = spoiled(rng, weights)
    return Inputs(hidden, weights, ids, expert_map)


def strided(rng: Rng, array: Array) -> Array:
    """The same elements with other strides."""
    match rng.integers(6) if array.ndim else 0:
        case 1:  # a gap between rows
            wide = np.zeros((*array.shape[:-1], array.shape[-1] + 3), array.dtype)
            wide[..., 1:-2] = array
            return wide[..., 1:-2]
        case 2:  # a last axis that is not contiguous
            wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
            wide[..., ::2] = array
            return wide[..., ::2]
        case 3:  # backwards
            return array[::-1].copy()[::-1]
        case 4:
            return np.asfortranarray(array)
        case 5:
            result = array.copy()
            result.flags.writeable = False
            return result
    return array


def random_options(rng: Rng, gated: bool) -> float64.Options:
    activation = choose(rng, ACTIVATIONS) if gated else "relu2"
    alpha = choose(rng, ALPHAS.get(activation, (None,)))
    return float64.Options(
        activation, alpha, choose(rng, (None, None, 0.5, 7.0, 100.0, math.inf)), chance(rng, 0.2)
    )


class Target(NamedTuple):
    """An `out`, and the memory around it that must stay as it is."""

    out: Array
    around: Array
    before: bytes

    def check(self) -> None:
        self.out[...] = 0
        assert self.around.tobytes() == self.before, "memory beside out was written"


def random_target(rng: Rng, shape: tuple[int, ...]) -> Target:
    dtype = choose(rng, FLOATS)
    if len(shape) == 1:
        around = np.full((shape[0] + 2,), 7, dtype)
        out = around[1:-1]
    else:
        around = np.full((*shape[:-1], shape[-1] + choose(rng, (2, 16))), 7, dtype)
        out = around[..., 1 : 1 + shape[-1]]
    out[...] = 0
    before = around.tobytes()
    out[...] = np.nan
    return Target(out, around, before)


def run_call(rng: Rng) -> str:
    special = chance(rng, 0.4)
    arrays = random_experts(rng, special)
    table, options = choose(rng, TABLES), random_options(rng, arrays.get("gated", True))
    with config._use_kernels(table):
        experts = mx.pack_experts(**as_given(rng, arrays))
        inputs = random_inputs(rng, experts.num_experts, experts.hidden_size, special)
        given = inputs._replace(**{n: strided(rng, getattr(inputs, n)) for n in ("hidden", "weights", "ids")})
        arguments: dict[str, Any] = {
            "activation": options.activation,
            "alpha": options.alpha,
            "limit": options.limit,
            "apply_router_weight_on_input": options.weight_on_input,
            "expert_map": given.expert_map,
        }
        before = [array.tobytes() for array in given if array is not None]
        result = mx.fused_experts(
            given.hidden, experts, given.weights, given.ids, num_threads=int(rng.integers(1, 4)), **arguments
        )
        check(result, arrays, inputs, options, table)
        assert before == [array.tobytes() for array in given if array is not None], "an input was written"
        check_forms(rng, result, experts, given, arguments)
    return f"{_text(arrays)}, {table}" + (", special" if special else "")


def _text(arrays: dict[str, Any]) -> str:
    format = arrays["format"]
    return format if isinstance(format, str) else "a pair"


def check(
    result: Array, arrays: dict[str, Any], inputs: Inputs, options: float64.Options, table: str
) -> None:
    top_k = inputs.ids.shape[-1]
    hidden = inputs.hidden.reshape(-1, inputs.hidden.shape[-1])
    slots = (len(hidden), top_k)
    weights, ids = inputs.weights.reshape(slots), inputs.local_ids().reshape(slots)
    assert result.dtype == inputs.hidden.dtype and result.shape == inputs.hidden.shape
    expected = float64.stored(float64.fused_experts(hidden, arrays, weights, ids, options), result.dtype)
    wrong = misses(result.reshape(hidden.shape), expected)
    if wrong.any():
        first = tuple(map(int, np.argwhere(wrong)[0]))
        got, value, error = result.reshape(hidden.shape)[first], expected.value[first], expected.error[first]
        raise AssertionError(
            f"{wrong.sum()} of {wrong.size} values of {arrays['format']} on {table} with {options}, "
            f"first at {first}: got {got}, expected {value} within {error}"
        )


def check_forms(rng: Rng, result: Array, experts: Any, given: Inputs, arguments: dict[str, Any]) -> None:
    """The same call for `out`, in place, for one token, and on other threads gives the same bits."""
    target = random_target(rng, result.shape)

    def call(hidden: Array, weights: Array, ids: Array, **more: Any) -> Array:
        return mx.fused_experts(hidden, experts, weights, ids, **arguments, **more)

    assert call(given.hidden, given.weights, given.ids, out=target.out) is target.out
    if target.out.dtype == result.dtype:
        assert same_bits(target.out, result)
    target.check()
    in_place = given.hidden.copy()
    call(in_place, given.weights, given.ids, out=in_place, num_threads=1)
    assert same_bits(in_place, result), "in place, on one thread"
    if result.ndim == 2 and len(result):
        t = int(rng.integers(len(result)))
        alone = call(given.hidden[t], given.weights[t], given.ids[t])
        assert same_bits(alone, result[t]), f"token {t} alone"


def same_bits(a: Array, b: Array) -> bool:
    """Whether all bits are equal, but for those of NaN."""
    bits = [np.where(np.isnan(x), np.nan, x).astype(x.dtype).tobytes() for x in (a, b)]
    return bits[0] == bits[1]


def _prepare(folder: Path) -> Case:
    return run_call


CALLS = Campaign("calls", _prepare)
