"""Experts of which each rank computes some rows of both matrices, with the bits of whole ones; without MPI.

A sum is never cut: a rank has all of K of the rows that are its own, and between the two matrices it is given
the intermediates of all others. Rows are cut between panels of 16, as which kernels compute them, because a
kernel may choose its arithmetic by what is in a panel.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from mxfp4moe import _core
from mxfp4moe._arguments import cast, value_error
from mxfp4moe._dtypes import widen
from mxfp4moe.config import active_kernels
from mxfp4moe.experts.activation_format import activation_format_code
from mxfp4moe.experts.fused import ExpertOptions, Slots
from mxfp4moe.experts.packed_experts import PackedExperts, UnpackedExperts
from mxfp4moe.experts.spec import ExpertsSpec
from mxfp4moe.formats import HALF_GROUP
from mxfp4moe.layer_sum import Floats
from mxfp4moe.linear.packed_linear import PackedLinear, run_linear
from mxfp4moe.linear.packing import pack_linear
from mxfp4moe.mpi._plan import Addends

PANEL = _core.PANEL_ROWS
"""The rows that kernels compute together."""

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class Rows(NamedTuple):
    """Some rows of a matrix."""

    weight: PackedLinear
    bias: Floats | None

    def sums(self, tokens: NDArray[Any], threads: int, activation_format: int) -> Floats:
        """The products with tokens, in float32 and without the bias."""
        result = np.empty((len(tokens), self.weight.shape[0]), np.float32)
        run_linear(self.weight, tokens, result, threads, activation_format)
        return result


class _Expert(NamedTuple):
    """The rows of a rank; None where it has none."""

    gate: Rows | None
    up: Rows | None
    down: Rows | None
    columns: NDArray[np.int32] | None


class Order(NamedTuple):
    """The slots that are not dropped, by expert: in the order of the sum."""

    token: NDArray[np.int64]
    expert: NDArray[np.int32]
    weight: Floats

    @classmethod
    def of(cls, slots: Slots) -> Order:
        """The order of the slots of some tokens."""
        weights, ids = slots
        chosen = np.argsort(ids, axis=None, kind="stable")
        chosen = chosen[int((ids < 0).sum()) :]
        token = chosen // max(ids.shape[1], 1)
        return cls(token, ids.reshape(-1)[chosen], weights.reshape(-1)[chosen])

    def experts(self) -> Iterator[tuple[int, slice]]:
        """Each expert that is there, and its slots."""
        bounds = [*np.flatnonzero(np.diff(self.expert, prepend=-1)).tolist(), len(self.expert)]
        for first, last in pairwise(bounds):
            yield int(self.expert[first]), slice(first, last)

    def addends(self) -> Addends:
        """Slots as what is added to tokens."""
        row = np.argsort(self.token, kind="stable")
        token = self.token[row]
        return Addends(token, row, np.arange(len(token)) - np.searchsorted(token, token))


class CutExperts:
    """The part of one rank of experts of which each has some rows.

    Parameters
    ----------
    experts : PackedExperts
        All of them; what the rank needs is copied.
    options : ExpertOptions
    rank, size : int
    """

    def __init__(self, experts: PackedExperts, options: ExpertOptions, rank: int, size: int) -> None:
        spec = experts.spec
        if len({_has_half_groups(spec, is_w13) for is_w13 in (True, False)}) == 2:
            # Some instruction sets compute the other matrix of such experts by the kernels of another one.
            expected = f"scales of groups of {HALF_GROUP} in both matrices or in none, where rows are cut"
            raise value_error("layer_slice", expected, f"group sizes {spec.group_sizes}")
        self.hidden_size, self.intermediate_size = experts.hidden_size, experts.intermediate_size
        self.w13_panels = _panels(self.intermediate_size, size)
        """How many panels of intermediates each rank computes."""
        self.w2_panels = _panels(self.hidden_size, size)
        """How many panels of results each rank computes."""
        self._w13 = _rows_of(self.w13_panels, rank, self.intermediate_size)
        self._w2 = _rows_of(self.w2_panels, rank, self.hidden_size)
        self._options = options
        # Integers are rounded from float32, as whole experts do.
        is_rounded = options["activation_format"] == activation_format_code(None)
        self.dtype = _BFLOAT16 if is_rounded else np.dtype(np.float32)
        places = range(experts.num_experts)
        self._experts = [
            self._cut(experts.spec, experts._select(np.array([place], np.int32)).unpack()) for place in places
        ]

    def _cut(self, spec: ExpertsSpec, arrays: UnpackedExperts) -> _Expert:
        w13, size = self._w13, self.intermediate_size
        if spec.gate_up_layout == "interleaved":
            w13_rows = [2 * w13, 2 * w13 + 1]
        else:
            w13_rows = [w13 + part * size for part in range(spec.num_w13_parts)]
        parts = [_take(spec, arrays, True, part, rows) for part, rows in enumerate(w13_rows)]
        columns = None if arrays.w13_columns is None else arrays.w13_columns[0]
        gate = parts[0] if spec.gated else None
        return _Expert(gate, parts[-1], _take(spec, arrays, False, 0, self._w2), columns)

    def intermediates(self, tokens: NDArray[Any], order: Order, out: NDArray[Any], threads: int) -> None:
        """Write the intermediates of this rank's rows to `out`, a row for each slot, zeros after them."""
        width, options = len(self._w13), self._options
        out[:, width:] = 0
        for number, part in order.experts():
            expert = self._experts[number]
            if expert.up is None:
                return
            x = tokens[order.token[part]]
            if expert.columns is not None:
                x = np.ascontiguousarray(x[:, expert.columns])
            weights, gate = order.weight[part], None
            if expert.gate is not None:
                gate = self._gate_or_up(expert.gate, x, weights, threads).reshape(-1)
            up = self._gate_or_up(expert.up, x, weights, threads)
            _core.activate(
                active_kernels(),
                gate,
                up.reshape(-1),
                up.reshape(-1),
                threads,
                activation=options["activation"],
                alpha=options["alpha"],
                limit=options["limit"],
                activation_format=options["activation_format"],
            )
            out[part, :width] = cast(up, self.dtype)

    def _gate_or_up(self, rows: Rows, tokens: NDArray[Any], weights: Floats, threads: int) -> Floats:
        sums = rows.sums(tokens, threads, self._options["activation_format"])
        if self._options["apply_router_weight_on_input"]:
            sums *= weights[:, None]
        if rows.bias is not None:
            sums += rows.bias
        return sums

    def sums(self, intermediates: NDArray[Any], order: Order, out: Floats, threads: int) -> None:
        """Write this rank's columns of the weighted sums to `out`, a row for each token, zeros after them."""
        width = len(self._w2)
        out[:, width:] = 0
        terms = np.empty((len(order.token), width), np.float32)
        for number, part in order.experts():
            down = self._experts[number].down
            if down is None:
                break
            of_expert = down.sums(intermediates[part], threads, self._options["activation_format"])
            if down.bias is not None:
                of_expert += down.bias
            if not self._options["apply_router_weight_on_input"]:
                of_expert *= order.weight[part, None]
            terms[part] = of_expert
        order.addends().add_up(terms, out[:, :width])


