"""Numbers by which compiled functions name experts and layers.

A compiled function may outlive what it was traced with, and does not keep that alive: a function under `jit`
that closes over it does. So it has a number, which is looked up at each call.
"""

from __future__ import annotations

import itertools
import secrets
import threading
import weakref
from typing import Any, NamedTuple

from mxfp4moe._arguments import value_error
from mxfp4moe.experts.packed_experts import PackedExperts
from mxfp4moe.jax import _ffi
from mxfp4moe.layer import MoELayer

# No number means anything in another process, where a compiled function may get by way of a file.
_numbers = itertools.count(secrets.randbits(62) & ~0xFFFFFFFF)
_lock = threading.RLock()  # a collection of garbage may come at any time, and ends the life of weights
_by_number: dict[int, weakref.ref[Any]] = {}
_handles: dict[int, Handle] = {}
"""By the identity of the weights."""


class Handle(NamedTuple):
    """A number, and whether the library of foreign functions finds the weights by it."""

    number: int
    in_library: bool


def handle_of(weights: PackedExperts | MoELayer) -> Handle:
    """The number of these weights, from now on to their end."""
    with _lock:
        handle = _handles.get(id(weights))
        if handle is None:
            number = next(_numbers)
            functions = _ffi.foreign_functions()
            handle = Handle(number, functions is not None and functions.hold(number, weights))
            _by_number[number] = weakref.ref(weights)
            _handles[id(weights)] = handle
            weakref.finalize(weights, _forget, id(weights), handle)
        return handle


def _forget(identity: int, handle: Handle) -> None:
    with _lock:
        _handles.pop(identity, None)
        _by_number.pop(handle.number, None)
    functions = _ffi.foreign_functions()
    if functions is not None and handle.in_library:
        functions.release(handle.number)


def find(argument: str, number: int) -> Any:
    """The weights that have the number; raise if they are no more."""
    with _lock:
        reference = _by_number.get(number)
    weights = None if reference is None else reference()
    if weights is None:
        raise value_error(argument, "what the function was traced with", "nothing: it is gone")
    return weights
