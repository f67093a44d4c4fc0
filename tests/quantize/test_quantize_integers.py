"""quantize_int4, quantize_int8 and their inverses, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import mxfp4moe as mx
from mxfp4moe import reference

bfloat16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(t) for t in (np.float32, np.float16, bfloat16, np.float64)]
DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
BITS = pytest.mark.parametrize("bits", [4, 8])
SYMMETRIC = pytest.mark.parametrize("symmetric", [True, False])
QUANTIZE: dict[int, Callable[..., Any]] = {4: mx.quantize_int4, 8: mx.quantize_int8}
DEQUANTIZE: dict[int, Callable[..., Any]] = {4: mx.dequantize_int4, 8: mx.dequantize_int8}
REFERENCE: dict[int, Callable[..., Any]] = {4: reference.quantize_int4, 8: reference.quantize_int8}


def assert_same(got: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    for a, b in zip(got, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            assert a.tobytes() == b.tobytes()


def differences(
    bits: int, codes: np.ndarray, zero_points: np.ndarray | None, scales: np.ndarray
) -> np.ndarray:
    """Codes minus zero points, written down independently."""
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:-1], -1)
    zeros = np.full(scales.shape, 8 if bits == 4 else 0) if zero_points is None else zero_points.astype(int)
    return codes.astype(int) - zeros.repeat(codes.shape[-1] // scales.shape[-1], axis=-1)


@DTYPE
@BITS
@SYMMETRIC
@pytest.mark.parametrize("group_size", [32, 96, 192, 4096, None])
def test_quantize_is_the_reference(
    rng: np.random.Generator, dtype: np.dtype[Any], bits: int, symmetric: bool, group_size: int | None
) -> None:
    w = (rng.standard_normal((3, 5, 192)) * np.exp2(rng.integers(-8, 8, (3, 5, 1)))).astype(dtype)
    w[0, 0] = 0
    w[0, 1] = abs(w[0, 1])
    w[0, 2] = -abs(w[0, 2])
    w[1, :, :32] = 0
    options = {"group_size": group_size, "symmetric": symmetric}
    assert_same(QUANTIZE[bits](w, **options), REFERENCE[bits](w, **options))
    assert_same(QUANTIZE[bits](w, **options, num_threads=3), REFERENCE[bits](w, **options))


@DTYPE
@BITS
@SYMMETRIC
def test_errors_are_half_a_step(
    rng: np.random.Generator, dtype: np.dtype[Any], bits: int, symmetric: bool
) -> None:
    """All values are between two codes, and the largest is at most half a step beyond the last."""
    w = rng.standard_normal((40, 256)).astype(dtype)
    codes, scales, zeros = QUANTIZE[bits](w, symmetric=symmetric)
    values = differences(bits, codes, zeros, scales) * scales.astype(np.float64).repeat(32, axis=-1)
    # The scale and the quotient are rounded to 24 and 53 bits; codes count up to 255 steps.
    bound = scales.astype(np.float64).repeat(32, axis=-1) * (0.5 + 255 * 2.0**-23)
    assert (abs(values - w.astype(np.float64)) <= bound).all()
    again = DEQUANTIZE[bits](codes, scales, zeros, dtype=np.float64)
    np.testing.assert_array_equal(again, values)


@DTYPE
@BITS
@SYMMETRIC
def test_extreme_values(dtype: np.dtype[Any], bits: int, symmetric: bool) -> None:
    info = ml_dtypes.finfo(dtype)
    tiny, largest = float(info.smallest_subnormal), float(info.max)
    rows = [[largest, -largest], [tiny, 0], [-tiny, tiny], [largest, tiny], [-largest, 0], [-0.0, 0.0]]
    w = np.zeros((len(rows), 32), dtype)
    w[:, :2] = np.array(rows).astype(dtype)
    got = QUANTIZE[bits](w, symmetric=symmetric)
    with np.errstate(over="ignore"):
        assert_same(got, REFERENCE[bits](w, symmetric=symmetric))
    assert np.isfinite(got[1]).all()
    assert (got[1] >= 2.0**-126).all()
    if not symmetric:  # zero is a value of its group
        assert (differences(bits, *got[::2], got[1])[:, 2:] == 0).all()


def test_known_codes() -> None:
    w = np.zeros((2, 32), np.float32)
    w[0, :4] = [7.5, -7.5, 0.5, 1.5]
    w[1, :4] = [0, 15, 7.5, 8.5]
    codes, scales, zeros = mx.quantize_int4(w)
    assert zeros is None
    assert scales[:, 0].tolist() == [1, 2]
    assert codes[0, :2].tolist() == [0x0F, 0xA8]  # 15 for 8 above the middle, 0, ties to even
    codes, scales, zeros = mx.quantize_int4(w, symmetric=False)
    assert scales[:, 0].tolist() == [1, 1]
    assert zeros[:, 0].tolist() == [8, 0]
    assert codes[1, :2].tolist() == [0xF0, 0x88]
    codes8, scales, zeros = mx.quantize_int8(np.array([[-255.0, 0, 255, 1]]), symmetric=True, group_size=None)
    assert (codes8.tolist(), scales.tolist(), zeros) == ([[-128, 0, 127, 0]], [[2.0]], None)
    codes8, scales, zeros = mx.quantize_int8(np.array([[-1.0, 254.0]]), symmetric=False, group_size=None)
    assert (codes8.tolist(), scales.tolist(), zeros.tolist()) == ([[-128, 127]], [[1.0]], [[-127]])


@BITS
@SYMMETRIC
def test_nonfinite(rng: np.random.Generator, bits: int, symmetric: bool) -> None:
    w = rng.standard_normal((2, 96), np.float32)
    for value in (np.nan, np.inf, -np.inf):
        w[1, 40] = value
        with pytest.raises(
            ValueError, match=rf"^w: expected finite values, got {value} at position \(1, 40\)"
        ):
            QUANTIZE[bits](w, symmetric=symmetric)
        got = QUANTIZE[bits](w, symmetric=symmetric, nonfinite="nan")
        assert_same(got, REFERENCE[bits](w, symmetric=symmetric, nonfinite="nan"))
        assert np.isnan(got[1]).tolist() == [[False] * 3, [False, True, False]]


@DTYPE
@BITS
@pytest.mark.parametrize("scale_dtype", [np.dtype(np.float32), bfloat16, np.dtype(np.float16)], ids=str)
def test_dequantize_rounds_once(
    rng: np.random.Generator, dtype: np.dtype[Any], bits: int, scale_dtype: np.dtype[Any]
) -> None:
    """All codes with random scales, zero points or none; extreme scales; products on midpoints."""
    shape = (6, 256)
    codes = rng.integers(0, 256, (6, 256 * bits // 8)).astype(np.uint8)
    scales = rng.standard_normal((6, 8)).astype(scale_dtype)
    scales[0] = np.array([0, np.inf, np.nan, 1e-7, 6e4, 2.0**-14, 1 + 2.0**-8, 1 + 2.0**-11]).astype(
        scale_dtype
    )
    zeros: Any = rng.integers(0, 16, (6, 8)).astype(np.uint8)
    if bits == 8:
        codes, zeros = codes.view(np.int8), rng.integers(-128, 128, (6, 8)).astype(np.int8)
    inverse = {4: reference.dequantize_int4, 8: reference.dequantize_int8}[bits]
    for zero_points in (None, zeros):
        got = DEQUANTIZE[bits](codes, scales, zero_points, dtype=dtype)
        assert (got.shape, got.dtype) == (shape, dtype)
        with np.errstate(over="ignore"):
            expected = inverse(codes, scales, zero_points, dtype)
        np.testing.assert_array_equal(got.astype(np.float64), expected.astype(np.float64))


def test_large_arrays_are_split_over_threads(rng: np.random.Generator) -> None:
    w = rng.standard_normal((300, 1024), np.float32)
    one = mx.quantize_int4(w, symmetric=False, num_threads=1)
    assert_same(mx.quantize_int4(w, symmetric=False, num_threads=2), one)
    assert_same(
        (mx.dequantize_int4(*one, num_threads=2),),
        (mx.dequantize_int4(*one, num_threads=1),),
    )
