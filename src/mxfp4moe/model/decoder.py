"""The skeleton of a decoder: the order of norms, attention, blocks and additions, the same for all types.

The residual stream is float32. What a matrix reads is rounded once to bfloat16, by the norm before it or by
the attention; what NumPy computes here is elementwise and rounded exactly. So the bits of a token depend on
nothing but the weights and the tokens before it. The attention of a layer is one call of the C++ library, and
its norm and router are another one: between two calls Python finds the caches full of weights, and takes
longer than a norm or a rotary embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, Literal, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from mxfp4moe import _core
from mxfp4moe._arguments import cast
from mxfp4moe.config import active_kernels
from mxfp4moe.experts.activation_format import (
    ActivationFormat,
    activation_format_code,
    possible_activation_format,
)
from mxfp4moe.experts.fused import fused_experts
from mxfp4moe.experts.packed_experts import PackedExperts
from mxfp4moe.layer import MoELayer
from mxfp4moe.linear import PackedLinear
from mxfp4moe.linear.rms_norm import rms_norm
from mxfp4moe.model.description import DecoderDescription
from mxfp4moe.self_attention import KVCache, RotaryEmbedding, YarnScaling
from mxfp4moe.self_attention.cache import MAX_POSITIONS, reserve

Floats = NDArray[np.float32]
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True)
class Attention:
    """The weights of the attention of a layer."""

    input_norm: Floats
    projections: tuple[PackedLinear, ...]
    """To queries, keys and values, one after another in their rows."""
    output: PackedLinear
    q_norm: Floats | None = None
    k_norm: Floats | None = None
    sinks: Floats | None = None

    @property
    def matrices(self) -> tuple[PackedLinear, ...]:
        """All matrices."""
        return (*self.projections, self.output)


@dataclass(frozen=True)
class DecoderLayer:
    """The weights of a layer."""

    attention: Attention
    post_norm: Floats
    block: MoELayer | PackedExperts
    """Experts with their router; or one expert, which every token goes to, in layers without experts."""


class Ends(NamedTuple):
    """What stands before and after the layers."""

    embedding: NDArray[Any]
    final_norm: Floats
    head: PackedLinear


@dataclass(frozen=True)
class Step:
    """Tokens of one or several sequences that are computed together."""

    input_ids: NDArray[np.int64]
    """The ids of all sequences, one sequence after another."""
    lengths: tuple[int, ...]
    """How many tokens each sequence has here."""
    caches: Sequence[Sequence[KVCache]]
    """For each sequence, the caches of all layers."""
    num_threads: int

    @property
    def positions(self) -> NDArray[np.int64]:
        """The position of each token in its sequence."""
        starts = [len(layers[0]) for layers in self.caches]
        pairs = zip(starts, self.lengths, strict=True)
        return np.concatenate([np.arange(start, start + length) for start, length in pairs])

    def split(self, rows: NDArray[Any]) -> list[NDArray[Any]]:
        """The rows of each sequence."""
        bounds = [0, *accumulate(self.lengths)]
        return [rows[begin:end] for begin, end in pairwise(bounds)]


class Decoder:
    """A decoder with its weights; what it computes is the hidden states that the head reads.

    Parameters
    ----------
    description : DecoderDescription
    layers : sequence of DecoderLayer
    ends : Ends
    activation_format : str, optional
        What all matrices whose format allows it round what they read to, once more; those of `layers` say so
        themselves.
    """

    def __init__(
        self,
        description: DecoderDescription,
        layers: Sequence[DecoderLayer],
        ends: Ends,
        activation_format: ActivationFormat | None = None,
    ) -> None:
        self.description, self.layers = description, tuple(layers)
        self.activation_format = activation_format
        self.embedding, self.final_norm, self.head = ends
        rotary = description.rotary
        embedding = RotaryEmbedding(
            rotary.head_dim,
            base=rotary.base,
            rotary_dim=rotary.rotary_dim,
            yarn=None if rotary.yarn is None else YarnScaling(**rotary.yarn),
        )
        pairs = zip(self.layers, description.windows, strict=True)
        self._attentions = [self._joined(layer.attention, window, embedding) for layer, window in pairs]

    def _joined(self, weights: Attention, window: int | None, rotary: RotaryEmbedding) -> _core.SelfAttention:
        """The attention of a layer as the C++ library computes it."""
        description = self.description
        return _core.SelfAttention(
            [matrix._storage for matrix in weights.projections],
            weights.output._storage,
            weights.input_norm,
            num_heads=description.num_heads,
            num_kv_heads=description.num_kv_heads,
            head_dim=description.head_dim,
            norm_epsilon=description.norm_epsilon,
            q_norm=weights.q_norm,
            k_norm=weights.k_norm,
            norms_whole=description.qk_norm == "whole",
            clip=description.clip,
            frequencies=rotary.frequencies,
            rotary_factor=rotary.attention_factor,
            window=MAX_POSITIONS if window is None else window,
            scale=description.scale,
            sinks=weights.sinks,
        )

    @property
    def nbytes(self) -> int:
        """The bytes of all weights."""
        blocks = sum(layer.block.nbytes for layer in self.layers)
        return self.embedding.nbytes + sum(matrix.nbytes for matrix in self._matrices) + blocks

    @property
    def _matrices(self) -> list[PackedLinear]:
        return [self.head, *(matrix for layer in self.layers for matrix in layer.attention.matrices)]

    def layer(self, number: int) -> DecoderLayer:
        """A layer."""
        return self.layers[number]

    def ends(self) -> Ends:
        """What stands before and after the layers."""
        return Ends(self.embedding, self.final_norm, self.head)

    def packed_bytes(self) -> list[memoryview]:
        """The packed bytes of all matrices and experts."""
        blocks = [layer.block for layer in self.layers]
        experts = [each.experts if isinstance(each, MoELayer) else each for each in blocks]
        return [matrix.data for matrix in self._matrices] + [each.data for each in experts]

    def step_bytes(self, length: int) -> int:
        """The bytes of weights, and of float32 keys and values, that a token after `length` others needs."""
        description = self.description
        nbytes = self.head.nbytes + self.embedding[:1].nbytes
        for layer, window in zip(self.layers, description.windows, strict=True):
            attention = layer.attention
            nbytes += sum(matrix.nbytes for matrix in attention.matrices)
            seen = length + 1 if window is None else min(length + 1, window)
            nbytes += seen * sum(description.projections[1:]) * np.dtype(np.float32).itemsize
            nbytes += _block_bytes(layer.block)
        return nbytes

    def with_blocks(self, change: Callable[[MoELayer], MoELayer]) -> Decoder:
        """The same decoder with another mixture of experts in the place of each."""
        layers = [
            replace(layer, block=change(layer.block)) if isinstance(layer.block, MoELayer) else layer
            for layer in self.layers
        ]
        return Decoder(self.description, layers, self.ends(), self.activation_format)

    def with_activation_format(self, value: ActivationFormat | None) -> Decoder:
        """The same decoder with that format of activations, in its experts too."""
        layers = self.with_blocks(lambda layer: layer._with_activation_format(value)).layers
        return Decoder(self.description, layers, self.ends(), value)

    def new_caches(self, dtype: Literal["bfloat16", "float32"]) -> list[KVCache]:
        """Empty caches of all layers."""
        description = self.description
        sizes = description.num_kv_heads, description.head_dim
        return [KVCache(*sizes, dtype=dtype, sliding_window=window) for window in description.windows]

    def hidden_states(self, step: Step) -> Floats:
        """Append the tokens of a step to its caches; return the residual stream after the last layer."""
        positions = step.positions
        residual = cast(self.embedding[step.input_ids], np.float32)
        buffer = np.empty_like(residual)
        for number, layer in enumerate(self.layers):
            self._attend(number, residual, positions, step)
            self._run_block(layer, residual, buffer, step.num_threads)
            residual += buffer
        return residual

    def logits(self, residual: Floats, num_threads: int, out: Floats) -> None:
        """Write the logits of rows of the residual stream to `out`."""
        rows = self._normalized(residual, self.final_norm, num_threads)
        possible = possible_activation_format(self.activation_format, self.head.format)
        self.head(rows, activation_format=possible, out=out, num_threads=num_threads)

    def _normalized(self, rows: Floats, weight: Floats, num_threads: int) -> NDArray[Any]:
        epsilon = self.description.norm_epsilon
        return rms_norm(rows, weight, eps=epsilon, dtype=_BFLOAT16, num_threads=num_threads)

    def _attend(self, number: int, residual: Floats, positions: NDArray[np.int64], step: Step) -> None:
        """Add to the residual stream what the attention of a layer gives."""
        room = [
            reserve(layers[number], length) for layers, length in zip(step.caches, step.lengths, strict=True)
        ]
        sequences = [
            (length, each.begin, each.pages) for each, length in zip(room, step.lengths, strict=True)
        ]
        activations = activation_format_code(self.activation_format)
        self._attentions[number].add_to(
            residual, positions, sequences, active_kernels(), step.num_threads, activations
        )
        for each in room:
            each.commit()

    def _run_block(self, layer: DecoderLayer, residual: Floats, out: Floats, num_threads: int) -> None:
        """Write what the block of a layer adds to the residual stream to `out`."""
        block, epsilon = layer.block, self.description.norm_epsilon
        if isinstance(block, MoELayer):
            block._run_normalized(residual, (layer.post_norm, epsilon), out, num_threads)
            return
        rows = self._normalized(residual, layer.post_norm, num_threads)
        slots = np.ones((len(rows), 1), np.float32), np.zeros((len(rows), 1), np.int32)
        activation: Any = self.description.activation
        possible = possible_activation_format(self.activation_format, block.format)
        options: dict[str, Any] = {"activation_format": possible, "num_threads": num_threads}
        fused_experts(rows, block, *slots, activation=activation, out=out, **options)


def _block_bytes(block: MoELayer | PackedExperts) -> int:
    """The bytes that a block reads for one token."""
    if isinstance(block, PackedExperts):
        return block.nbytes
    experts = block.experts
    shared = 0 if block.shared_experts is None else block.shared_experts.nbytes
    return block.top_k * experts.nbytes // experts.num_experts + shared + block.router_weight.nbytes
