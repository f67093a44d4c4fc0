"""The peer that everybody has: NumPy, expert by expert, dequantize and multiply."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import ml_dtypes
import numpy as np

from mxfp4moe.cli._bench.problem import Batch, Shape
from mxfp4moe.formats import FORMATS, format_of
from mxfp4moe.reference import E2M1_VALUES, ExpertArrays

# Both values of a byte are looked up together, because NumPy gathers single words fastest.
_CODES = np.arange(256)
_PAIRS = np.stack([E2M1_VALUES[_CODES & 15], E2M1_VALUES[_CODES >> 4]], axis=-1).view(np.uint64).ravel()
_INT4_VALUES = np.arange(-8, 8, dtype=np.float32)
_INT4_PAIRS = (
    np.stack([_INT4_VALUES[_CODES & 15], _INT4_VALUES[_CODES >> 4]], axis=-1).view(np.uint64).ravel()
)
_E4M3_VALUES = _CODES.astype(np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
_INT8_VALUES = _CODES.astype(np.uint8).view(np.int8).astype(np.float32)
_VALUES = {
    "mxfp4": _PAIRS,
    "nvfp4": _PAIRS,
    "mxfp8": _E4M3_VALUES,
    "fp8_block": _E4M3_VALUES,
    "int4": _INT4_PAIRS,
    "int8": _INT8_VALUES,
}


class NumpyPeer:
    """A loop over the experts that were chosen: weights to float32, two matrix products."""

    name = "numpy"
    formats: tuple[str, ...] = tuple(FORMATS)
    isa: str | None = None
    copies = 0.0

    def __init__(self, shape: Shape, arrays: ExpertArrays, num_threads: int) -> None:
        self._shape, self._arrays, self._num_threads = shape, arrays, num_threads
        if shape.activation not in ("silu", "swigluoai"):
            raise ValueError(f"numpy: expected the activation silu or swigluoai, got {shape.activation}")

    @staticmethod
    def missing() -> str:
        """NumPy is always there."""
        return ""

    def prepare(self, batch: Batch) -> Callable[[], np.ndarray]:
        """Hidden states as float32, which NumPy's matrix product needs to be fast."""
        hidden = batch.hidden_states.astype(np.float32)

        def call() -> np.ndarray:
            with self._blas_threads():
                return self._compute(hidden, batch.topk_weights, batch.topk_ids)

        return call

    def _compute(self, hidden: np.ndarray, weights: np.ndarray, ids: np.ndarray) -> np.ndarray:
        arrays = self._arrays
        result = np.zeros_like(hidden)
        for expert in np.unique(ids):
            tokens, slots = np.nonzero(ids == expert)
            gate_up = hidden[tokens] @ _dequantize(arrays, "w13", expert).T
            if arrays.w13_bias is not None:
                gate_up += arrays.w13_bias[expert]
            inner = self._activate(gate_up[:, 0::2], gate_up[:, 1::2])
            down = inner @ _dequantize(arrays, "w2", expert).T
            if arrays.w2_bias is not None:
                down += arrays.w2_bias[expert]
            result[tokens] += weights[tokens, slots, None] * down
        return result

    def _activate(self, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
        limit = self._shape.limit
        if limit is not None:
            gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
        alpha, beta = (1.702, 1) if self._shape.activation == "swigluoai" else (1, 0)
        with np.errstate(over="ignore"):
            activated: np.ndarray = gate / (1 + np.exp(-alpha * gate)) * (up + beta)
        return activated

    def _blas_threads(self) -> AbstractContextManager[Any]:
        # Without threadpoolctl the BLAS uses as many threads as it likes.
        if importlib.util.find_spec("threadpoolctl") is None:
            return nullcontext()
        limits: AbstractContextManager[Any] = importlib.import_module("threadpoolctl").threadpool_limits(
            self._num_threads
        )
        return limits


def _dequantize(arrays: ExpertArrays, matrix: str, expert: int) -> np.ndarray:
    """The weights of one matrix of one expert as float32."""
    codes = getattr(arrays, matrix)[expert]
    name = format_of(arrays.format, matrix)
    spec = FORMATS[name]
    if not spec.has_scales:
        plain: np.ndarray = codes.astype(np.float32)
        return plain
    values: np.ndarray = _VALUES[name][codes.view(np.uint8)].view(np.float32)
    rows, k = values.shape
    scales, block_k = _row_scales(arrays, matrix, expert, values.shape)
    block_k = block_k or k
    whole = k // block_k  # blocks; the last one may be shorter
    blocks = values[:, : whole * block_k].reshape(rows, whole, block_k)
    blocks *= scales[:, :whole, None]
    values[:, whole * block_k :] *= scales[:, whole:]
    return values


def _row_scales(
    arrays: ExpertArrays, matrix: str, expert: int, shape: tuple[int, int]
) -> tuple[np.ndarray, int | None]:
    """The float32 scales of each row, and how many columns have the same one."""
    spec, rows = FORMATS[format_of(arrays.format, matrix)], shape[0]
    scales = getattr(arrays, f"{matrix}_scales")[expert]
    if spec.has_groups:
        return scales.astype(np.float32), shape[1] // scales.shape[1]
    if spec.has_block_shape:
        block_rows, block_k = arrays.block_shape or (None, None)
        return scales.repeat(block_rows or rows, axis=0)[:rows], block_k
    if not spec.has_tensor_scale:
        return np.ldexp(np.float32(1), scales.astype(np.int32) - 127), spec.scale_block
    per_tensor = np.atleast_1d(getattr(arrays, f"{matrix}_tensor_scale")[expert])
    by_row = np.tile(per_tensor, rows // len(per_tensor))  # gate and up rows alternate
    return _E4M3_VALUES[scales.view(np.uint8)] * by_row[:, None], spec.scale_block
