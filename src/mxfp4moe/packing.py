"""Pack expert weights once into the layout that the kernels stream."""

from __future__ import annotations

import os
from typing import Any, NamedTuple, NoReturn, SupportsIndex

import numpy as np

from . import _core
from ._sources import Bias, Matrix, describe_experts, is_pair, tensor_scales
from .config import resolve_num_threads
from .errors import check_block_shape, check_bool, check_choice, describe, type_error, value_error
from .formats import BFLOAT16, FLOAT_CODES, FORMATS, WeightFormat

__all__ = ["PackedExperts", "UnpackedExperts", "pack_experts"]

GATE_UP_LAYOUTS = ("concatenated", "interleaved")

_BLOCK_SHAPE = (128, 128)
_BLOCK_K_MULTIPLE = 32
_MAX_BLOCK = 1 << 40

BlockShape = tuple[int | None, int | None]


class UnpackedExperts(NamedTuple):
    """The arrays that were packed, in canonical shapes: E experts, hidden size K, intermediate size I.

    Attributes
    ----------
    w13 : ndarray of shape (E, 2 * I, K), or (E, 2 * I, K / 2) of two codes a byte
        Rows in the order of the experts' `gate_up_layout`; a (gate, up) pair comes back concatenated. uint8
        for 4-bit formats, else of the dtype that was packed; bfloat16 where float16 or float32 was rounded.
    w13_scales : ndarray, or None for bfloat16
        Block scales (E, 2 * I, K / 32 or K / 16) of the dtype that was packed; float32 scales of fp8_block in
        the shape that `pack_experts` takes.
    w2 : ndarray of shape (E, K, I) or (E, K, I / 2)
    w2_scales : ndarray or None
    w13_bias : float32 or bfloat16 ndarray of shape (E, 2 * I), or None
    w2_bias : float32 or bfloat16 ndarray of shape (E, K), or None
    w13_tensor_scale : float32 ndarray of shape (E, 2), or None
        Of gate and of up.
    w2_tensor_scale : float32 ndarray of shape (E,), or None
    """

    w13: np.ndarray
    w13_scales: np.ndarray | None
    w2: np.ndarray
    w2_scales: np.ndarray | None
    w13_bias: np.ndarray | None = None
    w2_bias: np.ndarray | None = None
    w13_tensor_scale: np.ndarray | None = None
    w2_tensor_scale: np.ndarray | None = None


class MatrixDtypes(NamedTuple):
    """What the arrays of one matrix were when they were packed, and are when they are unpacked."""

    weights: np.dtype
    scales: np.dtype | None
    bias: np.dtype | None


