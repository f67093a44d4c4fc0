"""Reads checkpoints that `mxfp4moe quantize` wrote with the code of other projects; see README.md."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
import transformers
from safetensors.torch import load_file

import mxfp4moe as mx
from mxfp4moe.cli import main as mxfp4moe_command

BF16 = ml_dtypes.bfloat16
Arrays = dict[str, np.ndarray]

COMMON = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "vocab_size": 64,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": False,
}
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [16, 8, 8]}
VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
DEEPSEEK = {
    "moe_intermediate_size": 256,
    "n_routed_experts": 4,
    "q_lora_rank": 32,
    "max_position_embeddings": 64,
}
MINIMAX_M3 = {
    **COMMON,
    "num_local_experts": 4,
    "intermediate_size": 256,
    "shared_intermediate_size": 256,
    "dense_intermediate_size": 256,
    "mlp_layer_types": ["dense", "sparse"],
    "layer_types": ["full_attention"] * 2,
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **COMMON, num_experts=4, moe_intermediate_size=256, intermediate_size=256
    ),
    "qwen3_vl_moe": lambda: transformers.Qwen3VLMoeConfig(
        text_config={**COMMON, "num_experts": 4, "moe_intermediate_size": 256, "rope_parameters": MROPE},
        vision_config={"hidden_size": 32, "intermediate_size": 32, "depth": 1, "num_heads": 2,
                       "out_hidden_size": 128, "num_position_embeddings": 16,
                       "deepstack_visual_indexes": [0]},
    ),
    "mixtral": lambda: transformers.MixtralConfig(**COMMON, num_local_experts=4, intermediate_size=256),
    "minimax_m2": lambda: transformers.MiniMaxM2Config(**COMMON, num_local_experts=4, intermediate_size=256),
    "minimax_m3_vl": lambda: transformers.MiniMaxM3VLConfig(
        text_config=MINIMAX_M3, vision_config={**VISION, "image_size": 16, "patch_size": 4}
    ),
    "minimax_m3_vl_text": lambda: transformers.AutoConfig.for_model("minimax_m3_vl_text", **MINIMAX_M3),
    "deepseek_v3": lambda: transformers.DeepseekV3Config(
        **{**COMMON, "num_key_value_heads": 2, "head_dim": 16}, **DEEPSEEK, intermediate_size=256, n_group=2,
        topk_group=1, first_k_dense_replace=1, kv_lora_rank=32, qk_rope_head_dim=16, qk_nope_head_dim=16,
        v_head_dim=16,
    ),
    "deepseek_v4": lambda: transformers.DeepseekV4Config(
        **COMMON, **DEEPSEEK, mlp_layer_types=["hash_moe", "moe"],
        layer_types=["heavily_compressed_attention"] * 2, o_groups=2, o_lora_rank=32, sliding_window=8,
        index_n_heads=2, index_head_dim=32, index_topk=4, expert_dtype="fp4",
    ),
    "gpt_oss": lambda: transformers.GptOssConfig(
        **COMMON, num_local_experts=4, intermediate_size=256, layer_types=["full_attention"] * 2
    ),
}  # fmt: skip
FIRST_MOE_LAYER = {"deepseek_v3": 1, "minimax_m3_vl": 1, "minimax_m3_vl_text": 1}
# Transformers 5.24 has no conversion for them, or one that fails; mxfp4moe and compressed-tensors read them.
NOT_OF_TRANSFORMERS = {
    ("qwen3_vl_moe", "mxfp4"),
    ("qwen3_vl_moe", "fp8_block"),
    ("minimax_m3_vl", "mxfp4"),
    ("minimax_m3_vl_text", "mxfp4"),
    ("minimax_m3_vl_text", "fp8_block"),
}
PARTS = {"gate": ("gate_proj", "w1"), "up": ("up_proj", "w3"), "down": ("down_proj", "w2")}
EXPERT = re.compile(r"(.*layers\.(\d+)\.\w+\.experts\.\d+\.\w+)\.weight(?:_packed)?")


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A bfloat16 tensor as an array of the same bits."""
    assert tensor.dtype == torch.bfloat16
    return tensor.detach().contiguous().view(torch.uint16).numpy().view(BF16)


def auto_class(model_type: str) -> Any:
    if model_type in ("qwen3_vl_moe", "minimax_m3_vl"):
        return transformers.AutoModelForImageTextToText
    return transformers.AutoModelForCausalLM


