"""Checkpoints that are incomplete, contradict themselves or are not supported are refused by name."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
from checkpoints import BFLOAT16, Written
from damage import mutate

import mxfp4moe as mx
from mxfp4moe import checkpoint

SOURCES: dict[str, Callable[[], Written]] = {
    **{name: checkpoints.MODELS[name] for name in ("deepseek-v3", "deepseek-v4", "minimax-m3")},
    **{f"qwen3 {name}": checkpoints.MODELS[f"qwen3 {name}"] for name in checkpoints.STORAGES},
    "mixtral bfloat16": checkpoints.MODELS["mixtral bfloat16"],
    "gpt-oss bfloat16": checkpoints.MODELS["gpt-oss bfloat16"],
    "minimax-m2": checkpoints.minimax_m2,
}


def refuses(tmp_path: Path, written: Written, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(str(tmp_path)) + ".*" + message):
        checkpoint.read_layer(written.write(tmp_path), written.layer)


# --- every tensor of every source ---------------------------------------------------------------------------


def kinds_of_tensors(written: Written) -> list[str]:
    """The tensors of the layer, of one expert only; others are read by the same code."""
    return [name for name in written.tensors if not re.search(r"experts\.(?!1\.)\d+\.", name)]


EVERY_TENSOR = [(source, name) for source, make in SOURCES.items() for name in kinds_of_tensors(make())]


def is_choice(name: str) -> bool:
    """Tensors whose absence or dtype leads to another reading of the layer: the error names other tensors."""
    return name.endswith(("gate.weight", "gate_up_proj"))


@pytest.mark.parametrize(("source", "name"), EVERY_TENSOR)
def test_missing_tensor(tmp_path: Path, source: str, name: str) -> None:
    written = SOURCES[source]()
    del written.tensors[name]
    wanted = r".*" if is_choice(name) else re.escape(name)
    refuses(tmp_path, written, rf"expected a tensor {wanted}, got none among {len(written.tensors)}")


@pytest.mark.parametrize(("source", "name"), EVERY_TENSOR)
def test_tensor_of_another_shape(tmp_path: Path, source: str, name: str) -> None:
    written = SOURCES[source]()
    shape = list(written.tensors[name].shape)
    written.tensors[name] = np.concatenate([written.tensors[name]] * 2)
    shape[0] *= 2
    refuses(tmp_path, written, rf"tensor {re.escape(name)}: expected .*, got \w+ {re.escape(str(shape))}")


@pytest.mark.parametrize(("source", "name"), EVERY_TENSOR)
def test_tensor_of_another_dtype(tmp_path: Path, source: str, name: str) -> None:
    written = SOURCES[source]()
    written.tensors[name] = written.tensors[name].astype(np.float64)
    refuses(tmp_path, written, rf"tensor {re.escape(name)}: expected .*, got F64 \[")


# --- configurations -----------------------------------------------------------------------------------------

_COMPRESSED = "qwen3 compressed-tensors mxfp4"
SUPPORTED = "quantization_config: expected fp8 with weight_block_size, mxfp8, .* or a mode of MLX"

CONFIGS: dict[str, tuple[str, dict[str, Any], str]] = {
    "quantization unknown": (
        _COMPRESSED,
        {"quantization_config.quant_method": "another"},
        f"{SUPPORTED}, got .*another",
    ),
    "format unknown": (
        _COMPRESSED,
        {"quantization_config.format": "marlin-24"},
        f"{SUPPORTED}, got .*'marlin-",
    ),
    "quantization a list": (
        _COMPRESSED,
        {"quantization_config": [1]},
        "quantization_config: expected an object",
    ),
    "no quantization": (
        _COMPRESSED,
        {"quantization_config": None},
        r"expected a tensor model.layers.1.mlp.experts.0.gate_proj.weight, got none",
    ),
    "another quantization": (
        "qwen3 fp8",
        {"quantization_config": {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"}},
        r"expected a tensor model.layers.1.mlp.experts.0.gate_proj.weight_packed, got none",
    ),
    "quark fp6": (
        "qwen3 quark",
        {"quantization_config.global_quant_config.weight.dtype": "fp6_e3m2"},
        "quantization_config.global_quant_config.weight.dtype: expected 'fp4' or 'fp8_e4m3', got 'fp6_e3m2'",
    ),
    "quark groups": (
        "qwen3 quark",
        {"quantization_config.global_quant_config.weight.group_size": 64},
        "weight.group_size: expected 32, got 64",
    ),
    "fp8 without blocks": (
        "qwen3 fp8",
        {"quantization_config.weight_block_size": None},
        "weight_block_size: expected .rows, columns. above 0, columns a multiple of 32, got None",
    ),
    "fp8 blocks of 48 columns": (
        "qwen3 fp8",
        {"quantization_config.weight_block_size": [32, 48]},
        r"got \[32, 48\]",
    ),
    "fp8 blocks of 0 rows": (
        "qwen3 fp8",
        {"quantization_config.weight_block_size": [0, 32]},
        r"got \[0, 32\]",
    ),
    "fp8 blocks of text": (
        "qwen3 fp8",
        {"quantization_config.weight_block_size": ["32", 32]},
        r"weight_block_size: expected a list of 2 int, got \['32', 32\]",
    ),
    "fp8 other blocks": (
        "qwen3 fp8",
        {"quantization_config.weight_block_size": [128, 128]},
        r"gate_proj.weight_scale_inv: expected .* \[1, 1\], got F32 \[3, 2\]",
    ),
    "fp8 e5m2": (
        "qwen3 fp8",
        {"quantization_config.fmt": "e5m2"},
        "fmt: expected 'e4m3', 'float8_e4m3fn' or None, got 'e5m2'",
    ),
    "mxfp8 blocks": (
        "minimax-m3",
        {"quantization_config.weight_block_size": [1, 64]},
        r"weight_block_size: expected \[1, 32\], got \[1, 64\]",
    ),
    "hidden no multiple": (_COMPRESSED, {"hidden_size": 144}, "hidden_size: .* multiple of 32, got 144"),
    "hidden another": (
        _COMPRESSED,
        {"hidden_size": 64},
        r"weight_packed: expected U8 \[96, 32\], got U8 \[96, 64\]",
    ),
    "hidden missing": (
        _COMPRESSED,
        {"hidden_size": ...},
        "hidden_size: expected an integer .*, got no such field",
    ),
    "intermediate text": (
        _COMPRESSED,
        {"moe_intermediate_size": "96"},
        "moe_intermediate_size: .*, got '96'",
    ),
    "experts": (
        _COMPRESSED,
        {"num_experts": 17},
        r"a tensor model.layers.1.mlp.experts.16.gate_proj.weight_packed",
    ),
    "fewer experts": (
        _COMPRESSED,
        {"num_experts": 15},
        r"gate.weight: expected .* \[15, 128\], got BF16 \[16, 128\]",
    ),
    "fused with another E": (
        "qwen3 fused",
        {"num_experts": 15},
        r"gate_up_proj: expected .* \[15, 192, 128\], got",
    ),
    "top_k": (
        _COMPRESSED,
        {"num_experts_per_tok": 17},
        r"num_experts_per_tok: expected .* \[1, 16\], got 17",
    ),
    "norm": (_COMPRESSED, {"norm_topk_prob": 0}, "norm_topk_prob: expected true or false, got 0"),
    "step": (_COMPRESSED, {"decoder_sparse_step": 0}, "decoder_sparse_step: expected an integer .*, got 0"),
    "dense layers": (
        _COMPRESSED,
        {"mlp_only_layers": ["1"]},
        r"mlp_only_layers: expected a list of int, got \['1'\]",
    ),
    "activation": (_COMPRESSED, {"hidden_act": "relu"}, "hidden_act: expected 'silu', .*, got 'relu'"),
    "layers": (_COMPRESSED, {"num_hidden_layers": 0}, "num_hidden_layers: expected an integer .*, got 0"),
    "v3 scoring": (
        "deepseek-v3",
        {"scoring_func": "softmax"},
        "scoring_func: expected 'sigmoid', got 'softmax'",
    ),
    "v3 method": ("deepseek-v3", {"topk_method": "greedy"}, "topk_method: expected 'noaux_tc', got 'greedy'"),
    "v3 groups": (
        "deepseek-v3",
        {"n_group": 3},
        "n_group: expected a divisor of n_routed_experts = 16, got 3",
    ),
    "v3 groups kept": (
        "deepseek-v3",
        {"n_group": 8, "topk_group": 9},
        r"topk_group: expected .* \[1, 8\], got 9",
    ),
    "v3 groups too small": (
        "deepseek-v3",
        {"n_group": 8, "topk_group": 2},
        "topk_group: expected at least 6 experts .*, got 2 groups of 2",
    ),
    "v3 scale": (
        "deepseek-v3",
        {"routed_scaling_factor": 0},
        "routed_scaling_factor: expected a finite .*, got 0",
    ),
    "v3 shared": (
        "deepseek-v3",
        {"n_shared_experts": 2},
        r"shared_experts.*: expected .*\[2, 1\], got F32 \[1, 1\]",
    ),
    "v3 shared unused": (
        "deepseek-v3",
        {"n_shared_experts": 0},
        "expected no shared experts, as config.json says, got a tensor .*shared_experts.gate_proj.weight",
    ),
    "m3 shared unused": (
        "minimax-m3",
        {"text_config.n_shared_experts": 0},
        "expected no shared experts, as config.json says, got a tensor .*shared_experts.gate_proj.weight",
    ),
    "v4 scoring": ("deepseek-v4", {"scoring_func": "sigmoid"}, "scoring_func: expected 'sqrtsoftplus', got"),
    "v4 norm": ("deepseek-v4", {"norm_topk_prob": False}, "norm_topk_prob: expected True, got False"),
    "v4 experts": (
        "deepseek-v4",
        {"expert_dtype": "fp6"},
        "expert_dtype: expected 'fp4', 'fp8' or None, got 'fp6'",
    ),
    "v4 vocabulary": (
        "deepseek-v4",
        {"vocab_size": 65},
        r"tid2eid: expected I64 or I32 \[65, 3\], got I64 \[64, 3\]",
    ),
    "v4 limit": (
        "deepseek-v4",
        {"swiglu_limit": -1},
        "swiglu_limit: expected a finite number above 0, got -1",
    ),
    "v4 no hash layer": ("deepseek-v4", {"num_hash_layers": 0}, "a tensor layers.2.ffn.gate.bias, got none"),
    "v4 layer types": (
        "deepseek-v4",
        {"mlp_layer_types": ["moe"] * 42 + ["dense"]},
        "mlp_layer_types: expected 'hash_moe' or 'moe' for each layer, got 'dense'",
    ),
    "m2 scale of experts": (
        "minimax-m2",
        {"shared_intermediate_size": 96},
        "shared_intermediate_size: expected 0",
    ),
    "m2 factor": (
        "minimax-m2",
        {"routed_scaling_factor": 2.0},
        "routed_scaling_factor: expected 1, got 2.0",
    ),
    "m3 scoring": (
        "minimax-m3",
        {"text_config.scoring_func": "x"},
        "text_config.scoring_func: expected 'sigmoid'",
    ),
    "m3 activation": (
        "minimax-m3",
        {"text_config.hidden_act": "gelu"},
        "text_config.hidden_act: expected 'swigluoai'",
    ),
    "m3 layers": (
        "minimax-m3",
        {"text_config.moe_layer_freq": [0, 1]},
        r"text_config.moe_layer_freq: expected a list of 3 int, got \[0, 1\]",
    ),
    "m3 alpha": (
        "minimax-m3",
        {"text_config.swiglu_alpha": "1.7"},
        "swiglu_alpha: expected a finite .*, got '1.7'",
    ),
    "m3 shared": (
        "minimax-m3",
        {"text_config.n_shared_experts": 2},
        r"n_shared_experts: expected .*\[0, 1\], got 2",
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_wrong_config(tmp_path: Path, case: str) -> None:
    source, changes, message = CONFIGS[case]
    written = SOURCES[source]()
    config = copy.deepcopy(written.config)
    for path, value in changes.items():
        *sections, name = path.split(".")
        fields = config
        for section in sections:
            fields = fields[section]
        if value is ...:
            del fields[name]
        else:
            fields[name] = value
    refuses(tmp_path, written._replace(config=config), message)


# --- contents -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, -1.0, np.inf, np.nan])
def test_nvfp4_tensor_scale_without_reciprocal(tmp_path: Path, value: float) -> None:
    written = SOURCES["qwen3 compressed-tensors nvfp4"]()
    name = "model.layers.1.mlp.experts.1.up_proj.weight_global_scale"
    written.tensors[name] = np.array([value], np.float32)
    refuses(tmp_path, written, f"tensor {name}: expected a finite number above 0, got {value}")


@pytest.mark.parametrize("expert", [-1, 8])
def test_hash_table_with_ids_out_of_range(tmp_path: Path, expert: int) -> None:
    written = SOURCES["deepseek-v4"]()
    table = written.tensors["layers.2.ffn.gate.tid2eid"].copy()
    table[5, 1] = expert
    written.tensors["layers.2.ffn.gate.tid2eid"] = table
    refuses(tmp_path, written, r"gate.tid2eid: expected expert ids in \[0, 7\], got ")


def test_quantizing_what_is_quantized(tmp_path: Path) -> None:
    written = SOURCES[_COMPRESSED]()
    folder = written.write(tmp_path)
    message = (
        "quantize: expected None for a checkpoint in compressed-tensors mxfp4-pack-quantized, got 'mxfp4'"
    )
    with pytest.raises(ValueError, match=message):
        mx.MoELayer.from_checkpoint(folder, written.layer, quantize="mxfp4")
    for value, error in (("int3", ValueError), (4, TypeError)):
        with pytest.raises(error, match="quantize: expected 'mxfp4', 'mxfp8', .* or 'int8', got "):
            mx.MoELayer.from_checkpoint(folder, written.layer, quantize=value)  # type: ignore[arg-type]


def test_quantizing_what_is_not_finite(tmp_path: Path) -> None:
    written = SOURCES["qwen3 bfloat16"]()
    name = "model.layers.1.mlp.experts.3.down_proj.weight"
    written.tensors[name] = np.full_like(written.tensors[name], np.nan, dtype=BFLOAT16)
    message = re.escape(str(tmp_path)) + r".*, layer 1, experts: w: expected finite values, got nan"
    for load in (
        mx.MoELayer.from_checkpoint,
        lambda path, layer, **options: mx.load_layers(path, [layer], **options),
    ):
        with pytest.raises(ValueError, match=message):
            load(written.write(tmp_path), written.layer, quantize="mxfp4")


def test_layers_that_are_dense(tmp_path: Path) -> None:
    written = SOURCES["qwen3 quark"]()
    folder = written.write(tmp_path)
    message = r"layer: expected one that has experts \(0, 1, 3\), got 2, a dense layer"
    with pytest.raises(ValueError, match=message):
        checkpoint.read_layer(folder, 2)
    with pytest.raises(ValueError, match=r"layer: expected an integer in \[0, 3\], got 4"):
        checkpoint.read_layer(folder, 4)
    with pytest.raises(ValueError, match=message):
        mx.load_layers(folder, [1, 2])


@pytest.mark.parametrize("field", ["num_experts", "num_hidden_layers"])
def test_huge_numbers_are_refused_at_once(tmp_path: Path, field: str) -> None:
    written = SOURCES[_COMPRESSED]()
    written.config[field] = 2**31 - 1
    refuses(tmp_path, written, rf"{field}: expected an integer in \[1, \d+\], got 2147483647")


@pytest.mark.parametrize("source", SOURCES)
def test_mutated_config_is_refused_or_read_in_full(
    tmp_path: Path, rng: np.random.Generator, source: str
) -> None:
    written = SOURCES[source]()
    content = (written.write(tmp_path) / "config.json").read_bytes()
    num_refused = 0
    for _ in range(60):
        (tmp_path / "config.json").write_bytes(mutate(content, rng))
        try:
            opened = checkpoint.open(tmp_path)
            parts = opened.read_layer(written.layer)
        except (ValueError, TypeError, OSError) as error:
            num_refused += 1
            assert "expected" in str(error)
        else:
            assert parts.router_weight.shape == (opened.num_experts, opened.hidden_size)
            assert parts.nbytes > 0
    assert num_refused > 15


@pytest.mark.parametrize("name", ["deepseek-v4", "qwen3 quark", "qwen3 mxfp8"])
def test_tensors_that_do_not_fit_each_other(tmp_path: Path, name: str) -> None:
    """Both dtypes of scales can be read, but not one in one expert and the other in another."""
    written = SOURCES[name]()
    scales = next(n for n in written.tensors if re.search(r"experts\.1\..*scale", n))
    array = written.tensors[scales]
    other = checkpoints.E8M0 if array.dtype == np.uint8 else np.dtype(np.uint8)
    written.tensors[scales] = array.view(other)
    place = re.escape(f"{tmp_path}, layer {written.layer}, experts: ")
    message = place + r"w.*: expected .* as for expert 0, got"
    with pytest.raises(TypeError, match=message):
        mx.MoELayer.from_checkpoint(written.write(tmp_path), written.layer)
