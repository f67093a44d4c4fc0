"""What expert weights can become: the tensors of one matrix and the entry of config.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from mxfp4moe import quantize

Spec = tuple[np.dtype[Any], tuple[int, ...]]
Arrays = dict[str, "NDArray[Any]"]

_U8 = np.dtype(np.uint8)
_BLOCK = 32
_FP8_BLOCK = (128, 128)
_EXPERTS = r"re:.*\.(shared_)?experts\.\d+\.(gate_proj|up_proj|down_proj|w1|w2|w3)$"


class Matrices(Protocol):
    """What a matrix of shape (rows, k) becomes; tensors are named by what follows the name of the matrix."""

    def specs(self, rows: int, k: int) -> dict[str, Spec]:
        """Dtype and shape of each tensor, by suffix, in the order of the file."""

    def quantize(self, w: NDArray[Any]) -> Arrays:
        """The tensors, by suffix."""


class Target(Matrices, Protocol):
    """How matrices are quantized."""

    def config(self, unquantized: Sequence[str]) -> dict[str, Any]:
        """The ``quantization_config`` of a model whose modules `unquantized` stay as they are."""


@dataclass(frozen=True)
class Mxfp4:
    """MXFP4 as the compressed-tensors library stores it, format mxfp4-pack-quantized."""

    scale_rule: Any

    def specs(self, rows: int, k: int) -> dict[str, Spec]:
        if k % _BLOCK:
            raise ValueError(f"expected rows of a multiple of {_BLOCK} weights, got {k}")
        return {".weight_packed": (_U8, (rows, k // 2)), ".weight_scale": (_U8, (rows, k // _BLOCK))}

    def quantize(self, w: NDArray[Any]) -> Arrays:
        blocks, scales = quantize.quantize_mxfp4(w, scale_rule=self.scale_rule)
        return {".weight_packed": blocks, ".weight_scale": scales.view(np.uint8)}

    def config(self, unquantized: Sequence[str]) -> dict[str, Any]:
        weights = {
            "num_bits": 4,
            "type": "float",
            "symmetric": True,
            "group_size": _BLOCK,
            "strategy": "group",
            "dynamic": False,
            "scale_dtype": "torch.uint8",
        }
        name = "mxfp4-pack-quantized"
        group: dict[str, Any] = {"targets": [_EXPERTS], "weights": weights, "format": name}
        group |= {"input_activations": None, "output_activations": None}
        return {
            "quant_method": "compressed-tensors",
            "format": name,
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": list(unquantized),
            "kv_cache_scheme": None,
            "global_compression_ratio": None,
        }


@dataclass(frozen=True)
class GptOssMxfp4:
    """MXFP4 as in the gpt-oss checkpoints: blocks of 16 bytes along an axis of their own."""

    scale_rule: Any

    def specs(self, rows: int, k: int) -> dict[str, Spec]:
        if k % _BLOCK:
            raise ValueError(f"expected rows of a multiple of {_BLOCK} weights, got {k}")
        blocks = (rows, k // _BLOCK, _BLOCK // 2)
        return {"_blocks": (_U8, blocks), "_scales": (_U8, blocks[:2])}

    def quantize(self, w: NDArray[Any]) -> Arrays:
        blocks, scales = quantize.quantize_mxfp4(w, scale_rule=self.scale_rule)
        return {"_blocks": blocks.reshape(*scales.shape, -1), "_scales": scales.view(np.uint8)}

    def config(self, unquantized: Sequence[str]) -> dict[str, Any]:
        return {"quant_method": "mxfp4", "modules_to_not_convert": list(unquantized)}


@dataclass(frozen=True)
class Fp8Block:
    """FP8 with a float32 scale for each 128 x 128 block, as in the DeepSeek-V3 checkpoints."""

    def specs(self, rows: int, k: int) -> dict[str, Spec]:
        scales = (-(-rows // _FP8_BLOCK[0]), -(-k // _FP8_BLOCK[1]))
        return {
            ".weight": (np.dtype(ml_dtypes.float8_e4m3fn), (rows, k)),
            ".weight_scale_inv": (np.dtype(np.float32), scales),
        }

    def quantize(self, w: NDArray[Any]) -> Arrays:
        values, scales = quantize.quantize_fp8_block(w, block_shape=_FP8_BLOCK)
        return {".weight": values, ".weight_scale_inv": scales}

    def config(self, unquantized: Sequence[str]) -> dict[str, Any]:
        return {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": list(_FP8_BLOCK),
            "modules_to_not_convert": list(unquantized),
        }


@dataclass(frozen=True)
class Floats:
    """What is not quantized, where one tensor becomes several."""

    dtype: np.dtype[Any]

    def specs(self, rows: int, k: int) -> dict[str, Spec]:
        return {".weight": (self.dtype, (rows, k))}

    def quantize(self, w: NDArray[Any]) -> Arrays:
        return {".weight": w}
