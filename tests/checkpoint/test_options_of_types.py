"""What options of each type's configuration make of a layer, beyond those of its small checkpoint."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_folders import load

from mxfp4moe import checkpoint

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "groups by their largest score": (
        "deepseek_v2",
        {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2},
        {"num_groups": 4, "topk_group": 2, "group_score": "max", "renormalize": False},
    ),
    "greedy has no groups": ("deepseek_v2", {"n_group": None, "topk_group": 2}, {"select_by": "logit"}),
    "groups masked by 0": (
        "mistral4",
        {"n_group": 4, "topk_group": 2},
        {"num_groups": 4, "masked_groups": "zero"},
    ),
    "one group": ("bailing_hybrid", {"num_expert_group": 1}, {"routing": "topk_sigmoid"}),
    "no bias (Ling)": ("bailing_moe", {"moe_router_enable_expert_bias": False}, {"correction_bias": None}),
    "no bias (LFM2)": ("lfm2_moe", {"use_expert_bias": False}, {"correction_bias": None}),
    "no bias (MiniMax)": ("minimax_m2", {"use_routing_bias": False}, {"correction_bias": None}),
    "2-norm": ("dbrx", {"ffn_config.moe_normalize_expert_weights": 2}, {"norm_order": 2.0}),
    "no norm": ("dbrx", {"ffn_config.moe_normalize_expert_weights": None}, {"renormalize": False}),
    "soft cap": ("laguna", {"moe_router_logit_softcapping": 30}, {"logit_softcap": 30.0}),
    "no soft cap": ("laguna", {"moe_router_logit_softcapping": 0}, {"logit_softcap": None}),
    "mean of routed and shared": (
        "cohere2_moe_sum",
        {"shared_expert_combination_strategy": "average"},
        {"routed_scaling_factor": 0.5, "shared_scaling_factor": 0.5},
    ),
    "sum of routed and shared": ("cohere2_moe_sum", {}, {"shared_scaling_factor": 1.0}),
    "top_k of a layer": ("hunyuan_v1_moe", {"moe_topk": [3]}, {"top_k": 3}),
    "sizes as lists": (
        "hunyuan_v1_moe",
        {"num_shared_expert": [1], "moe_intermediate_size": [32], "n_group": False},
        {"top_k": 2},
    ),
    "limits of a layer": (
        "step3p5",
        {"swiglu_limits": [0.0, 7], "swiglu_limits_shared": [None, 16.0]},
        {"limit": 7.0, "shared_limit": 16.0},
    ),
    "limits of further layers": (
        "step3p5",
        {"swiglu_limits": [7.0, 0, 7.0], "num_nextn_predict_layers": 1},
        {"limit": None},
    ),
    "layers as a list of numbers": ("step3p5", {"moe_layers_enum": [1]}, {"top_k": 2}),
    "tanh": ("flint", {"hidden_act": "gelu_pytorch_tanh"}, {"activation": "gelu_tanh"}),
    "epsilon of the router": ("gemma4", {"text_config.rms_norm_eps": 1e-3}, {"router_norm_eps": 1e-3}),
    "jitter": ("phimoe", {"router_jitter_noise": 0}, {"jitter_eps": 0.0}),
    "another name": (
        "qwen3_next",
        {"norm_topk_prob": None, "moe_renormalize": False},
        {"renormalize": False},
    ),
    "other names": (
        "gpt_oss",
        {"num_experts_per_tok": None, "moe_topk": 3, "num_local_experts": None, "n_routed_experts": 8},
        {"top_k": 3},
    ),
    "jitter of training": ("mixtral", {"router_jitter_noise": 0.1}, {"routing": "topk_softmax"}),
}


@pytest.mark.parametrize("case", CASES)
def test_option(tmp_path: Path, case: str) -> None:
    name, changes, expected = CASES[case]
    model = load(name)
    config = copy.deepcopy(model.config)
    for path, value in changes.items():
        *sections, field = path.split(".")
        part = config
        for section in sections:
            part = part[section]
        part[field] = value
    folder = model._replace(config=config).write(tmp_path)
    description = checkpoint.read_layer(folder, model.layer)
    fields = {**description.arguments(), **description.routing_arguments}
    for key, value in expected.items():
        assert fields.get(key) == value


def test_factor_of_gemma_is_of_the_router(tmp_path: Path) -> None:
    model = load("gemma4")
    description = checkpoint.read_layer(model.write(tmp_path), model.layer)
    scale = next(array for name, array in model.tensors.items() if name.endswith("router.scale"))
    assert np.array_equal(description.router_scale, scale.astype(np.float32) * 64**-0.5)


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        # Their routed experts have silu whatever the field says, and their shared ones what it says.
        ("hy_v4", "hidden_act", "gelu", "'silu' or 'swish', got 'gelu'"),
        ("glm5_next", "hidden_act", "gelu_pytorch_tanh", "'silu' or 'swish', got 'gelu_pytorch_tanh'"),
        ("aria_text", "hidden_act", "gelu", "'silu' or 'swish', got 'gelu'"),
        ("phimoe", "num_experts_per_tok", 3, "2, got 3"),
        ("glm4_moe", "topk_group", 0, "an integer in .*, got 0"),
        ("mistral4", "topk_group", 0, "an integer in .*, got 0"),
    ],
)
def test_options_that_are_refused(tmp_path: Path, name: str, field: str, value: object, message: str) -> None:
    model = load(name)
    config = copy.deepcopy(model.config)
    config.get("text_config", config).update({field: value, **_one_group(field)})
    model = model._replace(config=config)
    with pytest.raises(ValueError, match=f"{field}: expected {message}"):
        checkpoint.open(model.write(tmp_path))


def test_routing_that_is_refused_names_the_file(tmp_path: Path) -> None:
    model = load("deepseek_v3")
    config = model.config | {"n_group": 2}
    config.pop("topk_group")  # 4, by default
    folder = model._replace(config=config).write(tmp_path)
    message = f"{folder}, layer {model.layer}: topk_group: expected an integer in .*, got 4"
    with pytest.raises(ValueError, match=message):
        checkpoint.read_layer(folder, model.layer)


def _one_group(field: str) -> dict[str, int]:
    return {"n_group": 1} if field == "topk_group" else {}
