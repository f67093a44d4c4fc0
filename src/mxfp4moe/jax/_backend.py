"""How compiled functions reach the kernels: through XLA's foreign functions, or back through Python."""

from __future__ import annotations

from typing import Any, Literal

from mxfp4moe._arguments import describe, type_error
from mxfp4moe.experts.packed_experts import PackedExperts
from mxfp4moe.jax import _ffi
from mxfp4moe.jax._handles import handle_of
from mxfp4moe.layer import MoELayer

Backend = Literal["ffi", "pure_callback"]


def backend(weights: PackedExperts | MoELayer | None = None) -> Backend:
    """Say how calls under `jit` reach the kernels.

    Parameters
    ----------
    weights : PackedExperts or MoELayer, optional
        What calls are about. Python alone can compute layers with a routing function of your own, and
        experts within a limit of memory.

    Returns
    -------
    str
        "ffi": XLA calls the kernels itself, without Python and without copies. "pure_callback": it calls
        Python, which calls them. The results are the same.

    Raises
    ------
    TypeError
        If `weights` is something else.

    Examples
    --------
    >>> import mxfp4moe.jax
    >>> mxfp4moe.jax.backend() in ("ffi", "pure_callback")
    True
    """
    if weights is not None and not isinstance(weights, (PackedExperts, MoELayer)):
        raise type_error("weights", "PackedExperts, MoELayer or None", describe(weights))
    in_library = _ffi.foreign_functions() is not None
    if in_library and weights is not None:
        in_library = handle_of(weights).in_library
    return "ffi" if in_library else "pure_callback"


def check_weights(name: str, value: Any, kind: type[Any]) -> None:
    """Raise unless `value` is of that class."""
    if not isinstance(value, kind):
        raise type_error(name, kind.__name__, describe(value))
