"""What sums are held in, and the roundings of the numerics contract."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import ml_dtypes
import numpy as np

bfloat16 = np.dtype(ml_dtypes.bfloat16)


class Precision(NamedTuple):
    """The dtype in which sums are held, and how the intermediate is rounded.

    With `int8_activations`, products are those of `mxfp4moe.reference.int8`, which does all rounding.
    """

    dtype: np.dtype
    round_intermediate: Callable[[np.ndarray], np.ndarray]
    int8_activations: bool = False


def round_bfloat16(x: np.ndarray) -> np.ndarray:
    """The nearest bfloat16 values, ties to even, as float32.

    Parameters
    ----------
    x : float ndarray
        float64 input rounds twice, to float32 first.

    Returns
    -------
    float32 ndarray of the same shape

    References
    ----------
    IEEE 754-2019, section 4.3.1: to nearest, ties to even.

    Examples
    --------
    >>> import numpy as np
    >>> from mxfp4moe import reference
    >>> reference.round_bfloat16(np.array([1 + 2**-8, 1 + 3 * 2**-8], np.float32)).tolist()
    [1.0, 1.015625]
    """
    with np.errstate(over="ignore", invalid="ignore"):  # a signaling NaN is an invalid value
        return x.astype(np.float32).astype(bfloat16).astype(np.float32)


CONTRACT = Precision(np.dtype(np.float32), round_bfloat16)
FLOAT64 = Precision(np.dtype(np.float64), lambda x: x)
INT8 = Precision(np.dtype(np.float32), lambda x: x, int8_activations=True)


def check_activation_format(value: str | None) -> None:
    """Raise unless there are activations of that format."""
    if value not in (None, "int8"):
        raise ValueError(f"activation_format: expected None or 'int8', got {value!r}")


def matmul(tokens: np.ndarray, weights: np.ndarray, precision: Precision) -> np.ndarray:
    """Tokens times transposed weights: sums in float64, rounded once to the precision's dtype."""
    # + 0: a sum that starts from +0 never ends as -0.
    sums = tokens.astype(np.float64) @ weights.astype(np.float64).T + 0.0
    return np.asarray(sums.astype(precision.dtype))
