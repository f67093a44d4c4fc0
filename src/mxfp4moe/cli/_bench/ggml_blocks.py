"""Weights in the blocks of 32 that ggml reads."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_ROWS = 1 << 12  # of a matrix that are rounded at a time, so that little of it is there in float32


def mxfp4_blocks(codes: NDArray[Any], scales: NDArray[Any]) -> NDArray[np.uint8]:
    """MXFP4 [..., blocks, 17]: a scale, then elements 0 to 15 in low nibbles, 16 to 31 in high ones."""
    packed = np.empty((*scales.shape, 17), np.uint8)
    packed[..., 0] = scales
    pairs = codes.reshape(*scales.shape, 16)
    first, second = pairs[..., :8], pairs[..., 8:]
    packed[..., 1::2] = first & 0x0F | second << 4
    packed[..., 2::2] = first >> 4 | second & 0xF0
    return packed


def q8_0_blocks(weight: NDArray[Any]) -> NDArray[np.uint8]:
    """Q8_0 [N, blocks, 34] of a matrix: largest magnitude over 127 in float16, then 32 integers."""
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
