"""Numbers by which compiled functions name experts and layers.

A compiled function may outlive what it was traced with, and does not keep that alive: a function under `jit`
that closes over it does. So it has a number, which is looked up at each call.
"""

from __future__ import annotations

import itertools
import secrets
import threading
import weakref
from typing import Any

from mxfp4moe._arguments import value_error
from mxfp4moe.experts.packed_experts import PackedExperts
from mxfp4moe.jax import _ffi

# No number means anything in another process, where a compiled function may get by way of a file.
_numbers = itertools.count(secrets.randbits(62) & ~0xFFFFFFFF)
_lock = threading.RLock()  # a collection of garbage may come at any time, and ends the life of weights
_by_number: dict[int, weakref.ref[Any]] = {}
_numbers_by_id: dict[int, int] = {}


def number_of(weights: Any) -> int:
    """The number of these experts, or of this layer, from now on to their end."""
    with _lock:
        number = _numbers_by_id.get(id(weights))
        if number is None:
            number = next(_numbers)
            _by_number[number] = weakref.ref(weights)
            _numbers_by_id[id(weights)] = number
            weakref.finalize(weights, _forget, id(weights), number)
            functions = _ffi.foreign_functions()
            if functions is not None and isinstance(weights, PackedExperts):
                functions.hold(number, weights)
        return number


def _forget(identity: int, number: int) -> None:
    with _lock:
        _numbers_by_id.pop(identity, None)
        _by_number.pop(number, None)
    functions = _ffi.foreign_functions()
    if functions is not None:
        functions.release(number)


def find(argument: str, number: int) -> Any:
    """The weights that have the number; raise if they are no more."""
    with _lock:
        reference = _by_number.get(number)
    weights = None if reference is None else reference()
    if weights is None:
        raise value_error(argument, "those that the function was traced with", "none: they are gone")
    return weights
