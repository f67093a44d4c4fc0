"""Weights in the blocks of 32 that ggml reads."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_ROWS = 1 << 12  # of a matrix that are rounded at a time, so that little of it is there in float32


def mxfp4_blocks(codes: NDArray[Any], scales: NDArray[Any]) -> NDArray[np.uint8]:
    """MXFP4 [..., blocks, 17]: a scale, then elements 0 to 15 in low nibbles, 16 to 31 in high ones."""
    return _blocks(scales[..., None], _halves(codes, scales.shape))


def q4_0_blocks(codes: NDArray[Any], scales: NDArray[Any]) -> NDArray[np.uint8]:
    """Q4_0 [..., blocks, 18] of int4 in groups of a multiple of 32: a scale in float16, then as MXFP4."""
    scales = _float16_of_blocks(scales, 2 * codes.shape[-1] // 32)
    return _blocks(scales, _halves(codes, scales.shape[:-1]))


def q8_0_blocks(codes: NDArray[Any], scales: NDArray[Any]) -> NDArray[np.uint8]:
    """Q8_0 [..., blocks, 34] of int8 in groups of a multiple of 32: a scale in float16, then 32 integers."""
    scales = _float16_of_blocks(scales, codes.shape[-1] // 32)
    return _blocks(scales, codes.view(np.uint8).reshape(*scales.shape[:-1], 32))


def _blocks(scales: NDArray[Any], elements: NDArray[Any]) -> NDArray[np.uint8]:
    """Bytes of scales and of elements, one after the other."""
    return np.concatenate([scales, elements], axis=-1, dtype=np.uint8)


def _halves(codes: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Elements 0 to 15 of each block in low nibbles, 16 to 31 in high ones."""
    elements = np.empty((*shape, 16), np.uint8)
    pairs = codes.reshape(*shape, 16)
    first, second = pairs[..., :8], pairs[..., 8:]
    elements[..., 0::2] = first & 0x0F | second << 4
    elements[..., 1::2] = first >> 4 | second & 0xF0
    return elements


def _float16_of_blocks(scales: NDArray[Any], num_blocks: int) -> NDArray[np.uint8]:
    """The bytes of the scale of each block of a row, from those of groups of blocks."""
    of_blocks = np.repeat(scales.astype(np.float16), num_blocks // scales.shape[-1], axis=-1)
    return of_blocks[..., None].view(np.uint8)


def quantize_q8_0(weight: NDArray[Any]) -> NDArray[np.uint8]:
    """Q8_0 [N, blocks, 34] of a matrix: the scale is the largest magnitude over 127."""
    rows, columns = weight.shape
    packed = np.empty((rows, columns // 32, 34), np.uint8)
    for begin in range(0, rows, _ROWS):
        blocks = weight[begin : begin + _ROWS].astype(np.float32).reshape(-1, columns // 32, 32)
        scales = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
        inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
        part = packed[begin : begin + _ROWS]
        part[..., :2] = scales.astype(np.float16).view(np.uint8)
        part[..., 2:] = np.rint(blocks * inverse).astype(np.int8).view(np.uint8)
    return packed
