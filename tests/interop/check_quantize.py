"""Reads checkpoints that `mxfp4moe quantize` wrote with the code of other projects; see README.md."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
import transformers
from safetensors.torch import load_file

import mxfp4moe as mx
from mxfp4moe.cli import main as mxfp4moe_command

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from model_folders import load

BF16 = ml_dtypes.bfloat16
Arrays = dict[str, np.ndarray]

FORMATS = ("mxfp4", "fp8_block")
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
# Configurations of tests/data/models, with sizes of multiples of 32: the other styles of names.
FOLDERS: dict[str, dict[str, Any]] = {
    "qwen2_moe": {"shared_expert_intermediate_size": 64},
    "qwen3_5_moe": {"text_config": {"shared_expert_intermediate_size": 64}},  # published fused
    "qwen3_omni_moe": {},
    "llama4_text": {},  # published fused and transposed
    "nemotron_h": {"moe_shared_expert_intermediate_size": 64},  # no gate
    "jamba": {"intermediate_size": 64},
    "phimoe": {},
    "hunyuan_v1_moe": {},
    "ernie4_5_moe": {},
    "kimi_linear": {},
    "lfm2_moe": {},
    "afmoe": {},
    "granitemoe": {},
    "dbrx": {},
    "aria_text": {},
    "step3p7": {"text_config": {"share_expert_dim": 64}},
    "gemma4": {},
    "mistral4": {},
    "jetmoe": {},
    "inkling_text": {},
    "longcat_flash": {},
}


def folder_config(model_type: str) -> Any:
    text = json.dumps(load(model_type).config).replace('{"__float__": "Infinity"}', "Infinity")
    fields = json.loads(text)  # which transformers itself writes so
    for name, value in FOLDERS[model_type].items():
        fields[name] = {**fields[name], **value} if isinstance(value, dict) else value
    fields.pop("transformers_version", None)
    return transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)


CONFIGS |= {name: partial(folder_config, name) for name in FOLDERS}
# Transformers 5.24 has no conversion for them, or one that fails; mxfp4moe and compressed-tensors read them.
NOT_OF_TRANSFORMERS = {
    ("qwen3_vl_moe", "mxfp4"),
    ("qwen3_vl_moe", "fp8_block"),
    ("minimax_m3_vl", "mxfp4"),
    ("minimax_m3_vl_text", "mxfp4"),
    ("minimax_m3_vl_text", "fp8_block"),
    ("kimi_linear", "mxfp4"),
    ("llama4_text", "fp8_block"),
    # It has no names for a tensor of each expert of these, which are published with fused ones.
    *product(
        ("granitemoe", "dbrx", "aria_text", "step3p7", "gemma4", "mistral4", "jetmoe", "inkling_text"),
        FORMATS,
    ),
    *product(("longcat_flash",), FORMATS),  # its own names of zero experts
}
TRANSPOSED = ("gpt_oss",)
PARTS = {"gate": ("gate_proj", "w1"), "up": ("up_proj", "w3"), "down": ("down_proj", "w2")}
EXPERT = re.compile(r"(.*layers\.(\d+)\.\w+\.experts\.(\d+)\.\w+)\.weight(?:_packed)?")


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A bfloat16 tensor as an array of the same bits."""
    assert tensor.dtype == torch.bfloat16
    return tensor.detach().contiguous().view(torch.uint16).numpy().view(BF16)


def auto_class(model_type: str) -> Any:
    if model_type in FOLDERS:
        return getattr(transformers, load(model_type).config["architectures"][0])
    if model_type in ("qwen3_vl_moe", "minimax_m3_vl"):
        return transformers.AutoModelForImageTextToText
    return transformers.AutoModelForCausalLM


def make_model(folder: Path, model_type: str, dtype: torch.dtype, published: bool) -> torch.nn.Module:
    """A model with random weights, as `transformers` saves it: with published names, or with its own."""
    torch.manual_seed(0)
    config, make = CONFIGS[model_type](), auto_class(model_type)
    from_config = make._from_config if model_type in FOLDERS else make.from_config
    model = from_config(config, dtype=dtype)
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


def expected_experts(tensors: dict[str, torch.Tensor], model_type: str, layer: int) -> dict[str, np.ndarray]:
    """The parameters of all experts, by name, in the shapes that `transformers` keeps them in."""
    if model_type == "gpt_oss":
        prefix = f"model.layers.{layer}.mlp.experts"
        both = {name: dequantize(tensors, f"{prefix}.{name}") for name in ("gate_up_proj", "down_proj")}
    else:
        matches = [match for name in tensors if (match := EXPERT.fullmatch(name)) and int(match[2]) == layer]
        found = {match[1]: int(match[3]) for match in matches}
        parts = {
            part: [dequantize(tensors, n) for n in sorted(found, key=found.__getitem__) if n.endswith(names)]
            for part, names in PARTS.items()
        }
        up = parts["up"]
        if parts["gate"]:
            up = [np.concatenate(pair) for pair in zip(parts["gate"], up, strict=True)]
        both = {
            "gate_up_proj" if parts["gate"] else "up_proj": np.stack(up),
            "down_proj": np.stack(parts["down"]),
        }
    return {
        name: array.transpose(0, 2, 1) if model_type in TRANSPOSED else array for name, array in both.items()
    }


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
    if apart := [name for name in read if EXPERT.fullmatch(name)]:  # of Llama-4, experts become modules
        matrices = {name: as_numpy(read.pop(name)) for name in apart}
        same = all(
            array.tobytes() == dequantize(tensors, name.removesuffix(".weight")).tobytes()
            for name, array in matrices.items()
        )
        yield f"transformers: {len(apart)} matrices", same
    for layer in () if apart else mx.checkpoint.open(folder).moe_layers:
        for part, array in expected_experts(tensors, model_type, layer).items():
            place = re.compile(rf".*layers\.{layer}\.\w+\.experts\.{part}")
            (name,) = filter(place.fullmatch, read)
            got = as_numpy(read.pop(name))
            same = got.shape == array.shape and got.tobytes() == array.tobytes()
            yield f"transformers: layer {layer} {part} {list(got.shape)}", same
    before = dict(source.named_parameters()) | dict(source.named_buffers())
    changed = [n for n, t in read.items() if not torch.equal(t, before[n].to(t.dtype))]
    yield f"transformers: {len(read)} others unchanged {changed[:3] or ''}", not changed


def compare_mxfp4moe(folder: Path, source: Path, format: str) -> Iterator[tuple[str, bool]]:
    """Every layer, against the source quantized while it is loaded."""
    got, expected = mx.load_layers(folder), mx.load_layers(source, quantize=format)
    x = np.random.default_rng(0).standard_normal((8, got[0].hidden_size)).astype(np.float32)
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
    model = mx.checkpoint.open(folder)
    num_experts = model.read_layer(model.moe_layers[0]).experts.num_experts
    num_matrices = len(model.moe_layers) * num_experts * (2 if model.activation == "relu2" else 3)
    yield f"compressed-tensors: {len(packed)} matrices", same and len(packed) == num_matrices
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
        for format in FORMATS[: 1 + (model_type != "gpt_oss")]
        if not sys.argv[1:] or model_type in sys.argv[1:]
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
