"""Packed experts: their spec, packing, storage, and the fused call."""

from mxfp4moe.experts.cache import ExpertCache
from mxfp4moe.experts.fused import fused_experts, fused_moe
from mxfp4moe.experts.packed_experts import PackedExperts, UnpackedExperts
from mxfp4moe.experts.packing import pack_experts

__all__ = ["ExpertCache", "PackedExperts", "UnpackedExperts", "fused_experts", "fused_moe", "pack_experts"]
