"""Layer shapes, random weights and random routing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import ml_dtypes
import numpy as np

from mxfp4moe.cli._bench.weights import MatrixSizes, random_matrix
from mxfp4moe.experts import PackedExperts, pack_experts
from mxfp4moe.experts.spec import BlockShape
from mxfp4moe.formats import BFLOAT16, FORMATS, GROUP_MULTIPLE, Format
from mxfp4moe.reference import ExpertArrays
from mxfp4moe.routing import topk_softmax

ROUTINGS = ("uniform", "zipf", "hot")
_BLOCK_SHAPE = (128, 128)
_HOT_LEAD = 1e3  # what the hot expert's score is ahead, too much for noise to reach


@dataclass(frozen=True)
class Shape:
    """One mixture-of-experts layer."""

    name: str
    hidden_size: int
    intermediate_size: int
    num_experts: int
    top_k: int
    activation: str = "silu"
    limit: float | None = None
    has_bias: bool = False
    format: Format = "mxfp4"
    group_size: int | None = GROUP_MULTIPLE  # of int4 and int8; None: the whole row

    def __post_init__(self) -> None:
        multiple = FORMATS[self.format].k_multiple
        for name in ("hidden_size", "intermediate_size"):
            size = getattr(self, name)
            if size % multiple:
                raise ValueError(f"{name}: expected a multiple of {multiple} in {self.format}, got {size}")
            if FORMATS[self.format].has_groups and self.group_size is not None and size % self.group_size:
                expected = f"one that divides {name} {size}"
                raise ValueError(f"group_size: expected {expected}, got {self.group_size}")
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k: expected at most num_experts = {self.num_experts}, got {self.top_k}")

    @property
    def title(self) -> str:
        """Name and format."""
        groups = ""
        if FORMATS[self.format].has_groups:
            groups = f" in groups of {self.group_size or 'a whole row'}"
        return f"{self.name}, {self.format}{groups}"

    @property
    def block_shape(self) -> BlockShape | None:
        """Rows and columns of a scale of sums."""
        format = FORMATS[self.format]
        return (1, self.group_size) if format.has_groups else _BLOCK_SHAPE if format.has_block_shape else None

    @property
    def expert_weights(self) -> int:
        """Number of weights of one expert."""
        return 3 * self.hidden_size * self.intermediate_size

    @property
    def expert_bytes(self) -> int:
        """Bytes of the weights and scales of one expert."""
        format, sizes = FORMATS[self.format], (self.hidden_size, self.intermediate_size)
        scales = self.block_shape, (BFLOAT16 if format.has_groups else np.dtype(np.float32)).itemsize
        return 2 * format.nbytes(*sizes[::-1], *scales) + format.nbytes(*sizes, *scales)

    def flops(self, num_tokens: int) -> float:
        """Operations of a call."""
        return 2.0 * num_tokens * self.top_k * self.expert_weights


_GPT_OSS = Shape("gpt-oss-20b", 2880, 2880, 32, 4, "swigluoai", limit=7.0, has_bias=True)
_QWEN3 = Shape("qwen3-30b-a3b", 2048, 768, 128, 8)
_MODELS = (
    _GPT_OSS,
    replace(_GPT_OSS, name="gpt-oss-120b", num_experts=128),
    _QWEN3,
    replace(_QWEN3, name="qwen3-30b-a3b-fp8", format="fp8_block"),
    Shape("deepseek-v4-flash", 4096, 2048, 256, 6, limit=10.0),
    Shape("mixtral-8x7b", 4096, 14336, 8, 2),
)
SHAPES = {shape.name: shape for shape in _MODELS}
ALIASES = {
    "g": "gpt-oss-20b",
    "q": "qwen3-30b-a3b",
    "qwen3-30b": "qwen3-30b-a3b",
    "f": "qwen3-30b-a3b-fp8",
    "qwen3-30b-fp8": "qwen3-30b-a3b-fp8",
    "mixtral": "mixtral-8x7b",
}
"""Other names of shapes that the command takes, in lower case."""


def random_arrays(shape: Shape, rng: np.random.Generator) -> ExpertArrays:
    """Random weights in their checkpoint layout, gate and up rows interleaved; results are of order 1."""
    hidden, intermediate, experts = shape.hidden_size, shape.intermediate_size, shape.num_experts
    format, blocks = FORMATS[shape.format], shape.block_shape
    w13 = random_matrix(format, blocks, MatrixSizes(experts, 2 * intermediate, hidden), rng)
    w2 = random_matrix(format, blocks, MatrixSizes(experts, hidden, intermediate), rng)

    def bias(rows: int) -> np.ndarray | None:
        return 0.1 * rng.standard_normal((experts, rows), np.float32) if shape.has_bias else None

    return ExpertArrays(
        w13.weights,
        w13.scales,
        w2.weights,
        w2.scales,
        bias(2 * intermediate),
        bias(hidden),
        "interleaved",
        shape.format,
        blocks if format.has_block_shape else None,
        None if w13.tensor_scale is None else np.repeat(w13.tensor_scale[:, None], 2, axis=1),
        w2.tensor_scale,
    )


def pack(shape: Shape, arrays: ExpertArrays) -> PackedExperts:
    """The packed form of `arrays`."""
    return pack_experts(
        arrays.w13,
        arrays.w13_scales,
        arrays.w2,
        arrays.w2_scales,
        format=shape.format,
        w13_bias=arrays.w13_bias,
        w2_bias=arrays.w2_bias,
        gate_up_layout=arrays.gate_up_layout,
        block_shape=arrays.block_shape,
        w13_tensor_scale=arrays.w13_tensor_scale,
        w2_tensor_scale=arrays.w2_tensor_scale,
    )


class Batch(NamedTuple):
    """What a call computes."""

    hidden_states: np.ndarray
    topk_weights: np.ndarray
    topk_ids: np.ndarray


class Router:
    """Draws which experts the tokens choose.

    uniform: all alike. zipf: the chance of the r-th most popular expert is proportional to 1 / r. hot: every
    token chooses one and the same expert, the other slots are uniform. A token's experts are distinct.
    """

    def __init__(self, shape: Shape, routing: str, rng: np.random.Generator) -> None:
        self._shape, self._rng = shape, rng
        rank = 1 + rng.permutation(shape.num_experts)
        self._scores = {
            "uniform": np.zeros(shape.num_experts),
            "zipf": -np.log(rank),
            "hot": np.where(rank == 1, _HOT_LEAD, 0.0),
        }[routing]

    def hidden_states(self, num_tokens: int) -> np.ndarray:
        """bfloat16 of order 1."""
        values = self._rng.standard_normal((num_tokens, self._shape.hidden_size), np.float32)
        return values.astype(ml_dtypes.bfloat16)

    def draw(self, hidden_states: np.ndarray) -> Batch:
        """Route the tokens anew."""
        sizes = len(hidden_states), self._shape.num_experts
        # The largest of log p + Gumbel noise are a draw without replacement with chances p.
        scores = (self._scores + self._rng.gumbel(size=sizes)).astype(np.float32)
        _, ids = topk_softmax(scores, self._shape.top_k)
        logits = self._rng.standard_normal((len(hidden_states), self._shape.top_k), np.float32)
        weights, _ = topk_softmax(logits, self._shape.top_k)
        return Batch(hidden_states, weights, ids)