def make_model(folder: Path, model_type: str, dtype: torch.dtype, published: bool) -> torch.nn.Module:
    """A model with random weights, as `transformers` saves it: with published names, or with its own."""
    torch.manual_seed(0)
    model = auto_class(model_type).from_config(CONFIGS[model_type](), dtype=dtype)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
        parameter.data.flatten()[:64] = 0  # blocks of zeros
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            torch.nn.init.normal_(buffer)
        if name.endswith("tid2eid"):
            buffer.copy_(torch.randint(0, 4, buffer.shape))
    model.save_pretrained(folder, save_original_format=published)
    return model


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for path in folder.glob("*.safetensors") for name, t in load_file(path).items()}


def dequantize(tensors: dict[str, torch.Tensor], name: str) -> np.ndarray:
    """The matrix `name` in bfloat16, as mxfp4moe understands the tensors of the folder."""
    if f"{name}.weight_packed" in tensors:
        blocks, scales = (tensors[f"{name}.weight_{part}"].numpy() for part in ("packed", "scale"))
        return mx.dequantize_mxfp4(blocks, scales, dtype=BF16)
    if f"{name}_blocks" in tensors:
        blocks, scales = (tensors[f"{name}_{part}"].numpy() for part in ("blocks", "scales"))
        return mx.dequantize_mxfp4(blocks, scales, dtype=BF16)
    values = tensors[f"{name}.weight"].view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn)
    scales = tensors[f"{name}.weight_scale_inv"].numpy()
    each = np.repeat(np.repeat(scales, 128, axis=0), 128, axis=1)[: values.shape[0], : values.shape[1]]
    return (values.astype(np.float32) * each).astype(BF16)


def expected_experts(tensors: dict[str, torch.Tensor], model_type: str, layer: int) -> tuple[np.ndarray, ...]:
    """gate_up_proj and down_proj of all experts in the shapes that `transformers` keeps them in."""
    if model_type == "gpt_oss":
        prefix = f"model.layers.{layer}.mlp.experts"
        matrices = (dequantize(tensors, f"{prefix}.{name}") for name in ("gate_up_proj", "down_proj"))
        return tuple(matrix.transpose(0, 2, 1) for matrix in matrices)
    found = [match[1] for name in tensors if (match := EXPERT.fullmatch(name)) and int(match[2]) == layer]
    parts = {
        part: [dequantize(tensors, name) for name in sorted(set(found)) if name.endswith(names)]
        for part, names in PARTS.items()
    }
    assert all(len(matrices) == 4 for matrices in parts.values())
    gate_up = [np.concatenate(pair) for pair in zip(parts["gate"], parts["up"], strict=True)]
    return np.stack(gate_up), np.stack(parts["down"])


def read_with_transformers(folder: Path, model_type: str, format: str) -> tuple[Any, dict[str, Any]]:
    """The model, and what the loading says is missing and the like."""
    configs: dict[str, Callable[[], Any]] = {
        "mxfp4": lambda: transformers.CompressedTensorsConfig(dequantize=True),
        "fp8_block": lambda: transformers.FineGrainedFP8Config(dequantize=True),
    }
    make = configs[format]
    if model_type == "gpt_oss":
        make = lambda: transformers.Mxfp4Config(dequantize=True)  # noqa: E731
    result: tuple[Any, dict[str, Any]] = auto_class(model_type).from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=make(), output_loading_info=True
    )
    return result


def compare_transformers(
    folder: Path, model_type: str, format: str, source: torch.nn.Module
) -> Iterator[tuple[str, bool]]:
    """The whole model, loaded and dequantized by `transformers`."""
    tensors = tensors_of(folder)
    model, info = read_with_transformers(folder, model_type, format)
    yield "transformers: nothing missing, nothing left over", not any(info.values())
    read = dict(model.named_parameters()) | dict(model.named_buffers())
    for layer in range(FIRST_MOE_LAYER.get(model_type, 0), 2):
        expected = expected_experts(tensors, model_type, layer)
        for part, array in zip(("gate_up_proj", "down_proj"), expected, strict=True):
            (name,) = (n for n in read if n.endswith(f"layers.{layer}.mlp.experts.{part}"))
            got = as_numpy(read.pop(name))
            same = got.shape == array.shape and got.tobytes() == array.tobytes()
            yield f"transformers: layer {layer} {part} {list(got.shape)}", same
    before = dict(source.named_parameters()) | dict(source.named_buffers())
    changed = [n for n, t in read.items() if not torch.equal(t, before[n].to(t.dtype))]
    yield f"transformers: {len(read)} others unchanged {changed[:3] or ''}", not changed


