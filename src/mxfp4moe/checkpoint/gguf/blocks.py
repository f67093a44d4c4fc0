"""Blocks of GGUF files, taken apart into what `mxfp4moe.pack_experts` takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from mxfp4moe.formats import Format

Split = Callable[["NDArray[np.uint8]"], tuple["NDArray[np.uint8]", "NDArray[Any]"]]
"""It takes the blocks [N, blocks, bytes] of a matrix and returns its codes and its scales."""

_NVFP4_SCALE_BYTES = 4  # one for each 16 of the 64 elements
_NAN = 0x7F


def split_mxfp4(blocks: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Codes [N, K / 32, 16], the even k in the low nibble, and scales [N, K / 32] of blocks [N, K / 32, 17].

    Byte j of a block in GGUF holds elements j (low nibble) and j + 16 (high nibble).
    """
    return _in_order(blocks[..., 1:]), np.ascontiguousarray(blocks[..., 0])


def split_nvfp4(blocks: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Codes [N, K / 16, 8], and scales [N, K / 16] of blocks [N, K / 64, 36].

    Byte j of the 8 bytes of a scale holds elements j and j + 8. Scales are E4M3 without a sign, in which the
    code of NaN stands for 0.
    """
    rows, scales = len(blocks), blocks[..., :_NVFP4_SCALE_BYTES].reshape(len(blocks), -1)
    codes = blocks[..., _NVFP4_SCALE_BYTES:].reshape(rows, -1, 8)
    unsigned = np.where(scales == _NAN, 0, scales & 0x7F).astype(np.uint8)
    return _in_order(codes), unsigned.view(ml_dtypes.float8_e4m3fn)


def _in_order(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two neighbours in each byte, of n bytes whose low nibbles come before all their high ones."""
    words = np.ascontiguousarray(data).view("<u2")
    codes = np.empty(data.shape, np.uint8)
    middle = data.shape[-1] // 2
    # From its lowest nibble on, a word has the elements 2i, 2i + n, 2i + 1, 2i + 1 + n.
    codes[..., :middle] = words & 0x0F | words >> 4 & 0xF0
    codes[..., middle:] = words >> 4 & 0x0F | words >> 8 & 0xF0
    return codes


def split_q4_0(blocks: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Codes [N, K / 2] and float16 scales [N, K / 32] of blocks [N, K / 32, 18]; 8 stands for zero."""
    return _in_order(blocks[..., 2:]).reshape(len(blocks), -1), _float16(blocks)


def split_q5_0(blocks: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Signed codes [N, K] and float16 scales [N, K / 32] of blocks [N, K / 32, 22].

    The four bytes after the scale are the fifth bits.
    """
    fifth = np.unpackbits(blocks[..., 2:6], axis=-1, bitorder="little")
    codes = _nibbles(blocks[..., 6:]) | fifth << 4
    return (codes.view(np.int8) - np.int8(16)).reshape(len(blocks), -1), _float16(blocks)


def split_q8_0(blocks: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Signed codes [N, K] and float16 scales [N, K / 32] of blocks [N, K / 32, 34]."""
    codes = np.ascontiguousarray(blocks[..., 2:]).view(np.int8)
    return codes.reshape(len(blocks), -1), _float16(blocks)


def split_iq4_nl(blocks: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any]]:
    """As Q4_0, but a code stands for one of 16 integers, which are what is returned."""
    return _IQ4[_nibbles(blocks[..., 2:])].reshape(len(blocks), -1), _float16(blocks)


def split_iq4_xs(blocks: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Integers as of IQ4_NL [N, K] and float32 scales [N, K / 32] of blocks [N, K / 256, 136].

    A scale is the float16 number of the block times an integer of 6 bits less 32, which float32 holds. The
    high two bits of the eight integers come first, then the low four.
    """
    rows = len(blocks)
    high = np.ascontiguousarray(blocks[..., 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    low = np.stack([blocks[..., 4:8] & 15, blocks[..., 4:8] >> 4], axis=-1).reshape(*high.shape)
    factors = (low | high << 4).astype(np.float32) - 32
    scales = _float16(blocks).astype(np.float32)[..., None] * factors
    codes = _IQ4[_nibbles(blocks[..., 8:].reshape(rows, -1, 16))]
    return codes.reshape(rows, -1), scales.reshape(rows, -1)


_IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)


def _float16(blocks: NDArray[np.uint8]) -> NDArray[Any]:
    """What each block begins with."""
    return np.ascontiguousarray(blocks[..., :2]).view("<f2")[..., 0]


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
        "Q5_0": Blocks("int8", split_q5_0),
        "Q8_0": Blocks("int8", split_q8_0),
        "IQ4_NL": Blocks("int8", split_iq4_nl),
        "IQ4_XS": Blocks("int8", split_iq4_xs),
    }
)
"""The types that are read, each exactly, in the format that holds it."""
