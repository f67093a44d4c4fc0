"""quantize_nvfp4 and dequantize_nvfp4, on every kernel table, to the bit."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from exact_quantize import DTYPES, any_bits, bfloat16, every_value, float8_e4m3fn, nearest_16_bit
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import mxfp4moe as mx
from mxfp4moe import reference

DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def quantized(w: np.ndarray, nonfinite: Any = "raise") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    blocks, scales, tensor_scale = mx.quantize_nvfp4(w, nonfinite=nonfinite)
    *leading, k = w.shape
    assert (blocks.shape, blocks.dtype) == ((*leading, k // 2), np.uint8)
    assert (scales.shape, scales.dtype) == ((*leading, k // 16), float8_e4m3fn)
    assert isinstance(tensor_scale, np.ndarray)
    assert (tensor_scale.shape, tensor_scale.dtype) == (w.shape[:-2], np.float32)
    return blocks, scales.view(np.uint8), tensor_scale


def assert_as_reference(w: np.ndarray) -> None:
    blocks, scales, tensor_scale = quantized(w, "nan")
    expected_blocks, expected_scales, expected_tensor_scale = reference.quantize_nvfp4(w, "nan")
    np.testing.assert_array_equal(tensor_scale, expected_tensor_scale)
    np.testing.assert_array_equal(scales, expected_scales.view(np.uint8))
    np.testing.assert_array_equal(blocks, expected_blocks)


def codes_of(blocks: np.ndarray) -> np.ndarray:
    return np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:-1], -1)


@DTYPE
def test_any_bits_as_the_reference(isa: str, rng: np.random.Generator, dtype: np.dtype[Any]) -> None:
    smooth = rng.standard_normal((5, 20, 96)) * 2.0 ** rng.integers(-10, 8, (5, 20, 1))
    assert_as_reference(smooth.astype(dtype))
    assert_as_reference((smooth * (rng.random((5, 20, 96)) < 0.05)).astype(dtype))
    assert_as_reference(any_bits(rng, dtype, (40, 1, 32)))
    assert_as_reference(any_bits(rng, dtype, (9, 48)))


def test_by_numpy_and_ml_dtypes(isa: str, rng: np.random.Generator) -> None:
    w = rng.standard_normal((3, 24, 64), np.float32) * np.float32([[[1.0]], [[1e-3]], [[1e20]]])
    amax = np.abs(w).max(axis=(1, 2))
    tensor_scale = amax / np.float32(448 * 6)
    blocks = w.reshape(3, 24, 4, 16)
    wide = tensor_scale[:, None, None]
    block_scales = np.clip(np.abs(blocks).max(axis=-1) / np.float32(6) / wide, 0, 448).astype(float8_e4m3fn)
    divisors = (block_scales.astype(np.float32) * wide)[..., None]
    codes = (blocks / divisors).astype(ml_dtypes.float4_e2m1fn).reshape(w.shape)
    got_blocks, got_scales, got_tensor_scale = quantized(w)
    np.testing.assert_array_equal(got_tensor_scale, tensor_scale)
    np.testing.assert_array_equal(got_scales, block_scales.view(np.uint8))
    np.testing.assert_array_equal(got_blocks, mx.pack_e2m1(codes))


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), bfloat16], ids=str)
def test_every_16_bit_value(isa: str, dtype: np.dtype[Any]) -> None:
    """Each as the largest of a block, beside 2688 in a tensor, or alone in its own."""
    every = every_value(dtype)
    w = np.zeros((2**16, 16), dtype)
    w[:, 3] = every
    finite = every.view(np.uint16) & 0x7FFF <= np.array(2688, dtype).view(np.uint16)
    beside = np.zeros((int(finite.sum()) + 1, 16), dtype)
    beside[0, 0] = 2688
    beside[1:] = w[finite]
    _, scales, tensor_scale = quantized(beside)
    assert tensor_scale == 1
    amax = np.abs(every[finite].astype(np.float32)) / np.float32(6)
    np.testing.assert_array_equal(scales[1:, 0], amax.astype(float8_e4m3fn).view(np.uint8))
    assert_as_reference(beside)
    assert_as_reference(w[:, None, :])


@pytest.mark.emulation
@pytest.mark.smoke
@DTYPE
def test_exact_values_come_back(isa: str, rng: np.random.Generator, dtype: np.dtype[Any]) -> None:
    """Values that NVFP4 holds with tensor scale 1 come back; blocks that hold no 6 are left out."""
    codes = rng.integers(0, 16, (30, 4, 16), np.uint8)
    codes[..., 0] = 7
    scales = rng.choice(np.array([2.0**-6, 0.25, 1.0, 1.75, 14, 448]), (30, 4))
    scales[0, 0] = 448
    values = (reference.E2M1_VALUES[codes] * scales[..., None]).reshape(30, 64).astype(dtype)
    blocks, got_scales, tensor_scale = quantized(values)
    assert tensor_scale == 1
    np.testing.assert_array_equal(got_scales, scales.astype(float8_e4m3fn).view(np.uint8))
    np.testing.assert_array_equal(codes_of(blocks), codes.reshape(30, 64))
    np.testing.assert_array_equal(mx.dequantize_nvfp4(blocks, got_scales, tensor_scale, dtype=dtype), values)


@DTYPE
def test_zeros(isa: str, dtype: np.dtype[Any]) -> None:
    w = np.zeros((3, 4, 32), dtype)
    w[1] = -0.0
    w[2, 0, 0] = 2688
    w[2, 1] = -0.0  # a block of zeros
    w[2, 2, 5] = -0.0078125 * 0.75  # the block's scale is 2^-10, a tie that rounds to 0
    w[2, 3, 3], w[2, 3, 4] = 6, -0.0
    blocks, scales, tensor_scale = quantized(w)
    np.testing.assert_array_equal(tensor_scale, [1, 1, 1])
    expected = np.zeros((3, 4, 32))
    expected[2, 0, 0] = expected[2, 3, 3] = 7
    expected[2, 3, 4] = 8
    np.testing.assert_array_equal(codes_of(blocks), expected)
    assert np.count_nonzero(scales) == 2 and scales[2, 0, 0] == 0x7E and scales[2, 3, 0] == 0x38


@DTYPE
def test_extreme_tensors(isa: str, dtype: np.dtype[Any]) -> None:
    info = ml_dtypes.finfo(dtype)
    w = np.zeros((4, 2, 32), dtype)
    w[0, 1, 7] = info.max
    w[1, 0, 1:3] = [info.smallest_subnormal, -info.smallest_subnormal]
    w[2, 0, 0], w[2, 1, 31] = info.max, -info.smallest_subnormal
    w[3, 1, 20] = -info.smallest_normal
    _, _, tensor_scale = quantized(w)
    highest = float(np.finfo(np.float32).max)
    for tensor, amax in enumerate((info.max, info.smallest_subnormal, info.max, info.smallest_normal)):
        expected = np.float32(min(max(float(amax) / 2688, 2.0**-126), highest))
        assert tensor_scale[tensor] == expected
    assert_as_reference(w)


@DTYPE
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nonfinite(isa: str, rng: np.random.Generator, dtype: np.dtype[Any], value: float) -> None:
    w = rng.standard_normal((3, 5, 64)).astype(dtype)
    w[:, 0, 0] = 100  # the largest of each tensor, whatever becomes of the others
    blocks, scales, tensor_scale = quantized(w)
    w[1, 2, 33] = w[2, 1, 0] = value
    with pytest.raises(
        ValueError, match=rf"^w: expected finite values, got {value} at position \(1, 2, 33\)$"
    ):
        mx.quantize_nvfp4(w)
    nan_blocks, nan_scales, nan_tensor_scale = quantized(w, "nan")
    changed = np.zeros(scales.shape, bool)
    changed[1, 2, 2] = changed[2, 1, 0] = True
    np.testing.assert_array_equal(nan_tensor_scale, tensor_scale)
    np.testing.assert_array_equal(nan_scales, np.where(changed, 0x7F, scales))
    elements = changed.repeat(16, axis=-1)
    np.testing.assert_array_equal(codes_of(nan_blocks), np.where(elements, 0, codes_of(blocks)))
    values = mx.dequantize_nvfp4(nan_blocks, nan_scales, nan_tensor_scale)
    np.testing.assert_array_equal(np.isnan(values), elements)


# --- dequantization -----------------------------------------------------------------------------------------


@pytest.mark.emulation
@pytest.mark.smoke
@DTYPE
def test_dequantize_every_code_and_scale(isa: str, dtype: np.dtype[Any]) -> None:
    blocks = np.tile(np.arange(0, 16, dtype=np.uint8).reshape(2, 8) * 0x11, (2, 256, 1))
    blocks = blocks.reshape(2, 256, 16)
    scales = np.tile(np.arange(256, dtype=np.uint8)[:, None], (2, 1, 2))
    tensor_scale = np.array([1.0, 0.1], np.float32)
    got = mx.dequantize_nvfp4(blocks, scales, tensor_scale, dtype=dtype)
    assert got.dtype == dtype and got.shape == (2, 256, 32)
    exact = reference.E2M1_VALUES[codes_of(blocks)].astype(np.float64)
    exact = exact * scales.view(float8_e4m3fn).astype(np.float64).repeat(16, axis=-1)
    exact = exact * tensor_scale.astype(np.float64)[:, None, None]  # in at most 30 bits
    np.testing.assert_array_equal(np.isnan(got), np.isnan(exact))
    numbers = ~np.isnan(exact)
    if dtype.itemsize == 2:
        expected = np.array([nearest_16_bit(v, dtype) for v in exact[numbers].tolist()])
        np.testing.assert_array_equal(got[numbers].astype(np.float64), expected)
    else:
        np.testing.assert_array_equal(got[numbers], exact[numbers].astype(dtype))
    np.testing.assert_array_equal(np.signbit(got)[numbers], np.signbit(exact)[numbers])


@DTYPE
def test_dequantize_any_tensor_scale_as_the_reference(
    isa: str, rng: np.random.Generator, dtype: np.dtype[Any]
) -> None:
    blocks = rng.integers(0, 256, (30, 4, 24), np.uint8)
    scales = rng.integers(0, 256, (30, 4, 3), np.uint8)
    tensor_scale = any_bits(rng, np.dtype(np.float32), (30,))
    tensor_scale[:7] = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, np.finfo(np.float32).max]
    got = mx.dequantize_nvfp4(blocks, scales, tensor_scale, dtype=dtype)
    with np.errstate(invalid="ignore"):
        expected = reference.dequantize_nvfp4(blocks, scales, tensor_scale, dtype)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    numbers = ~np.isnan(expected)
    bits = np.dtype(f"u{dtype.itemsize}")
    np.testing.assert_array_equal(got.view(bits)[numbers], expected.view(bits)[numbers])


tensors = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=1, max_dims=3, max_side=3).map(lambda shape: (*shape, 16)),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    fill=st.sampled_from([0.0, -0.0, 1.0, 5.0, -0.25]),
)


@given(w=tensors)
def test_any_finite_tensor_as_the_reference(isa: str, w: np.ndarray) -> None:
    assert_as_reference(w)
    assert np.isfinite(mx.dequantize_nvfp4(*mx.quantize_nvfp4(w), dtype=np.float64)).all()


@pytest.mark.emulation
@pytest.mark.parametrize("shape", [(16,), (1, 40000), (2, 200, 80), (30, 30, 64)], ids=str)
def test_threads_give_the_same_bytes(isa: str, rng: np.random.Generator, shape: tuple[int, ...]) -> None:
    w = rng.standard_normal(shape).astype(np.float32)
    blocks, scales, tensor_scale = reference.quantize_nvfp4(w)
    values = reference.dequantize_nvfp4(blocks, scales, tensor_scale)
    for threads in (1, 2, 3, 7):
        with mx.num_threads(threads):
            assert_as_reference(w)
            np.testing.assert_array_equal(mx.dequantize_nvfp4(blocks, scales, tensor_scale), values)


@DTYPE
def test_given_tensor_scales(isa: str, rng: np.random.Generator, dtype: np.dtype[Any]) -> None:
    """Larger, smaller (values saturate) and equal to those that are found."""
    w = rng.standard_normal((4, 6, 48)).astype(dtype)
    _, _, found = mx.quantize_nvfp4(w)
    for scales in (found, found * np.float32([1, 1.5, 0.25, 1e6])):
        blocks, block_scales, tensor_scale = mx.quantize_nvfp4(w, tensor_scale=scales)
        expected = reference.quantize_nvfp4(w, tensor_scale=scales)
        np.testing.assert_array_equal(tensor_scale, scales)
        np.testing.assert_array_equal(block_scales.view(np.uint8), expected[1].view(np.uint8))
        np.testing.assert_array_equal(blocks, expected[0])
    assert tensor_scale is not scales
    for got, expected_array in zip(
        mx.quantize_nvfp4(w, tensor_scale=found), mx.quantize_nvfp4(w), strict=True
    ):
        assert got.tobytes() == expected_array.tobytes()


@pytest.mark.parametrize("wrong", [0.0, -1.0, np.inf, np.nan, 1e-38])
def test_wrong_tensor_scales(wrong: float) -> None:
    scales = np.array([1.0, wrong], np.float32)
    with pytest.raises(
        ValueError, match=r"^tensor_scale: expected finite numbers of at least 2\*\*-126, got "
    ):
        mx.quantize_nvfp4(np.ones((2, 3, 16), np.float32), tensor_scale=scales)
