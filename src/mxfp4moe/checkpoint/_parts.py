"""What a checkpoint format hands over: one MoE layer, not yet packed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

Routing = Callable[[NDArray[Any], int], tuple[NDArray[Any], NDArray[Any]]]


@dataclass(frozen=True)
class LayerParts:
    """One MoE layer as it stands in a checkpoint; arrays may be views of a mapped file."""

    hidden_size: int
    intermediate_size: int
    num_experts: int
    top_k: int
    experts: dict[str, Any]
    """Arguments of `mxfp4moe.pack_experts`, by name."""
    router_weight: NDArray[Any]
    """Of shape (num_experts, hidden_size)."""
    router_bias: NDArray[Any] | None
    routing: Routing
    """(router_logits, top_k) -> (topk_weights, topk_ids)."""
    activation: str
    alpha: float | None = None
    limit: float | None = None
