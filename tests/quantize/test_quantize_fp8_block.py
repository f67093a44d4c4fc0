"""quantize_fp8_block and dequantize_fp8_block, on every kernel table, to the bit."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from exact_quantize import (
    DTYPES,
    ELEMENTS,
    any_bits,
    bfloat16,
    every_value,
    float8_e4m3fn,
    nearest_16_bit,
    nearest_code,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import mxfp4moe as mx
from mxfp4moe import reference

DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
BLOCK_SHAPES: list[Any] = [
    (128, 128),
    (32, 48),
    (1, None),
    (None, 1),
    (None, None),
    (7, 17),
    (1, 1),
    (10**30, 5),
]


def quantized(w: np.ndarray, block_shape: Any, nonfinite: Any = "raise") -> tuple[np.ndarray, np.ndarray]:
    values, scales = mx.quantize_fp8_block(w, block_shape=block_shape, nonfinite=nonfinite)
    assert (values.shape, values.dtype, scales.dtype) == (w.shape, float8_e4m3fn, np.float32)
    return values.view(np.uint8), scales


def assert_as_reference(w: np.ndarray, block_shape: Any) -> None:
    codes, scales = quantized(w, block_shape, "nan")
    expected_values, expected_scales = reference.quantize_fp8_block(w, block_shape, "nan")
    np.testing.assert_array_equal(scales, expected_scales)
    np.testing.assert_array_equal(codes, expected_values.view(np.uint8))


@DTYPE
@pytest.mark.parametrize("block_shape", BLOCK_SHAPES, ids=str)
def test_any_bits_as_the_reference(
    isa: str, rng: np.random.Generator, dtype: np.dtype[Any], block_shape: Any
) -> None:
    smooth = rng.standard_normal((2, 21, 70)) * 2.0 ** rng.integers(-14, 12, (2, 21, 1))
    assert_as_reference(smooth.astype(dtype), block_shape)
    assert_as_reference(any_bits(rng, dtype, (2, 21, 70)), block_shape)


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 500), (129, 1), (128, 128), (129, 257), (2, 3, 127, 15), (300, 33)]
)
def test_ragged_shapes_as_the_reference(isa: str, rng: np.random.Generator, shape: tuple[int, ...]) -> None:
    w = rng.standard_normal(shape).astype(np.float32)
    for block_shape in ((128, 128), (64, 32), (1, 16), (None, 100)):
        assert_as_reference(w, block_shape)
        values, scales = mx.quantize_fp8_block(w, block_shape=block_shape)
        assert scales.shape == (
            *shape[:-2],
            *(-(-n // (b or n)) for n, b in zip(shape[-2:], block_shape, strict=True)),
        )
        np.testing.assert_array_equal(
            mx.dequantize_fp8_block(values, scales, block_shape=block_shape),
            reference.dequantize_fp8_block(values, scales, block_shape),
        )


def test_by_numpy_and_ml_dtypes(isa: str, rng: np.random.Generator) -> None:
    """The definition in four lines, for whole blocks."""
    w = rng.standard_normal((3, 256, 384), np.float32)
    w[1] *= np.float32(1e-30)
    blocks = w.reshape(3, 2, 128, 3, 128)
    scales = np.abs(blocks).max(axis=(2, 4)) / np.float32(448)
    quotients = blocks / scales[:, :, None, :, None]
    expected = np.clip(quotients, -448, 448).astype(float8_e4m3fn).reshape(w.shape)
    codes, got_scales = quantized(w, (128, 128))
    np.testing.assert_array_equal(got_scales, scales)
    np.testing.assert_array_equal(codes, expected.view(np.uint8))


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), bfloat16], ids=str)
def test_every_16_bit_value(isa: str, dtype: np.dtype[Any]) -> None:
    """Beside 448, so that the scale is 1; those that are larger alone in a row, so that each is 448."""
    every = every_value(dtype)
    finite = every.view(np.uint16) & 0x7FFF < np.array(np.inf, dtype).view(np.uint16)
    small = every[finite & (every.view(np.uint16) & 0x7FFF <= np.array(448, dtype).view(np.uint16))]
    w = np.stack([small, np.full_like(small, 448)], axis=-1)
    codes, scales = quantized(w, (1, None))
    np.testing.assert_array_equal(scales, 1)
    np.testing.assert_array_equal(codes[:, 0], small.astype(np.float32).astype(float8_e4m3fn).view(np.uint8))
    assert_as_reference(every[:, None, None], (1, 1))


@pytest.mark.parametrize("factor", [1.0, 2.0**-140, 2.0**-1000, 2.0**110])
def test_float64_by_rationals(isa: str, rng: np.random.Generator, factor: float) -> None:
    w = rng.standard_normal((3, 50)) * factor
    midpoints = np.array([17, 19, 1.0625, 2.0**-10, 2.5 * 2.0**-9]) * factor
    w[0] = [
        448 * factor,
        *midpoints,
        *np.nextafter(midpoints, 1e300),
        *np.nextafter(midpoints, 0),
        *w[0, 16:],
    ]
    codes, scales = quantized(w, (1, None))
    for row in range(3):
        amax = max(Fraction(abs(v)) for v in w[row].tolist())
        scale = max(np.float32(float(amax) / 448), np.float32(2.0**-126))
        assert scales[row, 0] == scale
        for k in range(50):
            # In float64 the rounding of the quotient cannot reach a midpoint that the quotient is not on.
            code = nearest_code(abs(Fraction(w[row, k])) / Fraction(float(scale)), ELEMENTS["e4m3"])
            assert codes[row, k] == code + 128 * (w[row, k] < 0)


@DTYPE
def test_extreme_scales(isa: str, dtype: np.dtype[Any]) -> None:
    info = ml_dtypes.finfo(dtype)
    w = np.zeros((5, 20), dtype)
    w[1] = -0.0
    w[2, 3] = info.smallest_subnormal
    w[3, 4:6] = [info.max, -info.max]
    w[4, 19], w[4, 18] = info.smallest_normal, -0.0
    codes, scales = quantized(w, (1, None))
    largest = min(float(info.max) / 448, float(np.finfo(np.float32).max))
    expected = [
        1.0,
        1.0,
        np.float32(max(float(info.smallest_subnormal) / 448, 2.0**-126)),
        np.float32(largest),
        np.float32(max(float(info.smallest_normal) / 448, 2.0**-126)),
    ]
    np.testing.assert_array_equal(scales[:, 0], np.array(expected, np.float32))
    assert not codes[:2].any()  # zeros of either sign
    assert codes[3, 4] == 0x7E and codes[3, 5] == 0xFE
    assert codes[4, 18] == 0x80
    assert_as_reference(w, (1, None))


@DTYPE
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nonfinite(isa: str, rng: np.random.Generator, dtype: np.dtype[Any], value: float) -> None:
    w = rng.standard_normal((3, 50, 70)).astype(dtype)
    codes, scales = quantized(w, (32, 32))
    w[1, 2, 65] = w[1, 3, 4] = w[2, 49, 69] = value  # the first in memory is not in the first block
    with pytest.raises(
        ValueError, match=rf"^w: expected finite values, got {value} at position \(1, 2, 65\)$"
    ):
        mx.quantize_fp8_block(w, block_shape=(32, 32))
    nan_codes, nan_scales = quantized(w, (32, 32), "nan")
    changed = np.zeros(scales.shape, bool)
    changed[1, 0, 2] = changed[1, 0, 0] = changed[2, 1, 2] = True
    np.testing.assert_array_equal(nan_scales, np.where(changed, np.float32(np.nan), scales))
    elements = changed.repeat(32, axis=-1).repeat(32, axis=-2)[:, :50, :70]
    np.testing.assert_array_equal(nan_codes, np.where(elements, 0, codes))
    values = mx.dequantize_fp8_block(nan_codes, nan_scales, block_shape=(32, 32))
    np.testing.assert_array_equal(np.isnan(values), elements)


# --- dequantization -----------------------------------------------------------------------------------------


@pytest.mark.emulation
@pytest.mark.smoke
@DTYPE
def test_dequantize_every_code(isa: str, rng: np.random.Generator, dtype: np.dtype[Any]) -> None:
    codes = np.tile(np.arange(256, dtype=np.uint8), (6, 1))
    # Most products with these have more bits than a float32. The last is as large as bfloat16 can bear.
    scales = np.array([1.0, 0.1, 1 / 3, 1 + 2.0**-23, 2.0**-20 * 1.1, -1.7], np.float32)[:, None]
    got = mx.dequantize_fp8_block(codes, scales, block_shape=(1, None), dtype=dtype)
    assert got.dtype == dtype
    table = codes.view(float8_e4m3fn).astype(np.float64)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(table))
    exact = table * scales.astype(np.float64)  # in at most 28 bits
    numbers = ~np.isnan(exact)
    if dtype.itemsize == 2:
        expected = np.array([nearest_16_bit(v, dtype) for v in exact[numbers].tolist()])
        np.testing.assert_array_equal(got[numbers].astype(np.float64), expected)
    else:
        np.testing.assert_array_equal(got[numbers], exact[numbers].astype(dtype))
    np.testing.assert_array_equal(np.signbit(got)[numbers], np.signbit(exact)[numbers])


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), bfloat16], ids=str)
def test_dequantize_rounds_once(isa: str, dtype: np.dtype[Any]) -> None:
    """Products just beside a midpoint of two 16-bit values, which rounding to float32 would put on it."""
    midpoint = 1 + 2.0 ** -(ml_dtypes.finfo(dtype).nmant + 1)
    scale = np.float32(midpoint / 1.125)
    exact = float(scale) * 1.125
    assert exact != midpoint and np.float32(exact) == midpoint  # or the test shows nothing
    values = np.array([[1.125, -1.125]]).astype(float8_e4m3fn)
    got = mx.dequantize_fp8_block(values, scale.reshape(1, 1), block_shape=(1, None), dtype=dtype)
    expected = 1.0 if exact < midpoint else 1 + 2.0 ** -ml_dtypes.finfo(dtype).nmant
    np.testing.assert_array_equal(got.astype(float), [[expected, -expected]])


@DTYPE
def test_dequantize_any_scale_as_the_reference(
    isa: str, rng: np.random.Generator, dtype: np.dtype[Any]
) -> None:
    codes = rng.integers(0, 256, (60, 100), np.uint8)
    scales = any_bits(rng, np.dtype(np.float32), (12, 15))
    scales[0, :5] = [0.0, -0.0, np.inf, -np.inf, np.nan]
    scales[1, :3] = [np.float32(1e-45), np.finfo(np.float32).max, np.finfo(np.float32).smallest_normal]
    got = mx.dequantize_fp8_block(codes, scales, block_shape=(5, 7), dtype=dtype)
    expected = reference.dequantize_fp8_block(codes, scales, (5, 7), dtype)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    numbers = ~np.isnan(expected)
    bits = np.dtype(f"u{dtype.itemsize}")
    np.testing.assert_array_equal(got.view(bits)[numbers], expected.view(bits)[numbers])


matrices = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=3, max_side=20),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    fill=st.sampled_from([0.0, -0.0, 1.0, 450.0, -0.25]),
)


@given(w=matrices, rows=st.sampled_from([1, 8, None]), columns=st.sampled_from([1, 16, None]))
def test_error_is_half_a_step(isa: str, w: np.ndarray, rows: int | None, columns: int | None) -> None:
    values, scales = mx.quantize_fp8_block(w, block_shape=(rows, columns))
    got = mx.dequantize_fp8_block(values, scales, block_shape=(rows, columns), dtype=np.float64)
    amax = np.abs(w.astype(np.float64)).max(initial=0)
    # Half a step of E4M3 is 1/16 of a value, or 2^-10 of a scale. The float32 quotient and scale add 2^-22.
    scale = np.repeat(np.repeat(scales, rows or w.shape[-2], axis=-2), columns or w.shape[-1], axis=-1)
    scale = scale[..., : w.shape[-2], : w.shape[-1]].astype(np.float64)
    bound = np.maximum(np.abs(w.astype(np.float64)) / 16, scale * 2.0**-10) * (1 + 2.0**-22)
    assert (np.abs(got - w) <= bound).all()
    assert np.abs(got).max(initial=0) <= max(amax, 448 * 2.0**-126) * (1 + 2.0**-22)


@pytest.mark.emulation
@pytest.mark.parametrize(
    "shape",
    [(1, 40000), (700, 100), (3, 200, 250), pytest.param((40, 64, 32), marks=pytest.mark.smoke)],
    ids=str,
)
def test_threads_give_the_same_bytes(isa: str, rng: np.random.Generator, shape: tuple[int, ...]) -> None:
    w = rng.standard_normal(shape).astype(np.float32)
    for block_shape in ((128, 128), (None, None), (1, None), (None, 64)):
        values, scales = reference.quantize_fp8_block(w, block_shape)
        dequantized = reference.dequantize_fp8_block(values, scales, block_shape)
        for threads in (1, 2, 3, 7):
            with mx.num_threads(threads):
                codes, got_scales = quantized(w, block_shape)
                np.testing.assert_array_equal(codes, values.view(np.uint8))
                np.testing.assert_array_equal(got_scales, scales)
                got = mx.dequantize_fp8_block(values, scales, block_shape=block_shape)
                np.testing.assert_array_equal(got, dequantized)
