"""Fused mixture-of-experts from 4-bit and 8-bit weights on CPUs, for NumPy."""

__version__ = "0.1.0"

import typing as _typing

from mxfp4moe import _startup  # noqa: F401  # before all that may fail or take long
from mxfp4moe._embedding import get_include
from mxfp4moe.config import (
    active_isa,
    available_isas,
    get_num_threads,
    num_threads,
    set_num_threads,
    show_config,
    supported_isas,
    use_isa,
)
from mxfp4moe.errors import IsaError, PackedFormatError
from mxfp4moe.experts import (
    ExpertCache,
    PackedExperts,
    UnpackedExperts,
    fused_experts,
    fused_moe,
    pack_experts,
)
from mxfp4moe.layer import MoELayer
from mxfp4moe.linear import PackedLinear, UnpackedLinear, pack_linear
from mxfp4moe.linear.rms_norm import rms_norm
from mxfp4moe.loading import load_layers
from mxfp4moe.quantize import (
    dequantize_fp8_block,
    dequantize_int4,
    dequantize_int8,
    dequantize_mxfp4,
    dequantize_mxfp8,
    dequantize_nvfp4,
    pack_e2m1,
    quantize_fp8_block,
    quantize_int4,
    quantize_int8,
    quantize_mxfp4,
    quantize_mxfp8,
    quantize_nvfp4,
    unpack_e2m1,
)
from mxfp4moe.routing import (
    grouped_topk,
    hash_topk,
    select_experts,
    sparsemixer,
    topk_sigmoid,
    topk_softmax,
    topk_sqrt_softplus,
)
from mxfp4moe.self_attention import KVCache, RotaryEmbedding, YarnScaling, attention

if _typing.TYPE_CHECKING:
    from mxfp4moe import checkpoint as checkpoint
    from mxfp4moe import jax as jax
    from mxfp4moe import mpi as mpi
    from mxfp4moe import onnxruntime as onnxruntime
    from mxfp4moe import reference as reference
    from mxfp4moe.checkpoint import register_model as register_model
    from mxfp4moe.model import CausalLM as CausalLM
    from mxfp4moe.model import ModelCache as ModelCache

__all__ = [
    "CausalLM",
    "ExpertCache",
    "IsaError",
    "KVCache",
    "MoELayer",
    "ModelCache",
    "PackedExperts",
    "PackedFormatError",
    "PackedLinear",
    "RotaryEmbedding",
    "UnpackedExperts",
    "UnpackedLinear",
    "YarnScaling",
    "active_isa",
    "attention",
    "available_isas",
    "dequantize_fp8_block",
    "dequantize_int4",
    "dequantize_int8",
    "dequantize_mxfp4",
    "dequantize_mxfp8",
    "dequantize_nvfp4",
    "fused_experts",
    "fused_moe",
    "get_include",
    "get_num_threads",
    "grouped_topk",
    "hash_topk",
    "load_layers",
    "num_threads",
    "pack_e2m1",
    "pack_experts",
    "pack_linear",
    "quantize_fp8_block",
    "quantize_int4",
    "quantize_int8",
    "quantize_mxfp4",
    "quantize_mxfp8",
    "quantize_nvfp4",
    "register_model",
    "rms_norm",
    "select_experts",
    "set_num_threads",
    "show_config",
    "sparsemixer",
    "supported_isas",
    "topk_sigmoid",
    "topk_softmax",
    "topk_sqrt_softplus",
    "unpack_e2m1",
    "use_isa",
]

# What is imported when it is first asked for, so that importing the package takes little longer than NumPy.
_MODULES = ("checkpoint", "jax", "mpi", "onnxruntime", "reference")
_HOMES = {"CausalLM": "model", "ModelCache": "model", "register_model": "checkpoint"}


def __getattr__(name: str) -> _typing.Any:
    import importlib

    if name in _MODULES:
        return importlib.import_module(f"mxfp4moe.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"mxfp4moe.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *_HOMES})
