"""What packed experts are, apart from their bytes: format, sizes, order of rows, block shape, dtypes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, get_args

import numpy as np
from numpy.typing import NDArray

from mxfp4moe import _core
from mxfp4moe._arguments import MAX_EXPERTS, check_block_shape, check_choice, describe, value_error
from mxfp4moe._json import shorten
from mxfp4moe.formats import (
    BFLOAT16,
    FORMATS,
    GROUP_MULTIPLE,
    HALF_GROUP,
    ExpertsFormat,
    GateUpLayout,
    WeightFormat,
    check_formats,
    each_format,
    is_group_size,
)

GATE_UP_LAYOUTS: tuple[GateUpLayout, ...] = get_args(GateUpLayout)

BIAS_DTYPES = (np.dtype(np.float32), BFLOAT16)
MAX_SIZE = 1 << 40

_BLOCK_SHAPE = (128, 128)
_BLOCK_K_MULTIPLE = 32
_MAX_BLOCK = 1 << 40

BlockShape = tuple[int | None, int | None]
GroupSizes = tuple[int | None, int | None]


class MatrixDtypes(NamedTuple):
    """What the arrays of one matrix were when they were packed, and are when they are unpacked."""

    weights: np.dtype[Any]
    scales: np.dtype[Any] | None
    bias: np.dtype[Any] | None
    zero_points: np.dtype[Any] | None = None
    offsets: np.dtype[Any] | None = None

    def to_json(self) -> list[str | None]:
        """The names of the dtypes; `read_dtypes` is the inverse."""
        count = 5 if self.offsets is not None else 4 if self.zero_points is not None else 3
        return [None if dtype is None else dtype.name for dtype in self[:count]]


@dataclass(frozen=True)
class ExpertsSpec:
    """Everything that is to be known of packed experts but their bytes.

    Attributes
    ----------
    format : str or (str, str)
        Weight format, such as "mxfp4"; those of w13 and of w2, if they are two.
    num_experts, hidden_size, intermediate_size : int
    gate_up_layout : str
        Row order of the `w13` that was packed.
    block_shape : tuple or None
        Rows and columns that share a float32 scale, None for a whole axis; None for other formats
        than fp8_block.
    w13_dtypes, w2_dtypes : MatrixDtypes
    has_tensor_scales : bool
        Whether each matrix has a float32 scale of its own, unless its format has scales of blocks or groups.
    gated : bool
        Whether `w13` has gate and up, or up alone.
    group_sizes : tuple or None
        Of w13 and of w2: the weights along a row that share a scale, None for the whole row; None for formats
        without groups.
    has_columns : bool
        Whether each expert has an order of the columns of `w13`.
    """

    format: ExpertsFormat
    num_experts: int
    hidden_size: int
    intermediate_size: int
    gate_up_layout: GateUpLayout
    block_shape: BlockShape | None
    w13_dtypes: MatrixDtypes
    w2_dtypes: MatrixDtypes
    has_tensor_scales: bool
    gated: bool = True
    group_sizes: GroupSizes | None = None
    has_columns: bool = False

    @property
    def num_w13_parts(self) -> int:
        """How many matrices `w13` is: gate and up, or up alone."""
        return 2 if self.gated else 1

    def weight_format(self, is_w13: bool) -> WeightFormat:
        """The facts of the format of `w13` or of `w2`."""
        return FORMATS[each_format(self.format)[0 if is_w13 else 1]]

    def make_storage(self, data: NDArray[np.uint8] | None = None) -> _core.ExpertStorage:
        """Memory to pack such experts into; or packed bytes that are there, which stay where they are."""
        return _core.ExpertStorage(
            data,
            w13_format=packed_format(self.weight_format(True), self.w13_dtypes, self.scale_blocks(True)),
            w2_format=packed_format(self.weight_format(False), self.w2_dtypes, self.scale_blocks(False)),
            num_experts=self.num_experts,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            gated=self.gated,
            has_w13_bias=self.w13_dtypes.bias is not None,
            has_w2_bias=self.w2_dtypes.bias is not None,
            interleaved=self.gate_up_layout == "interleaved",
            tensor_scales=self.has_tensor_scales,
            has_columns=self.has_columns,
        )

    def dtypes(self, is_w13: bool) -> MatrixDtypes:
        """What the arrays of `w13` or of `w2` were."""
        return self.w13_dtypes if is_w13 else self.w2_dtypes

    def scale_blocks(self, is_w13: bool) -> BlockShape | None:
        """Rows and columns of `w13` or of `w2` that share a scale of sums, if the format has such scales."""
        if self.weight_format(is_w13).has_groups and self.group_sizes is not None:
            return 1, self.group_sizes[0 if is_w13 else 1]
        return self.block_shape

    @property
    def expert_bytes(self) -> int:
        """Bytes of the weights and all scales of one expert as they are in a checkpoint."""

        def nbytes(is_w13: bool, rows: int, k: int) -> int:
            _, scales, _, *others = self.dtypes(is_w13)
            scale_bytes = sum(dtype.itemsize for dtype in (scales, *others) if dtype is not None)
            return self.weight_format(is_w13).nbytes(rows, k, self.scale_blocks(is_w13), scale_bytes)

        gate_or_up = nbytes(True, self.intermediate_size, self.hidden_size)
        return self.num_w13_parts * gate_or_up + nbytes(False, self.hidden_size, self.intermediate_size)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON has them; packed files and pickles hold them."""
        # These are written only where they are not what they were before they existed, so that files stay as
        # they are.
        implied = self.has_tensor_scales == _need_tensor_scales(self.format)
        optional: dict[str, Any] = {} if implied else {"tensor_scales": self.has_tensor_scales}
        optional |= {} if self.gated else {"gated": self.gated}
        optional |= {} if self.group_sizes is None else {"group_sizes": list(self.group_sizes)}
        optional |= {"columns": True} if self.has_columns else {}
        return optional | {
            "format": self.format if isinstance(self.format, str) else list(self.format),
            "num_experts": self.num_experts,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "gate_up_layout": self.gate_up_layout,
            "block_shape": None if self.block_shape is None else list(self.block_shape),
            "w13_dtypes": self.w13_dtypes.to_json(),
            "w2_dtypes": self.w2_dtypes.to_json(),
        }

    @classmethod
    def from_json(cls, fields: Any) -> Self:
        """Make one of what `to_json` returned.

        Every field is checked: a TypeError or ValueError names the first that is not as expected.
        """
        optional = {"tensor_scales", "gated", "group_sizes", "columns"}
        others = optional | {"has_tensor_scales", "has_columns"}
        names = [name for name in cls.__dataclass_fields__ if name not in others]
        if not isinstance(fields, dict) or sorted(fields.keys() - optional) != sorted(names):
            raise value_error("fields", ", ".join(names), shorten(fields))
        both = check_formats("format", fields["format"])
        formats = [FORMATS[name] for name in each_format(both)]
        multiples = {
            "num_experts": 1,
            **dict(zip(("hidden_size", "intermediate_size"), size_multiples(formats), strict=True)),
        }
        for name, multiple in multiples.items():
            maximum = MAX_EXPERTS if name == "num_experts" else MAX_SIZE
            size = fields[name]
            if type(size) is not int or not 1 <= size <= maximum or size % multiple:
                raise value_error(name, f"a multiple of {multiple} in [1, {maximum}]", shorten(size))
        gated = fields.get("gated", True)
        if type(gated) is not bool:
            raise value_error("gated", "true or false", shorten(gated))
        columns = fields.get("columns", False)
        if type(columns) is not bool:
            raise value_error("columns", "true or false", shorten(columns))
        check_gate_up_layout(fields["gate_up_layout"], gated)
        blocks = fields["block_shape"]
        if any(format.has_block_shape for format in formats) and not isinstance(blocks, list):
            raise value_error("block_shape", "a list of two sizes or nulls", shorten(blocks))
        dtypes = {
            name: read_dtypes(name, fields[name], format)
            for name, format in zip(("w13_dtypes", "w2_dtypes"), formats, strict=True)
        }
        numbers = {
            formats[0].weight_dtypes[each.weights] for each in dtypes.values() if isinstance(both, str)
        }
        if len(numbers) > 1:
            raise value_error("w2_dtypes", "elements as of w13", shorten(fields["w2_dtypes"]))
        needed = _need_tensor_scales(both)
        tensor_scales = fields.get("tensor_scales", needed)
        possible = (needed, not all(format.has_sum_scales for format in formats))
        if type(tensor_scales) is not bool or not possible[0] <= tensor_scales <= possible[1]:
            raise value_error("tensor_scales", "true or false, as the format has it", shorten(tensor_scales))
        given = {name: fields[name] for name in names} | dtypes
        given |= {"format": both, "block_shape": block_shape_of(formats, blocks), "has_columns": columns}
        row_sizes = fields["hidden_size"], fields["intermediate_size"]
        sizes = read_group_sizes("group_sizes", fields.get("group_sizes"), formats, row_sizes)
        groups = None if sizes is None else (sizes[0], sizes[1])
        return cls(**given, has_tensor_scales=tensor_scales, gated=gated, group_sizes=groups)


