"""What expert weights can become: the tensors of one matrix and the entry of config.json."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from mxfp4moe import quantize

Spec = tuple[np.dtype[Any], tuple[int, ...]]
Arrays = dict[str, "NDArray[Any]"]

_U8, _I32, _I64, _F32 = map(np.dtype, (np.uint8, np.int32, np.int64, np.float32))
_E4M3, _BF16 = np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.bfloat16)
_BLOCK, _NVFP4_BLOCK = 32, 16
_FP8_BLOCK = (128, 128)
_EXPERTS = r"re:.*\.(shared_)?experts\.\d+\.(gate_proj|up_proj|down_proj|w1|w2|w3)$"


class Matrices(Protocol):
    """What a matrix of shape (rows, k) becomes; tensors are named by what follows the name of the matrix."""

    def specs(self, rows: int, k: int) -> dict[str, Spec]:
        """Dtype and shape of each tensor, by suffix, in the order of the file."""

    def quantize(self, w: NDArray[Any], *others: NDArray[Any]) -> Arrays:
        """The tensors, by suffix; `others` are the matrices whose outputs are computed in one with w's."""


class Target(Matrices, Protocol):
    """How matrices are quantized."""

    def config(self, unquantized: Sequence[str]) -> dict[str, Any]:
        """The ``quantization_config`` of a model whose modules `unquantized` stay as they are."""


# --- compressed-tensors -------------------------------------------------------------------------------------


def _check_columns(k: int, multiple_of: int) -> None:
    if k % multiple_of:
        raise ValueError(f"expected rows of a multiple of {multiple_of} weights, got {k}")


@dataclass(frozen=True)
class _Compressed(ABC):
    """A format of the compressed-tensors library."""

    name: ClassVar[str]

    @property
    @abstractmethod
    def weights(self) -> dict[str, Any]:
        """What is said about the weights, beside that they are symmetric and rounded once and for all."""

    def config(self, unquantized: Sequence[str]) -> dict[str, Any]:
        weights = {**self.weights, "symmetric": True, "dynamic": False}
        group: dict[str, Any] = {"targets": [_EXPERTS], "weights": weights, "format": self.name}
        group |= {"input_activations": None, "output_activations": None}
        return {
            "quant_method": "compressed-tensors",
            "format": self.name,
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": list(unquantized),
            "kv_cache_scheme": None,
            "global_compression_ratio": None,
        }


_OF_BLOCKS = {"type": "float", "group_size": _BLOCK, "strategy": "group", "scale_dtype": "torch.uint8"}


