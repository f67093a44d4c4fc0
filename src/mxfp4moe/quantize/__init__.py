"""Quantization of arrays to the weight formats, and back: one module for each format."""

from mxfp4moe.quantize.e2m1 import pack_e2m1, unpack_e2m1
from mxfp4moe.quantize.fp8_block import dequantize_fp8_block, quantize_fp8_block
from mxfp4moe.quantize.integers import dequantize_int4, dequantize_int8, quantize_int4, quantize_int8
from mxfp4moe.quantize.mxfp4 import dequantize_mxfp4, quantize_mxfp4
from mxfp4moe.quantize.mxfp8 import dequantize_mxfp8, quantize_mxfp8
from mxfp4moe.quantize.nvfp4 import dequantize_nvfp4, quantize_nvfp4

__all__ = [
    "dequantize_fp8_block",
    "dequantize_int4",
    "dequantize_int8",
    "dequantize_mxfp4",
    "dequantize_mxfp8",
    "dequantize_nvfp4",
    "pack_e2m1",
    "quantize_fp8_block",
    "quantize_int4",
    "quantize_int8",
    "quantize_mxfp4",
    "quantize_mxfp8",
    "quantize_nvfp4",
    "unpack_e2m1",
]
