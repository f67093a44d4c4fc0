"""Fused mixture-of-experts from 4-bit and 8-bit weights on CPUs, for NumPy."""

__version__ = "0.1.0"

from .config import (
    active_isa,
    available_isas,
    get_num_threads,
    num_threads,
    set_num_threads,
    show_config,
    supported_isas,
    use_isa,
)
from .errors import IsaError, PackedFormatError
from .layer import MoELayer
from .moe import fused_experts, fused_moe
from .packing import PackedExperts, UnpackedExperts, pack_experts
from .routing import topk_softmax

__all__ = [
    "IsaError",
    "MoELayer",
    "PackedExperts",
    "PackedFormatError",
    "UnpackedExperts",
    "active_isa",
    "available_isas",
    "fused_experts",
    "fused_moe",
    "get_num_threads",
    "num_threads",
    "pack_experts",
    "set_num_threads",
    "show_config",
    "supported_isas",
    "topk_softmax",
    "use_isa",
]