@dataclass(frozen=True)
class Mxfp4(_Compressed):
    """MXFP4: two codes a byte, and bytes of E8M0."""

    scale_rule: Any = "floor"
    name: ClassVar[str] = "mxfp4-pack-quantized"

    @property
    def weights(self) -> dict[str, Any]:
        return {"num_bits": 4, **_OF_BLOCKS}

    def specs(self, rows: int, k: int) -> dict[str, Spec]:
        _check_columns(k, _BLOCK)
        return {".weight_packed": (_U8, (rows, k // 2)), ".weight_scale": (_U8, (rows, k // _BLOCK))}

    def quantize(self, w: NDArray[Any], *others: NDArray[Any]) -> Arrays:
        blocks, scales = quantize.quantize_mxfp4(w, scale_rule=self.scale_rule)
        return {".weight_packed": blocks, ".weight_scale": scales.view(np.uint8)}


@dataclass(frozen=True)
class Mxfp8(_Compressed):
    """MXFP8: E4M3, and bytes of E8M0."""

    scale_rule: Any = "floor"
    name: ClassVar[str] = "mxfp8-quantized"

    @property
    def weights(self) -> dict[str, Any]:
        return {"num_bits": 8, **_OF_BLOCKS}

    def specs(self, rows: int, k: int) -> dict[str, Spec]:
        _check_columns(k, _BLOCK)
        return {".weight": (_E4M3, (rows, k)), ".weight_scale": (_U8, (rows, k // _BLOCK))}

    def quantize(self, w: NDArray[Any], *others: NDArray[Any]) -> Arrays:
        values, scales = quantize.quantize_mxfp8(w, scale_rule=self.scale_rule)
        return {".weight": values, ".weight_scale": scales.view(np.uint8)}


@dataclass(frozen=True)
class Nvfp4(_Compressed):
    """NVFP4: two codes a byte, scales in E4M3, and the reciprocal of the scale of the matrix."""

    name: ClassVar[str] = "nvfp4-pack-quantized"

    @property
    def weights(self) -> dict[str, Any]:
        of_blocks = {"group_size": _NVFP4_BLOCK, "strategy": "tensor_group"}
        dtypes = dict.fromkeys(("scale_dtype", "zp_dtype"), "torch.float8_e4m3fn")
        return {"num_bits": 4, "type": "float", **of_blocks, **dtypes}

    def specs(self, rows: int, k: int) -> dict[str, Spec]:
        _check_columns(k, _NVFP4_BLOCK)
        return {
            ".weight_packed": (_U8, (rows, k // 2)),
            ".weight_scale": (_E4M3, (rows, k // _NVFP4_BLOCK)),
            ".weight_global_scale": (_F32, (1,)),
        }

    def quantize(self, w: NDArray[Any], *others: NDArray[Any]) -> Arrays:
        """All of them get the largest of their scales, because other software has one for gate and up."""
        found = [quantize.quantize_nvfp4(w), *(quantize.quantize_nvfp4(m, nonfinite="nan") for m in others)]
        own_scale = found[0][2]
        # The scale of a matrix of zeros is arbitrary, so it does not count.
        largest = max((scale for _, codes, scale in found if codes.view(np.uint8).any()), default=own_scale)
        reciprocal = np.float32(1) / largest
        # One in six float32 numbers is not the reciprocal of its reciprocal, which is all that readers have.
        tensor_scale = np.float32(1) / reciprocal
        blocks, scales, _ = found[0]
        if tensor_scale != own_scale:
            blocks, scales, _ = quantize.quantize_nvfp4(w, tensor_scale=tensor_scale)
        global_scale = np.array([reciprocal], np.float32)
        return {".weight_packed": blocks, ".weight_scale": scales, ".weight_global_scale": global_scale}


@dataclass(frozen=True)
class Integers(_Compressed):
    """Symmetric integers in words of 32 bits, which hold the codes without a sign."""

    bits: int
    group_size: int | None = 32
    """None: the whole row."""
    name: ClassVar[str] = "pack-quantized"

    def specs(self, rows: int, k: int) -> dict[str, Spec]:
        _check_columns(k, self.group_size or 32 // self.bits)
        return {
            ".weight_packed": (_I32, (rows, k * self.bits // 32)),
            ".weight_scale": (_BF16, (rows, k // (self.group_size or k))),
            ".weight_shape": (_I64, (2,)),
        }

    def quantize(self, w: NDArray[Any], *others: NDArray[Any]) -> Arrays:
        quantizer = quantize.quantize_int4 if self.bits == 4 else quantize.quantize_int8
        codes, scales, _ = quantizer(w, group_size=self.group_size)
        unsigned = codes if self.bits == 4 else codes.view(np.uint8) ^ np.uint8(0x80)
        return {
            ".weight_packed": unsigned.view(_I32),
            ".weight_scale": scales.astype(_BF16),  # which is exact
            ".weight_shape": np.array(w.shape, np.int64),
        }

    @property
    def weights(self) -> dict[str, Any]:
        strategy = "channel" if self.group_size is None else "group"
        return {"num_bits": self.bits, "type": "int", "group_size": self.group_size, "strategy": strategy}


# --- other layouts ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GptOssMxfp4:
    """MXFP4 as in the gpt-oss checkpoints: blocks of 16 bytes along an axis of their own."""

    scale_rule: Any = "floor"

    def specs(self, rows: int, k: int) -> dict[str, Spec]:
        _check_columns(k, _BLOCK)
        blocks = (rows, k // _BLOCK, _BLOCK // 2)
        return {"_blocks": (_U8, blocks), "_scales": (_U8, blocks[:2])}

    def quantize(self, w: NDArray[Any], *others: NDArray[Any]) -> Arrays:
        blocks, scales = quantize.quantize_mxfp4(w, scale_rule=self.scale_rule)
        return {"_blocks": blocks.reshape(*scales.shape, -1), "_scales": scales.view(np.uint8)}

    def config(self, unquantized: Sequence[str]) -> dict[str, Any]:
        return {"quant_method": "mxfp4", "modules_to_not_convert": list(unquantized)}


@dataclass(frozen=True)
class Fp8Block:
    """FP8 with a float32 scale for each 128 x 128 block, as in the DeepSeek-V3 checkpoints."""

    def specs(self, rows: int, k: int) -> dict[str, Spec]:
        scales = (-(-rows // _FP8_BLOCK[0]), -(-k // _FP8_BLOCK[1]))
        return {".weight": (_E4M3, (rows, k)), ".weight_scale_inv": (_F32, scales)}

    def quantize(self, w: NDArray[Any], *others: NDArray[Any]) -> Arrays:
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


# --- what is not quantized, where one tensor becomes several ------------------------------------------------


@dataclass(frozen=True)
class Floats:
    """Matrices that stay floats, with a tensor for each."""

    dtype: np.dtype[Any]

    def specs(self, rows: int, k: int) -> dict[str, Spec]:
        return {".weight": (self.dtype, (rows, k))}

    def quantize(self, w: NDArray[Any], *others: NDArray[Any]) -> Arrays:
        return {".weight": w}


@dataclass(frozen=True)
class Biases:
    """A number for each row of a matrix."""

    dtype: np.dtype[Any]

    def specs(self, rows: int, k: int) -> dict[str, Spec]:
        return {".bias": (self.dtype, (rows,))}

    def quantize(self, w: NDArray[Any], *others: NDArray[Any]) -> Arrays:
        return {".bias": w}
