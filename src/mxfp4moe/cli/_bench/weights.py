"""Random weights of every format, drawn as the bytes that a checkpoint holds."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from mxfp4moe._arguments import cast
from mxfp4moe.cli._synthetic import middle_scale, weight_rms
from mxfp4moe.experts.spec import BlockShape
from mxfp4moe.formats import BFLOAT16, WeightFormat

# These are root mean squares of what is drawn: all E2M1 codes; numbers in [1/8, 2) whose four binades are
# equally likely, with three mantissa bits; and the same numbers with seven.
_E2M1_RMS, _E4M3_RMS, _BF16_RMS = 2.93, 0.845, 0.876
_INTEGER_RMS = {4: 4.64, 8: 73.9}  # of all codes minus their middle, by their bits
_E4M3_SCALE_RMS = 1.16  # of [1/2, 2)


class RandomMatrix(NamedTuple):
    """The arrays of one matrix of all experts."""

    weights: np.ndarray
    scales: np.ndarray | None
    tensor_scale: np.ndarray | None  # [experts]


class MatrixSizes(NamedTuple):
    """Rows of `columns` weights of every expert."""

    experts: int
    rows: int
    columns: int


def random_matrix(
    format: WeightFormat, block_shape: BlockShape | None, sizes: MatrixSizes, rng: np.random.Generator
) -> RandomMatrix:
    """Weights of either sign and of several binades, such that sums over a row are of order 1.

    No code is NaN, and none but those of four bits is subnormal.
    """
    dtype = next(iter(format.weight_dtypes))
    row = format.row_shapes(sizes.columns)[1]
    codes = _random_bytes((sizes.experts, sizes.rows, row[0] * dtype.itemsize), rng)
    if format.has_groups:
        scales, _ = _scales(format, block_shape, sizes, _INTEGER_RMS[format.element_bits], rng)
        if scales is not None:  # of both signs, as there is one code more below the middle than above
            scales = cast(np.where(rng.random(scales.shape) < 0.5, -scales, scales), BFLOAT16)
        return RandomMatrix(codes.view(dtype), scales, None)
    if format.element_bits == 4:
        return RandomMatrix(codes, *_scales(format, block_shape, sizes, _E2M1_RMS, rng))
    if format.element_bits == 8:
        codes &= 0x9F  # sign, two bits of the exponent, mantissa
        codes |= 0x20  # 2**-3 to 2**0
        return RandomMatrix(codes.view(dtype), *_scales(format, block_shape, sizes, _E4M3_RMS, rng))
    words = codes.view(np.uint16)
    words &= 0x81FF
    words += np.uint16((124 + round(math.log2(weight_rms(sizes.columns) / _BF16_RMS))) << 7)
    return RandomMatrix(words.view(dtype), None, None)


def _random_bytes(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    count = math.prod(shape)
    words = rng.integers(0, 2**64, size=-(-count // 8), dtype=np.uint64)
    return words.view(np.uint8)[:count].reshape(shape)


def _scales(
    format: WeightFormat,
    block_shape: BlockShape | None,
    sizes: MatrixSizes,
    code_rms: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Block scales and tensor scales."""
    experts, rows, columns = sizes
    if format.has_sum_scales:
        block_rows, block_k = block_shape or (None, None)
        shape = experts, -(-rows // (block_rows or rows)), -(-columns // (block_k or columns))
        return _random_float32(shape, weight_rms(columns) / code_rms, rng), None
    shape = experts, rows, columns // format.scale_block
    if not format.has_tensor_scale:
        middle = middle_scale(columns, code_rms)
        return rng.integers(middle - 1, middle + 2, size=shape, dtype=np.uint8), None
    scales = _random_bytes(shape, rng)
    scales &= 0x0F
    scales |= 0x30  # 2**-1 and 2**0
    tensor_rms = weight_rms(columns) / (code_rms * _E4M3_SCALE_RMS)
    return scales.view(ml_dtypes.float8_e4m3fn), _random_float32((experts,), tensor_rms, rng)


def _random_float32(shape: tuple[int, ...], middle: float, rng: np.random.Generator) -> Any:
    return (middle * rng.uniform(0.75, 1.25, shape)).astype(np.float32)
