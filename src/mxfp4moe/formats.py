"""The weight formats: what the arrays of a matrix look like in a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np

from mxfp4moe import _core
from mxfp4moe._arguments import num_axes

Format = Literal["mxfp4", "mxfp8", "nvfp4", "fp8_block", "bf16"]
"""The names of the weight formats."""

LinearFormat = Format | Literal["float32"]
"""Those of `pack_linear`."""

GateUpLayout = Literal["concatenated", "interleaved"]
"""The order of the rows of gate and up in one matrix."""

_UINT8, _INT8 = np.dtype(np.uint8), np.dtype(np.int8)
_FLOAT32 = np.dtype(np.float32)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
_E5M2 = np.dtype(ml_dtypes.float8_e5m2)
_E8M0 = np.dtype(ml_dtypes.float8_e8m0fnu)

# The numbers by which the kernels know the dtypes of hidden states and results.
FLOAT_CODES = {dtype: _core.DTYPES[dtype.name] for dtype in (BFLOAT16, np.dtype(np.float16), _FLOAT32)}


@dataclass(frozen=True)
class WeightFormat:
    """One value of the `format` of `pack_experts`, or of `pack_linear`.

    Attributes
    ----------
    name : str
    weight_dtypes : dict of dtype to int
        What a weight array may be, and the number of the packed format that it becomes.
    element_bits : int
        The bits of one weight in that array; 0 stands for those of the dtype.
    k_multiple : int
        What K and I must be multiples of.
    scale_dtypes : tuple of dtype
        What an array of scales may be; empty for formats without scales.
    scale_block : int
        How many weights along K share a block scale; 0 if the scales are float32 and of any block shape.
    has_tensor_scale : bool
        Whether there must be a float32 scale of each matrix; all formats without a block shape may have one.
    """

    name: LinearFormat
    weight_dtypes: dict[np.dtype, int]
    element_bits: int = 0
    k_multiple: int = 1
    scale_dtypes: tuple[np.dtype, ...] = ()
    scale_block: int = 0
    has_tensor_scale: bool = False

    @property
    def has_scales(self) -> bool:
        """Whether there are scales beside the tensor scale."""
        return bool(self.scale_dtypes)

    @property
    def has_block_shape(self) -> bool:
        """Whether the scales are float32, one for each block of rows and columns."""
        return self.has_scales and self.scale_block == 0

    def row_shapes(self, k: int) -> dict[int, tuple[int, ...]]:
        """Shapes of a row of `k` weights, by number of axes."""
        if self.element_bits != 4:
            return {1: (k,)}
        return {1: (k // 2,), 2: (k // self.scale_block, self.scale_block // 2)}

    def k_of(self, row_shape: tuple[int, ...]) -> int:
        """The number of weights of a row of that shape."""
        return int(np.prod(row_shape, dtype=np.int64)) * (2 if self.element_bits == 4 else 1)

    def nbytes(self, rows: int, k: int, block_shape: tuple[int | None, int | None] | None = None) -> int:
        """Return the bytes of the weights and scales of `rows` rows of `k` weights in a checkpoint.

        A bf16 matrix counts as rounded to bfloat16.
        """
        bits = rows * k * (self.element_bits or 8 * BFLOAT16.itemsize)
        scales = rows * k // self.scale_block if self.scale_block else 0
        if self.has_block_shape:
            block_rows, block_k = block_shape or (None, None)
            scales += 4 * -(-rows // (block_rows or rows)) * -(-k // (block_k or k))
        return bits // 8 + scales + (4 if self.has_tensor_scale else 0)


_PACKED = _core.WEIGHT_FORMATS
_E4M3_MX, _E5M2_MX = _PACKED["mxfp8-e4m3"], _PACKED["mxfp8-e5m2"]

FORMATS: dict[str, WeightFormat] = {
    f.name: f
    for f in (
        WeightFormat("mxfp4", dict.fromkeys((_UINT8, _INT8), _PACKED["mxfp4"]), 4, 32, (_UINT8, _E8M0), 32),
        WeightFormat(
            "mxfp8", {_E4M3: _E4M3_MX, _E5M2: _E5M2_MX, _UINT8: _E4M3_MX}, 8, 32, (_UINT8, _E8M0), 32
        ),
        WeightFormat(
            "nvfp4", dict.fromkeys((_UINT8, _INT8), _PACKED["nvfp4"]), 4, 16, (_E4M3, _UINT8), 16, True
        ),
        WeightFormat("fp8_block", dict.fromkeys((_E4M3, _UINT8), _PACKED["fp8_block"]), 8, 1, (_FLOAT32,)),
        WeightFormat("bf16", dict.fromkeys(FLOAT_CODES, _PACKED["bf16"])),
    )
}

LINEAR_FORMATS: dict[str, WeightFormat] = FORMATS | {
    "float32": WeightFormat("float32", dict.fromkeys(FLOAT_CODES, _PACKED["bf16"]))  # in terms of bfloat16
}


def is_pair(arrays: Any) -> bool:
    """Whether `arrays` are a (gate, up) pair: of arrays with a leading E, or of sequences of E arrays."""
    if not isinstance(arrays, (list, tuple)) or len(arrays) != 2:
        return False
    return all(isinstance(half, (list, tuple)) or num_axes(half) == 3 for half in arrays)
