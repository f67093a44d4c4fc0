"""Layers inside of traced functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike
from numpy.typing import DTypeLike

from mxfp4moe._arguments import check_dtype, check_shape
from mxfp4moe.jax._arguments import FLOAT_DTYPES, as_floats, as_ids, check_last_axis
from mxfp4moe.jax._backend import check_weights
from mxfp4moe.jax._call import Call, Settings, emit
from mxfp4moe.jax._ffi import isa_number
from mxfp4moe.jax._handles import handle_of
from mxfp4moe.layer import MoELayer
from mxfp4moe.layer_routing import check_ids_are_given, check_router_input


def layer(
    hidden_states: ArrayLike,
    layer: MoELayer,
    input_ids: ArrayLike | None = None,
    *,
    router_hidden_states: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
    num_threads: int | None = None,
) -> jax.Array:
    """A whole mixture-of-experts layer for every token, in a JAX program.

    It may be called under `jit`, `vmap` and `shard_map`, on the CPU. Axes of `vmap` become tokens of one
    call. The result has the bits of ``layer(hidden_states)``. There is no gradient: differentiating is a
    TypeError.

    Parameters
    ----------
    hidden_states : bfloat16, float16 or float32 array of shape (..., hidden_size)
    layer : MoELayer
        No argument of the function that is traced, which does not keep it alive: let it close over it.
    input_ids : integer array of shape (...), optional
        Token ids, for layers that route by them; others do not look at them.
    router_hidden_states : array of the shape of hidden_states, optional
        What the router reads, for layers with `separate_router_input`.
    dtype : bfloat16, float16 or float32, optional
        Of the result; that of `hidden_states` if not given.
    num_threads : int, optional
        As for `fused_experts`.

    Returns
    -------
    jax.Array
        Of the shape of `hidden_states`.

    Raises
    ------
    TypeError, ValueError
        As a call of the layer, when the function is traced. What is wrong with values, such as a token that
        is not finite, is a ``jax.errors.JaxRuntimeError`` with the same message when it runs.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import mxfp4moe as mx
    >>> import mxfp4moe.jax
    >>> w13, w2 = jnp.ones((4, 2 * 64, 96)), jnp.ones((4, 96, 64))
    >>> experts = mx.pack_experts(*mx.quantize_mxfp4(w13), *mx.quantize_mxfp4(w2))
    >>> moe = mx.MoELayer(experts, jnp.eye(4, 96), top_k=2)
    >>> jax.jit(lambda x: mxfp4moe.jax.layer(x, moe))(jnp.ones((5, 96))).shape
    (5, 96)
    """
    check_weights("layer", layer, MoELayer)
    hidden = as_floats("hidden_states", hidden_states)
    check_last_axis("hidden_states", hidden, layer.hidden_size)
    arrays = [hidden]
    check_router_input(layer.separate_router_input, router_hidden_states)
    if layer.separate_router_input:
        router = as_floats("router_hidden_states", router_hidden_states)
        check_shape("router_hidden_states", router, hidden.shape)
        arrays.append(router)
    routes_by_ids = layer.routing == "hash_topk"
    if routes_by_ids:
        check_ids_are_given(input_ids)
        ids = as_ids("input_ids", input_ids)
        check_shape("input_ids", ids, hidden.shape[:-1])
        arrays.append(ids)
    result_dtype = hidden.dtype if dtype is None else check_dtype("dtype", dtype, FLOAT_DTYPES)
    run = _Run(layer.separate_router_input, routes_by_ids)
    settings = Settings.here(num_threads)
    isa = isa_number(settings.kernels)
    options = (
        None
        if isa is None
        else {
            "isa": isa,
            "has_router_input": run.has_router_input,
            "has_input_ids": run.has_input_ids,
            "propagate_nonfinite": layer.nonfinite == "propagate",
        }
    )
    call = Call("layer", handle_of(layer), settings, np.dtype(result_dtype), run, options)
    return emit("layer", call, hidden.shape, arrays)


@dataclass(frozen=True)
class _Run:
    """The call in Python, with these arrays beside the hidden states."""

    has_router_input: bool
    has_input_ids: bool

    def __call__(
        self, weights: MoELayer, arrays: list[np.ndarray], dtype: np.dtype[Any], num_threads: int
    ) -> np.ndarray:
        hidden, *others = arrays
        router = others.pop(0) if self.has_router_input else None
        ids = others.pop(0) if self.has_input_ids else None
        out = np.empty(hidden.shape, dtype)
        return weights(hidden, ids, router_hidden_states=router, out=out, num_threads=num_threads)
