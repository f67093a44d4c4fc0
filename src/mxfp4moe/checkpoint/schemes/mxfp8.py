"""MXFP8: FP8 E4M3 with an E8M0 scale for each 32 of a row (MiniMax-M3)."""

from __future__ import annotations

from mxfp4moe.checkpoint._config import Config
from mxfp4moe.checkpoint.schemes import mx_formats
from mxfp4moe.checkpoint.schemes._scheme import Scheme
from mxfp4moe.checkpoint.schemes.fp8_block import E4M3_NAMES

_BLOCK = [1, 32]


def find(quantization: Config) -> Scheme | None:
    """The scheme of ``quant_method: mxfp8``, or fp8 with blocks of 1 x 32 and E8M0 scales."""
    method, block = quantization.get("quant_method"), quantization.get("weight_block_size")
    if method != "mxfp8" and not (method == "fp8" and block == _BLOCK):
        return None
    if block not in (None, _BLOCK):
        raise quantization.error("weight_block_size", "[1, 32]", str(block))
    quantization.choice("fmt", E4M3_NAMES, default=None)
    quantization.choice("scale_fmt", ("ue8m0", None), default=None)
    return mx_formats.mxfp8("MXFP8", "weight_scale_inv")
