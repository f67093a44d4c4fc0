"""Shapes, forms of arrays and wrong arguments of the functions of quantize.py."""

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
    values = mx.dequantize_mxfp4(blocks, scales, bfloat16)
    assert (values.shape, values.dtype) == (shape, bfloat16)
    nested = mx.dequantize_mxfp4(blocks.reshape(*scales.shape, 16), scales, bfloat16)
    np.testing.assert_array_equal(nested, values)
    codes = mx.unpack_e2m1(blocks)
    assert (codes.shape, codes.dtype) == (shape, float4_e2m1fn)
    np.testing.assert_array_equal(mx.pack_e2m1(codes), blocks)


def unaligned(w: np.ndarray) -> np.ndarray:
    memory = np.zeros(w.nbytes + 1, np.uint8)
    copy = memory[1:].view(w.dtype).reshape(w.shape)
    copy[:] = w
    assert not copy.flags.aligned
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


@DTYPE
@pytest.mark.parametrize("form", FORMS)
def test_forms_of_arrays(isa: str, rng: np.random.Generator, dtype: np.dtype[Any], form: str) -> None:
    w = rng.standard_normal((6, 96)).astype(dtype)
    blocks, scales = mx.quantize_mxfp4(w)
    form_blocks, form_scales = mx.quantize_mxfp4(FORMS[form](w))
    np.testing.assert_array_equal(form_blocks, blocks)
    np.testing.assert_array_equal(form_scales.view(np.uint8), scales.view(np.uint8))


def test_broadcast_and_lists(isa: str) -> None:
    row = np.linspace(-6, 6, 32)
    blocks, scales = mx.quantize_mxfp4(row)
    for w in (np.broadcast_to(row, (3, 32)), [row.tolist()] * 3, (row, row, row)):
        got_blocks, got_scales = mx.quantize_mxfp4(w)
        np.testing.assert_array_equal(got_blocks, [blocks] * 3)
        np.testing.assert_array_equal(got_scales.view(np.uint8), [scales.view(np.uint8)] * 3)


def test_inputs_are_not_written(isa: str, rng: np.random.Generator) -> None:
    w = rng.standard_normal((4, 64), np.float32)
    before = w.copy()
    blocks, scales = mx.quantize_mxfp4(w)
    copies = blocks.copy(), scales.copy()
    mx.dequantize_mxfp4(blocks, scales)
    np.testing.assert_array_equal(w, before)
    np.testing.assert_array_equal(blocks, copies[0])
    np.testing.assert_array_equal(scales.view(np.uint8), copies[1].view(np.uint8))


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
        lambda: quantize_mxfp4(ONES, "nearest"),
        ValueError,
        "^scale_rule: expected 'floor', .*got 'nearest'",
    ),
    (lambda: quantize_mxfp4(ONES, None), TypeError, "^scale_rule: "),
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
        lambda: dequantize_mxfp4(BLOCKS, SCALES, np.int32),
        TypeError,
        f"^dtype: expected {FLOATS}, got int32",
    ),
    (lambda: dequantize_mxfp4(BLOCKS, SCALES, None), TypeError, "^dtype: .*got None"),
    (lambda: dequantize_mxfp4(BLOCKS, SCALES, "fp32"), TypeError, "^dtype: .*got 'fp32'"),
    (lambda: dequantize_mxfp4(BLOCKS, SCALES, ">f4"), TypeError, "^dtype: .*got >f4"),
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


@pytest.mark.parametrize(("call", "error", "message"), WRONG_CALLS)
def test_wrong_calls(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
