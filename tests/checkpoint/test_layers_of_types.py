"""Which layers of a type have experts, and tensors that transformers saves and nothing computes with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_folders import ModelFolder, load

import mxfp4moe as mx
from mxfp4moe.checkpoint._config import Config
from mxfp4moe.checkpoint.models import read_model

LAYERS = 8
DENSE, SPARSE = ["dense"] * LAYERS, ["sparse"] * LAYERS
# What the code of transformers says, by hand. A step of two hides the sign of an offset, so it is three here.
CASES: list[tuple[str, dict[str, Any], list[int]]] = [
    ("qwen2_moe", {"decoder_sparse_step": 3}, [2, 5]),
    ("qwen3_moe", {"decoder_sparse_step": 3, "mlp_only_layers": [5]}, [2]),
    ("jamba", {"expert_layer_period": 3, "expert_layer_offset": 2}, [2, 5]),
    ("jamba", {"expert_layer_period": 4, "expert_layer_offset": 1}, [1, 5]),
    ("jamba", {"expert_layer_period": 4, "expert_layer_offset": 0}, [0, 4]),
    (
        "ernie4_5_moe",
        {"moe_layer_interval": 3, "moe_layer_start_index": 0, "moe_layer_end_index": -1},
        [2, 5],
    ),
    ("ernie4_5_moe", {"moe_layer_interval": 3, "moe_layer_start_index": 3, "moe_layer_end_index": -1}, [5]),
    ("ernie4_5_moe", {"moe_layer_interval": 3, "moe_layer_end_index": 4}, [2]),
    ("deepseek_v2", {"moe_layer_freq": 3, "first_k_dense_replace": 1}, [3, 6]),
    ("llama4_text", {"interleave_moe_layer_step": 3, "moe_layers": None}, [2, 5]),
    # Transformers writes defaults beside a list, which counts instead.
    ("llama4_text", {"interleave_moe_layer_step": 1, "moe_layers": [0, 2]}, [0, 2]),
    ("glm_moe_dsa", {"first_k_dense_replace": 3, "mlp_layer_types": DENSE[:7] + SPARSE[:1]}, [7]),
    ("exaone_moe", {"first_k_dense_replace": 1, "mlp_layer_types": SPARSE}, [*range(LAYERS)]),
    ("bailing_hybrid", {"first_k_dense_replace": 2, "mlp_layer_types": SPARSE[:1] + DENSE[:7]}, [0]),
]
LISTS = ("layer_types", "mlp_layer_types", "no_rope_layers")


@pytest.mark.parametrize(("name", "fields", "expected"), CASES)
def test_steps_and_offsets(name: str, fields: dict[str, Any], expected: list[int]) -> None:
    config = {key: value for key, value in load(name).config.items() if key not in LISTS}
    config |= {"num_hidden_layers": LAYERS, **fields}
    model = read_model(Config(Path("config.json"), config))
    assert [layer for layer in range(LAYERS) if not model.is_dense(layer)] == expected


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("glm_moe_dsa", {"first_k_dense_replace": 2, "mlp_layer_types": SPARSE}),
        ("llama4_text", {"interleave_moe_layer_step": 2, "moe_layers": [0]}),
        ("mellum", {"mlp_only_layers": [1], "mlp_layer_types": SPARSE}),
    ],
)
def test_fields_that_contradict_a_list(name: str, fields: dict[str, Any]) -> None:
    config = {key: value for key, value in load(name).config.items() if key not in LISTS}
    with pytest.raises(ValueError, match=f"{next(iter(fields))}: expected .* as {list(fields)[1]} says"):
        read_model(Config(Path("config.json"), config | {"num_hidden_layers": LAYERS, **fields}))


def same_without(model: ModelFolder, tmp_path: Path, part: str, **fields: Any) -> None:
    """A folder whose tensors with `part` in their names have no rows is as one without these tensors."""
    config = model.config | fields
    without = {name: array for name, array in model.tensors.items() if part not in name}
    empty = {name: array[:0] for name, array in model.tensors.items() if part in name}
    assert empty
    layers = [
        mx.MoELayer.from_checkpoint(
            model._replace(config=config, tensors=tensors).write(tmp_path / str(len(tensors))), model.layer
        )
        for tensors in (without, without | empty)
    ]
    assert layers[0] == layers[1]
    with pytest.raises(ValueError, match="expected no shared experts, as config.json says"):
        mx.MoELayer.from_checkpoint(model._replace(config=config).write(tmp_path / "full"), model.layer)


def test_shared_experts_of_no_rows(tmp_path: Path) -> None:
    same_without(load("granitemoehybrid"), tmp_path / "a", "shared_mlp", shared_intermediate_size=0)
    same_without(load("afmoe"), tmp_path / "b", "shared_experts", num_shared_experts=0)


@pytest.mark.parametrize("fused", [False, True])
def test_zero_experts_with_matrices_that_nothing_computes_with(tmp_path: Path, fused: bool) -> None:
    model = load("longcat_flash")
    expected = mx.MoELayer.from_checkpoint(model.write(tmp_path / "a"), model.layer)
    block, count, zeros = "model.layers.0.mlp", model.config["n_routed_experts"], 4
    assert model.config["zero_expert_num"] == zeros
    tensors = dict(model.tensors)
    shape = tensors[f"{block}.experts.0.up_proj.weight"].shape
    rng = np.random.default_rng(0)
    for expert in range(count, count + zeros):
        for part in ("gate_proj", "up_proj"):
            array = rng.standard_normal(shape).astype(tensors[f"{block}.experts.0.up_proj.weight"].dtype)
            tensors[f"{block}.experts.{expert}.{part}.weight"] = array
    if fused:
        parts: dict[str, list[Any]] = {
            part: [tensors.pop(f"{block}.experts.{i}.{part}.weight", None) for i in range(count + zeros)]
            for part in ("gate_proj", "up_proj", "down_proj")
        }
        pairs = zip(parts["gate_proj"], parts["up_proj"], strict=True)
        tensors[f"{block}.experts.gate_up_proj"] = np.stack([np.concatenate(pair) for pair in pairs])
        tensors[f"{block}.experts.down_proj"] = np.stack(parts["down_proj"][:count])
    got = mx.MoELayer.from_checkpoint(model._replace(tensors=tensors).write(tmp_path / "b"), model.layer)
    assert got == expected


def test_transformers_has_other_prefixes_in_memory(tmp_path: Path) -> None:
    model = load("qwen3_omni_moe")
    renamed = {
        name.replace("thinker.model.layers.", "thinker.model.language_model.layers."): array
        for name, array in model.tensors.items()
    }
    layers = [
        mx.MoELayer.from_checkpoint(model._replace(tensors=tensors).write(tmp_path / str(i)), model.layer)
        for i, tensors in enumerate((model.tensors, renamed))
    ]
    assert layers[0] == layers[1]
