"""The MXFP4 numbers of `checkpoints` exactly in the layouts of other software, with its configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from checkpoints import BFLOAT16, E4M3, PARTS, Fp4, Storage, Tensors, per_expert

Weights = dict[str, Fp4]
Names = tuple[str, str, str]


def nvfp4_scales(weights: Fp4, tensor_scales: np.ndarray) -> np.ndarray:
    """E4M3 scales for each 16 beside a scale of each expert, both powers of two."""
    factors = np.repeat(np.exp2(weights.scales.astype(np.float32) - 127), 2, axis=-1)
    scales = (factors / tensor_scales[:, None, None]).astype(E4M3)
    assert np.array_equal(scales.astype(np.float32) * tensor_scales[:, None, None], factors)
    return scales


def fp8(weights: Fp4, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """E4M3 codes, and the float32 scales that all numbers along `axes` share."""
    factors = np.exp2(weights.scales.astype(np.float32) - 127)
    scales = factors.max(axis=axes, keepdims=True) / 64
    codes = (weights.values() / scales).astype(E4M3)
    assert np.array_equal(codes.astype(np.float32) * scales, weights.values())
    return codes, scales


def tensor_scales(part: str, count: int) -> np.ndarray:
    """Scales that differ from part to part, and from expert to expert."""
    return np.exp2(-PARTS.index(part) - np.arange(count) % 2).astype(np.float32)


def modelopt_nvfp4(prefix: str, names: Names, weights: Weights) -> Storage:
    scales = {part: tensor_scales(part, len(w.codes)) for part, w in weights.items()}
    block_scales = {part: nvfp4_scales(w, scales[part]) for part, w in weights.items()}
    tensors = per_expert(prefix, names, ".weight", {p: w.codes for p, w in weights.items()})
    tensors |= per_expert(prefix, names, ".weight_scale", block_scales)
    for suffix in (".weight_scale_2", ".input_scale"):
        tensors |= per_expert(prefix, names, suffix, {p: list(map(np.array, s)) for p, s in scales.items()})
    group = {"weights": {"num_bits": 4, "type": "float", "group_size": 16, "dynamic": False}}
    return tensors, {
        "quant_method": "modelopt",
        "quant_algo": "NVFP4",
        "producer": {"name": "modelopt", "version": "0.37.0"},
        "config_groups": {"group_0": {**group, "targets": ["Linear"]}},
        "ignore": ["lm_head", f"{prefix}.gate"],
        "kv_cache_scheme": {"num_bits": 8},
    }


def _fp8_storage(
    axes: tuple[int, ...],
    quantization: dict[str, Any],
    shape: Callable[[np.ndarray], np.ndarray],
    dtype: Any = np.float32,
) -> Callable[..., Storage]:
    """FP8 with a ``weight_scale`` that `shape` makes of [E, 1 or N, 1 or K / 32]."""

    def store(prefix: str, names: Names, weights: Weights) -> Storage:
        codes, scales = {}, {}
        for part, w in weights.items():
            codes[part], full = fp8(w, axes)
            scales[part] = shape(full).astype(dtype)
        tensors = per_expert(prefix, names, ".weight", codes)
        return tensors | per_expert(prefix, names, ".weight_scale", scales), quantization

    return store


def compressed_group(format: str, weights: dict[str, Any]) -> dict[str, Any]:
    """As llm-compressor writes it, for one group of all modules."""
    unused = {"actorder": None, "block_structure": None, "dynamic": False, "observer": "minmax"}
    activations = {"num_bits": 8, "dynamic": True, "strategy": "token", "type": "float"}
    group = {"format": format, "targets": ["Linear"], "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": format,
        "config_groups": {"group_0": {**group, "weights": unused | weights}},
        "ignore": ["lm_head", "re:.*gate$"],
    }


def _float_quantized(strategy: str) -> dict[str, Any]:
    weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": strategy}
    return compressed_group("float-quantized", weights)


def _quark_fp8(scheme: str) -> dict[str, Any]:
    weight: dict[str, Any] = {"dtype": "fp8_e4m3", "qscheme": scheme, "symmetric": True}
    weight |= {"ch_axis": 0} if scheme == "per_channel" else {}
    return {"quant_method": "quark", "global_quant_config": {"weight": weight}, "exclude": ["lm_head"]}


def compressed_fp8_block(prefix: str, names: Names, weights: Weights) -> Storage:
    """Blocks of a row and 64 columns."""
    codes, scales = {}, {}
    for part, w in weights.items():
        factors = np.exp2(w.scales.astype(np.float32) - 127)
        grid = np.maximum.reduceat(factors, np.arange(0, factors.shape[-1], 2), axis=-1) / 64
        codes[part] = (w.values() / np.repeat(grid, 64, axis=-1)[..., : 32 * factors.shape[-1]]).astype(E4M3)
        scales[part] = grid
    tensors = per_expert(prefix, names, ".weight", codes)
    quantization = _float_quantized("block")
    quantization["config_groups"]["group_0"]["weights"]["block_structure"] = [1, 64]
    return tensors | per_expert(prefix, names, ".weight_scale", scales), quantization


def compressed_mxfp8(prefix: str, names: Names, weights: Weights) -> Storage:
    codes = {
        p: (w.values() / np.repeat(np.exp2(w.scales.astype(np.float32) - 127), 32, axis=-1)).astype(E4M3)
        for p, w in weights.items()
    }
    tensors = per_expert(prefix, names, ".weight", codes)
    tensors |= per_expert(prefix, names, ".weight_scale", {p: w.scales for p, w in weights.items()})
    group = {"num_bits": 8, "type": "float", "group_size": 32, "strategy": "group"}
    return tensors, compressed_group("mxfp8-quantized", group)


def modelopt_mxfp8(prefix: str, names: Names, weights: Weights) -> Storage:
    tensors, _ = compressed_mxfp8(prefix, names, weights)
    return tensors, {"quant_method": "modelopt", "quant_algo": "MXFP8", "group_size": 32}


def _fused(prefix: str, suffix: str, gate: np.ndarray, up: np.ndarray, down: np.ndarray) -> Tensors:
    return {
        f"{prefix}.experts.gate_up_proj{suffix}": np.concatenate([gate, up], axis=1),
        f"{prefix}.experts.down_proj{suffix}": down,
    }


def fused_mxfp4(prefix: str, names: Names, weights: Weights) -> Storage:
    tensors = _fused(prefix, "_packed", *(w.codes for w in weights.values()))
    tensors |= _fused(prefix, "_scale", *(w.scales for w in weights.values()))
    weights_of_group = {"num_bits": 4, "type": "float", "group_size": 32, "strategy": "group"}
    return tensors, compressed_group("mxfp4-pack-quantized", weights_of_group)


def fused_nvfp4(prefix: str, names: Names, weights: Weights) -> Storage:
    """One scale for gate and up of an expert."""
    count = len(weights["gate"].codes)
    scales = {part: tensor_scales("down" if part == "down" else "gate", count) for part in PARTS}
    tensors = _fused(prefix, "_packed", *(w.codes for w in weights.values()))
    tensors |= _fused(prefix, "_scale", *(nvfp4_scales(w, scales[p]) for p, w in weights.items()))
    tensors[f"{prefix}.experts.gate_up_proj_global_scale"] = 1 / scales["gate"]
    tensors[f"{prefix}.experts.down_proj_global_scale"] = 1 / scales["down"][:, None]
    tensors[f"{prefix}.experts.down_proj_input_global_scale"] = np.ones(count, np.float32)
    group = {"num_bits": 4, "type": "float", "group_size": 16, "strategy": "tensor_group"}
    return tensors, compressed_group("nvfp4-pack-quantized", group)


def fused_fp8(prefix: str, names: Names, weights: Weights) -> Storage:
    """A scale for each row of the matrices of all experts."""
    codes, scales = zip(*(fp8(w, (2,)) for w in weights.values()), strict=True)
    return _fused(prefix, "", *codes) | _fused(prefix, "_scale", *scales), _float_quantized("channel")


def number_last(prefix: str, names: Names, weights: Weights) -> Storage:
    tensors, quantization = modelopt_nvfp4(prefix, names, weights)
    renamed = {}
    for name, array in tensors.items():
        number, matrix, suffix = name.removeprefix(f"{prefix}.experts.").split(".")
        renamed[f"{prefix}.experts.{matrix}.{number}.{suffix}"] = array
    return renamed, quantization


def words(codes: np.ndarray) -> np.ndarray:
    """Bytes as words of 32 bits."""
    return np.ascontiguousarray(codes).view(np.uint8).view("<u4")


def _mlx(mode: str) -> Callable[..., Storage]:
    bits, group_size = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}[mode]

    def store(prefix: str, names: Names, weights: Weights) -> Storage:
        tensors = {}
        for part, w in weights.items():
            codes, scales = w.codes, w.scales
            if mode == "mxfp8":
                factors = np.repeat(np.exp2(w.scales.astype(np.float32) - 127), 32, axis=-1)
                codes = (w.values() / factors).astype(E4M3)
            if mode == "nvfp4":
                scales = nvfp4_scales(w, np.ones(len(codes), np.float32)).view(np.uint8)
            name = f"{prefix}.switch_mlp.{part}_proj"
            tensors |= {f"{name}.weight": words(codes), f"{name}.scales": scales}
        quantization = {"group_size": group_size, "bits": bits, "mode": mode, f"{prefix}.norm": False}
        return tensors, quantization

    return store


STORAGES: dict[str, Callable[..., Storage]] = {
    "modelopt nvfp4": modelopt_nvfp4,
    "modelopt nvfp4, number last": number_last,
    "modelopt fp8": _fp8_storage(
        (1, 2), {"quant_method": "modelopt", "quant_algo": "FP8"}, lambda s: s[:, 0, 0]
    ),
    "modelopt fp8 channel": _fp8_storage(
        (2,),
        {"quant_method": "modelopt", "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"},
        lambda s: s[..., 0],
    ),
    "modelopt mxfp8": modelopt_mxfp8,
    "compressed-tensors fp8 channel": _fp8_storage((2,), _float_quantized("channel"), lambda s: s, BFLOAT16),
    "compressed-tensors fp8 channel, flat": _fp8_storage(
        (2,), _float_quantized("channel"), lambda s: s[..., 0]
    ),
    "compressed-tensors fp8 tensor": _fp8_storage((1, 2), _float_quantized("tensor"), lambda s: s[..., 0]),
    "compressed-tensors fp8 block": compressed_fp8_block,
    "compressed-tensors mxfp8": compressed_mxfp8,
    "fused mxfp4": fused_mxfp4,
    "fused nvfp4": fused_nvfp4,
    "fused fp8 channel": fused_fp8,
    "quark fp8 channel": _fp8_storage((2,), _quark_fp8("per_channel"), lambda s: s[..., 0]),
    "quark fp8 tensor": _fp8_storage((1, 2), _quark_fp8("per_tensor"), lambda s: s[:, 0, 0]),
    **{f"mlx {mode}": _mlx(mode) for mode in ("mxfp4", "mxfp8", "nvfp4")},
}
