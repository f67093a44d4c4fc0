"""A whole model whose experts are spread over ranks: rank 0 has the tokens, the others compute for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from typing import Any

from mxfp4moe import checkpoint
from mxfp4moe.experts.activation_format import ActivationFormat
from mxfp4moe.experts.quantizing import QuantizeFormat
from mxfp4moe.experts.residence import check_residence
from mxfp4moe.layer import MoELayer
from mxfp4moe.loading import load_layers
from mxfp4moe.model.causal_lm import CausalLM
from mxfp4moe.model.loading import load_decoder
from mxfp4moe.mpi._channel import Channel, Ended, RankError, import_mpi
from mxfp4moe.mpi.layer import ExpertParallelLayer
from mxfp4moe.mpi.placement import contiguous


class Ranks:
    """The ranks that this process was started with.

    Parameters
    ----------
    activation_format : str, optional
        As for `CausalLM`.
    timeout : float
        The seconds that a step may take; loading may take as long as it likes.
    """

    def __init__(self, activation_format: ActivationFormat | None = None, timeout: float = 300.0) -> None:
        self._activation_format = activation_format
        try:
            world = import_mpi().COMM_WORLD
        except ImportError as error:
            raise ValueError(f"mpirun: {error}") from error
        self._loading, self._channel = Channel(world, None), Channel(world, timeout)
        self._channel.is_shared = True
        self.rank, self.size = self._channel.rank, self._channel.size

    def _experts(self, num_experts: int) -> list[int]:
        return contiguous(num_experts, self.size)[self.rank]

    def _spread(self, layer: MoELayer) -> ExpertParallelLayer:
        part = layer if layer.expert_map is not None else layer.slice(self._experts(layer.num_experts))
        return ExpertParallelLayer(part, self._channel)

    @contextmanager
    def _all_load(self) -> Iterator[None]:
        """What one rank cannot read is an error of all."""
        try:
            yield
        except Exception as error:
            self._loading.check_all(error)
            raise
        self._loading.check_all(None)

    @contextmanager
    def model(
        self,
        path: Any,
        quantize: QuantizeFormat | None,
        quantize_dense: QuantizeFormat | None,
        memory_limit: int | None,
    ) -> Iterator[CausalLM]:
        """The model, on rank 0; afterwards the other ranks are told that there are no more tokens."""
        with self._all_load():
            residence = check_residence("mapped", memory_limit)
            decoder = load_decoder(path, quantize, quantize_dense, None, self._experts, residence)
            if self._activation_format is not None:
                decoder = decoder.with_activation_format(self._activation_format)
        try:
            yield CausalLM._make(decoder.with_blocks(self._spread), os.fspath(path))
        finally:
            self._channel.end()

    def serve(self, path: Any, quantize: QuantizeFormat | None, memory_limit: int | None) -> None:
        """Compute experts until rank 0 has no more tokens."""
        with self._all_load():
            ids = self._experts(checkpoint.open(path).num_experts)
            parts = load_layers(
                path, experts=ids, quantize=quantize, progress=False, memory_limit=memory_limit
            )
            if self._activation_format is not None:
                parts = [part._with_activation_format(self._activation_format) for part in parts]
        try:
            for layer in cycle([self._spread(part) for part in parts]):
                layer._serve()
        except Ended:
            return


__all__ = ["RankError", "Ranks"]
