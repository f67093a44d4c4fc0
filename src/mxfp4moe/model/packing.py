"""Packing the matrices of a decoder: those that read the same numbers become one where formats allow it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mxfp4moe._arguments import value_error
from mxfp4moe.experts.quantizing import QuantizeFormat
from mxfp4moe.linear import PackedLinear, pack_linear
from mxfp4moe.model.weights import MatrixWeights


def pack_matrices(
    matrices: Sequence[MatrixWeights], quantize: QuantizeFormat | None = None
) -> tuple[PackedLinear, ...]:
    """Pack matrices that read the same numbers, as one if they can be joined by rows."""
    if len(matrices) > 1 and (joined := _joined(matrices)) is not None:
        matrices = [joined]
    return tuple(pack_matrix(each, quantize) for each in matrices)


def pack_matrix(matrix: MatrixWeights, quantize: QuantizeFormat | None = None) -> PackedLinear:
    """Pack one matrix, quantized first if asked to."""
    if quantize is None:
        return pack_linear(**matrix)
    if matrix["format"] != "bf16":
        raise value_error("quantize_dense", f"None for a matrix in {matrix['format']}", repr(quantize))
    floats = {key: value for key, value in matrix.items() if key != "format"}
    return pack_linear(**floats, quantize=quantize)


def _joined(matrices: Sequence[MatrixWeights]) -> MatrixWeights | None:
    """The rows of all matrices as one; None if they are stored in different ways, or share scales."""
    first = matrices[0]
    if "tensor_scale" in first or "block_shape" in first:
        return None
    kinds = {(each["format"], each["weight"].dtype, *each) for each in matrices}
    if len(kinds) > 1:
        return None
    arrays = {key: np.concatenate([each[key] for each in matrices]) for key in first if key != "format"}
    return {**arrays, "format": first["format"]}
