"""Products of weights and activations of eight bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import ml_dtypes
import numpy as np

from mxfp4moe.formats import LINEAR_FORMATS
from mxfp4moe.reference.elements import unpack_e2m1

BLOCK = 32
"""So many consecutive numbers of a token share a scale."""


def quantize_activations(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round blocks of 32 numbers of the last axis to integers of -127 to 127 and a scale.

    The scale is the largest magnitude / 127, an integer the number / scale to nearest even; both quotients
    are float32. Where the scale is 0, the integers are 0. Where it is subnormal, and a quotient is beyond
    127, that becomes 127. A block with NaN or infinity has the scale NaN and integers 0. The last block is
    filled with 0.

    Parameters
    ----------
    x : ndarray of shape (..., K)
        bfloat16, float16 or float32.

    Returns
    -------
    values : int8 ndarray of shape (..., ceil(K / 32), 32)
    scales : float32 ndarray of shape (..., ceil(K / 32))

    References
    ----------
    LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale, arXiv:2208.07339, section 2: rounding
    by the largest magnitude, there of a row.

    Examples
    --------
    >>> import numpy as np
    >>> from mxfp4moe import reference
    >>> values, scales = reference.quantize_activations(np.float32([254, 2, -1]))
    >>> values[0, :3].tolist(), scales.tolist()
    ([127, 1, 0], [2.0])
    """
    numbers = x.astype(np.float32)
    k = numbers.shape[-1]
    padded = np.zeros((*numbers.shape[:-1], -(-k // BLOCK) * BLOCK), np.float32)
    padded[..., :k] = numbers
    blocks = padded.reshape(*numbers.shape[:-1], -1, BLOCK)
    finite = np.asarray(np.isfinite(blocks).all(axis=-1))
    blocks = np.where(finite[..., None], blocks, np.float32(0))
    scales = np.abs(blocks).max(axis=-1, initial=0) / np.float32(127)
    with np.errstate(divide="ignore", invalid="ignore"):
        quotients = np.rint(blocks / scales[..., None])
    values = np.where(scales[..., None] == 0, 0, np.clip(quotients, -127, 127)).astype(np.int8)
    return values, np.where(finite, scales, np.float32(np.nan))


class IntegerMatrix(NamedTuple):
    """Weights as integers, [N, blocks, size], with a scale each block, and a factor and a scale of the sums.

    Integers are twice the values of E2M1, whose sums have the factor 1/2, or codes minus their zero points.
    With offsets, codes are counted from the lowest one.
    """

    values: np.ndarray
    scales: np.ndarray
    factor: np.float32
    tensor_scale: np.ndarray | None
    shape: tuple[int, int]
    """That of the matrix, whose last blocks may be filled with 0."""
    offsets: np.ndarray | None = None
    """float32 [N, groups], each added to the weights of its group."""

    def sums(self, x: np.ndarray) -> np.ndarray:
        """The sums of each token, [T, N]: from block to block, ``sum + (integer * x_scale) * scale``."""
        tokens, token_scales = quantize_activations(x)
        _, blocks, size = self.values.shape
        parts = BLOCK // size  # blocks of weights to a block of activations
        pieces = tokens.reshape(len(tokens), -1, size).astype(np.float64)
        result = np.zeros((len(tokens), self.shape[0]), np.float32)
        with np.errstate(all="ignore"):
            for block in range(blocks):
                exact = pieces[:, block] @ self.values[:, block].T
                scaled = exact.astype(np.float32) * token_scales[:, block // parts, None]
                result = result + scaled * self.scales[:, block]
            result = result * self.factor
            if self.tensor_scale is not None:
                result = result * self.tensor_scale
            return result if self.offsets is None else result + self._of_offsets(pieces, token_scales)

    def _of_offsets(self, pieces: np.ndarray, token_scales: np.ndarray) -> np.ndarray:
        """The offsets times the sums of tokens over their groups, [T, N], in four parts that take turns."""
        assert self.offsets is not None
        count, groups = self.values.shape[1], self.offsets.shape[1]
        sums = np.zeros((len(pieces), groups), np.float32)
        for block in range(count):
            scale = token_scales[:, block // (BLOCK // self.values.shape[2])]
            sums[:, block // -(-count // groups)] += pieces[:, block].sum(axis=-1).astype(np.float32) * scale
        parts = np.zeros((4, len(pieces), self.shape[0]), np.float32)
        for group in range(groups):
            part = group % 4 if group < groups // 4 * 4 else 0
            parts[part] += sums[:, group, None] * self.offsets[:, group]
        return np.asarray((parts[0] + parts[1]) + (parts[2] + parts[3]))


def integer_matrix(
    format: str,
    arrays: Sequence[np.ndarray | None],
    tensor_scale: np.ndarray | None = None,
) -> IntegerMatrix:
    """A matrix of codes, scales, zero points and offsets; `tensor_scale` is one number, or one each row."""
    weights, scales, zero_points, offsets = arrays
    if weights is None or scales is None or not LINEAR_FORMATS[format].is_integral:
        raise ValueError(f"format: expected one of mxfp4, nvfp4, int4, int8, got {format!r}")
    rows = len(weights)
    if format in ("mxfp4", "nvfp4"):
        size, kind = (32, ml_dtypes.float8_e8m0fnu) if format == "mxfp4" else (16, ml_dtypes.float8_e4m3fn)
        doubled = 2 * unpack_e2m1(weights.reshape(rows, -1)).astype(np.float64)
        block_scales = scales.reshape(rows, -1).view(np.uint8).view(kind).astype(np.float32)
        blocks = doubled.reshape(rows, -1, size)
        if block_scales.shape[1] % (BLOCK // size):  # half a block
            blocks = np.pad(blocks, ((0, 0), (0, 1), (0, 0)))
            block_scales = np.pad(block_scales, ((0, 0), (0, 1)))
        return IntegerMatrix(blocks, block_scales, np.float32(0.5), tensor_scale, doubled.shape)
    codes = unpack_e2m1(weights).view(np.uint8) if format == "int4" else weights
    groups = scales.reshape(rows, -1)
    zeros = np.full(groups.shape, _implied_zero(format, offsets is not None))
    if zero_points is not None:
        zeros = zero_points.astype(np.int64)
    k = codes.shape[-1]
    of_group = codes.reshape(*groups.shape, -1).astype(np.float64) - zeros.reshape(groups.shape)[..., None]
    size = BLOCK // 2 if of_group.shape[-1] == BLOCK // 2 and groups.shape[1] > 1 else BLOCK
    padded = np.zeros((rows, -(-k // size) * size))
    padded[:, :k] = of_group.reshape(rows, k)
    first = np.arange(0, k, size) // of_group.shape[-1]
    scale_of = groups.astype(np.float32)[:, first]
    added = None if offsets is None else offsets.reshape(rows, -1).astype(np.float32)
    blocks = padded.reshape(rows, -1, size)
    return IntegerMatrix(blocks, scale_of, np.float32(1), tensor_scale, (rows, k), added)


def _implied_zero(format: str, has_offsets: bool) -> int:
    """The zero point of integers without any; those with offsets count codes from the lowest one."""
    if format == "int4":
        return 0 if has_offsets else 8
    return -128 if has_offsets else 0
