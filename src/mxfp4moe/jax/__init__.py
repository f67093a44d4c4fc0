"""Fused experts and layers inside of JAX programs on the CPU: under `jit`, `vmap` and `shard_map`.

It needs JAX: ``pip install 'mxfp4moe[jax]'``.
"""

try:
    import jax as _jax  # noqa: F401
except ImportError as error:
    raise ImportError("the package jax is not installed (pip install 'mxfp4moe[jax]')") from error

from mxfp4moe.jax._backend import backend
from mxfp4moe.jax._experts import fused_experts
from mxfp4moe.jax._layer import layer

__all__ = ["backend", "fused_experts", "layer"]
