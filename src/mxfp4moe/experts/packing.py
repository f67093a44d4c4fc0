"""Pack expert weights once into the layout that the kernels stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mxfp4moe import _core
from mxfp4moe._arguments import check_bool, describe, type_error, value_error
from mxfp4moe.config import resolve_num_threads
from mxfp4moe.experts.packed_experts import PackedExperts
from mxfp4moe.experts.sources import (
    Bias,
    Matrix,
    MatrixArrays,
    check_columns,
    describe_experts,
    tensor_scales,
)
from mxfp4moe.experts.spec import (
    BlockShape,
    ExpertsSpec,
    MatrixDtypes,
    block_shape_of,
    check_gate_up_layout,
    scale_shape,
    size_multiples,
)
from mxfp4moe.formats import (
    FLOAT_CODES,
    FORMATS,
    ExpertsFormat,
    GateUpLayout,
    WeightFormat,
    check_formats,
    each_format,
    is_pair,
)

ExpertArrays = ArrayLike | Sequence[ArrayLike] | Sequence[Sequence[ArrayLike]]
"""One array with a leading axis of experts, an array for each expert, or a (gate, up) pair of these."""


def pack_experts(
    w13: ExpertArrays,
    w13_scales: ExpertArrays | None,
    w2: ExpertArrays,
    w2_scales: ExpertArrays | None,
    *,
    format: ExpertsFormat = "mxfp4",
    w13_bias: ExpertArrays | None = None,
    w2_bias: ExpertArrays | None = None,
    gate_up_layout: GateUpLayout = "concatenated",
    block_shape: BlockShape | None = None,
    w13_tensor_scale: ArrayLike | None = None,
    w2_tensor_scale: ArrayLike | None = None,
    w13_zero_points: ExpertArrays | None = None,
    w2_zero_points: ExpertArrays | None = None,
    w13_offsets: ExpertArrays | None = None,
    w2_offsets: ExpertArrays | None = None,
    w13_columns: ArrayLike | None = None,
    gated: bool = True,
    num_threads: int | None = None,
) -> PackedExperts:
    """Pack the weights of E experts of hidden size K and intermediate size I.

    K and I are multiples of 32 for the MX formats, of 16 for nvfp4, even for int4, and free for fp8_block,
    bf16 and int8.
    Each of `w13`, `w2` and their scales is one array with a leading axis E, or a sequence of E arrays without
    it, so that a checkpoint with a tensor per expert needs no stacked copy. `w13` and `w13_scales` may also
    both be a pair (gate, up) of such arrays or sequences with I rows each.

    =========  =====================================================  ================================
    format     weights of an expert                                   scales
    =========  =====================================================  ================================
    mxfp4      uint8 or int8 (N, K / 2) or (N, K / 32, 16): E2M1      uint8 or float8_e8m0fnu
               codes, two per byte, the low nibble the even k         (N, K / 32)
    mxfp8      float8_e4m3fn, float8_e5m2, or uint8 (the bytes of     uint8 or float8_e8m0fnu
               e4m3), (N, K)                                          (N, K / 32)
    nvfp4      as mxfp4, or (N, K / 16, 8)                            float8_e4m3fn or uint8
                                                                      (N, K / 16), and tensor scales
    fp8_block  float8_e4m3fn or uint8 (N, K)                          float32, see `block_shape`
    bf16       bfloat16, or float16 or float32, which are rounded     None
               to bfloat16, (N, K)
    int4       uint8 or int8 (N, K / 2): codes 0 to 15, two per       float32, bfloat16 or float16
               byte, the low nibble the even k                        (N, groups of a row)
    int8       int8 (N, K)                                            as int4
    =========  =====================================================  ================================

    Parameters
    ----------
    w13 : array of shape (E, 2 * I, K)
        Gate and up projection; packed codes as the table says.
    w13_scales : array or None
        Byte s of an E8M0 scale means 2**(s - 127), 255 NaN. A weight is its code times its scale; float32
        scales, those of tensors too, multiply the float32 sum of their range of K.
    w2 : array of shape (E, K, I)
        Down projection.
    w2_scales : array or None
    format : {"mxfp4", "mxfp8", "nvfp4", "fp8_block", "bf16", "int4", "int8"}, or a pair of these
        A pair is the formats of `w13` and of `w2`. A weight of int4 and int8 is (code - zero point) * scale.
        A row is cut in groups of equal size, which is 16, a multiple of 32, or the whole row; it follows from
        the number of scales. Groups of 16 have no zero points.
    w13_bias : float32 or bfloat16 array of shape (E, 2 * I), optional
        Rows in the order of `w13`; with a (gate, up) pair, gate then up.
    w2_bias : float32 or bfloat16 array of shape (E, K), optional
    gate_up_layout : {"concatenated", "interleaved"}
        Rows of `w13`: all of gate, then all of up, or gate_0, up_0, gate_1, ... (gpt-oss).
    block_shape : (int or None, int or None), optional
        Of fp8_block: the rows bn and columns bk that share a scale, None for a whole axis, (128, 128) if not
        given; bk is a multiple of 32. `w13_scales` are (E, 2 * ceil(I / bn), ceil(K / bk)), gate and up
        blocked apart, or, interleaved, (E, ceil(2 * I / bn), ceil(K / bk)); `w2_scales` are
        (E, ceil(K / bn), ceil(I / bk)).
    w13_tensor_scale : float32 array of shape (E, 2), optional
        Of gate and of up: multiplies their float32 sums, before the bias. Both tensor scales or neither;
        nvfp4 needs them, fp8_block, int4 and int8 have none.
    w2_tensor_scale : float32 array of shape (E,), optional
        Of down.
    w13_zero_points, w2_zero_points : array of the shape of the scales, optional
        Of int4 and int8: the codes that are zero, uint8 in [0, 15] and int8. They are 8 and 0 if not given.
    w13_offsets, w2_offsets : array of the dtype and shape of the scales, optional
        Of int4 and int8, instead of zero points: a weight is then n * scale + offset, where n counts codes
        from the lowest one, so that it is the code of int4, and that of int8 plus 128.
    w13_columns : int32 or int64 array of shape (E, K), optional
        For each expert a permutation: column k of its `w13` multiplies hidden state ``w13_columns[e, k]``, as
        in files whose groups follow an order of activations. Not given, it multiplies hidden state k.
    gated : bool, default True
        False for experts that have no gate and so compute ``w2 @ activation(w13 @ x)``: `w13`, its scales and
        its bias then have I rows instead of 2 * I, and `w13_tensor_scale` has the shape (E,) or (E, 1).
    num_threads : int, optional
        For this call; see `mxfp4moe.num_threads`.

    Returns
    -------
    PackedExperts

    Raises
    ------
    TypeError
        An array is of another dtype or kind.
    ValueError
        Shapes do not fit each other or the format.

    Examples
    --------
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> rng = np.random.default_rng(0)
    >>> w13, w13_scales = mx.quantize_mxfp4(rng.standard_normal((4, 2 * 64, 96), np.float32))
    >>> w2, w2_scales = mx.quantize_mxfp4(rng.standard_normal((4, 96, 64), np.float32))
    >>> experts = mx.pack_experts(w13, w13_scales, w2, w2_scales)
    >>> experts.num_experts, experts.hidden_size, experts.intermediate_size
    (4, 96, 64)
    """
    threads = resolve_num_threads(num_threads)
    checked_format = check_formats("format", format)
    spec, down_spec = formats = [FORMATS[name] for name in each_format(checked_format)]
    check_gate_up_layout(gate_up_layout, check_bool("gated", gated))
    blocks = block_shape_of(formats, block_shape)

    if is_pair(w13_scales if spec.has_scales else w13):
        if not gated:
            raise value_error("w13", "one matrix for each expert with gated=False", "a (gate, up) pair")
        if not isinstance(w13, (list, tuple)) or len(w13) != 2:
            raise value_error("w13", "a (gate, up) pair like w13_scales", describe_experts(w13))
        if gate_up_layout != "concatenated":
            raise value_error(
                "gate_up_layout", "'concatenated' with a (gate, up) pair", describe(gate_up_layout)
            )
        scales: Any = w13_scales if spec.has_scales else (None, None)
        zeros = _pair_of("w13_zero_points", w13_zero_points)
        offsets = _pair_of("w13_offsets", w13_offsets)
        halves = [MatrixArrays(w13[i], scales[i], zeros[i], offsets[i]) for i in range(2)]
        gate_up = [Matrix(spec, "w13", half, f"[{i}]") for i, half in enumerate(halves)]
    else:
        gate_up = [Matrix(spec, "w13", MatrixArrays(w13, w13_scales, w13_zero_points, w13_offsets))]
    down = Matrix(down_spec, "w2", MatrixArrays(w2, w2_scales, w2_zero_points, w2_offsets))

    num_experts, hidden, intermediate = len(down), down.rows, down.k
    inferred = _check_sizes(down, size_multiples(formats))
    parts = 2 if gated else 1
    for matrix in gate_up:
        of_matrix = parts // len(gate_up)
        rows, apart = of_matrix * intermediate, of_matrix if gate_up_layout == "concatenated" else 1
        scales_shape = scale_shape(spec, _scale_blocks(gate_up[0], blocks), (rows // apart, hidden), apart)
        matrix.check(num_experts, (rows, hidden), scales_shape, inferred)
    down_scales = scale_shape(down_spec, _scale_blocks(down, blocks), (hidden, intermediate))
    down.check(num_experts, (hidden, intermediate), down_scales, inferred)
    elements = {spec.weight_dtypes[m.dtype] for m in gate_up}
    if spec is down_spec and elements != {spec.weight_dtypes[down.dtype]}:
        raise type_error("w2", f"elements as in w13, {gate_up[0].dtype}", str(down.dtype))
    for matrix in gate_up[1:]:
        if matrix.dtypes != gate_up[0].dtypes:
            expected, got = (
                f"weights of {m.dtypes[0]}, scales of {m.dtypes[1]}, offsets of {m.dtypes[3]}, "
                f"zero points of {m.dtypes[2]}"
                for m in (gate_up[0], matrix)
            )
            raise type_error(matrix.name, f"{expected}, as in w13[0]", got)
    biases = (
        Bias("w13_bias", w13_bias, (num_experts, parts * intermediate), inferred),
        Bias("w2_bias", w2_bias, (num_experts, hidden), inferred),
    )
    columns = check_columns("w13_columns", w13_columns, (num_experts, hidden))
    per_tensor = tensor_scales(formats, (w13_tensor_scale, w2_tensor_scale), num_experts, gated)

    w13_dtypes, w2_dtypes = (
        MatrixDtypes(
            _unpacked_dtype(matrix.format, matrix.dtype), matrix.scale_dtype, bias.dtype, *matrix.dtypes[2:]
        )
        for matrix, bias in zip((gate_up[0], down), biases, strict=True)
    )
    experts_spec = ExpertsSpec(
        format=checked_format,
        num_experts=num_experts,
        hidden_size=hidden,
        intermediate_size=intermediate,
        gate_up_layout=gate_up_layout,
        block_shape=blocks,
        w13_dtypes=w13_dtypes,
        w2_dtypes=w2_dtypes,
        has_tensor_scales=per_tensor is not None,
        gated=gated,
        has_columns=columns is not None,
        group_sizes=(gate_up[0].group_size, down.group_size) if any(f.has_groups for f in formats) else None,
    )
    storage = experts_spec.make_storage()
    for expert in range(num_experts):
        if columns is not None:
            storage.pack_columns(expert, columns[expert])
        for i, matrices in enumerate((gate_up, [down])):
            _pack_weights(storage, i, expert, matrices, threads)
            _pack_sum_scales(storage, i, expert, matrices, None if per_tensor is None else per_tensor[i])
            if biases[i].dtype is not None:
                storage.pack_bias(i, expert, biases[i].expert(expert))
    return PackedExperts._make(experts_spec, storage)


def _pair_of(name: str, arrays: Any) -> Any:
    """The arrays `name` of gate and of up, for weights that are a pair."""
    if arrays is None:
        return None, None
    if not isinstance(arrays, (list, tuple)) or len(arrays) != 2:
        raise value_error(name, "a (gate, up) pair like w13", describe_experts(arrays))
    return arrays


def _scale_blocks(matrix: Matrix, block_shape: BlockShape | None) -> BlockShape | None:
    """Rows and columns that share a scale of sums."""
    return (1, matrix.group_size) if matrix.format.has_groups else block_shape


def _check_sizes(down: Matrix, multiples: tuple[int, int]) -> str:
    """Raise unless w2 has sizes that the formats allow; return them in words, and whence they come.

    Everything else is checked against these sizes, so an error of another array may be the fault of w2.
    """
    (of_hidden, of_intermediate), shape = multiples, down.shape
    if min(down.rows, down.k) < 1 or down.rows % of_hidden or down.k % of_intermediate:
        what = f"multiples of {of_hidden}"
        if of_hidden != of_intermediate:
            what += f" and of {of_intermediate}"
        expected = f"a hidden_size and an intermediate_size that are positive {what}"
        raise value_error("w2", expected, f"{down.rows} and {down.k}, from an expert of shape {shape}")
    sizes = f"hidden_size {down.rows} and intermediate_size {down.k}"
    return f"{sizes} are inferred from w2, whose expert 0 has shape {shape}"


def _pack_weights(
    storage: _core.ExpertStorage, index: int, expert: int, matrices: list[Matrix], threads: int
) -> None:
    """Pack the weights of one matrix of one expert, which came as one array or as gate and up."""
    weights = [matrix.weights(expert) for matrix in matrices]
    scales = [matrix.block_bytes(expert) for matrix in matrices if matrix.has_block_bytes]
    storage.pack(index, expert, weights, scales, FLOAT_CODES.get(matrices[0].dtype, 0), threads)


def _pack_sum_scales(
    storage: _core.ExpertStorage,
    index: int,
    expert: int,
    matrices: list[Matrix],
    per_tensor: np.ndarray | None,
) -> None:
    """Store the float32 scales of one matrix of one expert, those of blocks or of the tensor; and offsets."""
    if matrices[0].format.has_sum_scales:
        rows = [matrix.sum_scales(expert) for matrix in matrices]
        storage.pack_sum_scales(index, expert, np.concatenate(rows))
        if matrices[0].has_offsets:
            rows = [matrix.offsets(expert) for matrix in matrices]
            storage.pack_sum_scales(index, expert, np.concatenate(rows), offsets=True)
    elif per_tensor is not None:
        scales = np.ascontiguousarray(per_tensor[expert, :, None])
        storage.pack_sum_scales(index, expert, scales.view(np.uint8))


def _unpacked_dtype(format: WeightFormat, dtype: np.dtype) -> np.dtype:
    return np.dtype(np.uint8) if format.element_bits == 4 else dtype
