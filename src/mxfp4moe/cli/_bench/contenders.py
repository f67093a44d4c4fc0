"""What is timed: this package on each instruction set, and peers."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import Any, Protocol

import numpy as np

from mxfp4moe import config
from mxfp4moe.cli._bench.llama_cpp_peer import LlamaCppPeer
from mxfp4moe.cli._bench.numpy_peer import NumpyPeer
from mxfp4moe.cli._bench.onnxruntime_peer import OnnxruntimePeer
from mxfp4moe.cli._bench.problem import Batch, Shape
from mxfp4moe.experts import PackedExperts, fused_experts
from mxfp4moe.experts.activation_format import ActivationFormat
from mxfp4moe.reference import ExpertArrays


class Contender(Protocol):
    """Something that computes batches."""

    name: str

    @property
    def isa(self) -> str | None:
        """Instruction set of this package's kernels; None for peers."""

    def prepare(self, batch: Batch) -> Callable[[], np.ndarray]:
        """Convert the batch to what the contender takes; the function that is returned is timed."""


class Peer(Contender, Protocol):
    """Another implementation, built from the checkpoint's arrays."""

    formats: tuple[str, ...]  # the weight formats that it can compute
    copies: float  # how many copies of the weights it holds

    def __init__(self, shape: Shape, arrays: ExpertArrays, num_threads: int) -> None: ...

    @staticmethod
    def missing() -> str:
        """Why it cannot run here; empty if it can."""


PEERS: dict[str, type[Peer]] = {
    "numpy": NumpyPeer,
    "onnxruntime": OnnxruntimePeer,
    "llama.cpp": LlamaCppPeer,
}


class Ours:
    """The package's own `fused_experts` on one instruction set and one format of activations."""

    def __init__(
        self,
        isa: str,
        shape: Shape,
        experts: PackedExperts,
        num_threads: int,
        activation_format: ActivationFormat | None = None,
    ) -> None:
        self.name = isa if activation_format is None else f"{isa} i8"
        self.isa, self.activation_format = isa, activation_format
        with config.use_isa(isa):
            self.kernels = config.active_kernels()
            # Calls inside this context use the instruction set, and nothing is left to do when one is timed.
            self._context = copy_context()
        self._experts = experts
        self._options: dict[str, Any] = {
            "activation": shape.activation,
            "limit": shape.limit,
            "activation_format": activation_format,
            "num_threads": num_threads,
        }

    def prepare(self, batch: Batch) -> Callable[[], np.ndarray]:
        """The call of `fused_experts`."""
        hidden, weights, ids = batch
        return partial(self._context.run, fused_experts, hidden, self._experts, weights, ids, **self._options)
