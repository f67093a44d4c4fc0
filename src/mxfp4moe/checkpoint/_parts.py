"""What a checkpoint hands over: one MoE layer, not yet packed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Routing:
    """A rule that turns router logits into expert ids and weights, as plain data."""

    rule: str
    """Name of the function of `mxfp4moe`, such as "topk_softmax"."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Its keyword arguments: numbers, bools and arrays."""

    def __str__(self) -> str:
        def text(value: Any) -> str:
            return f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else repr(value)

        return f"{self.rule}({', '.join(f'{k}={text(v)}' for k, v in self.arguments.items())})"


@dataclass(frozen=True)
class ExpertWeights:
    """The matrices of the experts of one layer, as they stand in the files."""

    format: str
    """The format of `mxfp4moe.pack_experts` that they are packed in."""
    source: str
    """How the checkpoint stores them, in words."""
    arrays: dict[str, Any]
    """Arguments of `mxfp4moe.pack_experts`, by name: views of the mapped files, unless `decode` says more."""
    decode: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    """Makes of `arrays` what `pack_experts` takes, for sources that store it otherwise. It copies."""

    @property
    def nbytes(self) -> int:
        """Size in the checkpoint."""
        return sum(array.nbytes for array in _arrays(list(self.arrays.values())))

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `mxfp4moe.pack_experts`, by name."""
        arrays = self.arrays if self.decode is None else self.decode(self.arrays)
        return {**arrays, "format": self.format}


@dataclass(frozen=True)
class LayerParts:
    """One MoE layer as it stands in a checkpoint; arrays are views of the mapped files where possible."""

    hidden_size: int
    intermediate_size: int
    num_experts: int
    top_k: int
    experts: ExpertWeights
    router_weight: NDArray[Any]
    """Of shape (num_experts, hidden_size)."""
    router_bias: NDArray[Any] | None
    routing: Routing
    activation: str
    alpha: float | None = None
    limit: float | None = None
    routed_scaling_factor: float = 1.0
    """Multiplies the routed sum, before the shared expert is added; not in the routing weights."""
    shared_experts: ExpertWeights | None = None
    """One expert, to which every token goes."""
    shared_limit: float | None = None

    @property
    def nbytes(self) -> int:
        """Size of its experts in the checkpoint, shared ones included."""
        return self.experts.nbytes + (self.shared_experts.nbytes if self.shared_experts else 0)


def _arrays(value: object) -> Iterator[NDArray[Any]]:
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _arrays(item)
