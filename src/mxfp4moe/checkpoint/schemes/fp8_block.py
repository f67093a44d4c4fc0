"""FP8 E4M3 with a scale for each block of rows and columns (DeepSeek-V3, Qwen3 FP8, MiniMax-M2)."""

from __future__ import annotations

from mxfp4moe.checkpoint._config import Config
from mxfp4moe.checkpoint.schemes._scheme import BlockShape, Scheme
from mxfp4moe.checkpoint.schemes.mx_formats import fp8

E4M3_NAMES = ("e4m3", "float8_e4m3fn", None)
_SCALE_NAME = "weight_scale_inv"


def find(quantization: Config, scale_name: str = _SCALE_NAME) -> Scheme | None:
    """The scheme of ``quant_method: fp8`` with a ``weight_block_size``."""
    if quantization.get("quant_method") != "fp8":
        return None
    quantization.choice("fmt", E4M3_NAMES, default=None)
    block = quantization.list_of("weight_block_size", int, 2)
    if block is None or min(block) < 1 or block[1] % 32:
        expected = "[rows, columns] above 0, columns a multiple of 32"
        raise quantization.error("weight_block_size", expected, str(block))
    return scheme((block[0], block[1]), scale_name)


def scheme(block_shape: BlockShape, scale_name: str = _SCALE_NAME) -> Scheme:
    """FP8 with blocks of this shape; the scales may have the usual name in any case."""
    name = "FP8 in blocks of {} x {}".format(*block_shape)
    return fp8(name, block_shape, (scale_name, _SCALE_NAME))