def _need_tensor_scales(format: ExpertsFormat) -> bool:
    return any(FORMATS[name].has_tensor_scale for name in each_format(format))


def size_multiples(formats: Sequence[WeightFormat]) -> tuple[int, int]:
    """What the hidden and the intermediate size of experts are multiples of, in the formats of w13 and w2."""
    return formats[0].k_multiple, formats[1].k_multiple


def check_gate_up_layout(layout: Any, gated: bool) -> None:
    """Raise unless it is an order of rows; where there is no gate, nothing can alternate."""
    check_choice("gate_up_layout", layout, GATE_UP_LAYOUTS)
    if not gated and layout != "concatenated":
        raise value_error("gate_up_layout", "'concatenated' with gated=False", describe(layout))


def block_shape_of(formats: Sequence[WeightFormat], block_shape: Any) -> BlockShape | None:
    """The block shape that formats are given, or have by default."""
    if not any(format.has_block_shape for format in formats):
        if block_shape is not None:
            names = " and ".join(dict.fromkeys(repr(format.name) for format in formats))
            raise value_error("block_shape", f"None with format {names}", describe(block_shape))
        return None
    if block_shape is None:
        return _BLOCK_SHAPE
    rows, columns = check_block_shape("block_shape", block_shape, _MAX_BLOCK)
    if columns is not None and columns % _BLOCK_K_MULTIPLE:
        raise value_error("block_shape[1]", f"a multiple of {_BLOCK_K_MULTIPLE} or None", str(columns))
    return rows, columns