def compare_mxfp4moe(folder: Path, source: Path, format: str) -> Iterator[tuple[str, bool]]:
    """Every layer, against the source quantized while it is loaded."""
    got, expected = mx.load_layers(folder), mx.load_layers(source, quantize=format)
    x = np.random.default_rng(0).standard_normal((8, COMMON["hidden_size"])).astype(np.float32)
    ids, weights = np.tile(np.arange(4, dtype=np.int32), (8, 1)), np.ones((8, 4), np.float32)
    same = bool(got) and len(got) == len(expected)
    for ours, theirs in zip(got, expected, strict=True):
        options = {"activation": ours.activation, "alpha": ours.alpha, "limit": ours.limit}
        a, b = (mx.fused_experts(x, layer.experts, weights, ids, **options) for layer in (ours, theirs))
        same &= np.array_equal(a, b) and np.array_equal(ours.router_weight, theirs.router_weight)
    yield f"mxfp4moe: {len(got)} layers", same


def compare_compressed_tensors(folder: Path, model_type: str) -> Iterator[tuple[str, bool]]:
    """Every matrix, decompressed by the scheme that `compressed-tensors` reads in config.json."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.utils import match_name

    fields = json.loads((folder / "config.json").read_text())["quantization_config"]
    config = QuantizationConfig.model_validate(fields)
    (scheme,) = config.config_groups.values()
    compressor = BaseCompressor.get_value_from_registry(config.format)
    tensors = tensors_of(folder)
    packed = [name.removesuffix(".weight_packed") for name in tensors if name.endswith(".weight_packed")]
    same = True
    for name in packed:
        state = {part: tensors[f"{name}.{part}"] for part in ("weight_packed", "weight_scale")}
        got = as_numpy(compressor.decompress(state, scheme)["weight"].to(torch.bfloat16))
        same &= got.tobytes() == dequantize(tensors, name).tobytes()
    yield f"compressed-tensors: {len(packed)} matrices", same and len(packed) in (12, 24)
    targeted = [name for name in packed if any(match_name(name, target) for target in scheme.targets)]
    yield "compressed-tensors: every matrix is a target", targeted == packed
    rest = [n.removesuffix(".weight") for n, t in tensors.items() if n.endswith(".weight") and t.ndim == 2]
    yield "compressed-tensors: every other matrix is ignored", set(rest) <= set(config.ignore)


def compare_gguf(folder: Path) -> Iterator[tuple[str, bool]]:
    """The same blocks in the order of GGUF, decoded by the `gguf` package."""
    import gguf

    tensors = tensors_of(folder)
    name = next(name.removesuffix("_blocks") for name in tensors if name.endswith("gate_up_proj_blocks"))
    blocks, scales = (tensors[f"{name}_{part}"].numpy() for part in ("blocks", "scales"))
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*scales.shape, 32)
    quants = codes[..., :16] | codes[..., 16:] << 4
    rows = np.concatenate([scales[..., None], quants], axis=-1).reshape(*blocks.shape[:2], -1)
    got = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType.MXFP4)
    expected = mx.dequantize_mxfp4(blocks, scales, dtype=np.float32)
    yield f"gguf: {name}", np.array_equal(got, expected)


def main() -> int:
    """Run every comparison; 1 if one fails."""
    failures = 0
    runs = [
        (model_type, dtype, published, format)
        for model_type in CONFIGS
        for dtype in ("bfloat16", "float16")[: 1 + (model_type == "gpt_oss")]
        for published in (True, False)
        for format in ("mxfp4", "fp8_block")[: 1 + (model_type != "gpt_oss")]
    ]
    for model_type, dtype, published, format in runs:
        with tempfile.TemporaryDirectory() as temporary:
            source, result = Path(temporary) / "source", Path(temporary) / "result"
            model = make_model(source, model_type, getattr(torch, dtype), published)
            if mxfp4moe_command(["quantize", str(source), str(result), "--format", format]):
                return 1
            lines = list(compare_mxfp4moe(result, source, format))
            if (model_type, format) not in NOT_OF_TRANSFORMERS:
                lines += compare_transformers(result, model_type, format, model)
            if model_type == "gpt_oss":
                lines += compare_gguf(result)
            elif format == "mxfp4":
                lines += compare_compressed_tensors(result, model_type)
            style = "published names" if published else "names of transformers"
            for text, same in lines:
                print(
                    f"{'ok  ' if same else 'FAIL'} {model_type} {dtype} {format}, {style}: {text}", flush=True
                )
                failures += not same
    print(f"{failures} comparisons failed" if failures else "All agree.")
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
