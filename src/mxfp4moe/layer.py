"""One mixture-of-experts layer of a model: router and experts together."""

from __future__ import annotations

import os
from typing import Any, Self

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

from mxfp4moe import checkpoint
from mxfp4moe.checkpoint._parts import Routing
from mxfp4moe.errors import as_array, check_positive_int, check_shape, describe, type_error, value_error
from mxfp4moe.moe import check_activation, fused_experts
from mxfp4moe.packing import PackedExperts, pack_experts
from mxfp4moe.routing import topk_softmax

_HIDDEN_DTYPES = (ml_dtypes.bfloat16, np.float16, np.float32)
_ROUTER_DTYPES = (np.float32, ml_dtypes.bfloat16, np.float16)
_ALIGNMENT = 16  # floats; 64 bytes
_CHUNK = 8192  # floats; above this, a BLAS may split one dot product over threads
_TOKENS = 1024  # routed at a time, which bounds the float32 copy of the hidden states


class MoELayer:
    """A mixture-of-experts layer: routes each token to its experts and computes them.

    `from_checkpoint` makes one from a model's files; the constructor, from arrays.

    Parameters
    ----------
    experts : PackedExperts
    router_weight : ndarray of shape (num_experts, hidden_size)
        float32, bfloat16 or float16.
    router_bias : ndarray of shape (num_experts,), optional
    top_k : int
        How many experts each token goes to.
    routing : callable, optional
        ``routing(router_logits, top_k)`` returns (topk_weights, topk_ids); `topk_softmax` by default.
    activation, alpha, limit
        As for `fused_experts`.

    Attributes
    ----------
    experts : PackedExperts
    router_weight : ndarray of shape (num_experts, hidden_size), float32, read-only
    router_bias : ndarray of shape (num_experts,), float32, read-only; or None
    top_k, num_experts, hidden_size, intermediate_size : int
    activation, alpha, limit
        As given.

    Examples
    --------
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> rng = np.random.default_rng(0)
    >>> w13 = mx.quantize_mxfp4(rng.standard_normal((4, 2 * 32, 64), dtype=np.float32))
    >>> w2 = mx.quantize_mxfp4(rng.standard_normal((4, 64, 32), dtype=np.float32))
    >>> experts = mx.pack_experts(*w13, *w2, format="mxfp4")
    >>> layer = mx.MoELayer(experts, rng.standard_normal((4, 64), dtype=np.float32), top_k=2)
    >>> layer(np.ones((3, 64), np.float32)).shape
    (3, 64)
    """

    def __init__(
        self,
        experts: PackedExperts,
        router_weight: ArrayLike,
        router_bias: ArrayLike | None = None,
        *,
        top_k: int,
        routing: Routing = topk_softmax,
        activation: str = "silu",
        alpha: float | None = None,
        limit: float | None = None,
    ) -> None:
        if not isinstance(experts, PackedExperts):
            raise type_error("experts", "PackedExperts", describe(experts))
        self.experts = experts
        self.num_experts = experts.num_experts
        self.hidden_size = experts.hidden_size
        self.intermediate_size = experts.intermediate_size
        self.top_k = check_positive_int("top_k", top_k, self.num_experts)
        check_activation(activation, alpha, limit)
        self.activation, self.alpha, self.limit = activation, alpha, limit
        if not callable(routing):
            raise type_error("routing", "a function", describe(routing))
        self._routing = routing
        self._source = ""

        weight = as_array("router_weight", router_weight, _ROUTER_DTYPES)
        check_shape("router_weight", weight, (self.num_experts, self.hidden_size))
        self._weight_rows = _aligned_rows(weight)
        self.router_weight = self._weight_rows[:, : self.hidden_size]
        self.router_weight.flags.writeable = False
        self.router_bias: NDArray[np.float32] | None = None
        if router_bias is not None:
            bias = as_array("router_bias", router_bias, _ROUTER_DTYPES)
            check_shape("router_bias", bias, (self.num_experts,))
            self.router_bias = bias.astype(np.float32)
            self.router_bias.flags.writeable = False

    @classmethod
    def from_checkpoint(cls, path: str | os.PathLike[str], layer: int = 0) -> Self:
        """Read and pack one layer of a model on disk.

        The files are memory-mapped, and only this layer's tensors are read.

        Parameters
        ----------
        path : str or os.PathLike
            A Hugging Face model folder: config.json and one or several safetensors files. Of the model types,
            gpt_oss is supported.
        layer : int
            Counted from 0.

        Returns
        -------
        MoELayer

        Raises
        ------
        FileNotFoundError
            If the folder or one of its files is missing.
        TypeError, ValueError
            If the configuration, a file or a tensor is not as expected; the message names the file, what was
            expected and what came.

        Examples
        --------
        >>> layer = mx.MoELayer.from_checkpoint("gpt-oss-20b", layer=3)  # doctest: +SKIP
        """
        parts = checkpoint.read_layer(path, layer)
        result = cls(
            pack_experts(**parts.experts),
            parts.router_weight,
            parts.router_bias,
            top_k=parts.top_k,
            routing=parts.routing,
            activation=parts.activation,
            alpha=parts.alpha,
            limit=parts.limit,
        )
        result._source = f"{os.fspath(path)!r}, layer={int(layer)}, "
        return result

    def __repr__(self) -> str:
        return (
            f"MoELayer({self._source}num_experts={self.num_experts}, top_k={self.top_k}, "
            f"hidden_size={self.hidden_size}, intermediate_size={self.intermediate_size}, "
            f"format={self.experts.format!r}, activation={self.activation!r}, "
            f"{self.experts.nbytes / 1e6:.1f} MB)"
        )

    def route(self, hidden_states: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Choose each token's experts, in float32 on the hidden states rounded to bfloat16.

        A token's logits do not depend on what else is in the batch.

        Parameters
        ----------
        hidden_states : ndarray of shape (..., hidden_size)
            bfloat16, float16 or float32.

        Returns
        -------
        topk_weights : ndarray of shape (..., top_k), float32
        topk_ids : ndarray of shape (..., top_k), int32

        Raises
        ------
        TypeError, ValueError
            If `hidden_states` has another dtype or shape, or makes a logit NaN.
        """
        hidden_states = self._check_hidden_states(hidden_states)
        topk_weights, topk_ids = self._routing(self.router_logits(hidden_states), self.top_k)
        return topk_weights, topk_ids

    def router_logits(self, hidden_states: ArrayLike) -> NDArray[np.float32]:
        """Return the logits that `route` chooses by: float32 of shape (..., num_experts)."""
        hidden_states = self._check_hidden_states(hidden_states)
        tokens = hidden_states.reshape(-1, self.hidden_size)
        logits = np.zeros((len(tokens), self.num_experts), np.float32)
        for first in range(0, len(tokens), _TOKENS):
            with np.errstate(over="ignore"):
                rows = _aligned_rows(tokens[first : first + _TOKENS].astype(ml_dtypes.bfloat16))
            # One dot product for each (token, expert), always of equally long and equally aligned rows.
            # A matrix product would change its order of summation with the number of rows; this gives a
            # token the same bits in any batch.
            for begin in range(0, rows.shape[1], _CHUNK):
                part = np.s_[:, begin : begin + _CHUNK]
                with np.errstate(over="ignore", invalid="ignore"):
                    logits[first : first + _TOKENS] += np.vecdot(rows[part][:, None], self._weight_rows[part])
        if self.router_bias is not None:
            logits += self.router_bias
        return logits.reshape(*hidden_states.shape[:-1], self.num_experts)

    def __call__(
        self,
        hidden_states: ArrayLike,
        *,
        out: NDArray[Any] | None = None,
        num_threads: int | None = None,
    ) -> NDArray[Any]:
        """Compute the layer for every token.

        Parameters
        ----------
        hidden_states : ndarray of shape (..., hidden_size)
            bfloat16, float16 or float32.
        out : ndarray of shape (..., hidden_size), optional
            Where to put the result; as for `fused_experts`.
        num_threads : int, optional

        Returns
        -------
        ndarray of shape (..., hidden_size)
            Of the dtype of `hidden_states`, or `out`.

        Raises
        ------
        TypeError, ValueError
            As `route` and `fused_experts`.
        """
        topk_weights, topk_ids = self.route(hidden_states)
        return fused_experts(
            hidden_states,
            self.experts,
            topk_weights,
            topk_ids,
            activation=self.activation,
            alpha=self.alpha,
            limit=self.limit,
            out=out,
            num_threads=num_threads,
        )

    def _check_hidden_states(self, hidden_states: ArrayLike) -> NDArray[Any]:
        array = as_array("hidden_states", hidden_states, _HIDDEN_DTYPES)
        if array.ndim < 1 or array.shape[-1] != self.hidden_size:
            raise value_error("hidden_states", f"shape (..., {self.hidden_size})", f"shape {array.shape}")
        return array


def _aligned_rows(matrix: NDArray[Any]) -> NDArray[np.float32]:
    """A float32 copy of `matrix`, its rows zero-padded so that each starts at a multiple of 64 bytes."""
    rows, columns = matrix.shape
    padded = -(-columns // _ALIGNMENT) * _ALIGNMENT
    memory = np.zeros(rows * padded + _ALIGNMENT, np.float32)
    offset = -(memory.ctypes.data // 4) % _ALIGNMENT
    result = memory[offset : offset + rows * padded].reshape(rows, padded)
    result[:, :columns] = matrix
    return result
