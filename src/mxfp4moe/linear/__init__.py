"""Matrices of packed weights by hidden states: their spec, packing, and the call."""

from mxfp4moe.linear.packed_linear import PackedLinear, UnpackedLinear
from mxfp4moe.linear.packing import pack_linear

__all__ = ["PackedLinear", "UnpackedLinear", "pack_linear"]
