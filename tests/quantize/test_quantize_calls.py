"""Shapes, forms of arrays and wrong arguments of the functions of mxfp4moe.quantize."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import mxfp4moe as mx

bfloat16 = np.dtype(ml_dtypes.bfloat16)
float4_e2m1fn = np.dtype(ml_dtypes.float4_e2m1fn)

DTYPE = pytest.mark.parametrize(
    "dtype", [np.dtype(np.float32), np.dtype(np.float16), bfloat16, np.dtype(np.float64)], ids=str
)


@pytest.mark.parametrize("shape", [(32,), (0, 64), (3, 0), (0,), (2, 0, 32), (1, 1, 1, 96), (5, 2, 64)])
def test_shapes(isa: str, rng: np.random.Generator, shape: tuple[int, ...]) -> None:
    w = rng.standard_normal(shape).astype(np.float32)
    blocks, scales = mx.quantize_mxfp4(w)
    assert blocks.shape == (*shape[:-1], shape[-1] // 2)
    assert scales.shape == (*shape[:-1], shape[-1] // 32)
    values = mx.dequantize_mxfp4(blocks, scales, dtype=bfloat16)
    assert (values.shape, values.dtype) == (shape, bfloat16)
    nested = mx.dequantize_mxfp4(blocks.reshape(*scales.shape, 16), scales, dtype=bfloat16)
    np.testing.assert_array_equal(nested, values)
    codes = mx.unpack_e2m1(blocks)
    assert (codes.shape, codes.dtype) == (shape, float4_e2m1fn)
    np.testing.assert_array_equal(mx.pack_e2m1(codes), blocks)


def unaligned(w: np.ndarray) -> np.ndarray:
    memory = np.zeros(w.nbytes + 1, np.uint8)
    copy = memory[1:].view(w.dtype).reshape(w.shape)
    copy[:] = w
    assert not copy.flags.aligned or w.dtype.itemsize == 1
    return copy


def read_only(w: np.ndarray) -> np.ndarray:
    copy = w.copy()
    copy.flags.writeable = False
    return copy


FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "column_major": np.asfortranarray,
    "strided": lambda w: np.repeat(w, 2, axis=-1)[..., ::2],
    "negative_strides": lambda w: np.ascontiguousarray(w[::-1, ::-1])[::-1, ::-1],
    "big_endian": lambda w: w.astype(w.dtype.newbyteorder(">")),
    "unaligned": unaligned,
    "read_only": read_only,
}


QUANTIZERS: dict[str, Callable[[Any], tuple[np.ndarray, ...]]] = {
    "mxfp4": mx.quantize_mxfp4,
    "mxfp8": mx.quantize_mxfp8,
    "mxfp8_e5m2": lambda w: mx.quantize_mxfp8(w, element="e5m2"),
    "fp8_block": lambda w: mx.quantize_fp8_block(w, block_shape=(4, 40)),
    "nvfp4": mx.quantize_nvfp4,
    "int4": lambda w: mx.quantize_int4(w)[:2],
    "int4_zero_points": lambda w: mx.quantize_int4(w, group_size=None, symmetric=False),
    "int8_zero_points": lambda w: mx.quantize_int8(w, symmetric=False),
}
DEQUANTIZERS: dict[str, Callable[..., np.ndarray]] = {
    "mxfp4": mx.dequantize_mxfp4,
    "mxfp8": mx.dequantize_mxfp8,
    "mxfp8_e5m2": mx.dequantize_mxfp8,
    "fp8_block": lambda *arrays: mx.dequantize_fp8_block(*arrays, block_shape=(4, 40)),
    "nvfp4": mx.dequantize_nvfp4,
    "int4": mx.dequantize_int4,
    "int4_zero_points": mx.dequantize_int4,
    "int8_zero_points": mx.dequantize_int8,
}
FORMAT = pytest.mark.parametrize("name", QUANTIZERS)


def assert_same_bytes(got: tuple[np.ndarray, ...], expected: tuple[np.ndarray, ...]) -> None:
    for a, b in zip(got, expected, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.tobytes() == b.tobytes()


@DTYPE
@FORMAT
def test_forms_of_arrays(isa: str, rng: np.random.Generator, dtype: np.dtype[Any], name: str) -> None:
    w = rng.standard_normal((6, 96)).astype(dtype)
    expected = QUANTIZERS[name](w)
    for form in FORMS.values():
        assert_same_bytes(QUANTIZERS[name](form(w)), expected)


@FORMAT
def test_forms_of_quantized_arrays(isa: str, rng: np.random.Generator, name: str) -> None:
    arrays = QUANTIZERS[name](rng.standard_normal((3, 6, 96), np.float32))
    expected = DEQUANTIZERS[name](*arrays)
    for form in (np.asfortranarray, read_only, unaligned, lambda a: np.repeat(a, 2, axis=-1)[..., ::2]):
        forms = [form(array) for array in arrays]
        np.testing.assert_array_equal(DEQUANTIZERS[name](*forms), expected)


@FORMAT
def test_leading_axes_are_separate(isa: str, rng: np.random.Generator, name: str) -> None:
    w = rng.standard_normal((2, 3, 5, 64), np.float32)
    w[1] *= 100
    together = QUANTIZERS[name](w)
    for index in np.ndindex(2, 3):
        assert_same_bytes(QUANTIZERS[name](w[index]), tuple(array[(*index, ...)] for array in together))


@FORMAT
@pytest.mark.parametrize("shape", [(0, 64), (3, 0), (2, 0, 32), (0, 4, 32)])
def test_empty(isa: str, name: str, shape: tuple[int, ...]) -> None:
    arrays = QUANTIZERS[name](np.zeros(shape, np.float32))
    assert [array.shape[: len(shape) - 2] for array in arrays] == [shape[:-2]] * len(arrays)
    values = (
        DEQUANTIZERS[name](*arrays, dtype=bfloat16) if name != "fp8_block" else DEQUANTIZERS[name](*arrays)
    )
    assert values.shape == shape


def test_broadcast_and_lists(isa: str) -> None:
    row = np.linspace(-6, 6, 32)
    blocks, scales = mx.quantize_mxfp4(row)
    for w in (np.broadcast_to(row, (3, 32)), [row.tolist()] * 3, (row, row, row)):
        got_blocks, got_scales = mx.quantize_mxfp4(w)
        np.testing.assert_array_equal(got_blocks, [blocks] * 3)
        np.testing.assert_array_equal(got_scales.view(np.uint8), [scales.view(np.uint8)] * 3)


@FORMAT
def test_inputs_are_not_written(isa: str, rng: np.random.Generator, name: str) -> None:
    w = rng.standard_normal((4, 64), np.float32)
    before = w.copy()
    arrays = QUANTIZERS[name](w)
    copies = tuple(array.copy() for array in arrays)
    DEQUANTIZERS[name](*arrays)
    np.testing.assert_array_equal(w, before)
    assert_same_bytes(arrays, copies)


# --- wrong calls --------------------------------------------------------------------------------------------

# Not typed, because the calls are wrong.
quantize_mxfp4: Any = mx.quantize_mxfp4
dequantize_mxfp4: Any = mx.dequantize_mxfp4

ONES = np.ones((2, 64), np.float32)
BLOCKS = np.zeros((2, 32), np.uint8)
SCALES = np.zeros((2, 2), np.uint8)
CODES = np.zeros((2, 4), np.uint8)
FLOATS = "float32, float16, bfloat16 or float64"

WRONG_CALLS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (
        lambda: quantize_mxfp4(np.float32(1)),
        ValueError,
        r"^w: expected a last axis .* of 32, got shape \(\)",
    ),
    (lambda: quantize_mxfp4(ONES[:, :33]), ValueError, r"^w: .*multiple of 32, got shape \(2, 33\)"),
    (lambda: quantize_mxfp4(ONES.astype(int)), TypeError, f"^w: .*{FLOATS}, got an array of int64"),
    (lambda: quantize_mxfp4(ONES.astype(np.complex64)), TypeError, "^w: .*complex64"),
    (lambda: quantize_mxfp4(ONES.astype(np.longdouble)), TypeError, "^w: .*got"),
    (lambda: quantize_mxfp4(ONES.astype(ml_dtypes.float8_e4m3fn)), TypeError, "^w: .*float8_e4m3fn"),
    (lambda: quantize_mxfp4(ONES.astype(bool)), TypeError, "^w: .*bool"),
    (lambda: quantize_mxfp4(ONES.astype(object)), TypeError, "^w: "),
    (lambda: quantize_mxfp4(np.ma.masked_array(ONES)), TypeError, "^w: .*masked array"),
    (lambda: quantize_mxfp4([[1] * 32]), TypeError, "^w: "),
    (lambda: quantize_mxfp4([[1.0] * 32, [1.0]]), TypeError, "^w: "),
    (lambda: quantize_mxfp4(None), TypeError, "^w: "),
    (lambda: quantize_mxfp4("w"), TypeError, "^w: "),
    (
        lambda: quantize_mxfp4(ONES, scale_rule="nearest"),
        ValueError,
        "^scale_rule: expected 'floor', .*got 'nearest'",
    ),
    (lambda: quantize_mxfp4(ONES, scale_rule=None), TypeError, "^scale_rule: "),
    (
        lambda: quantize_mxfp4(ONES, nonfinite="ignore"),
        ValueError,
        "^nonfinite: expected 'raise' or 'nan'",
    ),
    (lambda: quantize_mxfp4(ONES, nonfinite=True), TypeError, "^nonfinite: "),
    (lambda: dequantize_mxfp4(BLOCKS, SCALES[0]), ValueError, r"^blocks: .*\(32,\) or \(2, 16\)"),
    (lambda: dequantize_mxfp4(BLOCKS[:, :31], SCALES), ValueError, r"^blocks: .*got shape \(2, 31\)"),
    (lambda: dequantize_mxfp4(BLOCKS.reshape(2, 1, 32), SCALES), ValueError, "^blocks: "),
    (lambda: dequantize_mxfp4(BLOCKS[0, 0], SCALES[0, 0]), ValueError, r"^scales: .*axis, got shape \(\)"),
    (lambda: dequantize_mxfp4(BLOCKS.astype(np.uint16), SCALES), TypeError, "^blocks: .*uint8 or int8"),
    (lambda: dequantize_mxfp4(BLOCKS, SCALES.view(np.int8)), TypeError, "^scales: .*float8_e8m0fnu"),
    (lambda: dequantize_mxfp4(BLOCKS, SCALES.astype(np.float32)), TypeError, "^scales: "),
    (lambda: dequantize_mxfp4(np.ma.masked_array(BLOCKS), SCALES), TypeError, "^blocks: .*masked"),
    (
        lambda: dequantize_mxfp4(BLOCKS, SCALES, dtype=np.int32),
        TypeError,
        f"^dtype: expected {FLOATS}, got int32",
    ),
    (lambda: dequantize_mxfp4(BLOCKS, SCALES, dtype=None), TypeError, "^dtype: .*got None"),
    (lambda: dequantize_mxfp4(BLOCKS, SCALES, dtype="fp32"), TypeError, "^dtype: .*got 'fp32'"),
    (lambda: dequantize_mxfp4(BLOCKS, SCALES, dtype=">f4"), TypeError, "^dtype: .*got >f4"),
    (lambda: mx.pack_e2m1(CODES[:, :3]), ValueError, r"^codes: .*multiple of 2, got shape \(2, 3\)"),
    (lambda: mx.pack_e2m1(CODES[0, 0]), ValueError, "^codes: "),
    (
        lambda: mx.pack_e2m1(CODES + np.uint8(16)),
        ValueError,
        r"^codes: .*\[0, 15\], got 16 at position \(0, 0\)",
    ),
    (
        lambda: mx.pack_e2m1(CODES.view(np.int8)),
        TypeError,
        "^codes: expected an array of float4_e2m1fn or uint8",
    ),
    (lambda: mx.pack_e2m1(CODES.astype(np.float32)), TypeError, "^codes: "),
    (lambda: mx.unpack_e2m1(CODES[0, 0]), ValueError, "^blocks: expected at least one axis"),
    (
        lambda: mx.unpack_e2m1(CODES.view(float4_e2m1fn)),
        TypeError,
        "^blocks: expected an array of uint8 or int8",
    ),
]


quantize_mxfp8: Any = mx.quantize_mxfp8
quantize_fp8_block: Any = mx.quantize_fp8_block
dequantize_fp8_block: Any = mx.dequantize_fp8_block
quantize_nvfp4: Any = mx.quantize_nvfp4
quantize_int4: Any = mx.quantize_int4

VALUES = np.zeros((2, 64), ml_dtypes.float8_e4m3fn)
FLOAT_SCALES = np.ones((1, 1), np.float32)
NVFP4_SCALES = np.zeros((2, 4), ml_dtypes.float8_e4m3fn)
SIGNALING = np.array([[0x7F80, 0x7F81]], np.uint16).repeat(32, axis=1).view(bfloat16)  # infinity, then NaN


def block_shaped(block_shape: Any) -> Any:
    return mx.quantize_fp8_block(ONES, block_shape=block_shape)


WRONG_CALLS_8 = [
    (lambda: quantize_mxfp8(ONES[:, :33]), ValueError, r"^w: .*multiple of 32, got shape \(2, 33\)"),
    (lambda: quantize_mxfp8(ONES.astype(int)), TypeError, f"^w: .*{FLOATS}, got an array of int64"),
    (
        lambda: quantize_mxfp8(ONES, element="e2m1"),
        ValueError,
        "^element: expected 'e4m3' or .*got 'e2m1'",
    ),
    (lambda: quantize_mxfp8(ONES, element=None), TypeError, "^element: .*got None"),
    (lambda: quantize_mxfp8(ONES, scale_rule="up"), ValueError, "^scale_rule: expected 'floor'"),
    (lambda: quantize_mxfp8(ONES, nonfinite="no"), ValueError, "^nonfinite: expected 'raise' or 'nan'"),
    (lambda: quantize_mxfp8(SIGNALING), ValueError, r"^w: expected finite values, got inf at .*\(0, 0\)"),
    (lambda: mx.dequantize_mxfp8(VALUES, SCALES[:, :1]), ValueError, r"^scales: .*\(2, 2\), got .*\(2, 1\)"),
    (lambda: mx.dequantize_mxfp8(VALUES[:, :31], SCALES), ValueError, "^values: .*multiple of 32"),
    (lambda: mx.dequantize_mxfp8(VALUES.view(np.uint8), SCALES), TypeError, "^values: .*float8_e4m3fn or"),
    (lambda: mx.dequantize_mxfp8(VALUES, SCALES.astype(np.float32)), TypeError, "^scales: .*float8_e8m0fnu"),
    (lambda: mx.dequantize_mxfp8(VALUES, SCALES, dtype=np.int8), TypeError, f"^dtype: expected {FLOATS}"),
    (lambda: quantize_fp8_block(ONES[0]), ValueError, r"^w: expected at least two axes, got shape \(64,\)"),
    (lambda: quantize_fp8_block(ONES.astype(bool)), TypeError, "^w: .*bool"),
    (
        lambda: quantize_fp8_block(ONES, block_shape=128),
        TypeError,
        "^block_shape: expected a pair of .*, got 128",
    ),
    (
        lambda: block_shaped((128,)),
        ValueError,
        "^block_shape: expected a pair .*got 1 values",
    ),
    (
        lambda: block_shaped((0, 128)),
        ValueError,
        r"^block_shape\[0\]: .*at least 1, got 0",
    ),
    (
        lambda: block_shaped((1.5, 128)),
        TypeError,
        r"^block_shape\[0\]: expected an integer, got 1.5",
    ),
    (lambda: quantize_fp8_block(SIGNALING), ValueError, r"^w: .* got inf at position \(0, 0\)"),
    (
        lambda: dequantize_fp8_block(VALUES[0], FLOAT_SCALES),
        ValueError,
        "^values: expected at least two axes",
    ),
    (lambda: dequantize_fp8_block(VALUES, FLOAT_SCALES[0]), ValueError, r"^scales: .*\(1, 1\), got"),
    (
        lambda: dequantize_fp8_block(VALUES, FLOAT_SCALES, block_shape=(1, 64)),
        ValueError,
        r"^scales: .*\(2, 1\), got",
    ),
    (lambda: dequantize_fp8_block(VALUES, FLOAT_SCALES.astype(float)), TypeError, "^scales: .*float32, got"),
    (lambda: dequantize_fp8_block(ONES, FLOAT_SCALES), TypeError, "^values: .*float8_e4m3fn or uint8, got"),
    (lambda: dequantize_fp8_block(VALUES, FLOAT_SCALES, dtype=None), TypeError, "^dtype: .*got None"),
    (lambda: quantize_int4(ONES[:, :33], group_size=None), ValueError, r"^w: .*of 2, got shape \(2, 33\)"),
    (lambda: quantize_int4(ONES, group_size=48), ValueError, "^group_size: .*multiple of 32 or None, got 48"),
    (lambda: quantize_int4(ONES, group_size=0), ValueError, "^group_size: .*got 0"),
    (lambda: quantize_int4(ONES, group_size=32.0), TypeError, "^group_size: "),
    (lambda: quantize_int4(np.ones((2, 96)), group_size=64), ValueError, r"^w: .*of 64, got shape \(2, 96\)"),
    (lambda: quantize_int4(ONES, symmetric=1), TypeError, "^symmetric: "),
    (lambda: quantize_int4(SIGNALING), ValueError, r"^w: .* got inf at position \(0, 0\)"),
    (
        lambda: mx.dequantize_int4(BLOCKS, np.ones((2, 3), np.float32)),
        ValueError,
        "^scales: .*64 weights.*got 3",
    ),
    (lambda: mx.dequantize_int4(BLOCKS, np.ones(2, np.float32)), ValueError, r"^scales: .*\(2, groups\)"),
    (
        lambda: mx.dequantize_int4(BLOCKS, np.ones((2, 2))),
        TypeError,
        "^scales: .*float32, bfloat16 or float16",
    ),
    (
        lambda: mx.dequantize_int4(BLOCKS, np.ones((2, 2), np.float32), np.full((2, 2), 16, np.uint8)),
        ValueError,
        r"^zero_points: .*\[0, 15\], got 16 at position \(0, 0\)",
    ),
    (
        lambda: mx.dequantize_int8(BLOCKS.view(np.int8), np.ones((2, 1), np.float32), BLOCKS[:, :1]),
        TypeError,
        "^zero_points: .*int8",
    ),
    (lambda: mx.dequantize_int8(BLOCKS, np.ones((2, 1), np.float32)), TypeError, "^codes: .*int8"),
    (lambda: quantize_nvfp4(ONES[:, :33]), ValueError, r"^w: .*multiple of 16, got shape \(2, 33\)"),
    (lambda: quantize_nvfp4(np.float32(1)), ValueError, r"^w: .*multiple of 16, got shape \(\)"),
    (lambda: quantize_nvfp4(ONES, tensor_scale=1.0), TypeError, "^tensor_scale: .*float32, got"),
    (lambda: quantize_nvfp4(ONES, tensor_scale=np.ones(2, np.float32)), ValueError, "^tensor_scale: .*shape"),
    (lambda: quantize_nvfp4(ONES, nonfinite=None), TypeError, "^nonfinite: .*got None"),
    (lambda: quantize_nvfp4(SIGNALING), ValueError, r"^w: .* got inf at position \(0, 0\)"),
    (
        lambda: mx.dequantize_nvfp4(BLOCKS[:, :31], NVFP4_SCALES, np.float32(1)),
        ValueError,
        r"^blocks: expected shape \(2, 32\), got shape \(2, 31\)",
    ),
    (
        lambda: mx.dequantize_nvfp4(BLOCKS, NVFP4_SCALES, np.ones(2, np.float32)),
        ValueError,
        r"^tensor_scale: expected shape \(\), got shape \(2,\)",
    ),
    (lambda: mx.dequantize_nvfp4(BLOCKS, NVFP4_SCALES, 1.0), TypeError, "^tensor_scale: .*float32, got"),
    (
        lambda: mx.dequantize_nvfp4(BLOCKS, NVFP4_SCALES.astype(np.float32), np.float32(1)),
        TypeError,
        "^scales: .*float8_e4m3fn or uint8",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG_CALLS + WRONG_CALLS_8)
def test_wrong_calls(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
