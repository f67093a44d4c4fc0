"""Packed experts: their spec and their bytes; saved, mapped, pickled, unpacked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from mxfp4moe import _core
from mxfp4moe._dtypes import narrow
from mxfp4moe.config import resolve_num_threads
from mxfp4moe.experts.budget import FileExperts, MemoryBudget
from mxfp4moe.experts.spec import BlockShape, ExpertsSpec, scale_shape
from mxfp4moe.formats import BFLOAT16, GROUP_MULTIPLE, ExpertsFormat, GateUpLayout
from mxfp4moe.packed.container import PackedFile, Part, is_packed_file
from mxfp4moe.packed.kinds import EXPERTS
from mxfp4moe.packed.weights import PackedWeights


class UnpackedExperts(NamedTuple):
    """The arrays that were packed, in canonical shapes: E experts, hidden size K, intermediate size I.

    Attributes
    ----------
    w13 : ndarray of shape (E, 2 * I, K), or (E, 2 * I, K / 2) of two codes a byte
        Rows in the order of the experts' `gate_up_layout`; a (gate, up) pair comes back concatenated. Experts
        without a gate have I rows instead of 2 * I, here and below. uint8
        for 4-bit formats, else of the dtype that was packed; bfloat16 where float16 or float32 was rounded.
    w13_scales : ndarray, or None for bfloat16
        Block scales (E, 2 * I, K / 32 or K / 16) of the dtype that was packed; those of fp8_block and of the
        groups of int4 and int8 in the shape that `pack_experts` takes.
    w2 : ndarray of shape (E, K, I) or (E, K, I / 2)
    w2_scales : ndarray or None
    w13_bias : float32 or bfloat16 ndarray of shape (E, 2 * I), or None
    w2_bias : float32 or bfloat16 ndarray of shape (E, K), or None
    w13_tensor_scale : float32 ndarray of shape (E, 2), or None
        Of gate and of up; of shape (E,) without a gate.
    w2_tensor_scale : float32 ndarray of shape (E,), or None
    w13_zero_points, w2_zero_points : uint8 (int4) or int8 (int8) ndarray of the shape of the scales, or None
    w13_offsets, w2_offsets : ndarray of the dtype and shape of the scales, or None
    w13_columns : int32 ndarray of shape (E, K), or None

    Examples
    --------
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> w13 = mx.quantize_mxfp4(np.ones((4, 64, 96), np.float32))
    >>> w2 = mx.quantize_mxfp4(np.ones((4, 96, 32), np.float32))
    >>> mx.pack_experts(*w13, *w2).unpack().w2.shape
    (4, 96, 16)
    """

    w13: NDArray[Any]
    w13_scales: NDArray[Any] | None
    w2: NDArray[Any]
    w2_scales: NDArray[Any] | None
    w13_bias: NDArray[Any] | None = None
    w2_bias: NDArray[Any] | None = None
    w13_tensor_scale: NDArray[np.float32] | None = None
    w2_tensor_scale: NDArray[np.float32] | None = None
    w13_zero_points: NDArray[Any] | None = None
    w2_zero_points: NDArray[Any] | None = None
    w13_offsets: NDArray[Any] | None = None
    w2_offsets: NDArray[Any] | None = None
    w13_columns: NDArray[np.int32] | None = None


class PackedExperts(PackedWeights[ExpertsSpec, _core.ExpertStorage]):
    """The weights of one layer's experts, packed for the kernels; made by `pack_experts`.

    Immutable: safe to use from several threads at once. The packed layout is the same for every
    instruction set.

    Attributes
    ----------
    format : str or (str, str)
        Weight format, such as "mxfp4"; those of w13 and of w2, if they are two.
    num_experts, hidden_size, intermediate_size : int
    gate_up_layout : str
        Row order of the `w13` that was packed.
    block_shape : tuple or None
        Rows and columns that share a float32 scale, None for the whole axis; None for all but fp8_block.
    gated : bool
        Whether `w13` has gate and up, or up alone.
    nbytes : int
        Size of the packed weights, scales and biases in memory.
    data : memoryview
        The packed bytes, read-only; a copy if these are some experts of a file that holds more.
    spec : ExpertsSpec
        All of these but the bytes.

    Examples
    --------
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> w13 = mx.quantize_mxfp4(np.ones((4, 2 * 64, 96), np.float32))
    >>> w2 = mx.quantize_mxfp4(np.ones((4, 96, 64), np.float32))
    >>> experts = mx.pack_experts(*w13, *w2)
    >>> experts.format, experts.num_experts, experts.hidden_size, experts.intermediate_size
    ('mxfp4', 4, 96, 64)
    >>> mx.pack_experts(**experts.arguments()) == experts
    True
    """

    __slots__ = ("_cached",)

    _cached: FileExperts | None
    """What keeps them within a limit of memory, if there is one."""
    _kind = EXPERTS
    _spec_type = ExpertsSpec
    _made_by = "pack_experts"

    @classmethod
    def _make(
        cls,
        spec: ExpertsSpec,
        storage: _core.ExpertStorage,
        place: str | None = None,
        cached: FileExperts | None = None,
    ) -> Self:
        self = super()._make(spec, storage, place)
        self._cached = cached
        return self

    def _within(self, budget: MemoryBudget, file: PackedFile, prefix: str, top_k: int) -> PackedExperts:
        """The same experts, of which no more are in memory than the budget allows; a token needs `top_k`."""
        held, pages = file.parts_under(prefix), file.pages()
        parts = [(part.begin, part.shape[1]) for part in held]
        cached = FileExperts(budget, pages, parts, self._storage.num_places)
        budget.add(cached, min(top_k, self.num_experts))
        for part in file.parts.values():
            if part not in held:  # every token needs it, and single pages would take long
                pages.request(part.begin, part.end)
        return self._make(self.spec, self._storage, self._place, cached)

    @property
    def _places(self) -> NDArray[np.int32] | None:
        """Where each expert is in memory that holds more; None if it holds no others."""
        chosen = self._storage.selection()[1]
        return None if chosen is None else np.asarray(chosen)

    @property
    def _num_file_rows(self) -> int:
        return self.num_experts

    def _select(self, places: NDArray[np.int32]) -> PackedExperts:
        """The experts at these places, in the same memory: what is not used of a mapped file is not read."""
        source, chosen = self._storage.selection()[0], self._places
        whole = replace(self.spec, num_experts=self._storage.num_places)
        storage = whole.make_storage(np.asarray(source))
        storage.select(places if chosen is None else chosen[places])
        spec = replace(self.spec, num_experts=len(places))
        return self._make(spec, storage, self._place, self._cached)

    @property
    def nbytes(self) -> int:
        per_expert = sum(size for _, _, size in self._storage.parts())
        return self.num_experts * per_expert if self._is_selection else self._storage.nbytes

    @property
    def data(self) -> memoryview:
        return memoryview(self._compact()._storage)

    def _compact(self) -> PackedExperts:
        """The same experts in memory that holds no others."""
        if not self._is_selection:
            return self
        return self._local()

    def _file_parts(self, prefix: str) -> list[Part]:
        return super(PackedExperts, self._compact())._file_parts(prefix)

    @property
    def _is_selection(self) -> bool:
        """Whether these are some experts of memory that holds more, between which others lie."""
        return self._places is not None

    @property
    def format(self) -> ExpertsFormat:
        return self.spec.format

    @property
    def num_experts(self) -> int:
        return self.spec.num_experts

    @property
    def hidden_size(self) -> int:
        return self.spec.hidden_size

    @property
    def intermediate_size(self) -> int:
        return self.spec.intermediate_size

    @property
    def gate_up_layout(self) -> GateUpLayout:
        return self.spec.gate_up_layout

    @property
    def block_shape(self) -> BlockShape | None:
        return self.spec.block_shape

    @property
    def gated(self) -> bool:
        return self.spec.gated

    @property
    def has_w13_bias(self) -> bool:
        """Whether gate and up have a bias."""
        return self.spec.w13_dtypes.bias is not None

    @property
    def has_w2_bias(self) -> bool:
        """Whether the down projection has a bias."""
        return self.spec.w2_dtypes.bias is not None

    def __repr__(self) -> str:
        block_shape = "" if self.block_shape is None else f"block_shape={self.block_shape}, "
        ungated = "" if self.gated else "gated=False, "
        biases = [name for name, has in (("w13", self.has_w13_bias), ("w2", self.has_w2_bias)) if has]
        return (
            f"PackedExperts(format={self.format!r}, num_experts={self.num_experts}, "
            f"hidden_size={self.hidden_size}, intermediate_size={self.intermediate_size}, "
            f"gate_up_layout={self.gate_up_layout!r}, {ungated}{block_shape}"
            f"bias={' and '.join(biases) or None!r}, nbytes={self.nbytes})"
        )

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `pack_experts` that make equal experts.

        Returns
        -------
        dict
            Arrays and options by the names of the parameters.
        """
        arrays = self.unpack()._asdict()
        required = ("w13", "w13_scales", "w2", "w2_scales")
        given = {name: array for name, array in arrays.items() if array is not None or name in required}
        names = ("gate_up_layout", "block_shape", "gated", "format")
        return {**given, **{name: getattr(self, name) for name in names}}

    def unpack(self, *, num_threads: int | None = None) -> UnpackedExperts:
        """The arrays that were packed, byte for byte, in canonical shapes.

        Parameters
        ----------
        num_threads : int, optional
            For this call; see `mxfp4moe.num_threads`.

        Returns
        -------
        UnpackedExperts

        Raises
        ------
        PackedFormatError
            The packed bytes hold something else than what they are said to hold. The file that they come from
            was changed, and its checksums too.

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
        threads = resolve_num_threads(num_threads)
        matrices = {"w13": self._unpack_matrix(True, threads), "w2": self._unpack_matrix(False, threads)}
        columns = None
        if self.spec.has_columns:
            columns = np.empty((self.num_experts, self.hidden_size), np.int32)
            for expert, of_expert in enumerate(columns):
                self._storage.unpack_columns(expert, of_expert)
        return UnpackedExperts(
            **{name + part: array for name, arrays in matrices.items() for part, array in arrays.items()},
            w13_columns=columns,
        )

    def _unpack_matrix(self, is_w13: bool, threads: int) -> dict[str, Any]:
        """The arrays of a matrix, by what follows its name in theirs."""
        format, dtypes = self.spec.weight_format(is_w13), self.spec.dtypes(is_w13)
        experts, parts = self.num_experts, self.spec.num_w13_parts if is_w13 else 1
        rows, k = self.hidden_size, self.intermediate_size
        if is_w13:
            rows, k = parts * k, rows
        apart = parts if self.gate_up_layout == "concatenated" else 1
        scales_shape = scale_shape(format, self.spec.scale_blocks(is_w13), (rows // apart, k), apart)
        weight_dtype = BFLOAT16 if format.name == "bf16" else dtypes.weights
        weights = np.empty((experts, rows, *format.row_shapes(k)[1]), weight_dtype)
        block_bytes = sum_scales = offsets = bias = None
        if format.scale_block:
            block_bytes = np.empty((experts, *scales_shape), np.uint8)
        if dtypes.zero_points is not None:
            block_bytes = np.empty((experts, rows, -(-k // GROUP_MULTIPLE)), np.uint8)
        if dtypes.offsets is not None:
            offsets = np.empty((experts, *scales_shape), dtypes.offsets)
        if format.has_sum_scales:
            sum_scales = np.empty((experts, *scales_shape), dtypes.scales)
        elif self.spec.has_tensor_scales:
            sum_scales = np.empty((experts, parts, 1), np.float32)
        if dtypes.bias is not None:
            bias = np.empty((experts, rows), np.float32)
        index, name = (0, "w13") if is_w13 else (1, "w2")
        for expert in range(experts):
            bytes_of_expert = weights[expert].view(np.uint8)
            blocks_of_expert = None if block_bytes is None else block_bytes[expert]
            self._storage.unpack(index, expert, bytes_of_expert, blocks_of_expert, threads)
            if sum_scales is not None and not self._storage.unpack_sum_scales(
                index, expert, sum_scales[expert].view(np.uint8)
            ):
                raise self._unpack_error(name, "one scale for each block", f"several in expert {expert}")
            if offsets is not None:
                self._storage.unpack_sum_scales(index, expert, offsets[expert].view(np.uint8), offsets=True)
            if bias is not None:
                self._storage.unpack_bias(index, expert, bias[expert])
        result: dict[str, Any] = {"": weights, "_scales": None, "_offsets": offsets}
        if format.scale_block and block_bytes is not None:
            result["_scales"] = block_bytes.view(dtypes.scales)
        elif block_bytes is not None:
            result["_zero_points"] = self._zero_points(name, format, block_bytes, scales_shape[1])
        if format.has_sum_scales:
            result["_scales"] = sum_scales
        elif sum_scales is not None:
            result["_tensor_scale"] = sum_scales[:, :, 0] if parts == 2 else sum_scales[:, 0, 0]
        if bias is not None and dtypes.bias is not None:
            result["_bias"] = narrow(bias, dtypes.bias)
            if result["_bias"] is None:
                raise self._unpack_error(name, f"a bias that {dtypes.bias} can hold", "one of float32")
        return result


def is_experts_file(path: Path) -> bool:
    """Whether the packed file at `path`, if it is one, holds experts and no layer."""
    return is_packed_file(path) and PackedFile(path).meta.get("kind") == EXPERTS