def scale_shape(
    format: WeightFormat, blocks: BlockShape | None, shape: tuple[int, int], halves: int = 1
) -> tuple[int, int]:
    """Shape of the block scales of `halves` matrices of `shape`, one below the other."""
    rows, columns = shape
    if not format.has_sum_scales:
        return halves * rows, columns // max(format.scale_block, 1)
    block_rows, block_columns = blocks or (None, None)
    counts = -(-rows // (block_rows or max(rows, 1))), -(-columns // (block_columns or max(columns, 1)))
    return halves * counts[0], counts[1]


def zeros_of_blocks(zeros: NDArray[Any], k: int) -> NDArray[Any]:
    """The zero points of the groups of each row of `k` weights, once for each K-block, as they are packed."""
    blocks = -(-k // GROUP_MULTIPLE)
    return np.ascontiguousarray(zeros.repeat(-(-blocks // zeros.shape[1]), axis=1))


def read_dtypes(
    field: str, value: Any, format: WeightFormat, bias_dtypes: Iterable[np.dtype[Any]] = BIAS_DTYPES
) -> MatrixDtypes:
    """The dtypes of weights, scales and bias by their names."""
    choices: list[dict[str | None, Any]] = [
        {dtype.name: dtype for dtype in format.weight_dtypes},
        {dtype.name: dtype for dtype in format.scale_dtypes} if format.has_scales else {None: None},
        {None: None} | {dtype.name: dtype for dtype in bias_dtypes},
    ]
    names = value if isinstance(value, list) else []
    if format.zero_points is not None and len(names) == 4:
        choices.append({format.zero_points.dtype.name: format.zero_points.dtype})
    if format.packed_with_offsets is not None and len(names) == 5:
        choices += [
            {None: None},
            {dtype.name: dtype for dtype in format.scale_dtypes if dtype.name == names[1]},
        ]
    names = names if len(names) == len(choices) else [[]] * len(choices)
    pairs = list(zip(names, choices, strict=True))
    if any(not isinstance(name, str | None) or name not in choice for name, choice in pairs):
        raise value_error(field, f"one each of {[list(choice) for choice in choices]}", shorten(value))
    return MatrixDtypes(*(choice[name] for name, choice in pairs))


def read_group_sizes(
    field: str, value: Any, formats: Sequence[WeightFormat], row_sizes: tuple[int, ...]
) -> tuple[int | None, ...] | None:
    """The group sizes of matrices whose rows have `row_sizes` weights, in their formats."""
    if not any(format.has_groups for format in formats):
        if value is not None:
            raise value_error(field, f"none with format {formats[0].name!r}", shorten(value))
        return None
    sizes = value if isinstance(value, list) and len(value) == len(row_sizes) else [0]
    for size, k, format in zip(sizes, row_sizes, formats, strict=False):
        is_part = type(size) is int and is_group_size(size, k) and format.has_groups
        if size is not None and not is_part:
            divided = " and ".join(map(str, row_sizes))
            expected = (
                f"for each of {divided} null, {HALF_GROUP} or a multiple of {GROUP_MULTIPLE} that divides it"
            )
            raise value_error(field, expected, shorten(value))
    return tuple(sizes)


def packed_format(
    format: WeightFormat, dtypes: MatrixDtypes, blocks: BlockShape | None
) -> tuple[int, int, int, int]:
    """The packed format of a matrix, and the shape and the dtype of `blocks` that share a scale of sums."""
    number, scale_dtype = format.weight_dtypes[dtypes.weights], np.dtype(np.float32)
    if format.zero_points is not None and dtypes.zero_points is not None:
        number = format.zero_points.packed
    if format.packed_with_offsets is not None and dtypes.offsets is not None:
        number = format.packed_with_offsets
    if format.has_sum_scales and dtypes.scales is not None:
        scale_dtype = dtypes.scales
    rows, columns = blocks or (None, None)
    return number, rows or 0, columns or 0, _core.DTYPES[scale_dtype.name]
