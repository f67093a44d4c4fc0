"""Quantization of arrays to the weight formats, and back: one module for each format."""

from .e2m1 import pack_e2m1, unpack_e2m1
from .fp8_block import dequantize_fp8_block, quantize_fp8_block
from .mxfp4 import dequantize_mxfp4, quantize_mxfp4
from .mxfp8 import dequantize_mxfp8, quantize_mxfp8
from .nvfp4 import dequantize_nvfp4, quantize_nvfp4

__all__ = [
    "dequantize_fp8_block",
    "dequantize_mxfp4",
    "dequantize_mxfp8",
    "dequantize_nvfp4",
    "pack_e2m1",
    "quantize_fp8_block",
    "quantize_mxfp4",
    "quantize_mxfp8",
    "quantize_nvfp4",
    "unpack_e2m1",
]
