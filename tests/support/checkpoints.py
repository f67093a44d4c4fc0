"""The golden files written out as the checkpoints that users have, in each format that holds them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from paths import DATA

from mxfp4moe.checkpoint.safetensors import save_file

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
E8M0 = np.dtype(ml_dtypes.float8_e8m0fnu)
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)

Tensors = dict[str, np.ndarray]
PARTS = ("gate", "up", "down")


class Written(NamedTuple):
    """A model folder that is not yet written."""

    config: dict[str, Any]
    tensors: Tensors
    layer: int
    golden: dict[str, Any]
    """The arrays of the golden file; its `config` as a dict."""

    def write(self, folder: Path, num_files: int = 1) -> Path:
        """Write config.json and `num_files` safetensors files, with an index if they are several."""
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        if num_files == 1:
            save_file(folder / "model.safetensors", self.tensors)
            return folder
        weight_map = {}
        for number in range(num_files):
            file_name = f"model-{number + 1:05d}-of-{num_files:05d}.safetensors"
            names = sorted(self.tensors)[number::num_files]
            save_file(folder / file_name, {name: self.tensors[name] for name in names})
            weight_map |= dict.fromkeys(names, file_name)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        return folder


def load_golden(name: str) -> dict[str, Any]:
    with np.load(next(DATA.glob(f"{name}*.npz"))) as file:
        golden: dict[str, Any] = dict(file)
    golden["config"] = json.loads(str(golden["config"]))
    return golden


# --- weights ------------------------------------------------------------------------------------------------


class Fp4(NamedTuple):
    """Matrices of every expert in MXFP4: codes [E, N, K / 2], the even k in the low nibble; scale bytes."""

    codes: np.ndarray
    scales: np.ndarray

    def values(self) -> np.ndarray:
        nibbles = np.stack([self.codes & 15, self.codes >> 4], axis=-1).reshape(*self.codes.shape[:-1], -1)
        signed = np.where(nibbles & 8, -1, 1) * E2M1[nibbles & 7]
        factors = self.scales.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
        return np.asarray(signed * np.repeat(factors, 32, axis=-1), np.float32)


def qwen3_weights() -> tuple[dict[str, Any], dict[str, Fp4]]:
    golden = load_golden("qwen3_mxfp4")
    names = {part: f"{part}_proj_weight" for part in PARTS}
    return golden, {part: Fp4(golden[f"{n}_packed"], golden[f"{n}_scale"]) for part, n in names.items()}


def mixtral_weights() -> tuple[dict[str, Any], dict[str, Fp4]]:
    golden = load_golden("mixtral")
    result = {}
    for part, name in zip(PARTS, ("w1", "w3", "w2"), strict=True):
        blocks = golden[f"{name}_gguf_mxfp4"]
        blocks = blocks.reshape(*blocks.shape[:-1], -1, 17)
        nibbles = np.concatenate([blocks[..., 1:] & 15, blocks[..., 1:] >> 4], axis=-1)
        codes = nibbles[..., 0::2] | nibbles[..., 1::2] << 4
        result[part] = Fp4(codes.reshape(*codes.shape[:2], -1), blocks[..., 0])
    return golden, result


def gguf_blocks(weights: Fp4) -> np.ndarray:
    """As GGUF stores them: uint8 [E, N, K / 32 * 17]."""
    codes = weights.codes.reshape(*weights.scales.shape, 16)
    nibbles = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*weights.scales.shape, 32)
    blocks = np.concatenate([weights.scales[..., None], nibbles[..., :16] | nibbles[..., 16:] << 4], axis=-1)
    return np.ascontiguousarray(blocks.reshape(*blocks.shape[:-2], -1))


def per_expert(
    prefix: str, names: tuple[str, str, str], suffix: str, arrays: dict[str, np.ndarray]
) -> Tensors:
    """A tensor for each expert and matrix: ``<prefix>.experts.<e>.<name><suffix>``."""
    return {
        f"{prefix}.experts.{expert}.{name}{suffix}": array
        for part, name in zip(PARTS, names, strict=True)
        for expert, array in enumerate(arrays[part])
    }


# Each stores the same numbers, exactly: (prefix, names of gate, up and down, weights) -> tensors and the
# quantization_config.
Storage = tuple[Tensors, dict[str, Any] | None]


def as_floats(dtype: Any) -> Callable[..., Storage]:
    def store(prefix: str, names: tuple[str, str, str], weights: dict[str, Fp4]) -> Storage:
        return per_expert(
            prefix, names, ".weight", {p: w.values().astype(dtype) for p, w in weights.items()}
        ), None

    return store


def as_fused(prefix: str, names: tuple[str, str, str], weights: dict[str, Fp4]) -> Storage:
    gate_up = np.concatenate([weights["gate"].values(), weights["up"].values()], axis=1)
    return {
        f"{prefix}.experts.gate_up_proj": gate_up.astype(BFLOAT16),
        f"{prefix}.experts.down_proj": weights["down"].values().astype(BFLOAT16),
    }, None


def as_compressed_mxfp4(prefix: str, names: tuple[str, str, str], weights: dict[str, Fp4]) -> Storage:
    tensors = per_expert(prefix, names, ".weight_packed", {p: w.codes for p, w in weights.items()})
    tensors |= per_expert(prefix, names, ".weight_scale", {p: w.scales for p, w in weights.items()})
    return tensors, {
        "quant_method": "compressed-tensors",
        "format": "mxfp4-pack-quantized",
        "ignore": ["lm_head"],
    }


def as_quark(prefix: str, names: tuple[str, str, str], weights: dict[str, Fp4]) -> Storage:
    tensors = per_expert(prefix, names, ".weight", {p: w.codes for p, w in weights.items()})
    tensors |= per_expert(prefix, names, ".weight_scale", {p: w.scales for p, w in weights.items()})
    weight = {"dtype": "fp4", "qscheme": "per_group", "group_size": 32, "scale_format": "e8m0"}
    return tensors, {
        "quant_method": "quark",
        "global_quant_config": {"weight": weight},
        "exclude": ["lm_head"],
    }


def as_mxfp8(prefix: str, names: tuple[str, str, str], weights: dict[str, Fp4]) -> Storage:
    arrays, scales = {}, {}
    for part, w in weights.items():
        factors = np.repeat(np.exp2(w.scales.astype(np.float32) - 127), 32, axis=-1)
        arrays[part], scales[part] = (w.values() / factors).astype(E4M3), w.scales
    tensors = per_expert(prefix, names, ".weight", arrays)
    tensors |= per_expert(prefix, names, ".weight_scale_inv", scales)
    return tensors, {"quant_method": "mxfp8", "weight_block_size": [1, 32], "scale_fmt": "ue8m0"}


def as_fp8_block(scale_dtype: Any) -> Callable[..., Storage]:
    """Blocks of 32 x 64; each block's scale is its largest power of two times 2^-6."""

    def store(prefix: str, names: tuple[str, str, str], weights: dict[str, Fp4]) -> Storage:
        arrays, scales = {}, {}
        for part, w in weights.items():
            factors = np.repeat(np.exp2(w.scales.astype(np.float32) - 127), 32, axis=-1)
            experts, rows, columns = factors.shape
            grid = np.zeros((experts, -(-rows // 32), -(-columns // 64)), np.float32)
            for i, j in np.ndindex(grid.shape[1:]):
                block = np.s_[:, 32 * i : 32 * (i + 1), 64 * j : 64 * (j + 1)]
                grid[:, i, j] = factors[block].max(axis=(1, 2)) / 64
            full = np.repeat(np.repeat(grid, 32, axis=1), 64, axis=2)[:, :rows, :columns]
            arrays[part], scales[part] = (w.values() / full).astype(E4M3), grid.astype(scale_dtype)
        tensors = per_expert(prefix, names, ".weight", arrays)
        tensors |= per_expert(prefix, names, ".weight_scale_inv", scales)
        return tensors, {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [32, 64]}

    return store


def as_nvfp4(prefix: str, names: tuple[str, str, str], weights: dict[str, Fp4]) -> Storage:
    """Scales of gate, up and down that differ, and from expert to expert."""
    scales, reciprocals = {}, {}
    for (part, w), exponent in zip(weights.items(), (0, -1, -2), strict=True):
        tensor_scales = np.exp2(exponent - np.arange(len(w.codes)) % 2).astype(np.float32)
        block = (
            np.repeat(np.exp2(w.scales.astype(np.float32) - 127), 2, axis=-1) / tensor_scales[:, None, None]
        )
        scales[part], reciprocals[part] = block.astype(E4M3), (1 / tensor_scales)[:, None]
    tensors = per_expert(prefix, names, ".weight_packed", {p: w.codes for p, w in weights.items()})
    tensors |= per_expert(prefix, names, ".weight_scale", scales)
    tensors |= per_expert(prefix, names, ".weight_global_scale", reciprocals)
    return tensors, {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}


STORAGES: dict[str, Callable[..., Storage]] = {
    "bfloat16": as_floats(BFLOAT16),
    "float16": as_floats(np.float16),
    "float32": as_floats(np.float32),
    "fused": as_fused,
    "compressed-tensors mxfp4": as_compressed_mxfp4,
    "quark": as_quark,
    "mxfp8": as_mxfp8,
    "fp8": as_fp8_block(np.float32),
    "fp8 with bfloat16 scales": as_fp8_block(BFLOAT16),
    "compressed-tensors nvfp4": as_nvfp4,
}


# --- models -------------------------------------------------------------------------------------------------


def _with(config: dict[str, Any], quantization: dict[str, Any] | None) -> dict[str, Any]:
    return config if quantization is None else {**config, "quantization_config": quantization}


def qwen3(storage: str | Callable[..., Storage]) -> Written:
    golden, weights = qwen3_weights()
    shape, block = golden["config"], "model.layers.1.mlp"
    store = STORAGES[storage] if isinstance(storage, str) else storage
    tensors, quantization = store(block, ("gate_proj", "up_proj", "down_proj"), weights)
    tensors[f"{block}.gate.weight"] = golden["router_weight"].astype(BFLOAT16)
    config = {
        "model_type": "qwen3_moe",
        "hidden_size": shape["hidden"],
        "intermediate_size": 4 * shape["intermediate"],  # of dense layers
        "moe_intermediate_size": shape["intermediate"],
        "num_experts": shape["experts"],
        "num_experts_per_tok": shape["topk"],
        "norm_topk_prob": False,
        "num_hidden_layers": 4,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [2],
        "hidden_act": "silu",
    }
    return Written(_with(config, quantization), tensors, 1, golden)


def mixtral(storage: str | Callable[..., Storage]) -> Written:
    golden, weights = mixtral_weights()
    shape = golden["config"]
    block = f"model.layers.0.{'mlp' if storage == 'fused' else 'block_sparse_moe'}"
    store = STORAGES[storage] if isinstance(storage, str) else storage
    tensors, quantization = store(block, ("w1", "w3", "w2"), weights)
    tensors[f"{block}.gate.weight"] = golden["router_weight"].astype(BFLOAT16)
    config = {
        "model_type": "mixtral",
        "hidden_size": shape["hidden"],
        "intermediate_size": shape["intermediate"],
        "num_local_experts": shape["experts"],
        "num_experts_per_tok": shape["topk"],
        "num_hidden_layers": 2,
        "hidden_act": "silu",
    }
    return Written(_with(config, quantization), tensors, 0, golden)


def gpt_oss(storage: str = "mxfp4") -> Written:
    golden = load_golden("gptoss")
    shape, block = golden["config"], "model.layers.7.mlp"
    tensors = {
        f"{block}.router.{name}": golden[f"router_{name}"].astype(BFLOAT16) for name in ("weight", "bias")
    }
    for name in ("gate_up_proj", "down_proj"):
        blocks, scales = golden[f"{name}_blocks"], golden[f"{name}_scales"]
        if storage == "mxfp4":
            tensors[f"{block}.experts.{name}_blocks"] = blocks
            tensors[f"{block}.experts.{name}_scales"] = scales
        else:
            values = Fp4(blocks.reshape(*blocks.shape[:2], -1), scales).values()
            tensors[f"{block}.experts.{name}"] = np.ascontiguousarray(values.transpose(0, 2, 1)).astype(
                BFLOAT16
            )
        tensors[f"{block}.experts.{name}_bias"] = golden[f"{name}_bias"].astype(BFLOAT16)
    config = {
        "model_type": "gpt_oss",
        "hidden_size": shape["hidden"],
        "intermediate_size": shape["intermediate"],
        "num_local_experts": shape["experts"],
        "num_experts_per_tok": shape["topk"],
        "swiglu_limit": shape["limit"],
        "num_hidden_layers": 24,
    }
    return Written(
        _with(config, {"quant_method": "mxfp4"} if storage == "mxfp4" else None), tensors, 7, golden
    )


def deepseek_v3() -> Written:
    golden = load_golden("deepseek_v3")
    shape, block = golden["config"], "model.layers.3.mlp"
    tensors = {
        f"{block}.gate.weight": golden["router_weight"].astype(BFLOAT16),
        f"{block}.gate.e_score_correction_bias": golden["e_score_correction_bias"],
    }
    names = ("gate_proj", "up_proj", "down_proj")
    for suffix, dtype in (("weight", E4M3), ("weight_scale_inv", np.dtype(np.float32))):
        arrays = {part: golden[f"{part}_proj_{suffix}"].view(dtype) for part in PARTS}
        tensors |= per_expert(block, names, f".{suffix}", arrays)
        for name in names:
            tensors[f"{block}.shared_experts.{name}.{suffix}"] = golden[f"shared_{name}_{suffix}"].view(dtype)
    config = {
        "model_type": "deepseek_v3",
        "hidden_size": shape["hidden"],
        "intermediate_size": 9 * shape["intermediate"],
        "moe_intermediate_size": shape["intermediate"],
        "n_routed_experts": shape["experts"],
        "n_shared_experts": 1,
        "num_experts_per_tok": shape["topk"],
        "n_group": shape["n_group"],
        "topk_group": shape["topk_group"],
        "routed_scaling_factor": shape["routed_scaling_factor"],
        "norm_topk_prob": shape["norm_topk_prob"],
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "first_k_dense_replace": 3,
        "moe_layer_freq": 1,
        "num_hidden_layers": 61,
        "hidden_act": "silu",
        "quantization_config": {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": shape["weight_block_size"],
        },
    }
    return Written(config, tensors, 3, golden)


def deepseek_v4() -> Written:
    golden = load_golden("deepseek_v4")
    shape, block = golden["config"], "layers.2.ffn"
    names = ("w1", "w3", "w2")
    weights = {part: golden[f"experts_{name}_weight"] for part, name in zip(PARTS, names, strict=True)}
    scales = {
        part: golden[f"experts_{name}_scale"].view(E8M0) for part, name in zip(PARTS, names, strict=True)
    }
    tensors = per_expert(block, names, ".weight", weights) | per_expert(block, names, ".scale", scales)
    tensors[f"{block}.gate.weight"] = golden["gate_weight"].astype(BFLOAT16)
    tensors[f"{block}.gate.tid2eid"] = golden["tid2eid"]
    for name in names:
        shared = f"{block}.shared_experts.{name}"
        tensors[f"{shared}.weight"] = golden[f"shared_experts_{name}_weight"].view(E4M3)
        tensors[f"{shared}.scale"] = golden[f"shared_experts_{name}_scale"].view(E8M0)
    config = {
        "model_type": "deepseek_v4",
        "hidden_size": shape["hidden"],
        "moe_intermediate_size": shape["intermediate"],
        "n_routed_experts": shape["experts"],
        "n_shared_experts": 1,
        "num_experts_per_tok": shape["topk"],
        "routed_scaling_factor": shape["routed_scaling_factor"],
        "scoring_func": shape["scoring_func"],
        "norm_topk_prob": True,
        "swiglu_limit": shape["swiglu_limit"],
        "expert_dtype": "fp4",
        "num_hash_layers": 3,
        "num_hidden_layers": 43,
        "vocab_size": len(golden["tid2eid"]),
        "hidden_act": "silu",
        "quantization_config": {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "scale_fmt": "ue8m0",
            "weight_block_size": [128, 128],
        },
    }
    return Written(config, tensors, 2, golden)


def minimax_m3() -> Written:
    golden = load_golden("minimax_m3")
    shape, block = golden["config"], "language_model.model.layers.1.block_sparse_moe"
    tensors = {
        f"{block}.gate.weight": golden["router_weight"].astype(BFLOAT16),
        f"{block}.e_score_correction_bias": golden["e_score_correction_bias"],
    }
    for suffix, dtype in (("weight", E4M3), ("weight_scale_inv", np.dtype(np.uint8))):
        names = ("w1", "w3", "w2")
        arrays = {p: golden[f"experts_{n}_{suffix}"].view(dtype) for p, n in zip(PARTS, names, strict=True)}
        tensors |= per_expert(block, names, f".{suffix}", arrays)
        for name in ("gate_proj", "up_proj", "down_proj"):
            array = golden[f"shared_experts_{name}_{suffix}"].view(dtype)
            tensors[f"{block}.shared_experts.{name}.{suffix}"] = array
    text = {
        "model_type": "minimax_m3_vl_text",
        "hidden_size": shape["hidden"],
        "intermediate_size": shape["intermediate"],
        "shared_intermediate_size": shape["intermediate"],
        "dense_intermediate_size": 4 * shape["intermediate"],
        "n_shared_experts": 1,
        "num_local_experts": shape["experts"],
        "num_experts_per_tok": shape["topk"],
        "routed_scaling_factor": shape["routed_scaling_factor"],
        "swiglu_alpha": shape["alpha"],
        "swiglu_limit": shape["limit"],
        "hidden_act": "swigluoai",
        "scoring_func": "sigmoid",
        "use_routing_bias": True,
        "moe_layer_freq": [0, 1, 1],
        "num_hidden_layers": 3,
    }
    quantization = {"quant_method": "mxfp8", "weight_block_size": [1, 32], "ignored_layers": ["lm_head"]}
    config = {"model_type": "minimax_m3_vl", "text_config": text, "quantization_config": quantization}
    return Written(config, tensors, 1, golden)


def minimax_m2() -> Written:
    """The weights and the router of the Qwen3 file, with a correction bias; there is no golden result."""
    golden, weights = qwen3_weights()
    shape, block = golden["config"], "model.layers.0.block_sparse_moe"
    tensors, quantization = STORAGES["fp8"](block, ("w1", "w3", "w2"), weights)
    tensors[f"{block}.gate.weight"] = golden["router_weight"]
    bias = np.linspace(-1, 1, shape["experts"], dtype=np.float32)
    tensors[f"{block}.e_score_correction_bias"] = bias
    config = {
        "model_type": "minimax_m2",
        "hidden_size": shape["hidden"],
        "intermediate_size": shape["intermediate"],
        "num_local_experts": shape["experts"],
        "num_experts_per_tok": shape["topk"],
        "num_hidden_layers": 1,
        "scoring_func": "sigmoid",
        "use_routing_bias": True,
        "hidden_act": "silu",
    }
    assert quantization is not None
    quantization["fmt"] = "float8_e4m3fn"
    return Written(_with(config, quantization), tensors, 0, golden)


MODELS: dict[str, Callable[[], Written]] = {
    "gpt-oss": gpt_oss,
    "gpt-oss bfloat16": lambda: gpt_oss("bfloat16"),
    "deepseek-v3": deepseek_v3,
    "deepseek-v4": deepseek_v4,
    "minimax-m3": minimax_m3,
    **{f"qwen3 {name}": (lambda name=name: qwen3(name)) for name in STORAGES},  # type: ignore[misc]
    **{f"mixtral {name}": (lambda name=name: mixtral(name)) for name in STORAGES},  # type: ignore[misc]
}
