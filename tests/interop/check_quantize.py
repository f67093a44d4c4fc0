"""Reads checkpoints that `mxfp4moe quantize` wrote with the code of other projects; see README.md."""

from __future__ import annotations

import json
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
CONFIGS = {
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **COMMON, num_experts=4, moe_intermediate_size=256, intermediate_size=256
    ),
    "mixtral": lambda: transformers.MixtralConfig(**COMMON, num_local_experts=4, intermediate_size=256),
    "gpt_oss": lambda: transformers.GptOssConfig(
        **COMMON, num_local_experts=4, intermediate_size=256, layer_types=["full_attention"] * 2
    ),
}


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A bfloat16 tensor as an array of the same bits."""
    assert tensor.dtype == torch.bfloat16
    return tensor.detach().contiguous().view(torch.uint16).numpy().view(BF16)


def make_model(folder: Path, model_type: str) -> None:
    """A model with random bfloat16 weights, as `transformers` saves it."""
    torch.manual_seed(0)
    config = CONFIGS[model_type]()
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
        parameter.data.flatten()[:64] = 0  # blocks of zeros
    model.save_pretrained(folder)


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


def expert_names(model_type: str, layer: int, expert: int) -> tuple[str, str, str]:
    block, names = "mlp", ("gate_proj", "up_proj", "down_proj")
    if model_type == "mixtral":
        block, names = "block_sparse_moe", ("w1", "w3", "w2")
    gate, up, down = (f"model.layers.{layer}.{block}.experts.{expert}.{name}" for name in names)
    return gate, up, down


def expected_experts(tensors: dict[str, torch.Tensor], model_type: str, layer: int) -> tuple[np.ndarray, ...]:
    """gate_up_proj and down_proj of all experts in the shapes that `transformers` keeps them in."""
    if model_type == "gpt_oss":
        prefix = f"model.layers.{layer}.mlp.experts"
        matrices = (dequantize(tensors, f"{prefix}.{name}") for name in ("gate_up_proj", "down_proj"))
        return tuple(matrix.transpose(0, 2, 1) for matrix in matrices)
    gate_up, down = [], []
    for expert in range(4):
        names = expert_names(model_type, layer, expert)
        gate, up, last = (dequantize(tensors, name) for name in names)
        gate_up.append(np.concatenate([gate, up]))
        down.append(last)
    return np.stack(gate_up), np.stack(down)


def read_with_transformers(folder: Path, model_type: str, format: str) -> Any:
    configs: dict[str, Callable[[], Any]] = {
        "mxfp4": lambda: transformers.CompressedTensorsConfig(dequantize=True),
        "fp8_block": lambda: transformers.FineGrainedFP8Config(dequantize=True),
    }
    make = configs[format]
    if model_type == "gpt_oss":
        make = lambda: transformers.Mxfp4Config(dequantize=True)  # noqa: E731
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=make()
    )


def compare_transformers(folder: Path, model_type: str, format: str) -> Iterator[tuple[str, bool]]:
    """The whole model, loaded and dequantized by `transformers`."""
    tensors = tensors_of(folder)
    model = read_with_transformers(folder, model_type, format)
    for layer in range(2):
        experts = model.model.layers[layer].mlp.experts
        for name, expected in zip(
            ("gate_up_proj", "down_proj"), expected_experts(tensors, model_type, layer), strict=True
        ):
            got = as_numpy(getattr(experts, name))
            same = got.shape == expected.shape and got.tobytes() == expected.tobytes()
            yield f"transformers: layer {layer} {name} {list(got.shape)}", same
    same = as_numpy(model.lm_head.weight).tobytes() == as_numpy(tensors["lm_head.weight"]).tobytes()
    yield "transformers: lm_head unchanged", same


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
    yield f"compressed-tensors: {len(packed)} matrices", same and len(packed) == 24
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
    cases = [("qwen3_moe", "mxfp4"), ("mixtral", "mxfp4"), ("gpt_oss", "mxfp4"), ("qwen3_moe", "fp8_block"),
             ("mixtral", "fp8_block")]  # fmt: skip
    for model_type, format in cases:
        with tempfile.TemporaryDirectory() as temporary:
            source, result = Path(temporary) / "source", Path(temporary) / "result"
            make_model(source, model_type)
            if mxfp4moe_command(["quantize", str(source), str(result), "--format", format]):
                return 1
            lines = list(compare_transformers(result, model_type, format))
            if model_type == "gpt_oss":
                lines += compare_gguf(result)
            elif format == "mxfp4":
                lines += compare_compressed_tensors(result, model_type)
            for text, same in lines:
                print(f"{'ok  ' if same else 'FAIL'} {model_type} {format} {text}", flush=True)
                failures += not same
    print(f"{failures} comparisons failed" if failures else "All agree.")
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
