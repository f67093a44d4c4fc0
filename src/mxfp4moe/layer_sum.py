"""The second half of a layer: what is added up for each token that has been routed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from mxfp4moe import _core
from mxfp4moe._arguments import cast, value_error
from mxfp4moe.experts.activation import check_activation
from mxfp4moe.experts.activation_format import check_activation_format, possible_activation_format
from mxfp4moe.experts.fused import ExpertOptions, Slots, expert_options, run_experts
from mxfp4moe.experts.packed_experts import PackedExperts
from mxfp4moe.layer_description import LayerDescription
from mxfp4moe.linear.packed_linear import PackedLinear, linear_sums
from mxfp4moe.linear.packing import pack_linear
from mxfp4moe.linear.rms_norm import rms_factors

_SUM_BYTES = 32 << 20  # the most that float32 sums take while they wait for those of a shared expert

Floats = NDArray[np.float32]


class ExpertSums(Protocol):
    """The routed experts of a layer, or its shared expert, wherever they are."""

    is_collective: bool
    """Whether several processes call it together, and so equally often, whatever tokens each has."""

    def call(self) -> AbstractContextManager[None]:
        """What processes that call it together do at the same time."""

    def begin(self, rows: NDArray[Any], slots: Slots, threads: int) -> Callable[[], Floats]:
        """Begin the weighted sums of tokens; what is returned ends that and gives them."""


class HeldExperts:
    """Experts in this process, all of them or those of a slice.

    Parameters
    ----------
    experts : PackedExperts
    options : ExpertOptions
    expert_map : ndarray, optional
        Of a slice.
    """

    is_collective = False

    def __init__(
        self, experts: PackedExperts, options: ExpertOptions, expert_map: NDArray[np.int32] | None = None
    ) -> None:
        self._experts, self._options = experts, options
        # Ids of experts that are not held lead to the -1 at the end, and so does the id -1.
        self._places = None if expert_map is None else np.append(expert_map, np.int32(-1))

    def call(self) -> AbstractContextManager[None]:
        return nullcontext()

    def run(self, rows: NDArray[Any], slots: Slots, out: NDArray[Any], threads: int) -> None:
        """Write the weighted sums of tokens to `out`, which may be `rows`."""
        if self._places is not None:
            slots = slots[0], self._places[slots[1]]
        run_experts(self._experts, rows, slots, self._options, out, threads)

    def begin(self, rows: NDArray[Any], slots: Slots, threads: int) -> Callable[[], Floats]:
        def finish() -> Floats:
            total = np.empty(rows.shape, np.float32)
            self.run(rows, slots, total, threads)
            return total

        return finish


def routed_options(layer: LayerDescription[PackedExperts]) -> ExpertOptions:
    """What a call of the routed experts of a layer says of all slots."""
    function = check_activation(layer.activation, layer.alpha, layer.limit, layer.experts.gated)
    rounding = check_activation_format(layer.activation_format, layer.experts.format, "experts")
    return expert_options(function, layer.apply_router_weight_on_input, rounding)


def shared_options(layer: LayerDescription[PackedExperts], shared: PackedExperts) -> ExpertOptions:
    """The options of a call of the shared expert."""
    function = check_activation(layer.activation, layer.alpha, layer.shared_limit, shared.gated)
    possible = possible_activation_format(layer.activation_format, shared.format)
    rounding = check_activation_format(possible, shared.format, "shared_experts")
    return expert_options(function, False, rounding)


class LayerSum:
    """Everything that a layer adds up for a token: each term is float32, and a line of `_sum`.

    Parameters
    ----------
    layer : LayerDescription
        Its arrays are float32; those of the latent projections may be other floats.
    routed : ExpertSums, optional
        Of the whole layer. If not given, those that `layer` holds; if these are a part, so is the sum.
    shared : ExpertSums, optional
        If not given, the shared expert that `layer` holds, if it has one.
    """

    def __init__(
        self,
        layer: LayerDescription[PackedExperts],
        routed: ExpertSums | None = None,
        shared: ExpertSums | None = None,
    ) -> None:
        # It refers to no layer that refers to it: layers are large, and should be freed at once.
        held = HeldExperts(layer.experts, routed_options(layer), layer.expert_map)
        self._routed: ExpertSums = held if routed is None else routed
        self._is_part = routed is None and layer.expert_map is not None
        if shared is None and layer.shared_experts is not None and not self._is_part:
            shared = HeldExperts(layer.shared_experts, shared_options(layer, layer.shared_experts))
        self._shared = shared
        self._shared_factor = np.float32(layer.shared_scaling_factor)
        self._factor = None if layer.routed_scaling_factor == 1 else np.float32(layer.routed_scaling_factor)
        self._down, self._up = _pack(layer.latent_down), _pack(layer.latent_up)
        self._gate = None if layer.shared_gate is None else _pack(layer.shared_gate[None])
        self._latent_norm, self._latent_epsilon = layer.latent_norm, layer.latent_norm_eps
        self._bias = None if self._is_part else layer.output_bias
        self._num_experts, self._has_zero = layer.num_experts, layer.num_zero_experts > 0
        is_routed_alone = not self._has_zero and all(
            term is None for term in (self._factor, self._shared, self._down, self._bias)
        )
        self._alone = held if is_routed_alone and routed is None else None

    def add_up(self, rows: NDArray[Any], slots: Slots, out: NDArray[Any], threads: int) -> None:
        """Write the whole sum of each token to `out`, which may be `rows`; both have two axes.

        Ids that are not those of packed experts are those of experts that give the token itself.
        """
        if self._is_part and self._latent_norm is not None:
            expected = "the whole layer, for latent_norm is of the sum over all experts"
            raise value_error("expert_map", expected, "a slice")
        if self._alone is not None:
            self._alone.run(rows, slots, out, threads)
            return
        weights, ids = slots
        # Some tokens at a time: the float32 sums of all would be much memory.
        step = max(1, _SUM_BYTES // (4 * rows.shape[1]))
        starts = range(0, len(rows), step)
        if self._routed.is_collective:
            starts, step = range(1), max(1, len(rows))
        # Overflow and NaN are for the caller to find in the result, as with fused_experts.
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            for first in starts:
                part = slice(first, first + step)
                out[part] = self._sum(rows[part], weights[part], ids[part], threads)

    def _sum(self, rows: NDArray[Any], weights: Floats, ids: NDArray[np.int32], threads: int) -> Floats:
        zero = ids >= self._num_experts if self._has_zero else None
        routed_ids = ids if zero is None else np.where(zero, np.int32(-1), ids)
        finish = self._begin_routed(rows, (weights, routed_ids), threads)
        # The shared expert needs no other rank: it is computed while experts on other ranks work.
        shared = None if self._shared is None else self._compute_shared(self._shared, rows, threads)
        total = finish()
        if zero is not None and not self._is_part:
            # The weights are added from slot to slot, for any number of tokens.
            zero_weights = np.add.accumulate(np.where(zero, weights, np.float32(0)), axis=-1)[:, -1:]
            total += zero_weights * cast(cast(rows, ml_dtypes.bfloat16), np.float32)
        if self._factor is not None:
            total *= self._factor
        if shared is not None:
            total += shared
        if self._bias is not None:
            total += self._bias
        return total

    def _begin_routed(self, rows: NDArray[Any], slots: Slots, threads: int) -> Callable[[], Floats]:
        """Begin the sum of the routed experts, which is given in the width of the layer."""
        if self._down is None or self._up is None:
            return self._routed.begin(rows, slots, threads)
        up, finish = self._up, self._routed.begin(linear_sums(self._down, rows, threads), slots, threads)

        def project_back() -> Floats:
            latent = finish()
            if self._latent_norm is not None and self._latent_epsilon is not None:
                latent *= rms_factors(latent, self._latent_epsilon, threads)
                latent *= self._latent_norm
            return linear_sums(up, latent, threads)

        return project_back

    def _compute_shared(self, shared: ExpertSums, rows: NDArray[Any], threads: int) -> Floats:
        with shared.call():
            weights = np.full((len(rows), 1), self._shared_factor)
            if self._gate is not None:
                gate = linear_sums(self._gate, rows, threads)[:, 0]
                _core.sigmoid(gate, gate)
                weights[:, 0] *= gate
            slots = weights, np.zeros((len(rows), 1), np.int32)
            return shared.begin(rows, slots, threads)()


def _pack(weight: NDArray[Any] | None) -> PackedLinear | None:
    return None if weight is None else pack_linear(weight, format="float32")
