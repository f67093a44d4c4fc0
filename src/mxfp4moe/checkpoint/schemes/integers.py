"""Integer codes as checkpoints pack them, taken apart into what `mxfp4moe.pack_experts` takes.

Codes of 4 bits become uint8 [N, K / 2] of codes 0 to 15, the even k in the low nibble; codes of 8 bits int8
[N, K]. Zero points are uint8 or int8 [N, groups]. A weight is (code - zero point) times the scale of its
group.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mxfp4moe._arguments import cast

AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Which nibble of a word, from the lowest on, holds each of its eight columns in AWQ."""


def unpack(words: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """The codes of 4 or 8 bits in words of 32 [..., n], lowest bits first: [..., n * 32 / bits]."""
    data = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return data
    return np.stack([data & 15, data >> 4], axis=-1).reshape(*data.shape[:-1], -1)


def codes_of_rows(words: NDArray[Any], bits: int, order: NDArray[Any] | None = None) -> NDArray[Any]:
    """Codes of words [N, K * bits / 32] (compressed-tensors, MLX), those of columns in `order`."""
    data = np.ascontiguousarray(words).view(np.uint8)
    if order is not None:
        data = unpack(data, bits)[:, order]
        data = data[:, 0::2] | data[:, 1::2] << np.uint8(4) if bits == 4 else data
    return data if bits == 4 else signed(data)


def codes_of_columns(words: NDArray[Any], bits: int, order: NDArray[Any] | None = None) -> NDArray[Any]:
    """Codes of words [K * bits / 32, N] (GPTQ)."""
    return codes_of_rows(words.T, bits, order)


def codes_of_awq(words: NDArray[Any]) -> NDArray[np.uint8]:
    """Codes of 4 bits of words [K, N / 8] (AWQ)."""
    codes = _in_awq_order(words)
    return np.ascontiguousarray((codes[0::2] | codes[1::2] << 4).T)


def zeros_of_rows(words: NDArray[Any], bits: int, rows: int) -> NDArray[Any]:
    """Zero points of words [ceil(N * bits / 32), groups] (compressed-tensors), packed along N."""
    zeros = unpack(words.T, bits)[:, :rows].T
    return zeros if bits == 4 else signed(zeros)


def zeros_of_columns(words: NDArray[Any], bits: int, offset: int) -> NDArray[Any]:
    """Zero points of words [groups, N * bits / 32] (GPTQ); the first version stores them less an `offset`.

    So 0 is stored as the largest code, all of whose bits are ones.
    """
    zeros = (unpack(words, bits) + np.uint8(offset) & np.uint8(2**bits - 1)).T
    return zeros if bits == 4 else signed(zeros)


def zeros_of_awq(words: NDArray[Any]) -> NDArray[np.uint8]:
    """Zero points of words [groups, N / 8] (AWQ)."""
    return _in_awq_order(words).T


def signed(codes: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Codes of 8 bits, or zero points, that are stored with 128 added."""
    return (codes ^ np.uint8(0x80)).view(np.int8)


def zeros_of_biases(
    scales: NDArray[Any], biases: NDArray[Any], bits: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The zero points of groups with a bias (MLX), and where the bias is exactly what they stand for."""
    s, b = cast(scales, np.float64), cast(biases, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        zeros = np.rint(-b / s)
        zeros = np.where((zeros >= 0) & (zeros <= 2**bits - 1), zeros, 0)
        return zeros.astype(np.uint8), zeros * s == -b


def dequantize(
    codes: NDArray[Any], scales: NDArray[Any], zeros: NDArray[Any] | None, offsets: NDArray[Any] | None = None
) -> NDArray[np.float32]:
    """(code - zero point) * scale + offset, rounded once.

    Without zero points they are 8 for 4 bits, and 0 for 8; with offsets alone they are the lowest code.
    """
    is_int4 = codes.dtype == np.uint8
    values = (unpack(codes, 4) if is_int4 else codes).reshape(*scales.shape, -1).astype(np.float64)
    if zeros is not None:
        values -= zeros.astype(np.float64)[..., None]
    elif offsets is not None:
        values -= 0 if is_int4 else -128
    else:
        values -= 8 if is_int4 else 0
    with np.errstate(invalid="ignore"):  # infinities and NaN, which whoever takes the weights refuses
        values *= cast(scales, np.float64)[..., None]
        if zeros is None and offsets is not None:
            values += cast(offsets, np.float64)[..., None]
    return cast(values.reshape(len(codes), -1), np.float32)


def _in_awq_order(words: NDArray[Any]) -> NDArray[np.uint8]:
    by_word = unpack(words, 4).reshape(*words.shape, len(AWQ_ORDER))
    return by_word[..., AWQ_ORDER].reshape(words.shape[0], -1)
