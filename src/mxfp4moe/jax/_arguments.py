"""Arguments of calls that are traced: arrays whose dtype and shape are known and whose values are not."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mxfp4moe._arguments import as_array, as_integer_array, join_choices, type_error, value_error
from mxfp4moe.formats import FLOAT_CODES

FLOAT_DTYPES = tuple(FLOAT_CODES)
WEIGHT_DTYPES = (*FLOAT_DTYPES, np.dtype(np.float64))
"""The dtypes that weights of slots may have; they are rounded to float32."""
_INT32 = np.iinfo(np.int32)


def as_floats(name: str, value: Any, dtypes: tuple[np.dtype[Any], ...] = FLOAT_DTYPES) -> jax.Array:
    """`value` as an array of JAX, of one of the float dtypes."""
    if not isinstance(value, jax.Array):
        return jnp.asarray(as_array(name, value, dtypes))
    if value.dtype not in dtypes:
        expected = join_choices(dtype.name for dtype in dtypes)
        raise type_error(name, f"an array of {expected}", _describe(value))
    return value


def as_ids(name: str, value: Any) -> jax.Array:
    """`value` as an array of JAX of int32; what int32 cannot hold becomes a number that is no id either."""
    if not isinstance(value, jax.Array):
        value = as_integer_array(name, value)
        return jnp.asarray(np.clip(value, *_bounds(value.dtype)).astype(np.int32))
    if not jnp.issubdtype(value.dtype, jnp.integer):
        raise type_error(name, "an array of integers", _describe(value))
    if value.dtype == np.int32:
        return value
    return jnp.clip(value, *_bounds(value.dtype)).astype(np.int32)


def _bounds(dtype: np.dtype[Any]) -> tuple[int, int]:
    """The numbers of `dtype` that int32 holds too; those below -1 are all the same to a call."""
    limits = np.iinfo(dtype)
    return max(limits.min, -2), min(limits.max, _INT32.max)


def check_last_axis(name: str, array: jax.Array, size: int) -> None:
    """Raise unless the last axis of `array` has that size."""
    if array.ndim == 0 or array.shape[-1] != size:
        raise value_error(name, f"shape (..., {size})", f"shape {array.shape}")


def _describe(value: jax.Array) -> str:
    """What came, in a few words; a traced array has no values to show."""
    return f"an array of {value.dtype} and shape {value.shape}"


def concrete(name: str, value: Any) -> Any:
    """`value`, which has to be known when a function is traced."""
    if isinstance(value, jax.core.Tracer):
        raise type_error(name, "values that are known when the function is traced", "a traced array")
    return np.asarray(value) if isinstance(value, jax.Array) else value
