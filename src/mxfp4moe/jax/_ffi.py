"""The library of foreign functions that XLA calls, where this installation has it and JAX takes it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mxfp4moe._embedding import library_dir
from mxfp4moe.experts.packed_experts import PackedExperts

TARGET = "mxfp4moe_fused_experts"


class ForeignFunctions:
    """The library, its functions known to XLA."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        handler = library.mxfp4moe_jax_fused_experts
        jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(handler), platform="cpu")
        self._hold, self._release = library.mxfp4moe_jax_hold_experts, library.mxfp4moe_jax_release
        self._hold.argtypes = [ctypes.c_int64, ctypes.c_char_p, ctypes.c_int64]
        self._hold.restype = ctypes.c_int32
        self._release.argtypes, self._release.restype = [ctypes.c_int64], None
        self._process = os.getpid()

    def hold(self, number: int, experts: PackedExperts) -> None:
        """Let calls find the experts by their number."""
        view = experts._storage.view_bytes()
        if not self._hold(number, view, len(view)):
            raise RuntimeError("libmxfp4moe_jax.so: expected that of this version, got another one")

    def release(self, number: int) -> None:
        """Wait for the calls that compute with what has the number; it is not found any more."""
        # No call of its parent runs on in a forked process, which would wait for it forever.
        if os.getpid() == self._process:
            self._release(number)


@cache
def foreign_functions() -> ForeignFunctions | None:
    """The library, or None if it was not built, or for another version of XLA's interface."""
    path = Path(library_dir()) / "libmxfp4moe_jax.so"
    if not path.is_file():
        return None
    try:
        return ForeignFunctions(path)
    except Exception:  # of whatever kind XLA's refusal is: Python is called back instead
        return None


def call(result: jax.ShapeDtypeStruct, arrays: Sequence[jax.Array], numbers: Mapping[str, Any]) -> jax.Array:
    """A traced call; axes of `vmap` come before those of all arrays and of the result."""
    attributes = {
        name: np.float32(value) if isinstance(value, float) else np.asarray(value, np.int64)[()]
        for name, value in numbers.items()
    }
    traced: jax.Array = jax.ffi.ffi_call(TARGET, result, vmap_method="broadcast_all")(*arrays, **attributes)
    return traced
