"""MXFP4 as AMD Quark writes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxfp4moe.checkpoint._config import Config
from mxfp4moe.checkpoint.schemes._scheme import Matrix, Scheme

if TYPE_CHECKING:
    from mxfp4moe.checkpoint.model_folder import ModelFolder


def find(quantization: Config) -> Scheme | None:
    """The scheme of ``quant_method: quark`` whose weights are FP4 in groups of 32."""
    if quantization.fields.get("quant_method") != "quark":
        return None
    weight = quantization.section("global_quant_config").section("weight")
    weight.choice("dtype", ("fp4",), default="fp4")
    weight.choice("group_size", (32,), default=32)
    weight.choice("scale_format", ("e8m0",), default="e8m0")
    return SCHEME


def _read(folder: ModelFolder, name: str, rows: int, columns: int) -> Matrix:
    return Matrix(
        folder.tensor(f"{name}.weight", ("U8",), (rows, columns // 2)),
        folder.tensor(f"{name}.weight_scale", ("U8", "F8_E8M0"), (rows, columns // 32)),
    )


SCHEME = Scheme("Quark MXFP4", "mxfp4", _read, multiple_of=32)
