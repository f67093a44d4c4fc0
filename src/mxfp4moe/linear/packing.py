"""Pack a matrix once into the layout that the kernels stream, quantized first if asked to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mxfp4moe import _core
from mxfp4moe._arguments import as_array, check_choice, check_shape, describe, join_choices, value_error
from mxfp4moe._dtypes import widen
from mxfp4moe.config import resolve_num_threads
from mxfp4moe.experts.quantizing import QuantizeFormat, check_quantize, matrix_quantizer
from mxfp4moe.experts.sources import (
    MatrixArrays,
    check_beside_offsets,
    check_group_of_zeros,
    check_zero_points,
)
from mxfp4moe.experts.spec import BlockShape, MatrixDtypes, block_shape_of, scale_shape, zeros_of_blocks
from mxfp4moe.formats import (
    BFLOAT16,
    FLOAT_CODES,
    GROUP_MULTIPLE,
    LINEAR_FORMATS,
    LinearFormat,
    WeightFormat,
    group_size_of,
)
from mxfp4moe.linear.packed_linear import PackedLinear
from mxfp4moe.linear.spec import LinearSpec, may_have_tensor_scale

_FLOAT32 = np.dtype(np.float32)
_QUANTIZABLE = (*reversed(FLOAT_CODES), np.dtype(np.float64))
_PIECE_BYTES = 32 << 20  # of rows that are copied or quantized before they are packed


def pack_linear(
    weight: ArrayLike,
    scales: ArrayLike | None = None,
    *,
    format: LinearFormat | None = None,
    bias: ArrayLike | None = None,
    block_shape: BlockShape | None = None,
    tensor_scale: ArrayLike | None = None,
    zero_points: ArrayLike | None = None,
    offsets: ArrayLike | None = None,
    quantize: QuantizeFormat | None = None,
    num_threads: int | None = None,
) -> PackedLinear:
    """Pack a matrix of N rows and K columns, as projections, heads and routers of a model are.

    K is a multiple of 32 for the MX formats, of 16 for nvfp4, even for int4, and free for the others.

    =========  =====================================================  ================================
    format     weight                                                 scales
    =========  =====================================================  ================================
    bf16       bfloat16, or float16 or float32, which are rounded     None
               to bfloat16, (N, K)
    float32    float32, float16 or bfloat16 (N, K), used exactly: as  None
               the sums of up to three bfloat16 numbers, each of
               which takes as long as a matrix of format bf16
    mxfp4      uint8 or int8 (N, K / 2) or (N, K / 32, 16): E2M1      uint8 or float8_e8m0fnu
               codes, two per byte, the low nibble the even k         (N, K / 32)
    mxfp8      float8_e4m3fn, float8_e5m2, or uint8 (the bytes of     uint8 or float8_e8m0fnu
               e4m3), (N, K)                                          (N, K / 32)
    nvfp4      as mxfp4, or (N, K / 16, 8)                            float8_e4m3fn or uint8
                                                                      (N, K / 16), and a tensor scale
    fp8_block  float8_e4m3fn or uint8 (N, K)                          float32, see `block_shape`
    int4       uint8 or int8 (N, K / 2): codes 0 to 15, two per       float32, bfloat16 or float16
               byte, the low nibble the even k                        (N, groups of a row)
    int8       int8 (N, K)                                            as int4
    =========  =====================================================  ================================

    Parameters
    ----------
    weight : array
        As the table says; with `quantize`, float32, float16, bfloat16 or float64 of shape (N, K). Only read;
        memory peaks at the array that is given, the packed matrix and 32 MiB, but for nvfp4 with `quantize`,
        whose codes are complete before they are packed.
    scales : array or None
    format : {"bf16", "float32", "mxfp4", "mxfp8", "nvfp4", "fp8_block", "int4", "int8"}, optional
        Not given: "bf16", or what `quantize` says.
    bias : float32, bfloat16 or float16 array of shape (N,), optional
    block_shape : (int or None, int or None), optional
        Of fp8_block: the rows bn and columns bk that share a scale, None for a whole axis, (128, 128) if not
        given; bk is a multiple of 32. `scales` are (ceil(N / bn), ceil(K / bk)).
    tensor_scale : float32 array of shape () or (1,), optional
        Multiplies the float32 sums, before the bias; nvfp4 needs one, fp8_block, int4, int8 and float32 have
        none.
    zero_points : array of the shape of the scales, optional
        Of int4 and int8, whose weights are (code - zero point) * scale: uint8 in [0, 15] and int8; 8 and 0 if
        not given. Groups are as those of `mxfp4moe.pack_experts`.
    offsets : array of the dtype and shape of the scales, optional
        Of int4 and int8, instead of zero points, as those of `mxfp4moe.pack_experts`.
    quantize : {"mxfp4", "mxfp8", "fp8_block", "nvfp4", "int4", "int8"}, optional
        Quantize the floats of `weight` to this format, by the quantizer of its name and its defaults. The
        scales of int4 and int8 are packed in bfloat16, which holds them exactly.
    num_threads : int, optional
        For this call; see `mxfp4moe.num_threads`.

    Returns
    -------
    PackedLinear

    Raises
    ------
    TypeError
        An array is of another dtype or kind.
    ValueError
        Shapes do not fit each other or the format; a value to be quantized is not finite.

    Notes
    -----
    The terms of a float32 number have its sign and add up to it exactly from 2**-110 on; below, bits smaller
    than 2**-133 are dropped. Magnitudes below 2**-126 may count as zero, as in every format.

    Examples
    --------
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> w = np.random.default_rng(0).standard_normal((8, 96), np.float32)
    >>> x = np.ones((2, 96), np.float32)
    >>> mx.pack_linear(w)(x).shape
    (2, 8)
    >>> blocks, scales = mx.quantize_mxfp8(w)
    >>> linear = mx.pack_linear(blocks, scales, format="mxfp8")
    >>> linear == mx.pack_linear(w, quantize="mxfp8")
    True
    """
    threads = resolve_num_threads(num_threads)
    target = check_quantize(quantize)
    name = target or "bf16" if format is None else check_choice("format", format, tuple(LINEAR_FORMATS))
    if target is not None and name != target:
        raise value_error("format", f"None or {target!r} with quantize={target!r}", describe(format))
    blocks = block_shape_of([LINEAR_FORMATS[name]], block_shape)
    if target is None:
        arrays = MatrixArrays(weight, scales, zero_points, offsets)
        source = _given(LINEAR_FORMATS[name], arrays, blocks, tensor_scale)
    else:
        not_given = {"scales": scales, "tensor_scale": tensor_scale}
        not_given |= {"zero_points": zero_points, "offsets": offsets}
        for argument, value in not_given.items():
            if value is not None:
                raise value_error(argument, "None with quantize", describe(value))
        source = _quantized(target, weight, blocks, threads)
    wide_bias = bias_dtype = None
    if bias is not None:
        array = as_array("bias", bias, tuple(reversed(FLOAT_CODES)))
        check_shape("bias", array, source.shape[:1])
        wide_bias, bias_dtype = widen(array), array.dtype
    return _pack(source, wide_bias, bias_dtype, threads)


class _Piece(NamedTuple):
    """Some rows of a matrix from one on: weights, and their scales and what else there is."""

    first_row: int
    weights: NDArray[Any]
    scales: NDArray[Any] | None
    zero_points: NDArray[Any] | None = None
    offsets: NDArray[Any] | None = None


class _Source(NamedTuple):
    """A matrix that is to be packed, as its pieces come."""

    format: WeightFormat
    shape: tuple[int, int]
    block_shape: BlockShape | None  # (1, size of a group) of integers
    tensor_scale: NDArray[np.float32] | None
    pieces: Callable[[], Iterator[_Piece]]


def _given(
    format: WeightFormat, arrays: MatrixArrays, blocks: BlockShape | None, tensor_scale: Any
) -> _Source:
    """Weights in the format, checked."""
    codes = as_array("weight", arrays.weights, tuple(format.weight_dtypes))
    row_shapes = format.row_shapes(0)
    if codes.ndim - 1 not in row_shapes:
        axes = join_choices(1 + n for n in row_shapes)
        raise value_error("weight", f"an array with {axes} axes", describe(codes))
    shape = (len(codes), format.k_of(codes.shape[1:]))
    _check_size(format, codes, shape)
    check_shape("weight", codes, (len(codes), *format.row_shapes(shape[1])[codes.ndim - 1]))
    factors = None
    if format.has_scales:
        factors = as_array("scales", arrays.scales, format.scale_dtypes)
        if format.has_groups:
            check_shape("scales", factors, (shape[0], "groups"))
            blocks = 1, group_size_of("scales", shape[1], factors.shape[1])
        check_shape("scales", factors, scale_shape(format, blocks, shape))
    elif arrays.scales is not None:
        raise value_error("scales", f"None with format {format.name!r}", describe(arrays.scales))
    zeros = check_zero_points("zero_points", arrays.zero_points, format)
    if zeros is not None and factors is not None:
        check_shape("zero_points", zeros, factors.shape)
        check_group_of_zeros("zero_points", blocks[1] if blocks else None)
    offsets = None
    if arrays.offsets is not None:
        check_beside_offsets("offsets", arrays, format)
        assert factors is not None
        offsets = as_array("offsets", arrays.offsets, (factors.dtype,))
        check_shape("offsets", offsets, factors.shape)

    def pieces() -> Iterator[_Piece]:
        if codes.flags.c_contiguous:
            yield _Piece(0, codes, factors, zeros, offsets)
            return
        for rows in _row_ranges(len(codes), codes.nbytes // len(codes), 1):
            own = rows
            if format.has_block_shape:  # the first piece brings all scales
                own = slice(None if rows.start == 0 else 0)
            own_factors = None if factors is None else factors[own]
            others = (None if array is None else array[rows] for array in (zeros, offsets))
            yield _Piece(rows.start, codes[rows], own_factors, *others)

    return _Source(format, shape, blocks, _check_tensor_scale(format, tensor_scale), pieces)


def _quantized(name: QuantizeFormat, weight: Any, blocks: BlockShape | None, threads: int) -> _Source:
    """Floats that become weights in a format piece by piece, or at once if one scale is for all of them."""
    format = LINEAR_FORMATS[name]
    values = as_array("weight", weight, _QUANTIZABLE)
    check_shape("weight", values, ("N", "K"))
    _check_size(format, values, values.shape)
    quantizer = partial(_quantize_rows, matrix_quantizer(name, blocks, threads), values)
    if format.has_tensor_scale:
        codes, scales, tensor_scale = quantizer(slice(0, len(values)))
        return _given(format, MatrixArrays(codes, scales), None, tensor_scale)
    if format.has_groups:
        if values.shape[1] > GROUP_MULTIPLE and values.shape[1] % GROUP_MULTIPLE:
            expected = f"columns that are a multiple of {GROUP_MULTIPLE} with quantize={name!r}"
            raise value_error("weight", expected, describe(values))
        blocks = 1, group_size_of("weight", values.shape[1], -(-values.shape[1] // GROUP_MULTIPLE))
    block_rows = 1 if blocks is None else blocks[0] or len(values)

    def pieces() -> Iterator[_Piece]:
        for rows in _row_ranges(len(values), 4 * values.shape[1], min(block_rows, len(values))):
            yield _Piece(rows.start, *quantizer(rows))

    return _Source(format, (len(values), values.shape[1]), blocks, None, pieces)


def _quantize_rows(quantizer: Callable[[Any], tuple[Any, ...]], values: NDArray[Any], rows: slice) -> Any:
    """What the quantizer makes of some rows; an error names the position in the whole matrix."""
    try:
        return quantizer(values[rows])
    except ValueError:
        with np.errstate(invalid="ignore"):  # raised by a signaling NaN
            row, column = np.argwhere(~np.isfinite(values[rows]))[0].tolist()
        position = (rows.start + row, column)
        got = f"{values[position]} at position {position}"
        raise value_error("weight", "finite values with quantize", got) from None


def _pack(
    source: _Source, bias: NDArray[np.float32] | None, bias_dtype: np.dtype[Any] | None, threads: int
) -> PackedLinear:
    format, terms = source.format, 1
    if format.name == "float32":
        terms = max(
            _core.count_terms(_byte_rows(piece.weights), FLOAT_CODES[piece.weights.dtype], threads)
            for piece in source.pieces()
        )
    pieces = source.pieces()
    first = next(pieces)
    spec = LinearSpec(
        format=format.name,
        shape=source.shape,
        dtypes=MatrixDtypes(
            _unpacked_dtype(format, first.weights.dtype),
            None if first.scales is None else first.scales.dtype,
            bias_dtype,
            *(None if each is None else each.dtype for each in (first.zero_points, first.offsets)),
        ),
        block_shape=source.block_shape if format.has_block_shape else None,
        has_tensor_scale=source.tensor_scale is not None,
        num_terms=terms,
        group_size=source.block_shape[1] if format.has_groups and source.block_shape else None,
    )
    storage = spec.make_storage()
    sum_scales = [] if source.tensor_scale is None else [_byte_rows(source.tensor_scale.reshape(1, 1))]
    all_offsets: list[NDArray[np.uint8]] = []
    code = FLOAT_CODES.get(first.weights.dtype, 0)
    for piece in chain([first], pieces):
        if format.has_sum_scales and piece.scales is not None and len(piece.scales):
            sum_scales.append(_byte_rows(piece.scales))
        if piece.offsets is not None:
            all_offsets.append(_byte_rows(piece.offsets))
        block_bytes = [_byte_rows(piece.scales)] if format.scale_block and piece.scales is not None else []
        if piece.zero_points is not None:
            block_bytes = [zeros_of_blocks(_byte_rows(piece.zero_points), source.shape[1])]
        storage.pack(0, 0, [_byte_rows(piece.weights)], block_bytes, code, threads, piece.first_row)
    if sum_scales:
        storage.pack_sum_scales(0, 0, np.ascontiguousarray(np.concatenate(sum_scales)))
    if all_offsets:
        storage.pack_sum_scales(0, 0, np.concatenate(all_offsets), offsets=True)
    if bias is not None:
        storage.pack_bias(0, 0, bias)
    return PackedLinear._make(spec, storage)


def _unpacked_dtype(format: WeightFormat, dtype: np.dtype[Any]) -> np.dtype[Any]:
    if format.name == "bf16":
        dtype = BFLOAT16
    return np.dtype(np.uint8) if format.element_bits == 4 else dtype


def _check_size(format: WeightFormat, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    multiple = format.k_multiple
    if min(shape) < 1 or shape[1] % multiple:
        expected = f"at least one row, and columns that are a positive multiple of {multiple}"
        raise value_error("weight", expected, f"{shape[0]} x {shape[1]}, from {describe(array)}")


def _check_tensor_scale(format: WeightFormat, value: Any) -> NDArray[np.float32] | None:
    if value is None:
        if format.has_tensor_scale:
            expected = f"a float32 array of shape () with format {format.name!r}"
            raise value_error("tensor_scale", expected, "None")
        return None
    if not may_have_tensor_scale(format):
        raise value_error("tensor_scale", f"None with format {format.name!r}", describe(value))
    scale = as_array("tensor_scale", value, (_FLOAT32,))
    if scale.shape not in ((), (1,)):
        raise value_error("tensor_scale", "shape () or (1,)", f"shape {scale.shape}")
    return scale


def _row_ranges(rows: int, row_bytes: int, multiple: int) -> Iterator[slice]:
    """Ranges of rows that take some memory together: whole panels, and multiples of `multiple`."""
    unit = math.lcm(_core.PANEL_ROWS, multiple)
    step = max(1, _PIECE_BYTES // (unit * max(row_bytes, 1))) * unit
    for first in range(0, rows, step):
        yield slice(first, min(first + step, rows))


def _byte_rows(array: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(len(array), -1).view(np.uint8)
