"""The second half of a layer: what is added up for each token that has been routed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from mxfp4moe import _core
from mxfp4moe._arguments import cast
from mxfp4moe.experts.fused import fused_experts
from mxfp4moe.experts.out import rows_view
from mxfp4moe.experts.packed_experts import PackedExperts
from mxfp4moe.layer_description import LayerDescription
from mxfp4moe.linear.packed_linear import PackedLinear
from mxfp4moe.linear.rms_norm import rms_factors

_SUM_BYTES = 32 << 20  # the most that float32 sums take while they wait for those of a shared expert

Floats = NDArray[np.float32]


class LayerSum:
    """Everything that a layer adds up for a token, each term in float32 and in one place.

    Parameters
    ----------
    layer : LayerDescription
        Its arrays are float32, those of the latent projections may be other floats.

    Attributes
    ----------
    is_routed_alone : bool
        Whether the result is that of `compute_routed` with the routed experts, and nothing else.
    """

    def __init__(self, layer: LayerDescription[PackedExperts]) -> None:
        self._layer = layer
        function: dict[str, Any] = {"activation": layer.activation, "alpha": layer.alpha}
        self._routed = function | {
            "limit": layer.limit,
            "apply_router_weight_on_input": layer.apply_router_weight_on_input,
        }
        self._shared = function | {"limit": layer.shared_limit}
        if layer.num_zero_experts:
            self._routed["expert_map"] = np.arange(layer.num_choices)
            self._routed["expert_map"][layer.num_experts :] = -1
        self._down = None if layer.latent_down is None else PackedLinear(layer.latent_down)
        self._up = None if layer.latent_up is None else PackedLinear(layer.latent_up)
        self._gate = None if layer.shared_gate is None else PackedLinear(layer.shared_gate[None])
        self.is_routed_alone = (
            layer.routed_scaling_factor == 1
            and layer.shared_experts is None
            and layer.output_bias is None
            and not layer.num_zero_experts
            and self._down is None
        )

    def compute_routed(
        self,
        tokens: NDArray[Any],
        weights: NDArray[Any],
        ids: NDArray[Any],
        out: NDArray[Any] | None,
        num_threads: int | None,
    ) -> NDArray[Any]:
        """The weighted sum of the routed experts, in their own width."""
        return fused_experts(
            tokens, self._layer.experts, weights, ids, out=out, num_threads=num_threads, **self._routed
        )

    def add_up(
        self,
        hidden: NDArray[Any],
        weights: NDArray[Any],
        ids: NDArray[Any],
        result: NDArray[Any],
        num_threads: int | None,
    ) -> None:
        """Write the whole sum of each token to `result`, which may be `hidden`."""
        for tokens, some_weights, some_ids, target in self._parts(hidden, weights, ids, result):
            # Overflow and NaN are for the caller to find in the result, as with fused_experts.
            with np.errstate(over="ignore", under="ignore", invalid="ignore"):
                target[...] = self._sum(tokens, some_weights, some_ids, num_threads)

    def _sum(
        self, tokens: NDArray[Any], weights: NDArray[Any], ids: NDArray[Any], num_threads: int | None
    ) -> Floats:
        layer = self._layer
        total = self._sum_routed(tokens, weights, ids, num_threads)
        if layer.num_zero_experts:
            total += self._zero_weights(weights, ids) * cast(cast(tokens, ml_dtypes.bfloat16), np.float32)
        if layer.routed_scaling_factor != 1:
            total *= np.float32(layer.routed_scaling_factor)
        if layer.shared_experts is not None:
            total += self._compute_shared(layer.shared_experts, tokens, num_threads)
        if layer.output_bias is not None:
            total += layer.output_bias
        return total

    def _sum_routed(
        self, tokens: NDArray[Any], weights: NDArray[Any], ids: NDArray[Any], num_threads: int | None
    ) -> Floats:
        """The routed sum in the layer's own width."""
        if self._down is None or self._up is None:
            sums = np.empty(tokens.shape, np.float32)
            return self.compute_routed(tokens, weights, ids, sums, num_threads)
        latent = self._down(tokens, None, num_threads)
        self.compute_routed(latent, weights, ids, latent, num_threads)
        layer = self._layer
        if layer.latent_norm is not None and layer.latent_norm_eps is not None:
            latent *= rms_factors(latent, layer.latent_norm_eps, num_threads)
            latent *= layer.latent_norm
        return self._up(latent, None, num_threads)

    def _zero_weights(self, weights: NDArray[Any], ids: NDArray[Any]) -> Floats:
        """The sum of each token's weights for experts that give the token itself, added from slot to slot."""
        used = np.where(np.asarray(ids) >= self._layer.num_experts, cast(np.asarray(weights), np.float32), 0)
        return np.add.accumulate(used, axis=-1)[..., -1:]

    def _compute_shared(self, shared: PackedExperts, tokens: NDArray[Any], num_threads: int | None) -> Floats:
        slots = (*tokens.shape[:-1], 1)
        weights = np.full(slots, self._layer.shared_scaling_factor, np.float32)
        if self._gate is not None:
            logits = self._gate(tokens, None, num_threads)
            if logits.size:
                _core.sigmoid(logits.reshape(-1), logits.reshape(-1))
            weights *= logits
        return fused_experts(
            tokens,
            shared,
            weights,
            np.zeros(slots, np.int32),
            out=np.empty(tokens.shape, np.float32),
            num_threads=num_threads,
            **self._shared,
        )

    def _parts(
        self, hidden: NDArray[Any], weights: NDArray[Any], ids: NDArray[Any], result: NDArray[Any]
    ) -> Iterator[tuple[NDArray[Any], ...]]:
        """The arrays of some tokens at a time: float32 sums of all would be much memory."""
        rows = rows_view(result)
        limit = max(1, _SUM_BYTES // (4 * hidden.shape[-1]))
        # What the caller's own routing function returns has not been checked yet, so it is not cut in parts.
        if rows is None or len(rows) <= limit or not isinstance(self._layer.routing, str):
            yield hidden, weights, ids, result
            return
        slots = (len(rows), weights.shape[-1])
        arrays = hidden.reshape(rows.shape), weights.reshape(slots), ids.reshape(slots), rows
        for first in range(0, len(rows), limit):
            yield tuple(array[first : first + limit] for array in arrays)