class PackedExperts:
    """The weights of one layer's experts, packed for the kernels; made by `pack_experts`.

    Immutable: safe to use from several threads at once. The packed layout is the same for every
    instruction set.

    Attributes
    ----------
    format : str
        Weight format, such as "mxfp4".
    num_experts, hidden_size, intermediate_size : int
    gate_up_layout : str
        Row order of the `w13` that was packed.
    block_shape : tuple or None
        Rows and columns that share a float32 scale, None for the whole axis; None for all but fp8_block.
    nbytes : int
        Size of the packed weights, scales and biases in memory.
    data : memoryview
        The packed bytes, read-only.

    Examples
    --------
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> w13 = mx.quantize_mxfp4(np.ones((4, 2 * 64, 96), np.float32))
    >>> w2 = mx.quantize_mxfp4(np.ones((4, 96, 64), np.float32))
    >>> experts = mx.pack_experts(*w13, *w2)
    >>> experts.format, experts.num_experts, experts.hidden_size, experts.intermediate_size
    ('mxfp4', 4, 96, 64)
    """

    __slots__ = (
        "_dtypes",
        "_storage",
        "block_shape",
        "format",
        "gate_up_layout",
        "hidden_size",
        "intermediate_size",
        "num_experts",
    )

    format: str
    num_experts: int
    hidden_size: int
    intermediate_size: int
    gate_up_layout: str
    block_shape: BlockShape | None
    _storage: _core.ExpertStorage
    _dtypes: tuple[MatrixDtypes, MatrixDtypes]  # of w13, of w2

    def __init__(self, *args: object, **kwargs: object) -> None:
        raise TypeError("PackedExperts: expected to be made by pack_experts(), got a direct call")

    @classmethod
    def _make(cls, **attributes: Any) -> PackedExperts:
        self = object.__new__(cls)
        for name, value in attributes.items():
            object.__setattr__(self, name, value)
        return self

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"PackedExperts is immutable: cannot set {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"PackedExperts is immutable: cannot delete {name!r}")

    def __copy__(self) -> PackedExperts:
        return self

    def __deepcopy__(self, memo: object) -> PackedExperts:
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the packed experts to a file at `path`, from which `open` maps them.

        The file appears under its name when it is complete, and is the same on every machine. An OSError says
        why it cannot be written.

        Examples
        --------
        >>> experts.save("experts.packed")  # doctest: +SKIP
        >>> experts = mx.PackedExperts.open("experts.packed")  # doctest: +SKIP
        """
        from ._packed import save_experts

        save_experts(self, path)

    @classmethod
    def open(cls, path: str | os.PathLike[str], verify: bool = False) -> PackedExperts:
        """Open packed experts that `save` wrote.

        They are memory-mapped read-only: this takes milliseconds, weights are read when they are used, and
        processes that open the same file share one copy. The file must not be shortened while it is in use.

        Parameters
        ----------
        path : str or os.PathLike
        verify : bool, default False
            Read the whole file and compare its checksums.

        Returns
        -------
        PackedExperts

        Raises
        ------
        FileNotFoundError
            There is no such file.
        PackedFormatError
            It is no file of packed experts, of another version, or damaged.

        Examples
        --------
        >>> import tempfile
        >>> import numpy as np
        >>> import mxfp4moe as mx
        >>> w = np.ones((2, 64, 32), np.float32)
        >>> experts = mx.pack_experts(w, None, np.ones((2, 32, 32), np.float32), None, format="bf16")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     experts.save(f"{folder}/layer.packed")
        ...     mx.PackedExperts.open(f"{folder}/layer.packed") == experts
        True
        """
        from ._packed import open_experts

        return open_experts(path, check_bool("verify", verify))

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        from ._packed import reduce_experts

        return reduce_experts(self, int(protocol))

    @property
    def nbytes(self) -> int:
        return self._storage.nbytes

    @property
    def data(self) -> memoryview:
        return memoryview(self._storage)

    @property
    def has_w13_bias(self) -> bool:
        """Whether gate and up have a bias."""
        return self._dtypes[0].bias is not None

    @property
    def has_w2_bias(self) -> bool:
        """Whether the down projection has a bias."""
        return self._dtypes[1].bias is not None

    def __repr__(self) -> str:
        block_shape = "" if self.block_shape is None else f"block_shape={self.block_shape}, "
        biases = [name for name, has in (("w13", self.has_w13_bias), ("w2", self.has_w2_bias)) if has]
        return (
            f"PackedExperts(format={self.format!r}, num_experts={self.num_experts}, "
            f"hidden_size={self.hidden_size}, intermediate_size={self.intermediate_size}, "
            f"gate_up_layout={self.gate_up_layout!r}, {block_shape}bias={' and '.join(biases) or None!r}, "
            f"nbytes={self.nbytes})"
        )

    def _key(self) -> tuple[object, ...]:
        sizes = (self.num_experts, self.hidden_size, self.intermediate_size)
        return (self.format, self.gate_up_layout, self.block_shape, sizes, self._dtypes)

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same bytes in the same format, sizes and layout."""
        if not isinstance(other, PackedExperts):
            return NotImplemented
        if self is other:
            return True
        return self._key() == other._key() and np.array_equal(np.asarray(self.data), np.asarray(other.data))

    def __hash__(self) -> int:
        return hash(self._key())

    def unpack(self) -> UnpackedExperts:
        """The arrays that were packed, byte for byte, in canonical shapes.

        Returns
        -------
        UnpackedExperts

        Examples
        --------
        >>> import numpy as np
        >>> import mxfp4moe as mx
        >>> blocks, scales = mx.quantize_mxfp4(np.ones((4, 2 * 64, 96), np.float32))
        >>> w2 = mx.quantize_mxfp4(np.ones((4, 96, 64), np.float32))
        >>> arrays = mx.pack_experts(blocks, scales, *w2).unpack()
        >>> np.array_equal(arrays.w13, blocks), arrays.w13_scales.dtype, arrays.w13_bias
        (True, dtype(float8_e8m0fnu), None)
        """
        w13, w13_scales, w13_bias, w13_tensor_scale = self._unpack_matrix(True)
        w2, w2_scales, w2_bias, w2_tensor_scale = self._unpack_matrix(False)
        if w2_tensor_scale is not None:
            w2_tensor_scale = w2_tensor_scale[:, 0]
        return UnpackedExperts(
            w13, w13_scales, w2, w2_scales, w13_bias, w2_bias, w13_tensor_scale, w2_tensor_scale
        )

    def _unpack_matrix(
        self, is_w13: bool
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None, np.ndarray | None]:
        """Weights, scales, bias and tensor scales."""
        format, dtypes, experts = FORMATS[self.format], self._dtypes[0 if is_w13 else 1], self.num_experts
        rows, k = self.hidden_size, self.intermediate_size
        if is_w13:
            rows, k = 2 * self.intermediate_size, self.hidden_size
        weight_dtype = BFLOAT16 if self.format == "bf16" else dtypes.weights
        weights = np.empty((experts, rows, *format.row_shapes(k)[1]), weight_dtype)
        block_scales = sum_scales = bias = None
        if format.scale_block:
            block_scales = np.empty((experts, rows, k // format.scale_block), np.uint8)
        if format.has_block_shape:
            half = 2 if is_w13 and self.gate_up_layout == "concatenated" else 1
            sum_scales = np.empty(
                (experts, *_scale_shape(self.block_shape, (rows // half, k), half)), np.float32
            )
        if self._storage.has_tensor_scales:
            sum_scales = np.empty((experts, 2 if is_w13 else 1, 1), np.float32)
        if dtypes.bias is not None:
            bias = np.empty((experts, rows), np.float32)
        threads = resolve_num_threads(None)
        for expert in range(experts):
            bytes_of_expert = weights[expert].view(np.uint8)
            scales_of_expert = None if block_scales is None else block_scales[expert]
            self._storage.unpack(is_w13, expert, bytes_of_expert, scales_of_expert, threads)
            if sum_scales is not None:
                self._storage.unpack_sum_scales(is_w13, expert, sum_scales[expert])
            if bias is not None:
                self._storage.unpack_bias(is_w13, expert, bias[expert])
        if bias is not None and dtypes.bias == BFLOAT16:
            bias = (bias.view(np.uint32) >> 16).astype(np.uint16).view(BFLOAT16)  # a cast would change NaNs
        typed_scales = None
        if block_scales is not None and dtypes.scales is not None:
            typed_scales = block_scales.view(dtypes.scales)
        if self._storage.has_tensor_scales and sum_scales is not None:
            return weights, typed_scales, bias, sum_scales[:, :, 0]
        return weights, sum_scales if typed_scales is None else typed_scales, bias, None


def pack_experts(
    w13: Any,
    w13_scales: Any,
    w2: Any,
    w2_scales: Any,
    format: str = "mxfp4",
    w13_bias: Any = None,
    w2_bias: Any = None,
    gate_up_layout: str = "concatenated",
    block_shape: Any = None,
    w13_tensor_scale: Any = None,
    w2_tensor_scale: Any = None,
) -> PackedExperts:
    """Pack the weights of E experts of hidden size K and intermediate size I.

    K and I are multiples of 32 for the MX formats, of 16 for nvfp4, and free for fp8_block and bf16.
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
    format : {"mxfp4", "mxfp8", "nvfp4", "fp8_block", "bf16"}
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
        nvfp4 needs them, fp8_block has none.
    w2_tensor_scale : float32 array of shape (E,), optional
        Of down.

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
    spec = FORMATS[check_choice("format", format, tuple(FORMATS))]
    check_choice("gate_up_layout", gate_up_layout, GATE_UP_LAYOUTS)
    blocks = block_shape_of(spec, block_shape)

    if is_pair(w13_scales if spec.has_scales else w13):
        if not isinstance(w13, (list, tuple)) or len(w13) != 2:
            raise value_error("w13", "a (gate, up) pair like w13_scales", describe_experts(w13))
        if gate_up_layout != "concatenated":
            raise value_error(
                "gate_up_layout", "'concatenated' with a (gate, up) pair", describe(gate_up_layout)
            )
        scales = w13_scales if spec.has_scales else (None, None)
        gate_up = [Matrix(spec, f"w13[{i}]", w13[i], f"w13_scales[{i}]", scales[i]) for i in range(2)]
    else:
        gate_up = [Matrix(spec, "w13", w13, "w13_scales", w13_scales)]
    down = Matrix(spec, "w2", w2, "w2_scales", w2_scales)

    num_experts, hidden, intermediate = len(down), down.rows, down.k
    apart = gate_up_layout == "concatenated"
    for matrix in gate_up:
        rows, halves = 2 // len(gate_up) * intermediate, 2 if apart and len(gate_up) == 1 else 1
        scale_shape = _scales_of(spec, blocks, (rows // halves, hidden), halves)
        matrix.check(num_experts, (rows, hidden), scale_shape)
    down.check(num_experts, (hidden, intermediate), _scales_of(spec, blocks, (hidden, intermediate), 1))
    if hidden % spec.k_multiple:
        expected = f"a number of rows (hidden size) that is a multiple of {spec.k_multiple}"
        raise value_error("w2", expected, str(hidden))
    if {spec.weight_dtypes[m.dtype] for m in gate_up} != {spec.weight_dtypes[down.dtype]}:
        raise type_error("w2", f"elements as in w13, {gate_up[0].dtype}", str(down.dtype))
    for matrix in gate_up[1:]:
        if matrix.dtype != gate_up[0].dtype or matrix.scale_dtype != gate_up[0].scale_dtype:
            raise type_error(
                matrix.name,
                f"{gate_up[0].dtype} and scales of {gate_up[0].scale_dtype}, as in w13[0]",
                f"{matrix.dtype} and {matrix.scale_dtype}",
            )
    biases = (
        Bias("w13_bias", w13_bias, num_experts, 2 * intermediate),
        Bias("w2_bias", w2_bias, num_experts, hidden),
    )
    per_tensor = tensor_scales(spec, w13_tensor_scale, w2_tensor_scale, num_experts)

    storage = _core.ExpertStorage(
        spec.weight_dtypes[down.dtype],
        (num_experts, hidden, intermediate),
        (biases[0].dtype is not None, biases[1].dtype is not None),
        gate_up_layout == "interleaved",
        (0, 0) if blocks is None else tuple(size or 0 for size in blocks),
        tensor_scales=per_tensor is not None,
    )
    for expert in range(num_experts):
        for i, matrices in enumerate((gate_up, [down])):
            _pack_expert(storage, i == 0, expert, matrices, None if per_tensor is None else per_tensor[i])
            if biases[i].dtype is not None:
                storage.pack_bias(i == 0, expert, biases[i].expert(expert))
    return PackedExperts._make(
        _storage=storage,
        format=format,
        num_experts=num_experts,
        hidden_size=hidden,
        intermediate_size=intermediate,
        gate_up_layout=gate_up_layout,
        block_shape=blocks,
        _dtypes=tuple(
            MatrixDtypes(_unpacked_dtype(m.dtype), m.scale_dtype, bias.dtype)
            for m, bias in zip((gate_up[0], down), biases, strict=True)
        ),
    )


def _pack_expert(
    storage: _core.ExpertStorage,
    is_w13: bool,
    expert: int,
    matrices: list[Matrix],
    per_tensor: np.ndarray | None,
) -> None:
    """Pack the weights and scales of one matrix of one expert, which came as one array or as gate and up."""
    spec = matrices[0].format
    weights = [matrix.weights(expert) for matrix in matrices]
    scales = [matrix.scale_bytes(expert) for matrix in matrices] if spec.scale_block else []
    dtype = FLOAT_CODES.get(matrices[0].dtype, 0)
    storage.pack(is_w13, expert, weights, scales, dtype, resolve_num_threads(None))
    if spec.has_block_shape:
        rows = [matrix.sum_scales(expert) for matrix in matrices]
        storage.pack_sum_scales(is_w13, expert, np.concatenate(rows))
    elif per_tensor is not None:
        storage.pack_sum_scales(is_w13, expert, np.ascontiguousarray(per_tensor[expert, :, None]))


def _unpacked_dtype(dtype: np.dtype) -> np.dtype:
    return np.dtype(np.uint8) if dtype == np.int8 else dtype


def _scales_of(
    spec: WeightFormat, blocks: BlockShape | None, shape: tuple[int, int], halves: int
) -> tuple[int, int]:
    """Shape of the scales of `halves` matrices of `shape`, one below the other."""
    if spec.has_block_shape:
        return _scale_shape(blocks, shape, halves)
    return halves * shape[0], shape[1] // max(spec.scale_block, 1)


def _scale_shape(blocks: BlockShape | None, shape: tuple[int, int], halves: int) -> tuple[int, int]:
    rows, columns = (
        -(-size // (block or max(size, 1))) for size, block in zip(shape, blocks or (None, None), strict=True)
    )
    return halves * rows, columns


def block_shape_of(spec: WeightFormat, block_shape: Any) -> BlockShape | None:
    """The block shape that a format is given, or has by default."""
    if not spec.has_block_shape:
        if block_shape is not None:
            raise value_error("block_shape", f"None with format {spec.name!r}", describe(block_shape))
        return None
    if block_shape is None:
        return _BLOCK_SHAPE
    rows, columns = check_block_shape("block_shape", block_shape, _MAX_BLOCK)
    if columns is not None and columns % _BLOCK_K_MULTIPLE:
        raise value_error("block_shape[1]", f"a multiple of {_BLOCK_K_MULTIPLE} or None", str(columns))
    return rows, columns
