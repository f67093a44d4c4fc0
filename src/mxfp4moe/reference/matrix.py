"""A matrix of weights in any format by hidden states."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from mxfp4moe.formats import LinearFormat
from mxfp4moe.reference._precision import (
    CONTRACT,
    FLOAT64,
    Precision,
    check_activation_format,
    matmul,
    round_bfloat16,
)
from mxfp4moe.reference.int8 import IntegerMatrix
from mxfp4moe.reference.moe import ExpertArrays, down_integers, down_weights


def linear(
    hidden_states: np.ndarray,
    weight: np.ndarray,
    scales: np.ndarray | None = None,
    *,
    format: LinearFormat = "bf16",
    bias: np.ndarray | None = None,
    block_shape: tuple[int | None, int | None] | None = None,
    tensor_scale: np.ndarray | None = None,
    zero_points: np.ndarray | None = None,
    offsets: np.ndarray | None = None,
    activation_format: str | None = None,
    dtype: DTypeLike = np.float32,
) -> np.ndarray:
    """Weight . hidden + bias in float32, rounded once; hidden states are rounded once to bfloat16.

    With ``activation_format="int8"`` they are rounded by `quantize_activations` instead.

    Parameters
    ----------
    hidden_states : ndarray of shape (..., K)
        bfloat16, float16 or float32.
    weight, scales, format, bias, block_shape, tensor_scale, zero_points, offsets
        As `mxfp4moe.pack_linear` takes them; weights of format bf16 are rounded to bfloat16.
    activation_format : {None, "int8"}
    dtype : dtype, default float32
        Of the result.

    Returns
    -------
    ndarray of shape (..., N)

    References
    ----------
    OCP Microscaling Formats (MX) Specification 1.0, section 6: the product of a matrix with block scales.

    Examples
    --------
    >>> import numpy as np
    >>> from mxfp4moe import reference
    >>> reference.linear(np.ones((1, 2), np.float32), np.array([[1, 2], [3, 4]], np.float32)).tolist()
    [[3.0, 7.0]]
    """
    check_activation_format(activation_format)
    arrays = weight, scales, zero_points, offsets
    read = _matrix if activation_format is None else _integers
    matrix = read(arrays, format, block_shape, tensor_scale)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return _linear(hidden_states, matrix, bias, CONTRACT).astype(dtype)


def linear_float64(
    hidden_states: np.ndarray,
    weight: np.ndarray,
    scales: np.ndarray | None = None,
    *,
    format: LinearFormat = "bf16",
    bias: np.ndarray | None = None,
    block_shape: tuple[int | None, int | None] | None = None,
    tensor_scale: np.ndarray | None = None,
    zero_points: np.ndarray | None = None,
    offsets: np.ndarray | None = None,
) -> np.ndarray:
    """Compute as `linear` does, in float64, rounding nothing but the hidden states to bfloat16.

    Relative errors are measured against this.

    Parameters
    ----------
    hidden_states, weight, scales
        See `linear`.
    format, bias, block_shape, tensor_scale, zero_points, offsets
        See `linear`.

    Returns
    -------
    float64 ndarray of shape (..., N)

    References
    ----------
    OCP Microscaling Formats (MX) Specification 1.0, section 6: the product of a matrix with block scales.

    Examples
    --------
    >>> import numpy as np
    >>> from mxfp4moe import reference
    >>> reference.linear_float64(np.ones((1, 2), np.float32), np.array([[1, 2], [3, 4]], np.float32)).tolist()
    [[3.0, 7.0]]
    """
    arrays = weight, scales, zero_points, offsets
    return _linear(hidden_states, _matrix(arrays, format, block_shape, tensor_scale), bias, FLOAT64)


def _matrix(
    arrays: tuple[np.ndarray, np.ndarray | None, np.ndarray | None, np.ndarray | None],
    format: LinearFormat,
    block_shape: tuple[int | None, int | None] | None,
    tensor_scale: np.ndarray | None,
) -> np.ndarray:
    """The weights of codes, scales, zero points and offsets, exactly."""
    return down_weights(_expert(arrays, format, block_shape, tensor_scale), 0)


def _integers(
    arrays: tuple[np.ndarray, np.ndarray | None, np.ndarray | None, np.ndarray | None],
    format: LinearFormat,
    block_shape: tuple[int | None, int | None] | None,
    tensor_scale: np.ndarray | None,
) -> IntegerMatrix:
    """The codes and scales as they are."""
    return down_integers(_expert(arrays, format, block_shape, tensor_scale), 0)


def _expert(
    arrays: tuple[np.ndarray, np.ndarray | None, np.ndarray | None, np.ndarray | None],
    format: LinearFormat,
    block_shape: tuple[int | None, int | None] | None,
    tensor_scale: np.ndarray | None,
) -> ExpertArrays:
    """The matrix as the down projection of a single expert."""
    weight, scales, zero_points, offsets = arrays
    rows = weight.reshape(len(weight), -1)
    if format == "bf16":
        rows = round_bfloat16(rows)
    elif rows.dtype == np.int8 and format != "int8":
        rows = rows.view(np.uint8)
    if format == "fp8_block" and block_shape is None:
        block_shape = (128, 128)
    one_scale = None if tensor_scale is None else np.reshape(tensor_scale, (1,))
    each = rows[None], None if scales is None else scales[None]
    return ExpertArrays(
        *each,
        *each,
        format="bf16" if format == "float32" else format,  # weights as they are
        block_shape=block_shape,
        w13_tensor_scale=one_scale,
        w2_tensor_scale=one_scale,
        gated=False,
        w2_zero_points=None if zero_points is None else zero_points[None],
        w2_offsets=None if offsets is None else offsets[None],
    )


def _linear(
    hidden_states: np.ndarray,
    matrix: np.ndarray | IntegerMatrix,
    bias: np.ndarray | None,
    precision: Precision,
) -> np.ndarray:
    tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
    with np.errstate(over="ignore", invalid="ignore"):
        if isinstance(matrix, IntegerMatrix):
            sums = matrix.sums(tokens)
        else:
            sums = matmul(round_bfloat16(tokens), matrix, precision)
        if bias is not None:
            sums = sums + bias.astype(precision.dtype)
    return sums.reshape(*hidden_states.shape[:-1], matrix.shape[0])
