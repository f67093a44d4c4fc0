"""The fused experts inside of traced functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike
from numpy.typing import DTypeLike

from mxfp4moe._arguments import check_bool, check_dtype
from mxfp4moe.experts.activation import Activation, check_activation
from mxfp4moe.experts.activation_format import ActivationFormat, check_activation_format
from mxfp4moe.experts.fused import (
    check_expert_map,
    check_slot_shapes,
    expert_options,
)
from mxfp4moe.experts.fused import fused_experts as compute
from mxfp4moe.experts.packed_experts import PackedExperts
from mxfp4moe.jax._arguments import FLOAT_DTYPES, WEIGHT_DTYPES, as_floats, as_ids, check_last_axis, concrete
from mxfp4moe.jax._backend import check_weights
from mxfp4moe.jax._call import Call, Settings, emit
from mxfp4moe.jax._handles import handle_of

_FLOAT32 = np.dtype(np.float32)


def fused_experts(
    hidden_states: ArrayLike,
    experts: PackedExperts,
    topk_weights: ArrayLike,
    topk_ids: ArrayLike,
    *,
    activation: Activation = "silu",
    alpha: float | None = None,
    limit: float | None = None,
    apply_router_weight_on_input: bool = False,
    activation_format: ActivationFormat | None = None,
    expert_map: ArrayLike | None = None,
    combine: bool = True,
    dtype: DTypeLike | None = None,
    num_threads: int | None = None,
) -> jax.Array:
    """Weighted sum of each token's chosen experts, as `mxfp4moe.fused_experts`, in a JAX program.

    It may be called under `jit`, `vmap` and `shard_map`, on the CPU. Axes of `vmap` become tokens of one
    call. The result has the bits of `mxfp4moe.fused_experts`. There is no gradient: differentiating is a
    TypeError.

    Parameters
    ----------
    hidden_states : bfloat16, float16 or float32 array of shape (..., hidden_size)
    experts : PackedExperts
        No argument of the function that is traced, which does not keep them alive: let it close over them.
    topk_weights : float array of shape (..., top_k)
        Of the same dtypes, or float64; rounded to float32.
    topk_ids : integer array of shape (..., top_k)
        Ids in [0, num_experts), or -1 for a dropped slot.
    activation, alpha, limit, apply_router_weight_on_input, activation_format, combine
        As for `mxfp4moe.fused_experts`.
    expert_map : integer array of shape (num_global_experts,), optional
        As there, with values that are known when the function is traced.
    dtype : bfloat16, float16 or float32, optional
        Of the result; that of `hidden_states` if not given. The terms of ``combine=False`` are float32.
    num_threads : int, optional
        For each call; what `mxfp4moe.get_num_threads` returns where the function is traced, if not given.
        The instruction set, too, is the one that is active there.

    Returns
    -------
    jax.Array
        Of the shape of `hidden_states`, or of the terms.

    Raises
    ------
    TypeError, ValueError
        As `mxfp4moe.fused_experts`, when the function is traced. An id out of range, which is seen when it
        runs, is a ``jax.errors.JaxRuntimeError`` with the same message; so are experts that are gone.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import mxfp4moe as mx
    >>> import mxfp4moe.jax
    >>> w13, w2 = jnp.ones((4, 2 * 64, 96)), jnp.ones((4, 96, 64))
    >>> experts = mx.pack_experts(*mx.quantize_mxfp4(w13), *mx.quantize_mxfp4(w2))
    >>> @jax.jit
    ... def block(x, router_logits):
    ...     weights, ids = jax.lax.top_k(jax.nn.softmax(router_logits), 2)
    ...     return mxfp4moe.jax.fused_experts(x, experts, weights, ids)
    >>> block(jnp.ones((5, 96), jnp.bfloat16), jnp.ones((5, 4))).dtype
    dtype(bfloat16)
    """
    check_weights("experts", experts, PackedExperts)
    hidden = as_floats("hidden_states", hidden_states)
    check_last_axis("hidden_states", hidden, experts.hidden_size)
    weights, ids = as_floats("topk_weights", topk_weights, WEIGHT_DTYPES), as_ids("topk_ids", topk_ids)
    check_slot_shapes(weights, ids, hidden.shape[:-1])
    mapping = check_expert_map(concrete("expert_map", expert_map), experts.num_experts)
    function = check_activation(activation, alpha, limit, experts.gated)
    rounding = check_activation_format(activation_format, experts.format, "experts")
    options: dict[str, Any] = {**expert_options(function, apply_router_weight_on_input, rounding)}
    options["combine"] = check_bool("combine", combine)
    shape = hidden.shape if combine else (*ids.shape, experts.hidden_size)
    dtypes, default = (FLOAT_DTYPES, hidden.dtype) if combine else ((_FLOAT32,), _FLOAT32)
    result_dtype = np.dtype(default) if dtype is None else check_dtype("dtype", dtype, dtypes)
    if mapping is not None:
        options["expert_map"] = mapping
    arguments = (activation, alpha, limit, options["apply_router_weight_on_input"], activation_format)
    run = _Run(*arguments, options["combine"], None if mapping is None else tuple(mapping.tolist()))
    settings = Settings.here(num_threads)
    options["kernels"] = settings.kernels
    call = Call("experts", handle_of(experts), settings, result_dtype, run, options)
    return emit("fused_experts", call, shape, [hidden, weights.astype(np.float32), ids])


@dataclass(frozen=True)
class _Run:
    """The call in Python, with these arguments."""

    activation: Activation
    alpha: float | None
    limit: float | None
    apply_router_weight_on_input: bool
    activation_format: ActivationFormat | None
    combine: bool
    expert_map: tuple[int, ...] | None

    def __call__(
        self, weights: PackedExperts, arrays: list[np.ndarray], dtype: np.dtype[Any], num_threads: int
    ) -> np.ndarray:
        hidden, topk_weights, ids = arrays
        shape = hidden.shape if self.combine else (*ids.shape, hidden.shape[-1])
        return compute(
            hidden,
            weights,
            topk_weights,
            ids,
            activation=self.activation,
            alpha=self.alpha,
            limit=self.limit,
            apply_router_weight_on_input=self.apply_router_weight_on_input,
            activation_format=self.activation_format,
            expert_map=None if self.expert_map is None else np.array(self.expert_map, np.int64),
            combine=self.combine,
            out=np.empty(shape, dtype),
            num_threads=num_threads,
        )
