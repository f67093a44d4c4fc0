"""A packed matrix of any weight format by hidden states, on the kernels of the experts."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from mxfp4moe import _core
from mxfp4moe._arguments import as_rows, check_dtype, value_error
from mxfp4moe._dlpack import SupportsDLPack
from mxfp4moe._dtypes import narrow, widen
from mxfp4moe.config import active_kernels, resolve_num_threads
from mxfp4moe.experts.activation_format import ActivationFormat, check_activation_format
from mxfp4moe.experts.fused import check_hidden_states
from mxfp4moe.experts.out import check_out, given_array, returned, rows_view
from mxfp4moe.experts.spec import BlockShape, scale_shape
from mxfp4moe.formats import BFLOAT16, FLOAT_CODES, GROUP_MULTIPLE, LinearFormat
from mxfp4moe.linear.spec import LinearSpec
from mxfp4moe.packed.kinds import LINEAR
from mxfp4moe.packed.weights import PackedWeights

_FLOAT_DTYPES = tuple(FLOAT_CODES)
_FLOAT32 = np.dtype(np.float32)


class UnpackedLinear(NamedTuple):
    """The arrays that were packed, in canonical shapes.

    Attributes
    ----------
    weight : ndarray of shape (N, K), or (N, K / 2) of two codes a byte
        uint8 for 4-bit formats, else of the dtype that was packed; bfloat16 where format bf16 has rounded.
    scales : ndarray or None
        (N, K / 32) or (N, K / 16) of the dtype that was packed; those of fp8_block and of the groups of int4
        and int8 in the shape that `pack_linear` takes.
    bias : float32, bfloat16 or float16 ndarray of shape (N,), or None
    tensor_scale : float32 ndarray of shape (), or None
    zero_points : uint8 (int4) or int8 (int8) ndarray of the shape of the scales, or None
    offsets : ndarray of the dtype and shape of the scales, or None

    Examples
    --------
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> linear = mx.pack_linear(np.ones((8, 96), np.float32), quantize="mxfp4")
    >>> arrays = linear.unpack()
    >>> arrays.weight.shape, arrays.scales.shape
    ((8, 48), (8, 3))
    """

    weight: NDArray[Any]
    scales: NDArray[Any] | None = None
    bias: NDArray[Any] | None = None
    tensor_scale: NDArray[np.float32] | None = None
    zero_points: NDArray[Any] | None = None
    offsets: NDArray[Any] | None = None


class PackedLinear(PackedWeights[LinearSpec, _core.LinearStorage]):
    """A matrix and its bias, packed for the kernels; made by `pack_linear`.

    Calling it gives ``hidden_states @ weight.T + bias``. Immutable: safe to use from several threads at once.
    The packed layout is the same for every instruction set.

    Attributes
    ----------
    format : str
        Weight format, such as "bf16".
    shape : (int, int)
        Rows N and columns K of the matrix.
    bias : ndarray of shape (N,), or None
        As it was packed.
    block_shape : tuple or None
        Rows and columns that share a float32 scale, None for the whole axis; None for all but fp8_block.
    nbytes : int
        Size of the packed weights, scales and bias in memory.
    data : memoryview
        The packed bytes, read-only.
    spec : LinearSpec
        What is known of the matrix but its bytes.

    Examples
    --------
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> linear = mx.pack_linear(np.eye(3, 96, dtype=np.float32), bias=np.float32([0, 0, 1]))
    >>> linear(np.ones((2, 96), np.float32))
    array([[1., 1., 2.],
           [1., 1., 2.]], dtype=float32)
    >>> mx.pack_linear(**linear.arguments()) == linear
    True
    """

    __slots__ = ()

    _kind = LINEAR
    _spec_type = LinearSpec
    _made_by = "pack_linear"

    @property
    def format(self) -> LinearFormat:
        return self.spec.format

    @property
    def shape(self) -> tuple[int, int]:
        return self.spec.shape

    @property
    def block_shape(self) -> BlockShape | None:
        return self.spec.block_shape

    @property
    def bias(self) -> NDArray[Any] | None:
        dtype = self.spec.dtypes.bias
        if dtype is None:
            return None
        wide = np.empty(self.shape[0], np.float32)
        self._storage.unpack_bias(0, 0, wide)
        bias = narrow(wide, dtype)
        if bias is None:
            raise self._unpack_error("bias", f"one that {dtype} can hold", "one of float32")
        return bias

    def __repr__(self) -> str:
        block_shape = "" if self.block_shape is None else f"block_shape={self.block_shape}, "
        return (
            f"PackedLinear(format={self.format!r}, shape={self.shape}, {block_shape}"
            f"bias={self.spec.dtypes.bias is not None}, nbytes={self.nbytes})"
        )

    def __call__(
        self,
        hidden_states: ArrayLike,
        *,
        out: NDArray[Any] | SupportsDLPack | None = None,
        dtype: DTypeLike | None = None,
        activation_format: ActivationFormat | None = None,
        num_threads: int | None = None,
    ) -> NDArray[Any]:
        """Compute ``hidden_states @ weight.T + bias``.

        Hidden states are rounded once to bfloat16, weights are used exactly, sums are float32, and the result
        is rounded once. A token's result does not depend on the other tokens, on its position or on
        `num_threads`.

        Parameters
        ----------
        hidden_states : bfloat16, float16 or float32 array of shape (..., K)
            Copied if the last axis is not contiguous.
        out : ndarray of shape (..., N), optional
            bfloat16, float16 or float32, writeable, last axis contiguous. May be `hidden_states` itself; must
            not overlap it otherwise. A call that a signal ends, as Ctrl-C does, may leave anything in it. An
            array of another library that DLPack hands over for writing is written in place, too.
        dtype : dtype, optional
            Of the result: float32, bfloat16 or float16. Not given, that of `out`, or else float32.
        activation_format : {None, "int8"}
            "int8": hidden states are rounded to integers of eight bits instead of bfloat16, as
            `mxfp4moe.fused_experts` says.
        num_threads : int, optional
            For this call; see `mxfp4moe.num_threads`.

        Returns
        -------
        ndarray of shape (..., N), or `out`

        Raises
        ------
        TypeError
            A wrong kind or dtype of argument.
        ValueError
            A wrong shape, a number out of range, an overlap.

        Examples
        --------
        >>> import ml_dtypes
        >>> import numpy as np
        >>> import mxfp4moe as mx
        >>> linear = mx.pack_linear(np.ones((5, 96), np.float32))
        >>> linear(np.ones((2, 3, 96), ml_dtypes.bfloat16)).shape
        (2, 3, 5)
        """
        rows, columns = self.shape
        hidden = check_hidden_states(hidden_states, columns)
        rounding = check_activation_format(activation_format, self.format, "a matrix")
        threads = resolve_num_threads(num_threads)
        shape = (*hidden.shape[:-1], rows)
        result_dtype = None if dtype is None else check_dtype("dtype", dtype, _FLOAT_DTYPES)
        tokens = as_rows(hidden)
        if out is None:
            result = np.empty(shape, result_dtype or _FLOAT32)
        else:
            result = check_out(out, given_array(hidden_states, hidden), {}, shape)
            if result_dtype is not None and result.dtype != result_dtype:
                raise value_error("dtype", f"None or {result.dtype}, that of out", str(result_dtype))
            if np.may_share_memory(result, tokens):  # the threads read tokens while others write
                tokens = tokens.copy()
        target = rows_view(result)
        buffer = np.empty((len(tokens), rows), result.dtype) if target is None else target
        run_linear(self, tokens, buffer, threads, rounding)
        if target is None:
            result[...] = buffer.reshape(result.shape)
        return returned(out, result)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `pack_linear` that make an equal matrix.

        Returns
        -------
        dict
            Arrays and options by the names of the parameters.
        """
        return {**self.unpack()._asdict(), "format": self.format, "block_shape": self.block_shape}

    def unpack(self, *, num_threads: int | None = None) -> UnpackedLinear:
        """The arrays that were packed, in canonical shapes.

        They are the same bytes, but for floats that format bf16 has rounded, and those of format float32 in
        which NaNs are all alike, and below 2**-110 bits smaller than 2**-133 are 0.

        Parameters
        ----------
        num_threads : int, optional
            For this call; see `mxfp4moe.num_threads`.

        Returns
        -------
        UnpackedLinear

        Raises
        ------
        PackedFormatError
            The packed bytes hold something else than what they are said to hold. The file that they come from
            was changed, and its checksums too.

        Examples
        --------
        >>> import numpy as np
        >>> import mxfp4moe as mx
        >>> w = np.linspace(-1, 1, 3 * 96, dtype=np.float32).reshape(3, 96)
        >>> np.array_equal(mx.pack_linear(w, format="float32").unpack().weight, w)
        True
        """
        threads = resolve_num_threads(num_threads)
        spec, format, (rows, k) = self.spec, self.spec.weight_format, self.shape
        is_float = spec.format in ("bf16", "float32")
        packed_dtype = (_FLOAT32 if spec.num_terms > 1 else BFLOAT16) if is_float else spec.dtypes.weights
        weight = np.empty((rows, *format.row_shapes(k)[1]), packed_dtype)
        block_bytes = scales = tensor_scale = zeros = offsets = None
        if format.scale_block:
            block_bytes = np.empty((rows, k // format.scale_block), np.uint8)
        if spec.dtypes.zero_points is not None:
            block_bytes = np.empty((rows, -(-k // GROUP_MULTIPLE)), np.uint8)
        self._storage.unpack(0, 0, weight.view(np.uint8), block_bytes, threads)
        if spec.format == "float32":
            weight = self._narrow_weight(weight)
        if block_bytes is not None and format.scale_block and spec.dtypes.scales is not None:
            scales = block_bytes.view(spec.dtypes.scales)
        if format.has_sum_scales and spec.dtypes.scales is not None:
            shape = scale_shape(format, spec.scale_blocks, (rows, k))
            scales = self._sum_scales(shape, spec.dtypes.scales)
            if spec.dtypes.offsets is not None:
                offsets = self._sum_scales(shape, spec.dtypes.offsets, offsets=True)
            if block_bytes is not None:
                zeros = self._zero_points("weight", format, block_bytes, scales.shape[1])
        if spec.has_tensor_scale:
            tensor_scale = self._sum_scales((1, 1), _FLOAT32).reshape(())
        return UnpackedLinear(weight, scales, self.bias, tensor_scale, zeros, offsets)

    def _narrow_weight(self, weight: NDArray[Any]) -> NDArray[Any]:
        """Floats in the dtype that was packed, of the terms that they were packed in."""
        dtype = self.spec.dtypes.weights
        narrow_weight = weight if weight.dtype == dtype else narrow(widen(weight), dtype)
        if narrow_weight is None:
            raise self._unpack_error("weight", f"numbers that {dtype} can hold", "others")
        return narrow_weight

    def _sum_scales(
        self, shape: tuple[int, int], dtype: np.dtype[Any], offsets: bool = False
    ) -> NDArray[Any]:
        scales = np.empty(shape, dtype)
        if not self._storage.unpack_sum_scales(0, 0, scales.view(np.uint8), offsets):
            raise self._unpack_error("weight", "one scale for each block", "several")
        return scales


def linear_sums(
    linear: PackedLinear, hidden_states: NDArray[Any], num_threads: int | None
) -> NDArray[np.float32]:
    """What `linear` gives in float32, of arguments that have been checked: the short way of a layer."""
    tokens = as_rows(hidden_states)
    result = np.empty((len(tokens), linear.spec.shape[0]), np.float32)
    run_linear(linear, tokens, result, resolve_num_threads(num_threads))
    return result if tokens is hidden_states else result.reshape(*hidden_states.shape[:-1], result.shape[1])


def run_linear(
    linear: PackedLinear, tokens: NDArray[Any], out: NDArray[Any], threads: int, activation_format: int = 0
) -> None:
    """Compute into `out`, of arguments that have been checked; both have two axes and do not overlap."""
    if len(tokens):
        _core.linear(
            linear._storage,
            active_kernels(),
            tokens.view(np.uint8),
            FLOAT_CODES[tokens.dtype],
            out.view(np.uint8),
            FLOAT_CODES[out.dtype],
            threads,
            activation_format,
        )
