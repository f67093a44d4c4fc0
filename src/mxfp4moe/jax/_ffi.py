"""The foreign functions of the library, which XLA calls where it takes them."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mxfp4moe import config
from mxfp4moe._embedding import library_dir
from mxfp4moe.experts.packed_experts import PackedExperts
from mxfp4moe.layer import MoELayer
from mxfp4moe.layer_file import layer_bytes

_OK = 0  # a status of the C library
_HOLD_EXPERTS = (ctypes.c_int64, ctypes.c_char_p)
_HOLD_LAYER = (
    *(ctypes.c_int64, ctypes.c_char_p, ctypes.c_int64),  # number, description and its size
    *(ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int32),  # experts, shared ones, whether they have a gate
)


class ForeignFunctions:
    """The library, its functions known to XLA."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        for name in ("fused_experts", "layer"):
            handler = jax.ffi.pycapsule(getattr(library, f"mxfp4moe_jax_{name}"))
            jax.ffi.register_ffi_target(f"mxfp4moe_{name}", handler, platform="cpu")
        self._hold_experts = library.mxfp4moe_jax_hold_experts
        self._hold_layer = library.mxfp4moe_jax_hold_layer
        self._release = library.mxfp4moe_jax_release
        self._hold_experts.argtypes, self._hold_experts.restype = _HOLD_EXPERTS, None
        self._hold_layer.argtypes, self._hold_layer.restype = _HOLD_LAYER, ctypes.c_int32
        self._release.argtypes, self._release.restype = [ctypes.c_int64], None
        self._process = os.getpid()

    def hold(self, number: int, weights: PackedExperts | MoELayer) -> bool:
        """Let calls find the weights by their number; return whether the library computes with such ones."""
        if isinstance(weights, PackedExperts):
            if _is_limited(weights):
                return False
            self._hold_experts(number, weights._storage.view_bytes())
            return True
        if _is_limited(weights.experts):
            return False
        try:
            description = layer_bytes(weights)
        except TypeError:  # a routing function of the caller's own
            return False
        shared = weights.shared_experts
        both = weights.experts, shared
        views = [None if experts is None else experts._storage.view_bytes() for experts in both]
        gated = int(weights.experts.gated)
        # What only Python can compute, the library refuses.
        return bool(self._hold_layer(number, description, len(description), *views, gated) == _OK)

    def release(self, number: int) -> None:
        """Wait for the calls that compute with what has the number; it is not found any more."""
        # No call of its parent runs on in a forked process, which would wait for it forever.
        if os.getpid() == self._process:
            self._release(number)


def _is_limited(experts: PackedExperts) -> bool:
    """Whether Python decides which of the experts are in memory."""
    return experts._cached is not None


@cache
def foreign_functions() -> ForeignFunctions | None:
    """The library, or None if XLA takes its version of the interface no more."""
    suffix = ".dylib" if sys.platform == "darwin" else ".so"
    try:
        return ForeignFunctions(Path(library_dir(), f"libmxfp4moe{suffix}"))
    except Exception:  # of whatever kind XLA's refusal is: Python is called back instead
        return None


def isa_number(kernels: int) -> int | None:
    """The number in the C library of the instruction set of a kernel table, if it would choose that table."""
    table = config._TABLES[kernels]
    if not table.automatic or kernels != config._find_isa("isa", table.isa):
        return None
    return config.ISAS.index(table.isa) + 1


def call(
    name: str, result: jax.ShapeDtypeStruct, arrays: Sequence[jax.Array], numbers: Mapping[str, Any]
) -> jax.Array:
    """A traced call of a function; axes of `vmap` come before those of all arrays and of the result."""
    attributes = {
        name: np.float32(value) if isinstance(value, float) else np.asarray(value, np.int64)[()]
        for name, value in numbers.items()
    }
    function = jax.ffi.ffi_call(f"mxfp4moe_{name}", result, vmap_method="broadcast_all")
    traced: jax.Array = function(*arrays, **attributes)
    return traced
