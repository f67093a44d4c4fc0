"""Checkpoints with random weights: one layer of gpt-oss, and what writes a folder of any model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from mxfp4moe.checkpoint.safetensors import SafetensorsWriter

_PIECE = 16 << 20  # numbers made and written at a time
_U8 = np.dtype(np.uint8)
_BF16 = np.dtype(ml_dtypes.bfloat16)

Fill: TypeAlias = Callable[[np.random.Generator, int], NDArray[Any]]
"""Draws so many numbers of a tensor."""


@dataclass(frozen=True)
class Tensor:
    """A tensor that is not yet drawn."""

    dtype: np.dtype[Any]
    sizes: tuple[int, ...]
    fill: Fill

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return self.dtype.itemsize * math.prod(self.sizes)

    def with_sizes(self, *sizes: int) -> Tensor:
        """The same numbers along other axes."""
        return replace(self, sizes=sizes)

    def pieces(self, rng: np.random.Generator) -> Iterator[NDArray[Any]]:
        """The numbers, a piece at a time."""
        total = math.prod(self.sizes)
        for begin in range(0, total, _PIECE):
            yield self.fill(rng, min(_PIECE, total - begin))


def normal(*sizes: int, deviation: float, mean: float = 0.0) -> Tensor:
    """Return a bfloat16 tensor of normal numbers."""

    def fill(rng: np.random.Generator, count: int) -> NDArray[Any]:
        return (mean + np.float32(deviation) * rng.standard_normal(count, dtype=np.float32)).astype(_BF16)

    return Tensor(_BF16, sizes, fill)


def mxfp4(*sizes: int) -> tuple[Tensor, Tensor]:
    """Codes, with axes of blocks, and scales of MXFP4 weights [..., N, K] that give sums of order 1."""
    *rows, columns = sizes
    middle = middle_scale(columns)

    def codes(rng: np.random.Generator, count: int) -> NDArray[Any]:
        words = rng.integers(0, 2**64, size=-(-count // 8), dtype=np.uint64)
        return words.view(np.uint8)[:count]

    def scales(rng: np.random.Generator, count: int) -> NDArray[Any]:
        return rng.integers(middle - 1, middle + 2, size=count, dtype=np.uint8)

    blocks = (*rows, columns // 32)
    return Tensor(_U8, (*blocks, 16), codes), Tensor(_U8, blocks, scales)


class Model(Protocol):
    """What a synthetic checkpoint is of."""

    @property
    def config(self) -> dict[str, Any]:
        """The contents of config.json."""

    @property
    def shards(self) -> list[dict[str, Tensor]]:
        """The tensors of each file."""


class SyntheticCheckpoint:
    """A checkpoint that is not yet written; `nbytes` is the size of its tensors."""

    def __init__(self, model: Model, seed: int) -> None:
        self._config, self._shards = model.config, model.shards
        self._rng = np.random.default_rng(seed)
        self.nbytes = sum(tensor.nbytes for shard in self._shards for tensor in shard.values())

    def write(self, folder: Path, advance: Callable[[int], None]) -> None:
        """Write the files into `folder`; `advance` is told how many bytes have been written."""
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(self._shards, start=1):
            file_name = f"model-{number:05d}-of-{len(self._shards):05d}.safetensors"
            specs = {name: (tensor.dtype, tensor.sizes) for name, tensor in shard.items()}
            with SafetensorsWriter(folder / file_name, specs, {"format": "pt"}) as writer:
                for name, tensor in shard.items():
                    weight_map[name] = file_name
                    for piece in tensor.pieces(self._rng):
                        writer.write(name, piece)
                        advance(piece.nbytes)
        index = {"metadata": {"total_size": self.nbytes}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
        (folder / "config.json").write_text(json.dumps(self._config, indent=2))


@dataclass(frozen=True)
class GptOssShape:
    """One layer of gpt-oss without its attention; the sizes of gpt-oss-20b by default."""

    hidden_size: int = 2880
    intermediate_size: int = 2880
    num_experts: int = 32
    top_k: int = 4

    def __post_init__(self) -> None:
        for name in ("hidden_size", "intermediate_size"):
            size = getattr(self, name)
            if size % 32:
                raise ValueError(f"{name}: expected a multiple of 32, got {size}")
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k: expected at most num_experts = {self.num_experts}, got {self.top_k}")

    @property
    def config(self) -> dict[str, Any]:
        """The fields that the layer needs."""
        return {
            "architectures": ["GptOssForCausalLM"],
            "model_type": "gpt_oss",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": 1,
            "num_local_experts": self.num_experts,
            "num_experts_per_tok": self.top_k,
            "experts_per_token": self.top_k,
            "hidden_act": "silu",
            "swiglu_limit": 7.0,
            "quantization_config": {"quant_method": "mxfp4"},
        }

    @property
    def shards(self) -> list[dict[str, Tensor]]:
        """The first matrix in a file, the rest in another one."""
        gate_up, others = self.block_tensors("model.layers.0.mlp.")
        return [dict(gate_up), dict(others)]

    def block_tensors(self, prefix: str) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """The tensors of the first matrix of a block, and all others."""
        experts, hidden, intermediate = self.num_experts, self.hidden_size, self.intermediate_size

        def matrix(name: str, rows: int, columns: int) -> dict[str, Tensor]:
            blocks, scales = mxfp4(experts, rows, columns)
            return {
                f"{prefix}experts.{name}_blocks": blocks,
                f"{prefix}experts.{name}_scales": scales,
                f"{prefix}experts.{name}_bias": normal(experts, rows, deviation=0.1),
            }

        # Logits are of order 1, so that the router weights of a token differ.
        router = {
            f"{prefix}router.weight": normal(experts, hidden, deviation=hidden**-0.5),
            f"{prefix}router.bias": normal(experts, deviation=0.1),
        }
        return matrix("gate_up_proj", 2 * intermediate, hidden), matrix(
            "down_proj", hidden, intermediate
        ) | router


def weight_rms(num_columns: int) -> float:
    """Root mean square of random weights that give sums of order 1.

    1.6 takes the sums into the curved part of the activation and now and then to its clamp.
    """
    return 1.6 / math.sqrt(num_columns)


def middle_scale(num_columns: int, code_rms: float = 2.93) -> int:
    """The scale byte around which random codes give sums of order 1.

    The root mean square of a random E2M1 code is 2.93, that of scales of one power of two less, none and one
    more is 1.32.
    """
    return 127 + round(math.log2(weight_rms(num_columns) / (1.32 * code_rms)))
