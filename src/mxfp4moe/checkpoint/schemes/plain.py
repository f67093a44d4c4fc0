"""Weights that are not quantized: bfloat16, float16 or float32."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from mxfp4moe._arguments import cast
from mxfp4moe.checkpoint.schemes._scheme import FLOATS, Matrix, Scheme, Tensors


def _read(tensors: Tensors, name: str, rows: int, columns: int) -> Matrix:
    return Matrix(tensors.tensor(f"{name}.weight", FLOATS, (rows, columns)))


def with_scales(arrays: dict[str, Any]) -> dict[str, Any]:
    """Add the arguments of `pack_experts` that this format leaves empty."""
    return {**arrays, "w13_scales": None, "w2_scales": None}


def to_bfloat16(arrays: dict[str, Any]) -> dict[str, Any]:
    """Round the weights to bfloat16 where they are wider; arrays that are bfloat16 stay what they are."""
    return {name: _convert(value) if name in ("w13", "w2") else value for name, value in arrays.items()}


def _convert(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return cast(value, ml_dtypes.bfloat16)
    return type(value)(_convert(item) for item in value)


SCHEME = Scheme("plain floats", "bf16", _read)
