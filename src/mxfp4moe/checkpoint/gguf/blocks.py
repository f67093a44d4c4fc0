"""Blocks of GGUF files, taken apart into what `mxfp4moe.pack_experts` takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from mxfp4moe.checkpoint.schemes import Matrix
from mxfp4moe.formats import Format

Split = Callable[["NDArray[np.uint8]"], Matrix]
"""It takes the blocks [N, blocks, bytes] of a matrix and returns codes, scales, and perhaps offsets."""

_NVFP4_SCALE_BYTES = 4  # one for each 16 of the 64 elements
_NAN = 0x7F
_LOWEST = np.uint8(0x80)  # turns a count from the lowest code of 8 bits into that code, as bits


def split_mxfp4(blocks: NDArray[np.uint8]) -> Matrix:
    """Codes [N, K / 32, 16], the even k in the low nibble, and scales [N, K / 32] of blocks [N, K / 32, 17].

    Byte j of a block in GGUF holds elements j (low nibble) and j + 16 (high nibble).
    """
    return Matrix(_in_order(blocks[..., 1:]), np.ascontiguousarray(blocks[..., 0]))


def split_nvfp4(blocks: NDArray[np.uint8]) -> Matrix:
    """Codes [N, K / 16, 8], and scales [N, K / 16] of blocks [N, K / 64, 36].

    Byte j of the 8 bytes of a scale holds elements j and j + 8. Scales are E4M3 without a sign, in which the
    code of NaN stands for 0.
    """
    rows, scales = len(blocks), blocks[..., :_NVFP4_SCALE_BYTES].reshape(len(blocks), -1)
    codes = blocks[..., _NVFP4_SCALE_BYTES:].reshape(rows, -1, 8)
    unsigned = np.where(scales == _NAN, 0, scales & 0x7F).astype(np.uint8)
    return Matrix(_in_order(codes), unsigned.view(ml_dtypes.float8_e4m3fn))


def _in_order(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two neighbours in each byte, of n bytes whose low nibbles come before all their high ones."""
    words = np.ascontiguousarray(data).view("<u2")
    codes = np.empty(data.shape, np.uint8)
    middle = data.shape[-1] // 2
    # From its lowest nibble on, a word has the elements 2i, 2i + n, 2i + 1, 2i + 1 + n.
    codes[..., :middle] = words & 0x0F | words >> 4 & 0xF0
    codes[..., middle:] = words >> 4 & 0x0F | words >> 8 & 0xF0
    return codes


def split_q4_0(blocks: NDArray[np.uint8]) -> Matrix:
    """Codes [N, K / 2] and float16 scales [N, K / 32] of blocks [N, K / 32, 18]; 8 stands for zero."""
    return Matrix(_in_order(blocks[..., 2:]).reshape(len(blocks), -1), _float16(blocks))


def split_q4_1(blocks: NDArray[np.uint8]) -> Matrix:
    """As Q4_0, but the number after the scale is what a code of zero stands for: blocks [N, K / 32, 20]."""
    codes = _in_order(blocks[..., 4:]).reshape(len(blocks), -1)
    return Matrix(codes, _float16(blocks), offsets=_float16(blocks, 2))


def split_q5_0(blocks: NDArray[np.uint8]) -> Matrix:
    """Signed codes [N, K] and float16 scales [N, K / 32] of blocks [N, K / 32, 22].

    The four bytes after the scale are the fifth bits.
    """
    codes = _five_bits(blocks[..., 2:]).view(np.int8) - np.int8(16)
    return Matrix(codes.reshape(len(blocks), -1), _float16(blocks))


def split_q5_1(blocks: NDArray[np.uint8]) -> Matrix:
    """As Q4_1, with the fifth bits of Q5_0: blocks [N, K / 32, 24]."""
    codes = (_five_bits(blocks[..., 4:]) ^ _LOWEST).view(np.int8)
    return Matrix(codes.reshape(len(blocks), -1), _float16(blocks), offsets=_float16(blocks, 2))


