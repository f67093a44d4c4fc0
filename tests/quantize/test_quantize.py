"""quantize_mxfp4, dequantize_mxfp4, pack_e2m1 and unpack_e2m1, on every kernel table, to the bit."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from exact_quantize import DTYPES, ELEMENTS, RULES, any_bits, exact_blocks, hard_blocks
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import mxfp4moe as mx
from mxfp4moe import reference

float4_e2m1fn = np.dtype(ml_dtypes.float4_e2m1fn)
float8_e8m0fnu = np.dtype(ml_dtypes.float8_e8m0fnu)

MIDPOINTS = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]
RULE = pytest.mark.parametrize("rule", RULES)
DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def codes_of(blocks: np.ndarray) -> np.ndarray:
    return np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:-1], -1)


def assert_quantizes_to(w: np.ndarray, rule: str, codes: Any, scales: Any) -> None:
    blocks, got_scales = mx.quantize_mxfp4(w, scale_rule=rule)  # type: ignore[arg-type]
    assert blocks.dtype == np.uint8
    assert got_scales.dtype == float8_e8m0fnu
    np.testing.assert_array_equal(got_scales.view(np.uint8), scales)
    np.testing.assert_array_equal(codes_of(blocks), codes)


# --- the rule in exact rational arithmetic ------------------------------------------------------------------


@DTYPE
@RULE
def test_rules_are_exact(isa: str, dtype: np.dtype[Any], rule: str) -> None:
    assert_quantizes_to(hard_blocks(dtype), rule, *exact_blocks(dtype, rule, "e2m1"))


@DTYPE
@RULE
def test_reference_is_exact(dtype: np.dtype[Any], rule: str) -> None:
    codes, scales = exact_blocks(dtype, rule, "e2m1")
    got_blocks, got_scales = reference.quantize_mxfp4(hard_blocks(dtype), rule)
    np.testing.assert_array_equal(got_scales.view(np.uint8), scales)
    np.testing.assert_array_equal(codes_of(got_blocks), codes)


@DTYPE
@RULE
def test_any_bits_as_the_reference(
    isa: str, rng: np.random.Generator, dtype: np.dtype[Any], rule: str
) -> None:
    anything = any_bits(rng, dtype, (700, 32))
    smooth = rng.standard_normal((700, 32)) * 2.0 ** rng.integers(-20, 12, (700, 1))
    sparse = smooth * (rng.random((700, 32)) < 0.1)
    w = np.concatenate([anything, smooth.astype(dtype), sparse.astype(dtype)])
    blocks, scales = mx.quantize_mxfp4(w, scale_rule=rule, nonfinite="nan")  # type: ignore[arg-type]
    expected_blocks, expected_scales = reference.quantize_mxfp4(w, rule, "nan")
    np.testing.assert_array_equal(scales.view(np.uint8), expected_scales.view(np.uint8))
    np.testing.assert_array_equal(blocks, expected_blocks)


# --- rounding -----------------------------------------------------------------------------------------------


# The last of each makes values subnormal, but in float64.
EXPONENTS = {
    "float32": [0, 120, -127],
    "float16": [0, 9, -22],
    "bfloat16": [0, 120, -127],
    "float64": [0, 127, -127],
}


@pytest.mark.emulation
@pytest.mark.parametrize(("dtype", "exponent"), [(d, e) for d in DTYPES for e in EXPONENTS[d.name]], ids=str)
def test_midpoints_and_their_neighbours(isa: str, dtype: np.dtype[Any], exponent: int) -> None:
    w = np.zeros((7, 2, 32), dtype)
    codes = np.zeros((7, 2, 32), np.uint8)
    for index, midpoint in enumerate(MIDPOINTS):
        tie = dtype.type(np.ldexp(midpoint, exponent))
        largest = dtype.type(np.ldexp(6.0, exponent))
        even = index if index % 2 == 0 else index + 1
        for s, sign in enumerate((1, -1)):
            triple = [np.nextafter(tie, dtype.type(0)), tie, np.nextafter(tie, largest)]
            w[index, s, :4] = [*(sign * v for v in triple), sign * largest]
            codes[index, s, :4] = np.array([index, even, index + 1, 7]) + 8 * s
    assert_quantizes_to(w, "floor", codes, np.full((7, 2, 1), exponent + 127))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_float64_is_rounded_once(isa: str, sign: float) -> None:
    tiny = 2.0**-45  # lost in float32
    w = np.zeros((1, 32))
    w[0, :15] = [m + d for m in MIDPOINTS for d in (-tiny, tiny)] + [6.0]
    codes = [i + d for i in range(7) for d in (0, 1)] + [7]
    expected = np.zeros((1, 32), np.uint8)
    expected[0, :15] = np.array(codes) + (8 if sign < 0 else 0)
    w[0, :15] *= sign
    assert_quantizes_to(w, "floor", expected, [[127]])


@pytest.mark.parametrize(
    ("rule", "threshold"),
    [("ceil", 1.0), ("rceil", 1.5), ("even", 1.75 - 2.0**-45), ("floor", 2.0 - 2.0**-45)],
)
def test_float64_scale_is_not_rounded(isa: str, rule: str, threshold: float) -> None:
    for factor in (1.0, 2.0**-100, 2.0**100, 2.0**-128):
        w = np.zeros((2, 32))
        w[:, 3] = np.array([threshold, threshold + 2.0**-45]) * factor
        exponent = np.frexp(factor)[1] - 1
        scales = np.maximum(np.array([[exponent - 2], [exponent - 1]]) + 127, 0)
        got = mx.quantize_mxfp4(w, scale_rule=rule)[1].view(np.uint8)  # type: ignore[arg-type]
        np.testing.assert_array_equal(got, scales)


@pytest.mark.parametrize(
    ("value", "code", "scale"),
    [
        (1.7e308, 7, 254),  # the exponent stops at 127; saturates
        (2.0**130, 7, 254),
        (6 * 2.0**127, 7, 254),
        (2.0**129, 6, 254),
        (2.0**128, 6, 253),
        (2.0**-125, 6, 0),
        (2.0**-127, 2, 0),
        (2.0**-128, 1, 0),
        (2.0**-129, 0, 0),  # a tie with zero
        (np.nextafter(2.0**-129, 1), 1, 0),
        (5e-324, 0, 0),
    ],
)
def test_float64_beyond_float32(isa: str, value: float, code: int, scale: int) -> None:
    w = np.zeros((2, 32))
    w[:, 9] = [value, -value]
    codes = np.zeros((2, 32))
    codes[:, 9] = [code, code + 8]  # the sign stays although the magnitude is gone
    assert_quantizes_to(w, "floor", codes, [[scale], [scale]])


@pytest.mark.emulation
@pytest.mark.smoke
@RULE
def test_codes_as_ml_dtypes_rounds_them(isa: str, rng: np.random.Generator, rule: str) -> None:
    w = rng.standard_normal((64, 96), np.float32)
    blocks, scales = mx.quantize_mxfp4(w, scale_rule=rule)  # type: ignore[arg-type]
    quotients = w.reshape(64, 3, 32) / scales.astype(np.float32)[..., None]
    codes = quotients.astype(float4_e2m1fn).view(np.uint8) & 15
    np.testing.assert_array_equal(codes_of(blocks).reshape(64, 3, 32), codes)


@pytest.mark.emulation
@pytest.mark.smoke
@DTYPE
@RULE
def test_zero_blocks(isa: str, dtype: np.dtype[Any], rule: str) -> None:
    w = np.zeros((4, 32), dtype)
    w[1] = -0.0
    w[2, ::3] = -0.0
    w[3, :3] = [-0.0, 0.0, 4.0]  # not all zero: -0 keeps its sign
    codes = np.zeros((4, 32))
    codes[3, :3] = [8, 0, 6]
    assert_quantizes_to(w, rule, codes, [[0], [0], [0], [127]])


# --- values that are not finite -----------------------------------------------------------------------------


@pytest.mark.emulation
@DTYPE
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -np.nan])
def test_nonfinite(isa: str, rng: np.random.Generator, dtype: np.dtype[Any], value: float) -> None:
    w = rng.standard_normal((3, 5, 64)).astype(dtype)
    blocks, scales = mx.quantize_mxfp4(w)
    w[1, 2, 33] = w[2, 0, 0] = value
    with pytest.raises(
        ValueError, match=rf"^w: expected finite values, got {value} at position \(1, 2, 33\)$"
    ):
        mx.quantize_mxfp4(w)
    nan_blocks, nan_scales = mx.quantize_mxfp4(w, nonfinite="nan")
    changed = np.zeros(scales.shape, bool)
    changed[1, 2, 1] = changed[2, 0, 0] = True
    np.testing.assert_array_equal(nan_scales.view(np.uint8), np.where(changed, 255, scales.view(np.uint8)))
    parts, nan_parts = (b.reshape(*scales.shape, 16) for b in (blocks, nan_blocks))
    np.testing.assert_array_equal(nan_parts, np.where(changed[..., None], 0, parts))
    values = mx.dequantize_mxfp4(nan_blocks, nan_scales)
    np.testing.assert_array_equal(np.isnan(values), np.repeat(changed, 32, axis=-1))


# --- dequantization -----------------------------------------------------------------------------------------


@pytest.mark.emulation
@pytest.mark.smoke
@DTYPE
def test_dequantize_every_code_and_scale(isa: str, dtype: np.dtype[Any]) -> None:
    codes = np.tile(np.arange(16, dtype=np.uint8), 2)
    codes = np.concatenate([codes[:16], codes[15::-1]])
    scales = np.arange(256, dtype=np.uint8)[:, None]
    blocks = np.tile(codes[0::2] | codes[1::2] << 4, (256, 1))
    magnitudes = [float(v) for v in ELEMENTS["e2m1"].values]
    table = np.array(magnitudes + [-v for v in magnitudes])
    exact = table[codes] * np.array([2.0 ** (s - 127) for s in range(255)])[:, None]  # exact in float64
    with np.errstate(over="ignore"):
        expected = exact.astype(dtype)
    got = mx.dequantize_mxfp4(blocks, scales, dtype=dtype)
    assert (got.dtype, got.shape) == (dtype, (256, 32))
    bits = f"u{dtype.itemsize}"
    np.testing.assert_array_equal(got[:255].view(bits), expected.view(bits))
    assert np.isnan(got[255]).all()
    of_reference = reference.dequantize_mxfp4(blocks, scales, dtype)
    np.testing.assert_array_equal(of_reference[:255].view(bits), expected.view(bits))
    assert np.isnan(of_reference[255]).all()


def test_dequantize_range(isa: str) -> None:
    block = np.zeros((1, 16), np.uint8)
    block[0, 0] = 0x71  # 0.5 and 6
    largest = np.array([[254]], np.uint8)
    assert mx.dequantize_mxfp4(block, largest)[0, :2].tolist() == [2.0**126, np.inf]
    assert mx.dequantize_mxfp4(block, largest, dtype=np.float64)[0, :2].tolist() == [2.0**126, 6 * 2.0**127]
    smallest = np.array([[0]], np.uint8)
    assert mx.dequantize_mxfp4(block, smallest)[0, :2].tolist() == [2.0**-128, 6 * 2.0**-127]


def test_dequantize_forms(isa: str, rng: np.random.Generator) -> None:
    blocks = rng.integers(0, 256, (2, 3, 4, 16), np.uint8)
    scales = rng.integers(100, 150, (2, 3, 4), np.uint8)
    expected = reference.dequantize_mxfp4(blocks.reshape(2, 3, 64), scales)
    assert expected.shape == (2, 3, 128)
    for b in (blocks, blocks.reshape(2, 3, 64), blocks.view(np.int8), np.asfortranarray(blocks)):
        for s in (scales, scales.view(float8_e8m0fnu), np.asfortranarray(scales)):
            np.testing.assert_array_equal(mx.dequantize_mxfp4(b, s), expected)
    np.testing.assert_array_equal(reference.dequantize_mxfp4(blocks, scales), expected)
    np.testing.assert_array_equal(mx.dequantize_mxfp4(blocks[:, ::-2], scales[:, ::-2]), expected[:, ::-2])
    blocks.flags.writeable = scales.flags.writeable = False
    np.testing.assert_array_equal(mx.dequantize_mxfp4(blocks, scales), expected)


finite_blocks = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=1, max_dims=3, max_side=3).map(lambda shape: (*shape, 32)),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    fill=st.sampled_from([0.0, -0.0, 1.0, 5.0, -0.25]),
)


@given(w=finite_blocks, rule=st.sampled_from(RULES))
def test_round_trip_keeps_quantized_values(isa: str, w: np.ndarray, rule: Any) -> None:
    values = mx.dequantize_mxfp4(*mx.quantize_mxfp4(w, scale_rule=rule), dtype=np.float64)
    again = mx.dequantize_mxfp4(*mx.quantize_mxfp4(values, scale_rule=rule), dtype=np.float64)
    np.testing.assert_array_equal(again, values)


@given(data=st.data(), rule=st.sampled_from(["floor", "rceil", "even"]))
def test_round_trip_keeps_representable_values(isa: str, data: st.DataObject, rule: Any) -> None:
    blocks = data.draw(hnp.arrays(np.uint8, (2, 16)))
    scales = data.draw(hnp.arrays(np.uint8, (2, 1), elements=st.integers(0, 254)))
    values = mx.dequantize_mxfp4(blocks, scales, dtype=np.float64)
    np.testing.assert_array_equal(
        mx.dequantize_mxfp4(*mx.quantize_mxfp4(values, scale_rule=rule), dtype=np.float64), values
    )


@given(w=finite_blocks)
def test_rceil_never_saturates(isa: str, w: np.ndarray) -> None:
    blocks, scales = mx.quantize_mxfp4(w, scale_rule="rceil")
    values = mx.dequantize_mxfp4(blocks, scales, dtype=np.float64)
    # The widest step between E2M1 values is 2; an error is at most half of it.
    assert (np.abs(values - w) <= np.repeat(scales.astype(np.float64), 32, axis=-1)).all()


# --- threads -----------------------------------------------------------------------------------------------


@pytest.mark.emulation
@pytest.mark.parametrize("num_blocks", [1, 511, 1024, 1537, 4099])
def test_threads_give_the_same_bytes(isa: str, rng: np.random.Generator, num_blocks: int) -> None:
    w = rng.standard_normal(num_blocks * 32, np.float32)
    blocks, scales = reference.quantize_mxfp4(w)
    values = reference.dequantize_mxfp4(blocks, scales)
    codes = reference.unpack_e2m1(blocks)
    for threads in (1, 2, 3, 7):
        with mx.num_threads(threads):
            got_blocks, got_scales = mx.quantize_mxfp4(w)
            np.testing.assert_array_equal(got_blocks, blocks)
            np.testing.assert_array_equal(got_scales.view(np.uint8), scales.view(np.uint8))
            np.testing.assert_array_equal(mx.dequantize_mxfp4(blocks, scales), values)
            np.testing.assert_array_equal(mx.unpack_e2m1(blocks).view(np.uint8), codes.view(np.uint8))
            np.testing.assert_array_equal(mx.pack_e2m1(codes), blocks)


# --- two codes a byte ---------------------------------------------------------------------------------------


@pytest.mark.emulation
def test_pack_every_pair() -> None:
    low, high = np.meshgrid(np.arange(16, dtype=np.uint8), np.arange(16, dtype=np.uint8))
    codes = np.stack([low, high], axis=-1)
    packed = mx.pack_e2m1(codes)
    np.testing.assert_array_equal(packed, np.arange(256).reshape(16, 16, 1))
    np.testing.assert_array_equal(mx.pack_e2m1(codes.view(float4_e2m1fn)), packed)
    # The high nibble of a float4_e2m1fn means nothing.
    np.testing.assert_array_equal(mx.pack_e2m1((codes | 0xA0).view(float4_e2m1fn)), packed)
    for blocks in (packed, packed.view(np.int8)):
        unpacked = mx.unpack_e2m1(blocks)
        assert unpacked.dtype == float4_e2m1fn
        np.testing.assert_array_equal(unpacked.view(np.uint8), codes)
    values = mx.unpack_e2m1(packed).astype(np.float32)
    np.testing.assert_array_equal(values, reference.E2M1_VALUES[codes])


@given(
    blocks=hnp.arrays(np.uint8, hnp.array_shapes(max_dims=3, max_side=40)), step=st.sampled_from([1, 2, -1])
)
def test_pack_is_the_inverse_of_unpack(blocks: np.ndarray, step: int) -> None:
    blocks = blocks[..., ::step]
    np.testing.assert_array_equal(mx.pack_e2m1(mx.unpack_e2m1(blocks)), blocks)
