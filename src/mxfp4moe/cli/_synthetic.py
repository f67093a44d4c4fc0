"""A checkpoint with the layout of gpt-oss and random weights."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from mxfp4moe.checkpoint.safetensors import SafetensorsWriter

_PIECE = 16 << 20  # bytes made and written at a time
_PREFIX = "model.layers.0.mlp"
_U8 = np.dtype(np.uint8)
_BF16 = np.dtype(ml_dtypes.bfloat16)

Spec = tuple[np.dtype[Any], tuple[int, ...]]


@dataclass(frozen=True)
class GptOssShape:
    """The sizes of one layer; those of gpt-oss-20b by default."""

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


class SyntheticCheckpoint:
    """A one-layer gpt-oss checkpoint that is not yet written; `nbytes` is the size of its tensors."""

    def __init__(self, shape: GptOssShape, seed: int) -> None:
        self._shape = shape
        self._rng = np.random.default_rng(seed)
        self._shards = _shards(shape)
        specs = [spec for shard in self._shards for spec in shard.values()]
        self.nbytes = sum(dtype.itemsize * math.prod(sizes) for dtype, sizes in specs)

    def write(self, folder: Path, advance: Callable[[int], None]) -> None:
        """Write the files into `folder`; `advance` is told how many bytes have been written."""
        weight_map: dict[str, str] = {}
        for number, specs in enumerate(self._shards, start=1):
            file_name = f"model-{number:05d}-of-{len(self._shards):05d}.safetensors"
            with SafetensorsWriter(folder / file_name, specs, {"format": "pt"}) as writer:
                for name, spec in specs.items():
                    weight_map[name] = file_name
                    for piece in self._pieces(name, *spec):
                        writer.write(name, piece)
                        advance(piece.nbytes)
        index = {"metadata": {"total_size": self.nbytes}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
        (folder / "config.json").write_text(json.dumps(_config(self._shape), indent=2))

    def _pieces(self, name: str, dtype: np.dtype[Any], sizes: tuple[int, ...]) -> Iterator[NDArray[Any]]:
        shape, total = self._shape, math.prod(sizes)
        if dtype == _BF16:
            # Logits of order 1, so that the router weights of a token differ; small biases.
            deviation = shape.hidden_size**-0.5 if name.endswith("router.weight") else 0.1
            yield (deviation * self._rng.standard_normal(total, dtype=np.float32)).astype(_BF16)
            return
        middle = middle_scale(shape.hidden_size if "gate_up" in name else shape.intermediate_size)
        for begin in range(0, total, _PIECE):
            count = min(_PIECE, total - begin)
            if name.endswith("_scales"):
                yield self._rng.integers(middle - 1, middle + 2, size=count, dtype=np.uint8)
            else:
                words = self._rng.integers(0, 2**64, size=-(-count // 8), dtype=np.uint64)
                yield words.view(np.uint8)[:count]


def _shards(shape: GptOssShape) -> list[dict[str, Spec]]:
    """The tensors of each file."""
    experts, hidden, intermediate = shape.num_experts, shape.hidden_size, shape.intermediate_size

    def matrix(name: str, rows: int, columns: int) -> dict[str, Spec]:
        prefix = f"{_PREFIX}.experts.{name}"
        return {
            f"{prefix}_blocks": (_U8, (experts, rows, columns // 32, 16)),
            f"{prefix}_scales": (_U8, (experts, rows, columns // 32)),
            f"{prefix}_bias": (_BF16, (experts, rows)),
        }

    router: dict[str, Spec] = {
        f"{_PREFIX}.router.weight": (_BF16, (experts, hidden)),
        f"{_PREFIX}.router.bias": (_BF16, (experts,)),
    }
    return [
        matrix("gate_up_proj", 2 * intermediate, hidden),
        matrix("down_proj", hidden, intermediate) | router,
    ]


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


def _config(shape: GptOssShape) -> dict[str, Any]:
    return {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": 1,
        "num_local_experts": shape.num_experts,
        "num_experts_per_tok": shape.top_k,
        "experts_per_token": shape.top_k,
        "hidden_act": "silu",
        "swiglu_limit": 7.0,
        "quantization_config": {"quant_method": "mxfp4"},
    }
