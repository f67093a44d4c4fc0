"""The weight formats: what the arrays of a matrix look like in a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import ml_dtypes
import numpy as np

from mxfp4moe import _core
from mxfp4moe._arguments import check_choice, join_choices, num_axes, value_error

Format = Literal["mxfp4", "mxfp8", "nvfp4", "fp8_block", "bf16", "int4", "int8"]
"""The names of the weight formats."""

ExpertsFormat = Format | tuple[Format, Format]
"""What `pack_experts` takes: the format of all weights, or those of w13 and of w2."""

LinearFormat = Format | Literal["float32"]
"""The formats that `pack_linear` takes."""

GateUpLayout = Literal["concatenated", "interleaved"]
"""The order of the rows of gate and up in one matrix."""

_UINT8, _INT8 = np.dtype(np.uint8), np.dtype(np.int8)
_FLOAT32 = np.dtype(np.float32)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_FLOAT16 = np.dtype(np.float16)
_E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
_E5M2 = np.dtype(ml_dtypes.float8_e5m2)
_E8M0 = np.dtype(ml_dtypes.float8_e8m0fnu)

# The numbers by which the kernels know the dtypes of hidden states and results.
FLOAT_CODES = {dtype: _core.DTYPES[dtype.name] for dtype in (BFLOAT16, _FLOAT16, _FLOAT32)}


class ZeroPoints(NamedTuple):
    """The zero points of integers, which are in the range of the codes."""

    dtype: np.dtype
    maximum: int
    packed: int
    """The number of the packed format of weights that have some."""

    def check(self, name: str, zeros: np.ndarray) -> None:
        """Raise unless all of an array of the dtype are in the range."""
        if zeros.size and zeros.max() > self.maximum:
            position = tuple(np.argwhere(zeros > self.maximum)[0].tolist())
            got = f"{zeros[position]} at position {position}"
            raise value_error(name, f"values in [0, {self.maximum}]", got)


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
        How many weights along K share a block scale; 0 if the scales are floats that multiply sums, each of a
        block of any shape or of a group of a row.
    has_tensor_scale : bool
        Whether there must be a float32 scale of each matrix; all formats without scales of sums may have one.
    zero_points : ZeroPoints or None
        Of integers: what their zero points are.
    packed_with_offsets : int or None
        Of integers: the number of the packed format of weights that have offsets.
    """

    name: LinearFormat
    weight_dtypes: dict[np.dtype, int]
    element_bits: int = 0
    k_multiple: int = 1
    scale_dtypes: tuple[np.dtype, ...] = ()
    scale_block: int = 0
    has_tensor_scale: bool = False
    zero_points: ZeroPoints | None = None
    packed_with_offsets: int | None = None

    @property
    def has_scales(self) -> bool:
        """Whether there are scales beside the tensor scale."""
        return bool(self.scale_dtypes)

    @property
    def has_sum_scales(self) -> bool:
        """Whether the scales multiply sums: those of blocks or of groups."""
        return self.has_scales and self.scale_block == 0

    @property
    def has_groups(self) -> bool:
        """Whether each row is cut in groups that have a scale, of a size that the number of scales tells."""
        return self.zero_points is not None

    @property
    def is_integral(self) -> bool:
        """Whether weights are integers times scales, which activations of eight bits are multiplied by."""
        return self.element_bits == 4 or self.has_groups

    @property
    def has_block_shape(self) -> bool:
        """Whether there is a scale for each block of rows and columns, of a shape that must be said."""
        return self.has_sum_scales and not self.has_groups

    def row_shapes(self, k: int) -> dict[int, tuple[int, ...]]:
        """Shapes of a row of `k` weights, by number of axes."""
        if self.element_bits != 4:
            return {1: (k,)}
        if not self.scale_block:
            return {1: (k // 2,)}
        return {1: (k // 2,), 2: (k // self.scale_block, self.scale_block // 2)}

    def k_of(self, row_shape: tuple[int, ...]) -> int:
        """The number of weights of a row of that shape."""
        return int(np.prod(row_shape, dtype=np.int64)) * (2 if self.element_bits == 4 else 1)

    def nbytes(
        self,
        rows: int,
        k: int,
        block_shape: tuple[int | None, int | None] | None = None,
        scale_bytes: int = _FLOAT32.itemsize,
    ) -> int:
        """Return the bytes of the weights and scales of `rows` rows of `k` weights in a checkpoint.

        A bf16 matrix counts as rounded to bfloat16. Scales of sums have blocks of `block_shape`, each of so
        many bytes, those of its zero point or its offset among them.
        """
        bits = rows * k * (self.element_bits or 8 * BFLOAT16.itemsize)
        scales = rows * k // self.scale_block if self.scale_block else 0
        if self.has_sum_scales:
            block_rows, block_k = block_shape or (None, None)
            scales += scale_bytes * -(-rows // (block_rows or rows)) * -(-k // (block_k or k))
        return bits // 8 + scales + (4 if self.has_tensor_scale else 0)


_PACKED = _core.WEIGHT_FORMATS
_E4M3_MX, _E5M2_MX = _PACKED["mxfp8-e4m3"], _PACKED["mxfp8-e5m2"]
_GROUP_SCALES = (_FLOAT32, BFLOAT16, _FLOAT16)

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
        WeightFormat(
            "int4",
            dict.fromkeys((_UINT8, _INT8), _PACKED["int4"]),
            4,
            2,
            _GROUP_SCALES,
            zero_points=ZeroPoints(_UINT8, 15, _PACKED["int4-zeros"]),
            packed_with_offsets=_PACKED["int4-offsets"],
        ),
        WeightFormat(
            "int8",
            {_INT8: _PACKED["int8"]},
            8,
            1,
            _GROUP_SCALES,
            zero_points=ZeroPoints(_INT8, 127, _PACKED["int8-zeros"]),
            packed_with_offsets=_PACKED["int8-offsets"],
        ),
    )
}

LINEAR_FORMATS: dict[str, WeightFormat] = FORMATS | {
    "float32": WeightFormat("float32", dict.fromkeys(FLOAT_CODES, _PACKED["bf16"]))  # in terms of bfloat16
}


GROUP_MULTIPLE = 32
"""What the sizes of groups of a row are multiples of, unless a group is the whole row, or a half of this."""
HALF_GROUP = GROUP_MULTIPLE // 2
"""The size of the smallest groups, which have no zero points."""


_NAMES: tuple[Format, ...] = get_args(Format)


def each_format(format: ExpertsFormat) -> tuple[Format, Format]:
    """The formats of w13 and of w2."""
    return (format, format) if isinstance(format, str) else format


def format_of(format: ExpertsFormat, matrix: str) -> Format:
    """The format of "w13" or of "w2"."""
    return each_format(format)[("w13", "w2").index(matrix)]


def check_formats(name: str, value: Any) -> ExpertsFormat:
    """`value`, the argument `name`, as the format of experts: a pair only if both differ."""
    if not isinstance(value, (list, tuple)):
        return check_choice(name, value, _NAMES)
    if len(value) != 2:
        expected = f"{join_choices(map(repr, _NAMES))}, or a pair of those of w13 and of w2"
        raise value_error(name, expected, f"{len(value)} of them")
    w13, w2 = (check_choice(f"{name}[{i}]", each, _NAMES) for i, each in enumerate(value))
    return w13 if w13 == w2 else (w13, w2)


def find_floats(format: ExpertsFormat | LinearFormat) -> str | None:
    """The first of the formats whose weights are no integers times scales."""
    each = each_format(format) if isinstance(format, tuple) else (format,)
    return next((name for name in each if not LINEAR_FORMATS[name].is_integral), None)


def format_text(format: ExpertsFormat) -> str:
    """The name of a format, or both."""
    return " and ".join(dict.fromkeys(each_format(format)))


def group_size_of(name: str, k: int, num_groups: int) -> int | None:
    """The size of the groups that a row of `k` weights with so many scales, those of `name`, is cut in.

    None is the whole row.
    """
    if num_groups == 1:
        return None
    if num_groups < 1 or k % num_groups or not _is_group_size(k // num_groups):
        sizes = f"{HALF_GROUP} or a multiple of {GROUP_MULTIPLE}"
        expected = f"a scale for each row of {k} weights, or for each group of {sizes}"
        raise value_error(name, expected, f"{num_groups} for a row")
    return k // num_groups


def is_group_size(size: int, k: int) -> bool:
    """Whether a row of `k` weights may be cut in several groups of that size."""
    return 0 < size < k and k % size == 0 and _is_group_size(size)


def _is_group_size(size: int) -> bool:
    return size == HALF_GROUP or size % GROUP_MULTIPLE == 0


def is_pair(arrays: Any) -> bool:
    """Whether `arrays` are a (gate, up) pair: of arrays with a leading E, or of sequences of E arrays."""
    if not isinstance(arrays, (list, tuple)) or len(arrays) != 2:
        return False
    return all(isinstance(half, (list, tuple)) or num_axes(half) == 3 for half in arrays)
