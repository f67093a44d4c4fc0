"""FP8 E4M3 with a scale for each block of rows and columns (DeepSeek-V3, Qwen3 FP8, MiniMax-M2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from mxfp4moe._arguments import cast
from mxfp4moe.checkpoint._config import Config
from mxfp4moe.checkpoint.schemes._scheme import FLOATS, Matrix, Scheme

if TYPE_CHECKING:
    from mxfp4moe.checkpoint.model_folder import ModelFolder

E4M3_NAMES = ("e4m3", "float8_e4m3fn", None)
_SCALE_NAME = "weight_scale_inv"
_SCALES = (*FLOATS, "F8_E8M0", "U8")


def find(quantization: Config) -> Scheme | None:
    """The scheme of ``quant_method: fp8`` with a ``weight_block_size``."""
    if quantization.get("quant_method") != "fp8":
        return None
    quantization.choice("fmt", E4M3_NAMES, default=None)
    block = quantization.list_of("weight_block_size", int, 2)
    if block is None or min(block) < 1 or block[1] % 32:
        expected = "[rows, columns] above 0, columns a multiple of 32"
        raise quantization.error("weight_block_size", expected, str(block))
    return scheme((block[0], block[1]))


def scheme(block_shape: tuple[int, int], scale_name: str = _SCALE_NAME) -> Scheme:
    """FP8 with blocks of this shape; the scales may have the usual name in any case."""
    block_rows, block_columns = block_shape

    def read(folder: ModelFolder, name: str, rows: int, columns: int) -> Matrix:
        shape = (-(-rows // block_rows), -(-columns // block_columns))
        names = [f"{name}.{suffix}" for suffix in (scale_name, _SCALE_NAME)]
        scales = folder.tensor(next((n for n in names if n in folder), names[0]), _SCALES, shape)
        weight = folder.tensor(f"{name}.weight", ("F8_E4M3",), (rows, columns))
        if scales.dtype == np.uint8:
            scales = scales.view(ml_dtypes.float8_e8m0fnu)
        return Matrix(weight, cast(scales, np.float32))

    return Scheme(
        f"FP8 in blocks of {block_rows} x {block_columns}", "fp8_block", read, block_shape=block_shape
    )
