"""The second half of a layer: what is added up for each token that has been routed."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from mxfp4moe import _core
from mxfp4moe._arguments import cast, value_error
from mxfp4moe.experts.activation import check_activation
from mxfp4moe.experts.fused import Slots, expert_options, run_experts
from mxfp4moe.experts.packed_experts import PackedExperts
from mxfp4moe.layer_description import LayerDescription
from mxfp4moe.linear.packed_linear import PackedLinear, linear_sums
from mxfp4moe.linear.packing import pack_linear
from mxfp4moe.linear.rms_norm import rms_factors

_SUM_BYTES = 32 << 20  # the most that float32 sums take while they wait for those of a shared expert

Floats = NDArray[np.float32]


class LayerSum:
    """Everything that a layer adds up for a token: each term is float32, and a line of `_sum`.

    Parameters
    ----------
    layer : LayerDescription
        Its arrays are float32; those of the latent projections may be other floats.
    """

    def __init__(self, layer: LayerDescription[PackedExperts]) -> None:
        # It refers to no layer that refers to it: layers are large, and should be freed at once.
        self._experts, self._shared = layer.experts, layer.shared_experts
        function = check_activation(layer.activation, layer.alpha, layer.limit, layer.experts.gated)
        self._options = expert_options(function, layer.apply_router_weight_on_input)
        if self._shared is not None:
            function = check_activation(layer.activation, layer.alpha, layer.shared_limit, self._shared.gated)
            self._shared_options = expert_options(function, False)
        self._shared_factor = np.float32(layer.shared_scaling_factor)
        self._factor = None if layer.routed_scaling_factor == 1 else np.float32(layer.routed_scaling_factor)
        self._down, self._up = _pack(layer.latent_down), _pack(layer.latent_up)
        self._gate = None if layer.shared_gate is None else _pack(layer.shared_gate[None])
        self._latent_norm, self._latent_epsilon = layer.latent_norm, layer.latent_norm_eps
        self._bias = layer.output_bias
        self._num_experts, self._has_zero = layer.num_experts, layer.num_zero_experts > 0
        self._map = layer.expert_map
        if self._map is not None:  # The whole layer adds these once, whatever slices it is cut in.
            self._shared = self._bias = None
        self._is_routed_alone = not self._has_zero and all(
            term is None for term in (self._factor, self._shared, self._down, self._bias, self._map)
        )

    def add_up(self, rows: NDArray[Any], slots: Slots, out: NDArray[Any], threads: int) -> None:
        """Write the whole sum of each token to `out`, which may be `rows`; both have two axes.

        Ids that are not those of packed experts are those of experts that give the token itself.
        """
        if self._map is not None and self._latent_norm is not None:
            expected = "the whole layer, for latent_norm is of the sum over all experts"
            raise value_error("expert_map", expected, "a slice")
        if self._is_routed_alone:
            run_experts(self._experts, rows, slots, self._options, out, threads)
            return
        weights, ids = slots
        # Some tokens at a time: the float32 sums of all would be much memory.
        step = max(1, _SUM_BYTES // (4 * rows.shape[1]))
        # Overflow and NaN are for the caller to find in the result, as with fused_experts.
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            for first in range(0, len(rows), step):
                part = slice(first, first + step)
                out[part] = self._sum(rows[part], weights[part], ids[part], threads)

    def _sum(self, rows: NDArray[Any], weights: Floats, ids: NDArray[np.int32], threads: int) -> Floats:
        if self._map is not None:
            # The place -1 at the end is that of all ids but those of experts.
            places = np.append(self._map, np.int32(-1))
            ids = places[np.where((ids < 0) | (ids >= self._num_experts), np.int32(-1), ids)]
            total = self._sum_routed(rows, (weights, ids), threads)
        elif self._has_zero:
            zero = ids >= self._num_experts
            total = self._sum_routed(rows, (weights, np.where(zero, np.int32(-1), ids)), threads)
            # The weights are added from slot to slot, for any number of tokens.
            zero_weights = np.add.accumulate(np.where(zero, weights, np.float32(0)), axis=-1)[:, -1:]
            total += zero_weights * cast(cast(rows, ml_dtypes.bfloat16), np.float32)
        else:
            total = self._sum_routed(rows, (weights, ids), threads)
        if self._factor is not None:
            total *= self._factor
        if self._shared is not None:
            total += self._compute_shared(self._shared, rows, threads)
        if self._bias is not None:
            total += self._bias
        return total

    def _sum_routed(self, rows: NDArray[Any], slots: Slots, threads: int) -> Floats:
        """The sum of the routed experts, in the width of the layer."""
        if self._down is None or self._up is None:
            total = np.empty(rows.shape, np.float32)
            run_experts(self._experts, rows, slots, self._options, total, threads)
            return total
        latent = linear_sums(self._down, rows, threads)
        run_experts(self._experts, latent, slots, self._options, latent, threads)
        if self._latent_norm is not None and self._latent_epsilon is not None:
            latent *= rms_factors(latent, self._latent_epsilon, threads)
            latent *= self._latent_norm
        return linear_sums(self._up, latent, threads)

    def _compute_shared(self, shared: PackedExperts, rows: NDArray[Any], threads: int) -> Floats:
        weights = np.full((len(rows), 1), self._shared_factor)
        if self._gate is not None:
            gate = linear_sums(self._gate, rows, threads)[:, 0]
            _core.sigmoid(gate, gate)
            weights[:, 0] *= gate
        result = np.empty(rows.shape, np.float32)
        slots = weights, np.zeros((len(rows), 1), np.int32)
        run_experts(shared, rows, slots, self._shared_options, result, threads)
        return result


def _pack(weight: NDArray[Any] | None) -> PackedLinear | None:
    return None if weight is None else pack_linear(weight, format="float32")
