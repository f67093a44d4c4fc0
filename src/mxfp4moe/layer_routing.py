"""The first half of a layer: what its router reads, and which experts each token goes to."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

from mxfp4moe import _core
from mxfp4moe._arguments import (
    as_integer_array,
    cast,
    check_shape,
    describe,
    to_int64,
    type_error,
    value_error,
)
from mxfp4moe._nonfinite import check_finite, nonfinite_rows, nonfinite_tokens, nonfinite_value
from mxfp4moe.config import active_kernels
from mxfp4moe.experts.fused import check_hidden_states
from mxfp4moe.experts.packed_experts import PackedExperts
from mxfp4moe.layer_description import LayerDescription
from mxfp4moe.linear.packed_linear import linear_sums
from mxfp4moe.linear.packing import pack_linear
from mxfp4moe.linear.rms_norm import rms_factors

Chosen = tuple[NDArray[np.float32], NDArray[np.int32]]


def check_router_input(is_separate: bool, given: object) -> None:
    """Raise unless `router_hidden_states` is given if, and only if, the router has an input of its own."""
    if is_separate and given is None:
        raise type_error("router_hidden_states", "the array that the router of this layer reads", "None")
    if not is_separate and given is not None:
        expected = "None, for the router of this layer reads hidden_states"
        raise type_error("router_hidden_states", expected, describe(given))


def check_ids_are_given(input_ids: object) -> None:
    """Raise unless a layer that routes by token ids has them."""
    if input_ids is None:
        raise type_error("input_ids", "token ids, by which this layer routes", "None")


class LayerRouter:
    """Weights and ids of the experts of each token.

    Parameters
    ----------
    layer : LayerDescription
        Its router arrays are float32.
    """

    __slots__ = ("_bias", "_chooser", "_epsilon", "_hidden_size", "_is_separate", "_linear", "_nonfinite")

    def __init__(self, layer: LayerDescription[PackedExperts]) -> None:
        weight = layer.router_weight
        if layer.router_scale is not None:
            with np.errstate(over="ignore", under="ignore", invalid="ignore"):
                weight = weight * layer.router_scale
        # It refers to no layer that refers to it: layers are large, and should be freed at once.
        self._bias, self._epsilon = layer.router_bias, layer.router_norm_eps
        bias = self._bias if self._epsilon is None else None
        self._linear = pack_linear(weight, format="float32", bias=bias)
        self._chooser = layer.chooser
        self._hidden_size = layer.hidden_size
        self._is_separate = layer.separate_router_input
        self._nonfinite = layer.nonfinite

    def input(self, hidden_states: NDArray[Any], given: ArrayLike | None) -> NDArray[Any]:
        """What the router reads: `hidden_states`, or `given` where it has an input of its own."""
        check_router_input(self._is_separate, given)
        if not self._is_separate:
            return hidden_states
        result = check_hidden_states(given, self._hidden_size, "router_hidden_states")
        check_shape("router_hidden_states", result, hidden_states.shape)
        return result

    def logits(self, read: NDArray[Any], num_threads: int | None) -> NDArray[np.float32]:
        """The logits of what the router reads."""
        if self._epsilon is None:
            return linear_sums(self._linear, read, num_threads)
        # The factor of the norm multiplies the sums, so that what the router reads is rounded but once.
        read = cast(read, ml_dtypes.bfloat16)
        logits = linear_sums(self._linear, read, num_threads)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            logits *= rms_factors(read, self._epsilon, num_threads)
            if self._bias is not None:
                logits += self._bias
        return logits

    def route(
        self, hidden: NDArray[Any], read: NDArray[Any], input_ids: ArrayLike | None, num_threads: int | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.bool_] | None]:
        """Weights, ids, and which tokens are not finite, if there are any and they propagate."""
        if self._chooser.routing == "hash_topk":
            check_ids_are_given(input_ids)
            input_ids = as_integer_array("input_ids", input_ids)
            check_shape("input_ids", input_ids, hidden.shape[:-1])
        logits = self.logits(read, num_threads)
        if self._nonfinite == "propagate":
            nonfinite = nonfinite_tokens(read, logits)
            if read is not hidden:
                nonfinite |= nonfinite_rows(hidden)
            if nonfinite.any():
                return *self._choose_finite(logits, input_ids, nonfinite, num_threads), nonfinite
            return *self._chooser(logits, input_ids, num_threads), None
        if read is not hidden:  # whose logits say nothing of the hidden states
            check_finite("hidden_states", hidden)
        return *self._choose_or_raise(read, logits, input_ids, num_threads), None

    def route_normalized(
        self, residual: NDArray[np.float32], norm: tuple[NDArray[np.float32], float], num_threads: int
    ) -> tuple[Chosen, NDArray[Any]]:
        """Choose experts in a layer of a whole model, whose router reads the norm of its tokens in float32.

        `norm` is a weight and an epsilon. Also returns the normalized tokens in bfloat16, which experts read.
        """
        rows = np.empty(residual.shape, ml_dtypes.bfloat16)
        logits = np.empty((len(residual), self._linear.shape[0]), np.float32)
        _core.route_normalized(
            residual,
            *norm,
            self._linear._storage,
            rows.view(np.uint16),
            logits,
            active_kernels(),
            num_threads,
        )
        return self._choose_or_raise(rows, logits, None, num_threads), rows

    @property
    def reads_hidden_states(self) -> bool:
        """Whether it chooses by the hidden states alone, by a function of this package."""
        routing = self._chooser.routing
        return isinstance(routing, str) and routing != "hash_topk" and not self._is_separate

    def likely(self, read: NDArray[Any]) -> NDArray[np.int32]:
        """The ids that it would choose for these hidden states, found by the calling thread alone."""
        return self._chooser(self.logits(read, 1), None, 1)[1]

    def _choose_or_raise(
        self,
        read: NDArray[Any],
        logits: NDArray[np.float32],
        input_ids: ArrayLike | None,
        num_threads: int | None,
    ) -> Chosen:
        """Choose experts; where a token cannot be routed, the error names what the router read."""
        name = "router_hidden_states" if self._is_separate else "hidden_states"
        expected = "values to route by that are finite in bfloat16"
        try:
            chosen = self._chooser(logits, input_ids, num_threads)
        except ValueError as error:
            got = nonfinite_value(read, logits)
            if got is None:
                raise
            raise value_error(name, expected, f"{got} ({error})") from error
        # The other functions do not refuse logits that are -inf throughout.
        if self._chooser.routing != "topk_softmax" and (got := nonfinite_value(read, logits)) is not None:
            raise value_error(name, expected, got)
        return chosen

    def _choose_finite(
        self,
        logits: NDArray[np.float32],
        input_ids: ArrayLike | None,
        nonfinite: NDArray[np.bool_],
        num_threads: int | None,
    ) -> Chosen:
        """Choose experts for the finite tokens; the slots of the others are dropped, with NaN as weight."""
        logits[nonfinite] = 0
        if input_ids is not None and self._chooser.routing == "hash_topk":
            input_ids = np.where(nonfinite, 0, input_ids)
        weights, ids = self._chooser(logits, input_ids, num_threads)
        weights, ids = np.array(weights), np.array(ids)
        if ids.dtype.kind == "u":  # a routing function of the caller's may return any integers
            ids = to_int64(ids)
        weights[nonfinite], ids[nonfinite] = np.nan, -1
        return weights, ids
