"""Random integers of 4 and 8 bits, with their scales and zero points."""

from __future__ import annotations

from typing import Any

import numpy as np
from problems import bfloat16, pack_nibbles

SCALE_DTYPES = (np.dtype(np.float32), bfloat16, np.dtype(np.float16))


def random_integers(
    rng: np.random.Generator, format: str, shape: tuple[int, int, int], groups: int, dtype: Any, zeros: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Codes around their zero points, as those of weights are."""
    experts, rows, k = shape
    low, high, middle = (0, 15, 8) if format == "int4" else (-128, 127, 0)
    spread, code_dtype = (high - low) / 5, np.uint8 if format == "int4" else np.int8
    scales = rng.uniform(-2, 2, (experts, rows, groups)) / spread / k**0.5
    zero_points = rng.integers(low, high + 1, scales.shape) if zeros else np.full(scales.shape, middle)
    differences = np.rint(spread * rng.standard_normal((*scales.shape, k // groups), np.float32))
    codes = np.clip(differences + zero_points[..., None], low, high).astype(code_dtype).reshape(shape)
    if format == "int4":
        codes = pack_nibbles(codes)
    return codes, scales.astype(dtype), zero_points.astype(code_dtype) if zeros else None
