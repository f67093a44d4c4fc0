"""quantize_mxfp8 and dequantize_mxfp8, on every kernel table, to the bit."""

from __future__ import annotations

import functools
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from exact_quantize import (
    DTYPES,
    ELEMENTS,
    RULES,
    any_bits,
    bfloat16,
    every_value,
    exact_blocks,
    float8_e4m3fn,
    float8_e5m2,
    hard_blocks,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import mxfp4moe as mx
from mxfp4moe import reference

ELEMENT_DTYPES = {"e4m3": float8_e4m3fn, "e5m2": float8_e5m2}
LARGEST = {"e4m3": 448.0, "e5m2": 57344.0}

RULE = pytest.mark.parametrize("rule", RULES)
ELEMENT = pytest.mark.parametrize("element", ELEMENT_DTYPES)
DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def codes_and_scales(w: np.ndarray, element: Any, rule: Any, nonfinite: Any = "raise") -> Any:
    values, scales = mx.quantize_mxfp8(w, element=element, scale_rule=rule, nonfinite=nonfinite)
    assert (values.shape, values.dtype) == (w.shape, ELEMENT_DTYPES[element])
    assert (scales.shape, scales.dtype) == ((*w.shape[:-1], w.shape[-1] // 32), ml_dtypes.float8_e8m0fnu)
    return values.view(np.uint8), scales.view(np.uint8)


@DTYPE
@RULE
@ELEMENT
def test_rules_are_exact(isa: str, dtype: np.dtype[Any], rule: str, element: str) -> None:
    codes, scales = codes_and_scales(hard_blocks(dtype), element, rule)
    expected_codes, expected_scales = exact_blocks(dtype, rule, element)
    np.testing.assert_array_equal(scales, expected_scales)
    np.testing.assert_array_equal(codes, expected_codes)


@DTYPE
@RULE
@ELEMENT
def test_reference_is_exact(dtype: np.dtype[Any], rule: str, element: str) -> None:
    values, scales = reference.quantize_mxfp8(hard_blocks(dtype), element, rule)
    expected_codes, expected_scales = exact_blocks(dtype, rule, element)
    np.testing.assert_array_equal(scales.view(np.uint8), expected_scales)
    np.testing.assert_array_equal(values.view(np.uint8), expected_codes)


@DTYPE
@RULE
@ELEMENT
def test_any_bits_as_the_reference(
    isa: str, rng: np.random.Generator, dtype: np.dtype[Any], rule: str, element: str
) -> None:
    smooth = rng.standard_normal((300, 32)) * 2.0 ** rng.integers(-14, 12, (300, 1))
    sparse = smooth * (rng.random((300, 32)) < 0.1) * 2.0 ** rng.integers(-12, 1, (300, 32))
    w = np.concatenate([any_bits(rng, dtype, (300, 32)), smooth.astype(dtype), sparse.astype(dtype)])
    codes, scales = codes_and_scales(w, element, rule, "nan")
    expected_values, expected_scales = reference.quantize_mxfp8(w, element, rule, "nan")
    np.testing.assert_array_equal(scales, expected_scales.view(np.uint8))
    np.testing.assert_array_equal(codes, expected_values.view(np.uint8))


# --- rounding, against ml_dtypes ----------------------------------------------------------------------------


@pytest.mark.emulation
@pytest.mark.smoke
@pytest.mark.parametrize("dtype", [np.dtype(np.float16), bfloat16], ids=str)
@ELEMENT
def test_every_16_bit_value_as_ml_dtypes_rounds_it(isa: str, dtype: np.dtype[Any], element: str) -> None:
    largest = LARGEST[element]
    every = every_value(dtype)
    every = every[every.view(np.uint16) & 0x7FFF < np.array(np.inf, dtype).view(np.uint16)]
    # With the largest value in each block, and nothing twice the power of two in it, e is 0.
    every = every[np.abs(every.astype(np.float64)) < 2 * largest / 1.75]
    w = np.full((len(every), 32), largest, dtype)
    w[:, 11] = every
    codes, scales = codes_and_scales(w, element, "floor")
    with np.errstate(under="ignore"):
        expected = np.clip(every.astype(np.float32), -largest, largest).astype(ELEMENT_DTYPES[element])
    np.testing.assert_array_equal(scales, 127)
    np.testing.assert_array_equal(codes[:, 11], expected.view(np.uint8))


@functools.cache
def every_largest(dtype: np.dtype[Any], rule: str, element: str) -> tuple[np.ndarray, ...]:
    """Blocks with one value each, and their codes and scales by the reference."""
    w = np.zeros((2**16, 32), dtype)
    w[:, 7] = every_value(dtype)
    return w, *reference.quantize_mxfp8(w, element, rule, "nan")


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), bfloat16], ids=str)
@RULE
@ELEMENT
def test_every_16_bit_value_as_the_largest(isa: str, dtype: np.dtype[Any], rule: str, element: str) -> None:
    w, expected_values, expected_scales = every_largest(dtype, rule, element)
    codes, scales = codes_and_scales(w, element, rule, "nan")
    np.testing.assert_array_equal(scales, expected_scales.view(np.uint8))
    np.testing.assert_array_equal(codes, expected_values.view(np.uint8))
    assert (codes & 127).max() < (0x7F if element == "e4m3" else 0x7C)  # neither NaN nor infinity


