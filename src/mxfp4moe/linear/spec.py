"""What a packed matrix is, apart from its bytes: format, shape, block shape, dtypes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mxfp4moe import _core
from mxfp4moe._arguments import check_choice, value_error
from mxfp4moe._json import shorten
from mxfp4moe.experts.spec import (
    MAX_SIZE,
    BlockShape,
    MatrixDtypes,
    block_shape_of,
    packed_format,
    read_dtypes,
    read_group_sizes,
)
from mxfp4moe.formats import BFLOAT16, FLOAT_CODES, LINEAR_FORMATS, LinearFormat, WeightFormat

# A float32 weight is the sum of so many bfloat16 numbers at most; narrower floats need fewer.
_MAX_TERMS = {BFLOAT16: 1, np.dtype(np.float16): 2, np.dtype(np.float32): 3}


@dataclass(frozen=True)
class LinearSpec:
    """Everything that is to be known of a packed matrix but its bytes.

    Attributes
    ----------
    format : str
        Weight format, such as "bf16".
    shape : (int, int)
        Rows and columns.
    dtypes : MatrixDtypes
        As what the arrays are unpacked.
    block_shape : tuple or None
        Rows and columns that share a float32 scale, None for a whole axis; None for other formats
        than fp8_block.
    has_tensor_scale : bool
        Whether the matrix has a float32 scale of its own.
    num_terms : int
        How many bfloat16 numbers a float32 weight is the sum of; 1 for other formats than float32.
    group_size : int or None
        Of int4 and int8: the weights along a row that share a scale, None for the whole row.
    """

    format: LinearFormat
    shape: tuple[int, int]
    dtypes: MatrixDtypes
    block_shape: BlockShape | None = None
    has_tensor_scale: bool = False
    num_terms: int = 1
    group_size: int | None = None

    @property
    def weight_format(self) -> WeightFormat:
        """The facts of `format`."""
        return LINEAR_FORMATS[self.format]

    def make_storage(self, data: NDArray[np.uint8] | None = None) -> _core.LinearStorage:
        """Memory to pack such a matrix into; or packed bytes that are there, which stay where they are."""
        return _core.LinearStorage(
            data,
            format=packed_format(self.weight_format, self.dtypes, self.scale_blocks),
            num_rows=self.shape[0],
            k=self.shape[1],
            num_terms=self.num_terms,
            has_bias=self.dtypes.bias is not None,
            tensor_scale=self.has_tensor_scale,
        )

    @property
    def scale_blocks(self) -> BlockShape | None:
        """Rows and columns that share a scale of sums, if the format has such scales."""
        return (1, self.group_size) if self.weight_format.has_groups else self.block_shape

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON has them; packed files and pickles hold them."""
        groups = {"group_size": self.group_size} if self.weight_format.has_groups else {}
        return groups | {
            "format": self.format,
            "shape": list(self.shape),
            "dtypes": self.dtypes.to_json(),
            "block_shape": None if self.block_shape is None else list(self.block_shape),
            "tensor_scale": self.has_tensor_scale,
            "num_terms": self.num_terms,
        }

    @classmethod
    def from_json(cls, fields: Any) -> Self:
        """Make one of what `to_json` returned.

        Every field is checked: a TypeError or ValueError names the first that is not as expected.
        """
        names = ["format", "shape", "dtypes", "block_shape", "tensor_scale", "num_terms"]
        if not isinstance(fields, dict) or sorted(fields.keys() - {"group_size"}) != sorted(names):
            raise value_error("fields", ", ".join(names), shorten(fields))
        format = LINEAR_FORMATS[check_choice("format", fields["format"], tuple(LINEAR_FORMATS))]
        shape = fields["shape"]
        if not isinstance(shape, list) or len(shape) != 2 or not all(map(_is_size, shape)):
            raise value_error("shape", f"two sizes in [1, {MAX_SIZE}]", shorten(shape))
        if shape[1] % format.k_multiple:
            raise value_error("shape[1]", f"a multiple of {format.k_multiple}", shorten(shape[1]))
        dtypes = read_dtypes("dtypes", fields["dtypes"], format, FLOAT_CODES)
        if format.name == "bf16" and dtypes.weights != BFLOAT16:
            raise value_error("dtypes", "weights of bfloat16", shorten(fields["dtypes"]))
        blocks = fields["block_shape"]
        if format.has_block_shape and not isinstance(blocks, list):
            raise value_error("block_shape", "a list of two sizes or nulls", shorten(blocks))
        tensor_scale = fields["tensor_scale"]
        possible = (format.has_tensor_scale, may_have_tensor_scale(format))
        if type(tensor_scale) is not bool or not possible[0] <= tensor_scale <= possible[1]:
            raise value_error("tensor_scale", "true or false, as the format has it", shorten(tensor_scale))
        terms, limit = fields["num_terms"], _MAX_TERMS[dtypes.weights] if format.name == "float32" else 1
        if type(terms) is not int or not 1 <= terms <= limit:
            raise value_error("num_terms", f"an integer in [1, {limit}]", shorten(terms))
        rows, columns = shape
        groups = [fields["group_size"]] if "group_size" in fields else None
        sizes = read_group_sizes("group_size", groups, [format], (columns,))
        return cls(
            format=fields["format"],
            shape=(rows, columns),
            dtypes=dtypes,
            block_shape=block_shape_of([format], blocks),
            has_tensor_scale=tensor_scale,
            num_terms=terms,
            group_size=None if sizes is None else sizes[0],
        )


def may_have_tensor_scale(format: WeightFormat) -> bool:
    """Whether a matrix may have a float32 scale of its own, which no sum of terms is multiplied by."""
    return not format.has_sum_scales and format.name != "float32"


def _is_size(size: Any) -> bool:
    return type(size) is int and 1 <= size <= MAX_SIZE