def split_q8_0(blocks: NDArray[np.uint8]) -> Matrix:
    """Signed codes [N, K] and float16 scales [N, K / 32] of blocks [N, K / 32, 34]."""
    codes = np.ascontiguousarray(blocks[..., 2:]).view(np.int8)
    return Matrix(codes.reshape(len(blocks), -1), _float16(blocks))


def split_iq4_nl(blocks: NDArray[np.uint8]) -> Matrix:
    """As Q4_0, but a code stands for one of 16 integers, which are what is returned."""
    return Matrix(_IQ4[_nibbles(blocks[..., 2:])].reshape(len(blocks), -1), _float16(blocks))


def split_iq4_xs(blocks: NDArray[np.uint8]) -> Matrix:
    """Integers as of IQ4_NL [N, K] and float32 scales [N, K / 32] of blocks [N, K / 256, 136].

    A scale is the float16 number of the block times an integer of 6 bits less 32, which float32 holds. The
    high two bits of the eight integers come first, then the low four.
    """
    rows = len(blocks)
    high = np.ascontiguousarray(blocks[..., 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    low = np.stack([blocks[..., 4:8] & 15, blocks[..., 4:8] >> 4], axis=-1).reshape(*high.shape)
    codes = _IQ4[_nibbles(blocks[..., 8:].reshape(rows, -1, 16))]
    factors = (low | high << 4).astype(np.int8) - np.int8(32)
    return Matrix(codes.reshape(rows, -1), _times(_float16(blocks), factors))


_IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)


# --- K-blocks ---
# A block of 256 elements has a float16 number or two, which integers of at most 8 bits multiply: the scale,
# and perhaps the offset, of each 32 or 16 elements. float32 holds these products.


def split_q2_k(blocks: NDArray[np.uint8]) -> Matrix:
    """Codes [N, K / 2] of 2 bits, and scales and offsets for each 16 of blocks [N, K / 256, 84].

    A byte of `scales` has the factor of the scale in its low half, and that of the offset in the high one.
    """
    factors = blocks[..., :16]
    codes = _planes(blocks[..., 16:80], 2)
    scales = _times(_float16(blocks, 80), factors & 15)
    return Matrix(_pairs(codes), scales, offsets=-_times(_float16(blocks, 82), factors >> 4))


def split_q3_k(blocks: NDArray[np.uint8]) -> Matrix:
    """Codes [N, K / 2] around 8, and scales for each 16 of blocks [N, K / 256, 110].

    A code has two bits, and a third one in the first 32 bytes, without which it is negative. The twelve bytes
    of scales have the low four bits of sixteen integers, then the high two; 32 stands for zero.
    """
    third = _planes(blocks[..., :32], 1)
    codes = _planes(blocks[..., 32:96], 2) + 4 * third + np.uint8(4)
    low, high = blocks[..., 96:104], blocks[..., 104:108]
    factors = np.concatenate([low & 15, low >> 4], axis=-1)
    factors |= np.concatenate([high >> shift & 3 for shift in (0, 2, 4, 6)], axis=-1) << 4
    return Matrix(_pairs(codes), _times(_float16(blocks, 108), factors.view(np.int8) - np.int8(32)))


def split_q4_k(blocks: NDArray[np.uint8]) -> Matrix:
    """Codes [N, K / 2], and scales and offsets for each 32 of blocks [N, K / 256, 144]."""
    codes = _in_order(blocks[..., 16:].reshape(len(blocks), -1, 32))
    scales, offsets = _scales_of_k(blocks)
    return Matrix(codes.reshape(len(blocks), -1), scales, offsets=offsets)


def split_q5_k(blocks: NDArray[np.uint8]) -> Matrix:
    """As Q4_K, as codes of 8 bits [N, K]; bit i of 32 bytes is the fifth of each element of the i-th 32."""
    rows, number = blocks.shape[:2]
    fifth = np.stack([blocks[..., 16:48] >> shift & 1 for shift in range(8)], axis=2)
    codes = _nibbles(blocks[..., 48:].reshape(rows, number, 4, 32)).reshape(fifth.shape) | fifth << 4
    scales, offsets = _scales_of_k(blocks)
    return Matrix((codes ^ _LOWEST).view(np.int8).reshape(rows, -1), scales, offsets=offsets)


def split_q6_k(blocks: NDArray[np.uint8]) -> Matrix:
    """Signed codes [N, K], and scales for each 16 of blocks [N, K / 256, 210].

    Each 128 elements have 64 bytes of low nibbles and 32 of high bits.
    """
    rows, number = blocks.shape[:2]
    low = _nibbles(blocks[..., :128].reshape(rows, number, 2, 64)).reshape(rows, number, -1)
    codes = (low | _planes(blocks[..., 128:192], 2) << 4).view(np.int8) - np.int8(32)
    factors = np.ascontiguousarray(blocks[..., 192:208]).view(np.int8)
    return Matrix(codes.reshape(rows, -1), _times(_float16(blocks, 208), factors))


def _scales_of_k(blocks: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scales and offsets of the eight 32 of a block of Q4_K or Q5_K.

    Twelve bytes hold eight integers of six bits for the scales and eight for the offsets: the first four of
    each in bytes of their own, whose upper two bits are those of the last four.
    """
    first, second, low = blocks[..., 4:8], blocks[..., 8:12], blocks[..., 12:16]
    scales = np.concatenate([first & 63, low & 15 | first >> 6 << 4], axis=-1)
    offsets = np.concatenate([second & 63, low >> 4 | second >> 6 << 4], axis=-1)
    return _times(_float16(blocks), scales), -_times(_float16(blocks, 2), offsets)


def _times(numbers: NDArray[Any], factors: NDArray[Any]) -> NDArray[np.float32]:
    """Products [N, groups] of the number of each block and integers, which float32 holds exactly."""
    with np.errstate(invalid="ignore"):
        products: NDArray[np.float32] = numbers.astype(np.float32)[..., None] * factors.astype(np.float32)
    return products.reshape(len(numbers), -1)


def _planes(data: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Elements of so many bits: each 32 bytes have 32 in their lowest bits, then 32 in the next."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    by_chunk = data.reshape(*data.shape[:-1], -1, 1, 32)
    codes: NDArray[np.uint8] = by_chunk >> shifts & np.uint8(2**bits - 1)
    return codes.reshape(*data.shape[:-1], -1)


def _pairs(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two neighbours in each byte, of codes that have a byte each."""
    rows = codes.reshape(len(codes), -1)
    return rows[:, 0::2] | rows[:, 1::2] << np.uint8(4)


def _five_bits(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Codes whose fifth bits come first, in four bytes, then the others as nibbles."""
    fifth = np.unpackbits(data[..., :4], axis=-1, bitorder="little")
    return _nibbles(data[..., 4:]) | fifth << np.uint8(4)


def _float16(blocks: NDArray[np.uint8], begin: int = 0) -> NDArray[Any]:
    """A float16 number of each block."""
    return np.ascontiguousarray(blocks[..., begin : begin + 2]).view("<f2")[..., 0]


def _nibbles(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The codes of n bytes whose low nibbles come before all their high ones, a byte for each."""
    return np.concatenate([data & 15, data >> 4], axis=-1)


class Blocks(NamedTuple):
    """What a type of blocks becomes."""

    format: Format
    split: Split


BLOCK_TYPES: Mapping[str, Blocks] = MappingProxyType(
    {
        "MXFP4": Blocks("mxfp4", split_mxfp4),
        "NVFP4": Blocks("nvfp4", split_nvfp4),
        "Q4_0": Blocks("int4", split_q4_0),
        "Q4_1": Blocks("int4", split_q4_1),
        "Q5_0": Blocks("int8", split_q5_0),
        "Q5_1": Blocks("int8", split_q5_1),
        "Q8_0": Blocks("int8", split_q8_0),
        "Q2_K": Blocks("int4", split_q2_k),
        "Q3_K": Blocks("int4", split_q3_k),
        "Q4_K": Blocks("int4", split_q4_k),
        "Q5_K": Blocks("int8", split_q5_k),
        "Q6_K": Blocks("int8", split_q6_k),
        "IQ4_NL": Blocks("int8", split_iq4_nl),
        "IQ4_XS": Blocks("int8", split_iq4_xs),
    }
)
"""The types that are read, each exactly, in the format that holds it."""