@ELEMENT
@DTYPE
def test_midpoints_and_their_neighbours(isa: str, dtype: np.dtype[Any], element: str) -> None:
    for exponent in (0, -9) if dtype == np.float16 else (0, -9, 90, -110):
        check_midpoints(dtype, element, exponent)


def check_midpoints(dtype: np.dtype[Any], element: str, exponent: int) -> None:
    values = np.array(ELEMENTS[element].values, np.float64)
    midpoints = np.ldexp((values[:-1] + values[1:]) / 2, exponent)
    low = int(np.argmax(midpoints > 2 * float(ml_dtypes.finfo(dtype).smallest_normal)))
    ties = midpoints[low:].astype(dtype)
    index = np.arange(low, len(midpoints))
    even = index + index % 2
    w = np.zeros((len(ties), 32), dtype)
    w[:, 0], w[:, 1], w[:, 2] = (
        np.nextafter(ties, dtype.type(0)),
        ties,
        np.nextafter(ties, dtype.type(np.inf)),
    )
    w[:, 3:6] = -w[:, :3]
    w[:, 6] = np.ldexp(values[-1], exponent)
    codes, scales = codes_and_scales(w, element, "floor")
    np.testing.assert_array_equal(scales, exponent + 127)
    np.testing.assert_array_equal(codes[:, :3], np.stack([index, even, index + 1], axis=-1))
    np.testing.assert_array_equal(codes[:, 3:6], np.stack([index, even, index + 1], axis=-1) + 128)
    np.testing.assert_array_equal(codes[:, 6], len(values) - 1)


@DTYPE
@RULE
@ELEMENT
def test_too_large_saturates(isa: str, dtype: np.dtype[Any], rule: str, element: str) -> None:
    """ml_dtypes makes NaN or infinity of what is above the largest value; here nothing is."""
    w = np.zeros((4, 32), dtype)
    w[:, :8] = np.array([449, 456, 463, 464, 480, 495, 500, 508]) * (LARGEST[element] / 448 / 16)
    w[1] *= -1
    w[2, :4] = ml_dtypes.finfo(dtype).max
    w[3, 0] = -ml_dtypes.finfo(dtype).max
    values, scales = mx.quantize_mxfp8(w, element=element, scale_rule=rule)  # type: ignore[arg-type]
    assert np.isfinite(values.astype(np.float32)).all()
    if rule == "floor":
        largest = np.array(LARGEST[element])
        np.testing.assert_array_equal(values[:2, :8].astype(np.float64), [[largest] * 8, [-largest] * 8])
    if rule in ("ceil", "rceil"):  # half the widest step between values is 1/28 or 1/14 of the largest one
        dequantized = mx.dequantize_mxfp8(values, scales, dtype=np.float64)
        steps = {"e4m3": 16, "e5m2": 4096}[element] * scales.astype(np.float64).repeat(32, axis=-1)
        beyond = scales.view(np.uint8).repeat(32, axis=-1) == 254  # float64 alone
        assert (np.abs(dequantized - w.astype(np.float64)) <= steps)[~beyond].all()


def test_float64_is_rounded_once(isa: str) -> None:
    tiny = 2.0**-45  # lost in float32
    w = np.zeros((2, 32))
    w[0, :4] = [448, 17 + tiny, 17 - tiny, 17]
    w[1] = -w[0]
    codes, scales = codes_and_scales(w, "e4m3", "floor")
    even = [448, 18, 16, 16]
    np.testing.assert_array_equal(codes[:, :4].view(float8_e4m3fn).astype(float), [even, [-v for v in even]])
    np.testing.assert_array_equal(scales, 127)


@pytest.mark.parametrize(
    ("value", "code", "scale"),
    [
        (1.7e308, 0x7E, 254),  # the exponent stops at 127; saturates
        (448 * 2.0**127, 0x7E, 254),
        (2.0**135, 0x78, 254),
        (2.0**134, 0x78, 253),
        (2.0**-119, 0x78, 0),
        (2.0**-127, 0x38, 0),
        (2.0**-136, 0x01, 0),
        (2.0**-137, 0x00, 0),  # a tie with zero
        (np.nextafter(2.0**-137, 1), 0x01, 0),
        (5e-324, 0x00, 0),
    ],
)
def test_float64_beyond_float32(isa: str, value: float, code: int, scale: int) -> None:
    w = np.zeros((2, 32))
    w[:, 9] = [value, -value]
    codes, scales = codes_and_scales(w, "e4m3", "floor")
    np.testing.assert_array_equal(codes[:, 9], [code, code + 128])  # the sign stays
    assert np.count_nonzero(codes) == 2 - (code == 0)
    np.testing.assert_array_equal(scales, scale)