def _panels(num_rows: int, size: int) -> NDArray[np.int64]:
    """How many panels each rank has, as equal in number as can be."""
    return np.diff(-(-num_rows // PANEL) * np.arange(size + 1) // size)


def _rows_of(panels: NDArray[np.int64], rank: int, num_rows: int) -> NDArray[np.int64]:
    first = PANEL * int(panels[:rank].sum())
    return np.arange(first, max(first, min(num_rows, first + PANEL * int(panels[rank]))))


def _has_half_groups(spec: ExpertsSpec, is_w13: bool) -> bool:
    blocks = spec.scale_blocks(is_w13)
    return spec.weight_format(is_w13).has_groups and blocks is not None and blocks[1] == HALF_GROUP


def _take(
    spec: ExpertsSpec, arrays: UnpackedExperts, is_w13: bool, part: int, rows: NDArray[np.int64]
) -> Rows | None:
    """Some rows of a matrix of the one expert that `arrays` has; of w13, those of its part gate, or up."""
    if not len(rows):
        return None
    format, blocks, name = spec.weight_format(is_w13), spec.scale_blocks(is_w13), "w13" if is_w13 else "w2"

    def of(suffix: str) -> Any:
        array = getattr(arrays, name + suffix)
        return None if array is None else array[0]

    def some(suffix: str, index: NDArray[np.int64] = rows) -> Any:
        array = of(suffix)
        return None if array is None else np.ascontiguousarray(array[index])

    scale_rows, block_shape = rows, None
    if format.has_block_shape and blocks is not None:
        # A block of rows may be cut, so each row has its scale.
        is_halved = is_w13 and spec.gated and spec.gate_up_layout == "concatenated"
        num_rows = len(of("")) // (2 if is_halved else 1)
        block_rows = blocks[0] or num_rows
        num_blocks = -(-num_rows // block_rows)
        scale_rows = rows // num_rows * num_blocks + rows % num_rows // block_rows
        block_shape = 1, blocks[1]
    tensor_scale = of("_tensor_scale")
    weight = pack_linear(
        some(""),
        some("_scales", scale_rows),
        format=format.name,
        block_shape=block_shape,
        tensor_scale=None if tensor_scale is None else np.float32(np.reshape(tensor_scale, -1)[part]),
        zero_points=some("_zero_points", scale_rows),
        offsets=some("_offsets", scale_rows),
    )
    bias = some("_bias")
    return Rows(weight, None if bias is None else widen(bias))
