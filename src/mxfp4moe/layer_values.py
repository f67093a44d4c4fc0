"""The values of the fields of a layer: checked, copied, compared and shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from mxfp4moe._arguments import as_array, cast, check_real, describe, type_error, value_error
from mxfp4moe.experts.packed_experts import PackedExperts
from mxfp4moe.experts.weights import ExpertWeights

ROUTER_DTYPES = (np.float32, ml_dtypes.bfloat16, np.float16)


def check_experts(name: str, value: object) -> None:
    if not isinstance(value, PackedExperts | ExpertWeights):
        raise type_error(name, "PackedExperts", describe(value))


def check_factor(name: str, value: Any) -> float:
    factor = check_real(name, value)
    if not 0 < factor <= float(np.finfo(np.float32).max):
        raise value_error(name, "a finite float32 number above 0", repr(factor))
    return factor


def check_epsilon(name: str, value: Any) -> float:
    """What is added to the mean of squares; above 0, so that the norm of a token of zeros is not NaN."""
    epsilon = check_real(name, value)
    least, greatest = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
    if not least <= epsilon <= greatest:
        raise value_error(name, f"a number in [{least:.4g}, {greatest:.4g}]", repr(epsilon))
    return epsilon


def text_of(value: Any) -> str:
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else repr(value)


def frozen_copy(name: str, value: ArrayLike, dtype: DTypeLike | None) -> Any:
    """A read-only copy of array `name` of a layer, in its own dtype if none is given."""
    array = as_array(name, value, ROUTER_DTYPES)
    result = np.array(array if dtype is None else cast(array, dtype), order="C")
    result.flags.writeable = False
    return result


def same_value(a: Any, b: Any) -> bool:
    """Whether two values of a field are equal; arrays by dtype, shape and bytes, so NaN equals itself."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        arrays = isinstance(a, np.ndarray) and isinstance(b, np.ndarray)
        return arrays and (a.dtype, a.shape) == (b.dtype, b.shape) and a.tobytes() == b.tobytes()
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same_value(a[key], b[key]) for key in a)
    return bool(a == b)
