"""4-bit E2M1 codes, two a byte."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mxfp4moe import _core
from mxfp4moe._arguments import as_array, value_error
from mxfp4moe.config import resolve_num_threads
from mxfp4moe.quantize._common import E2M1, INT8, UINT8, as_bytes, at_position, check_last_axis


def pack_e2m1(codes: ArrayLike, *, num_threads: int | None = None) -> NDArray[np.uint8]:
    """Pack 4-bit codes, one a byte, two a byte.

    Parameters
    ----------
    codes : array_like of shape (..., K)
        float4_e2m1fn, or its codes as uint8, 0 to 15; K even.
    num_threads : int, optional
        For this call; see `mxfp4moe.num_threads`.

    Returns
    -------
    uint8 ndarray of shape (..., K/2)
        Even k in the low nibble.

    Raises
    ------
    TypeError
        `codes` is of another dtype, masked, or no array.
    ValueError
        `codes` has no axis or its last is odd; a uint8 is above 15.

    References
    ----------
    OCP Microscaling Formats (MX) Specification, version 1.0, Open Compute Project, 2023.

    Examples
    --------
    >>> import ml_dtypes
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> codes = np.array([1.0, -1.0, 0.5, 6.0]).astype(ml_dtypes.float4_e2m1fn)
    >>> [hex(byte) for byte in mx.pack_e2m1(codes)]
    ['0xa2', '0x71']
    """
    threads = resolve_num_threads(num_threads)
    array = as_array("codes", codes, (E2M1, UINT8))
    check_last_axis("codes", array, 2)
    if array.dtype == UINT8 and array.size and array.max() > 15:
        flat_index = int((array > 15).argmax())
        raise value_error("codes", "values in [0, 15]", at_position(array, flat_index))
    blocks = np.empty((*array.shape[:-1], array.shape[-1] // 2), np.uint8)
    if blocks.size:
        _core.pack_e2m1(as_bytes(array), blocks.reshape(-1), threads)
    return blocks


def unpack_e2m1(blocks: ArrayLike, *, num_threads: int | None = None) -> NDArray[Any]:
    """Unpack 4-bit codes: the inverse of `pack_e2m1`.

    Parameters
    ----------
    blocks : array_like of shape (..., K/2)
        uint8 or int8, two codes a byte, even k in the low nibble.
    num_threads : int, optional
        For this call; see `mxfp4moe.num_threads`.

    Returns
    -------
    float4_e2m1fn ndarray of shape (..., K)

    Raises
    ------
    TypeError
        `blocks` is of another dtype, masked, or no array.
    ValueError
        `blocks` has no axis.

    References
    ----------
    OCP Microscaling Formats (MX) Specification, version 1.0, Open Compute Project, 2023.

    Examples
    --------
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> mx.unpack_e2m1(np.array([0xA2, 0x71], np.uint8)).astype(np.float32)
    array([ 1. , -1. ,  0.5,  6. ], dtype=float32)
    """
    threads = resolve_num_threads(num_threads)
    array = as_array("blocks", blocks, (UINT8, INT8))
    check_last_axis("blocks", array, 1)
    codes = np.empty((*array.shape[:-1], 2 * array.shape[-1]), np.uint8)
    if codes.size:
        _core.unpack_e2m1(as_bytes(array), codes.reshape(-1), threads)
    return codes.view(E2M1)
