"""Blocks of GGUF files, taken apart into what `mxfp4moe.pack_experts` takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

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


SPLIT: Mapping[str, Split] = MappingProxyType({"MXFP4": split_mxfp4, "NVFP4": split_nvfp4})
"""By the type of the tensor."""
