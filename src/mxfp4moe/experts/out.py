"""The argument `out`: an array of the caller's that takes the result."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from mxfp4moe._arguments import as_output, describe, type_error, value_error
from mxfp4moe.formats import FLOAT_CODES

_MAX_OVERLAP_WORK = 100_000  # some milliseconds; two axes or three take a few steps
_FLOAT_DTYPES = tuple(FLOAT_CODES)


def given_array(value: Any, array: np.ndarray) -> np.ndarray:
    """The array that came, or the one made of what is none: a memoryview, say, still shares its memory."""
    return value if isinstance(value, np.ndarray) else array


def check_out(
    value: Any, hidden_states: np.ndarray, inputs: dict[str, Any], shape: tuple[int, ...] | None = None
) -> np.ndarray:
    """Raise unless `value`, given as out, can take a result of `shape` and overlaps no input.

    Without a shape, the result has that of `hidden_states`, which out may be itself. Return its memory as a
    plain array: what a subclass says of itself may be anything.
    """
    out = as_output("out", value)
    hidden_states = np.asarray(hidden_states)
    if out.dtype not in _FLOAT_DTYPES or not out.dtype.isnative:
        raise type_error("out", "an array of float32, float16 or bfloat16", describe(out))
    expected = hidden_states.shape if shape is None else shape
    if out.shape != expected:
        raise value_error("out", f"shape {expected}", f"shape {out.shape}")
    if not out.flags.writeable:
        raise value_error("out", "a writeable array", "a read-only one")
    if not out.flags.aligned:
        raise value_error("out", "an aligned array", "an unaligned one")
    if out.size == 0:
        return out
    if out.strides[-1] != out.itemsize and out.shape[-1] > 1:
        raise value_error("out", "a contiguous last axis", f"strides {out.strides}")
    _check_no_internal_overlap(out)
    if not _same_array(out, hidden_states):
        inputs = {"hidden_states": hidden_states, **inputs}
    for name, array in inputs.items():
        if isinstance(array, np.ndarray) and _overlap(out, np.asarray(array)):
            allowed = " (or hidden_states itself)" if name == "hidden_states" else ""
            raise value_error("out", f"memory apart from {name}{allowed}", "an overlap")
    return out


def returned(out: Any, result: np.ndarray) -> np.ndarray:
    """What a call returns: `out` itself, of whatever library it is, or else the result of its own."""
    return result if out is None else cast(np.ndarray, out)


def _overlap(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays share memory, or it would take too long to tell: exponential in their axes."""
    limit: Any = _MAX_OVERLAP_WORK  # the stubs know of special values only
    try:
        return np.may_share_memory(a, b) and np.shares_memory(a, b, max_work=limit)
    except np.exceptions.TooHardError:
        return True


def _same_array(a: np.ndarray, b: np.ndarray) -> bool:
    return a is b or (
        a.ctypes.data == b.ctypes.data and (a.shape, a.strides, a.dtype) == (b.shape, b.strides, b.dtype)
    )


def _check_no_internal_overlap(out: np.ndarray) -> None:
    extent = out.itemsize
    axes = sorted(
        (abs(stride), size) for stride, size in zip(out.strides, out.shape, strict=True) if size > 1
    )
    for stride, size in axes:
        if stride < extent:
            raise value_error("out", "elements that do not overlap each other", f"strides {out.strides}")
        extent += stride * (size - 1)


def rows_view(array: np.ndarray) -> np.ndarray | None:
    """`array` as (num_tokens, hidden_size) on the same memory, or None if its strides do not allow that."""
    if array.ndim == 2:
        return array
    try:
        return array.reshape(-1, array.shape[-1], copy=False)
    except ValueError:
        return None