@DTYPE
@RULE
@ELEMENT
def test_zero_blocks(isa: str, dtype: np.dtype[Any], rule: str, element: str) -> None:
    w = np.zeros((4, 32), dtype)
    w[1] = -0.0
    w[2, ::3] = -0.0
    w[3, :3] = [-0.0, 0.0, LARGEST[element] * 4 / 7]  # not all zero: -0 keeps its sign
    expected = np.zeros((4, 32))
    expected[3, 0] = 128
    expected[3, 2] = 0x78
    codes, scales = codes_and_scales(w, element, rule)
    np.testing.assert_array_equal(codes, expected)
    np.testing.assert_array_equal(scales, [[0], [0], [0], [127]])


@DTYPE
@ELEMENT
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -np.nan])
def test_nonfinite(
    isa: str, rng: np.random.Generator, dtype: np.dtype[Any], element: Any, value: float
) -> None:
    w = rng.standard_normal((3, 5, 64)).astype(dtype)
    codes, scales = codes_and_scales(w, element, "floor")
    w[1, 2, 33] = w[2, 0, 0] = value
    with pytest.raises(
        ValueError, match=rf"^w: expected finite values, got {value} at position \(1, 2, 33\)$"
    ):
        mx.quantize_mxfp8(w, element=element)
    nan_codes, nan_scales = codes_and_scales(w, element, "floor", "nan")
    changed = np.zeros(scales.shape, bool)
    changed[1, 2, 1] = changed[2, 0, 0] = True
    np.testing.assert_array_equal(nan_scales, np.where(changed, 255, scales))
    elements = np.repeat(changed, 32, axis=-1)
    np.testing.assert_array_equal(nan_codes, np.where(elements, 0, codes))
    values = mx.dequantize_mxfp8(nan_codes.view(ELEMENT_DTYPES[element]), nan_scales)
    np.testing.assert_array_equal(np.isnan(values), elements)


# --- dequantization -----------------------------------------------------------------------------------------


@pytest.mark.emulation
@pytest.mark.smoke
@DTYPE
@ELEMENT
def test_dequantize_every_code_and_scale(isa: str, dtype: np.dtype[Any], element: str) -> None:
    codes = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    scales = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 8, axis=1)
    got = mx.dequantize_mxfp8(codes.view(ELEMENT_DTYPES[element]), scales, dtype=dtype)
    exact = np.full((256, 256), np.nan)
    for code in range(128):
        magnitudes = ELEMENTS[element].values
        value = float(magnitudes[code]) if code < len(magnitudes) else np.nan
        if element == "e5m2" and code == 0x7C:
            value = np.inf
        exact[:255, code] = np.ldexp(value, np.arange(-127, 128))
        exact[:255, code + 128] = -exact[:255, code]
    # Exact in float32 unless too large, so that this is one rounding to any 16-bit type.
    with np.errstate(over="ignore", under="ignore"):
        expected = exact.astype(dtype) if dtype == np.float64 else exact.astype(np.float32).astype(dtype)
    assert got.dtype == dtype
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    bits = np.dtype(f"u{dtype.itemsize}")
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(got.view(bits)[numbers], expected.view(bits)[numbers])


blocks_of_floats = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=1, max_dims=3, max_side=3).map(lambda shape: (*shape, 32)),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    fill=st.sampled_from([0.0, -0.0, 1.0, 450.0, -0.25]),
)


@given(w=blocks_of_floats, rule=st.sampled_from(RULES), element=st.sampled_from(["e4m3", "e5m2"]))
def test_round_trip_keeps_quantized_values(isa: str, w: np.ndarray, rule: Any, element: Any) -> None:
    values = mx.dequantize_mxfp8(*mx.quantize_mxfp8(w, element=element, scale_rule=rule), dtype=np.float64)
    assert np.isfinite(values).all()
    again = mx.dequantize_mxfp8(
        *mx.quantize_mxfp8(values, element=element, scale_rule=rule), dtype=np.float64
    )
    np.testing.assert_array_equal(again, values)


@given(w=blocks_of_floats)
def test_rceil_never_saturates(isa: str, w: np.ndarray) -> None:
    values, scales = mx.quantize_mxfp8(w, element="e4m3", scale_rule="rceil")
    error = np.abs(mx.dequantize_mxfp8(values, scales, dtype=np.float64) - w)
    # The widest step between E4M3 values is 32; an error is at most half of it.
    assert (error <= 16 * np.repeat(scales.astype(np.float64), 32, axis=-1)).all()


@pytest.mark.emulation
@pytest.mark.parametrize("num_blocks", [1, 511, 1024, 1537, 4099])
@ELEMENT
def test_threads_give_the_same_bytes(
    isa: str, rng: np.random.Generator, num_blocks: int, element: Any
) -> None:
    w = rng.standard_normal(num_blocks * 32, np.float32)
    values, scales = reference.quantize_mxfp8(w, element)
    dequantized = reference.dequantize_mxfp8(values, scales)
    for threads in (1, 2, 3, 7):
        with mx.num_threads(threads):
            codes, got_scales = codes_and_scales(w, element, "floor")
            np.testing.assert_array_equal(codes, values.view(np.uint8))
            np.testing.assert_array_equal(got_scales, scales.view(np.uint8))
            np.testing.assert_array_equal(mx.dequantize_mxfp8(values, scales), dequantized)
