"""Pack expert weights once into the layout that the kernels stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import ml_dtypes
import numpy as np

from . import _core
from .config import resolve_num_threads
from .errors import as_array, check_choice, describe, type_error, value_error

__all__ = ["PackedExperts", "UnpackedExperts", "pack_experts"]

FORMATS = ("mxfp4",)
GATE_UP_LAYOUTS = ("concatenated", "interleaved")

_BLOCK = 32
_E8M0 = np.dtype(ml_dtypes.float8_e8m0fnu)
_BLOCK_DTYPES = (np.dtype(np.uint8), np.dtype(np.int8))
_SCALE_DTYPES = (np.dtype(np.uint8), _E8M0)
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_BIAS_DTYPES = (np.dtype(np.float32), _BFLOAT16)

# Order of the rows of a source matrix, as packing/panels.h numbers it.
_PLAIN = 0
_ROW_ORDER = {"concatenated": 1, "interleaved": 2}


class UnpackedExperts(NamedTuple):
    """The arrays that were packed, in canonical shapes: E experts, hidden size K, intermediate size I.

    Attributes
    ----------
    w13 : uint8 ndarray of shape (E, 2 * I, K / 2)
        Rows in the order of the experts' `gate_up_layout`; a (gate, up) pair comes back concatenated.
    w13_scales : uint8 or float8_e8m0fnu ndarray of shape (E, 2 * I, K / 32)
    w2 : uint8 ndarray of shape (E, K, I / 2)
    w2_scales : uint8 or float8_e8m0fnu ndarray of shape (E, K, I / 32)
    w13_bias : float32 or bfloat16 ndarray of shape (E, 2 * I), or None
    w2_bias : float32 or bfloat16 ndarray of shape (E, K), or None
    w13_tensor_scale, w2_tensor_scale : None
        Of formats that have a scale per tensor.
    """

    w13: np.ndarray
    w13_scales: np.ndarray
    w2: np.ndarray
    w2_scales: np.ndarray
    w13_bias: np.ndarray | None = None
    w2_bias: np.ndarray | None = None
    w13_tensor_scale: np.ndarray | None = None
    w2_tensor_scale: np.ndarray | None = None


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
    nbytes : int
        Size of the packed weights, scales and biases in memory.
    data : memoryview
        The packed bytes, read-only.
    """

    __slots__ = (
        "_bias_dtypes",
        "_scale_dtypes",
        "_storage",
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
    _storage: _core.ExpertStorage
    _bias_dtypes: tuple[np.dtype | None, np.dtype | None]
    _scale_dtypes: tuple[np.dtype, np.dtype]

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

    @property
    def nbytes(self) -> int:
        return self._storage.nbytes

    @property
    def data(self) -> memoryview:
        return memoryview(self._storage)

    @property
    def has_w13_bias(self) -> bool:
        """Whether gate and up have a bias."""
        return self._bias_dtypes[0] is not None

    @property
    def has_w2_bias(self) -> bool:
        """Whether the down projection has a bias."""
        return self._bias_dtypes[1] is not None

    def __repr__(self) -> str:
        biases = [name for name, has in (("w13", self.has_w13_bias), ("w2", self.has_w2_bias)) if has]
        return (
            f"PackedExperts(format={self.format!r}, num_experts={self.num_experts}, "
            f"hidden_size={self.hidden_size}, intermediate_size={self.intermediate_size}, "
            f"gate_up_layout={self.gate_up_layout!r}, bias={' and '.join(biases) or None!r}, "
            f"nbytes={self.nbytes})"
        )

    def _key(self) -> tuple[object, ...]:
        sizes = (self.num_experts, self.hidden_size, self.intermediate_size)
        return (self.format, self.gate_up_layout, sizes, self._bias_dtypes, self._scale_dtypes)

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
        """
        order = _ROW_ORDER[self.gate_up_layout]
        w13, w13_scales, w13_bias = self._unpack_matrix(True, order)
        w2, w2_scales, w2_bias = self._unpack_matrix(False, _PLAIN)
        return UnpackedExperts(w13, w13_scales, w2, w2_scales, w13_bias, w2_bias)

    def _unpack_matrix(self, is_w13: bool, order: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        rows, k = self.hidden_size, self.intermediate_size
        if is_w13:
            rows, k = 2 * self.intermediate_size, self.hidden_size
        blocks = np.empty((self.num_experts, rows, k // 2), np.uint8)
        scales = np.empty((self.num_experts, rows, k // _BLOCK), np.uint8)
        bias_dtype = self._bias_dtypes[0 if is_w13 else 1]
        bias = None if bias_dtype is None else np.empty((self.num_experts, rows), np.float32)
        threads = resolve_num_threads(None)
        for expert in range(self.num_experts):
            self._storage.unpack(is_w13, expert, order, blocks[expert], scales[expert], threads)
            if bias is not None:
                self._storage.unpack_bias(is_w13, expert, order, bias[expert])
        scales = scales.view(self._scale_dtypes[0 if is_w13 else 1])
        if bias is not None and bias_dtype == _BFLOAT16:
            bias = (bias.view(np.uint32) >> 16).astype(np.uint16).view(_BFLOAT16)  # a cast would change NaNs
        return blocks, scales, bias


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
    """Pack the weights of E experts of hidden size K and intermediate size I, both multiples of 32.

    Each of `w13`, `w2` and their scales is one array with a leading axis E, or a sequence of E arrays without
    it, so that a checkpoint with a tensor per expert needs no stacked copy. `w13` and `w13_scales` may also
    both be a pair (gate, up) of such arrays or sequences with I rows each.

    Parameters
    ----------
    w13 : uint8 or int8 array of shape (E, 2 * I, K / 2) or (E, 2 * I, K / 32, 16)
        Gate and up projection: E2M1 codes, two per byte, the low nibble the even k.
    w13_scales : uint8 or float8_e8m0fnu array of shape (E, 2 * I, K / 32)
        E8M0 scales; byte s means 2**(s - 127), 255 NaN.
    w2 : uint8 or int8 array of shape (E, K, I / 2) or (E, K, I / 32, 16)
        Down projection.
    w2_scales : uint8 or float8_e8m0fnu array of shape (E, K, I / 32)
    format : {"mxfp4"}
    w13_bias : float32 or bfloat16 array of shape (E, 2 * I), optional
        Rows in the order of `w13`; with a (gate, up) pair, gate then up.
    w2_bias : float32 or bfloat16 array of shape (E, K), optional
    gate_up_layout : {"concatenated", "interleaved"}
        Rows of `w13`: all of gate, then all of up, or gate_0, up_0, gate_1, ... (gpt-oss).
    block_shape, w13_tensor_scale, w2_tensor_scale : None
        Belong to other formats.

    Returns
    -------
    PackedExperts

    Raises
    ------
    TypeError
        An array is of another dtype or kind.
    ValueError
        Shapes do not fit each other, or K or I is no multiple of 32.

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
    check_choice("format", format, FORMATS)
    check_choice("gate_up_layout", gate_up_layout, GATE_UP_LAYOUTS)
    for name, value in (
        ("block_shape", block_shape),
        ("w13_tensor_scale", w13_tensor_scale),
        ("w2_tensor_scale", w2_tensor_scale),
    ):
        if value is not None:
            raise value_error(name, f"None with format {format!r}", describe(value))

    order = _ROW_ORDER[gate_up_layout]
    if _is_pair(w13_scales):
        if not isinstance(w13, (list, tuple)) or len(w13) != 2:
            raise value_error("w13", "a (gate, up) pair like w13_scales", _describe_experts(w13))
        if gate_up_layout != "concatenated":
            raise value_error(
                "gate_up_layout", "'concatenated' with a (gate, up) pair", describe(gate_up_layout)
            )
        gate_up = tuple(_Matrix(f"w13[{i}]", w13[i], f"w13_scales[{i}]", w13_scales[i]) for i in range(2))
    else:
        gate_up = (_Matrix("w13", w13, "w13_scales", w13_scales),)
    down = _Matrix("w2", w2, "w2_scales", w2_scales)

    num_experts, hidden, intermediate = len(down), down.rows, down.k
    for matrix in gate_up:
        matrix.check(num_experts, 2 // len(gate_up) * intermediate, hidden)
    down.check(num_experts, hidden, intermediate)
    if hidden % _BLOCK:
        raise value_error("w2", f"a number of rows (hidden size) that is a multiple of {_BLOCK}", str(hidden))
    biases = (
        _Bias("w13_bias", w13_bias, num_experts, 2 * intermediate),
        _Bias("w2_bias", w2_bias, num_experts, hidden),
    )

    storage = _core.ExpertStorage(
        num_experts, hidden, intermediate, biases[0].dtype is not None, biases[1].dtype is not None
    )
    threads = resolve_num_threads(None)
    for expert in range(num_experts):
        halves = [array for matrix in gate_up for array in matrix.expert(expert)]
        storage.pack(True, expert, order, halves, threads)
        storage.pack(False, expert, _PLAIN, down.expert(expert), threads)
        for is_w13, bias in zip((True, False), biases, strict=True):
            if bias.dtype is not None:
                storage.pack_bias(is_w13, expert, order if is_w13 else _PLAIN, bias.expert(expert))
    return PackedExperts._make(
        _storage=storage,
        format=format,
        num_experts=num_experts,
        hidden_size=hidden,
        intermediate_size=intermediate,
        gate_up_layout=gate_up_layout,
        _bias_dtypes=tuple(bias.dtype for bias in biases),
        _scale_dtypes=(gate_up[0].scale_dtype, down.scale_dtype),
    )


def _is_pair(scales: Any) -> bool:
    """Whether `scales` are a (gate, up) pair: of arrays with a leading E, or of sequences of E arrays."""
    if not isinstance(scales, (list, tuple)) or len(scales) != 2:
        return False
    return all(isinstance(half, (list, tuple)) or np.ndim(half) == 3 for half in scales)


def _describe_experts(value: Any) -> str:
    return f"a sequence of {len(value)}" if isinstance(value, (list, tuple)) else describe(value)


def _per_expert(
    name: str, value: Any, dtypes: Sequence[np.dtype], ndims: tuple[int, ...]
) -> list[np.ndarray]:
    """One array per expert, each with one of the numbers of axes in `ndims`; nothing is copied that fits."""
    if isinstance(value, (list, tuple)):
        arrays = [as_array(f"{name}[{i}]", item, dtypes) for i, item in enumerate(value)]
        bad = next((i for i, a in enumerate(arrays) if a.ndim not in ndims), None)
        if bad is not None:
            expected = " or ".join(map(str, ndims))
            raise value_error(f"{name}[{bad}]", f"an array with {expected} axes", describe(arrays[bad]))
    else:
        stacked = as_array(name, value, dtypes)
        if stacked.ndim - 1 not in ndims:
            expected = " or ".join(str(n + 1) for n in ndims)
            raise value_error(
                name, f"an array with {expected} axes, or a sequence of arrays", describe(stacked)
            )
        arrays = list(stacked)
    if not arrays:
        raise value_error(name, "at least 1 expert", "0")
    return arrays


class _Matrix:
    """Blocks and scales of one matrix of every expert, as they came."""

    def __init__(self, name: str, blocks: Any, scales_name: str, scales: Any) -> None:
        self.name, self.scales_name = name, scales_name
        self._blocks = _per_expert(name, blocks, _BLOCK_DTYPES, (2, 3))
        self._scales = _per_expert(scales_name, scales, _SCALE_DTYPES, (2,))
        first = self._blocks[0]
        self.rows = first.shape[0]
        self.k = 2 * first.shape[1] if first.ndim == 2 else _BLOCK * first.shape[1]
        self.scale_dtype = self._scales[0].dtype

    def __len__(self) -> int:
        return len(self._blocks)

    def check(self, num_experts: int, rows: int, k: int) -> None:
        """Raise unless every array has the shape that `num_experts` matrices of `rows` x `k` need."""
        for name, arrays in ((self.name, self._blocks), (self.scales_name, self._scales)):
            if len(arrays) != num_experts:
                raise value_error(name, f"{num_experts} experts, as in w2", str(len(arrays)))
        if min(rows, k) < 1 or k % _BLOCK:
            raise value_error(
                self.name, f"K a positive multiple of {_BLOCK} and at least 1 row", f"{rows} x {k}"
            )
        shapes = {2: (rows, k // 2), 3: (rows, k // _BLOCK, _BLOCK // 2)}
        for expert, (blocks, scales) in enumerate(zip(self._blocks, self._scales, strict=True)):
            for name, array, expected in (
                (self.name, blocks, shapes[blocks.ndim]),
                (self.scales_name, scales, (rows, k // _BLOCK)),
            ):
                if array.shape != expected:
                    raise value_error(
                        name, f"shape {expected} for each expert", f"{array.shape} for expert {expert}"
                    )
            if scales.dtype != self.scale_dtype:
                raise type_error(self.scales_name, f"{self.scale_dtype} as for expert 0", f"{scales.dtype}")

    def expert(self, index: int) -> list[np.ndarray]:
        """Blocks and scales of one expert as C-contiguous bytes, [rows, k / 2] and [rows, k / 32]."""
        arrays = (self._blocks[index], self._scales[index])
        return [np.ascontiguousarray(array).reshape(len(array), -1).view(np.uint8) for array in arrays]


class _Bias:
    """The bias of one matrix of every expert, or none."""

    def __init__(self, name: str, value: Any, num_experts: int, rows: int) -> None:
        self.dtype: np.dtype | None = None
        if value is None:
            return
        self._arrays = _per_expert(name, value, _BIAS_DTYPES, (1,))
        if len(self._arrays) != num_experts:
            raise value_error(name, f"{num_experts} experts, as in w2", str(len(self._arrays)))
        for expert, array in enumerate(self._arrays):
            if array.shape != (rows,):
                raise value_error(
                    name, f"shape ({rows},) for each expert", f"{array.shape} for expert {expert}"
                )
        self.dtype = self._arrays[0].dtype
        mixed = next((a.dtype for a in self._arrays if a.dtype != self.dtype), None)
        if mixed is not None:
            raise type_error(name, f"{self.dtype} as for expert 0", f"{mixed}")

    def expert(self, index: int) -> np.ndarray:
        array = np.ascontiguousarray(self._arrays[index])
        if array.dtype == np.float32:
            return array
        return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
