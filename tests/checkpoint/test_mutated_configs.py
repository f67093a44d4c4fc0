"""Configurations with one field changed: an error that names the field, or numbers that are right.

Right are the numbers of the unchanged configuration, bit for bit, where the description of the layer is the
same. Where it is not, what has changed is what the field is about, with the number that the field has.
"""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_folders import NAMES, load

import mxfp4moe as mx
from mxfp4moe import checkpoint

NUM_MUTATIONS = 4 * int(os.environ.get("MXFP4MOE_MUTATIONS", "1"))  # of each configuration; 9 times are 2,000

# Fields that say something of the MoE block in one type or another; it does not depend on the others.
MATTERS = re.compile(
    r"expert|moe|topk|top_k|group|dense|sparse|hidden_size|d_model|intermediate|hidden_act"
    r"|hidden_activation|activation_function|ffn|num_hidden_layers|num_layers|n_layers|scaling_factor|route|scor|shared|swiglu"
    r"|latent|mlp|interleave|block_type|pattern|rms_norm_eps|jitter|share_|norm_min|model_type|vocab_size"
)
ALIASES = (
    ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
    ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k", "top_k_experts"),
    ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"),
    ("n_group", "num_expert_group"),
    ("norm_topk_prob", "moe_renormalize"),
)
OTHERS = {  # options of other types, which would change the numbers of most
    "routed_scaling_factor": 3.5,
    "norm_topk_prob": "x",
    "scoring_func": "tanh",
    "topk_method": "other",
    "hidden_act": "relu",
    "n_group": 0,
    "swiglu_limit": -1.0,
    "shared_expert_intermediate_size": "48",
    "n_shared_experts": 3,
    "moe_latent_size": 16,
    "zero_expert_num": 2,
    "mlp_bias": True,
    "expert_selection_fn": "other",
    "moe_apply_router_weight_on_input": True,
}


def sections(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The configuration and those in it that are of the language model."""
    yield config
    for name in ("text_config", "thinker_config", "ffn_config", "ffn_act_fn"):
        if isinstance(config.get(name), dict):
            yield from sections(config[name])


def pick(rng: np.random.Generator, values: list[Any]) -> Any:
    return values[rng.integers(len(values))]


def mutate(config: dict[str, Any], rng: np.random.Generator) -> tuple[str, str]:
    """Change one field; return its name and how."""
    fields = [(part, name) for part in sections(config) for name in part if MATTERS.search(name)]
    innermost = [part for part in sections(config) if "num_experts_per_tok" in part or "hidden_size" in part]
    kind = str(rng.choice(["remove", "null", "type", "value", "value", "alias", "add"]))
    if kind == "add":
        name = str(rng.choice(list(OTHERS)))
        (innermost or [config])[-1][name] = OTHERS[name]
        return name, kind
    if kind == "alias":
        known = [(p, n, names) for p, n in fields for names in ALIASES if n in names and p[n] is not None]
        part, name, names = known[rng.integers(len(known))] if known else (config, "num_experts", ALIASES[0])
        other = str(rng.choice([each for each in names if each != name]))
        value = part.get(name, 8)
        part[other] = (not value) if isinstance(value, bool) else value + int(rng.integers(0, 2))
        return other, kind
    part, name = fields[rng.integers(len(fields))]
    value = part[name]
    if kind == "remove":
        del part[name]
    elif kind == "null":
        part[name] = None
    elif kind == "type":
        part[name] = [value] if isinstance(value, dict) else pick(rng, [{}, "7", True, [1, 2], 1.5])
    elif isinstance(value, bool):
        part[name] = not value
    elif isinstance(value, int):
        part[name] = int(rng.choice([value + 1, value - 1, 2 * value, 0, -1, 2**40]))
    elif isinstance(value, float):
        part[name] = float(rng.choice([0.0, -value, value * 2, 1e39]))
    elif isinstance(value, list):
        part[name] = pick(rng, [value[:-1], [*value, *value], [], value[::-1]])
    elif isinstance(value, str):
        part[name] = str(rng.choice(["", "other", value.upper()]))
    return name, kind


CHANGES: dict[str, set[str]] = {
    "expert_selection_fn|topk_method|n_group|num_expert_group|topk_group": {"routing", "routing_arguments"},
    "norm_topk_prob|moe_renormalize|moe_norm_min|router_jitter_noise|moe_normalize": {"routing_arguments"},
    "use_.*bias|enable_expert_bias|softcapping": {"routing_arguments"},
    "scaling_factor|route_scale": {"routing_arguments", "routed_scaling_factor"},
    "per_tok|moe_topk|moe_top_k|moe_k|top_k_experts": {"top_k"},
    "swiglu_limit": {"limit", "shared_limit"},
    "swiglu_alpha": {"alpha"},
    "rms_norm_eps": {"router_norm_eps", "latent_norm_eps"},
    "combination_strategy": {"shared_scaling_factor", "routed_scaling_factor"},
    "hidden_act|activation": {"activation", "alpha", "limit", "shared_limit"},
}
"""What of a layer the fields may change whose names match; what they leave out may change nothing."""


def says(description: checkpoint.LayerDescription[Any]) -> dict[str, Any]:
    """All options of a layer as text, and its arrays as bytes, but for the experts."""
    return {
        name: value.tobytes() if isinstance(value, np.ndarray) else str(value)
        for name, value in description.arguments().items()
        if name not in ("experts", "shared_experts", "routing_arguments")
    } | {"routing_arguments": description.routing_text.partition("(")[2]}


def new_value(config: dict[str, Any], field: str) -> Any:
    return next((part[field] for part in sections(config) if field in part), None)


@pytest.mark.parametrize("name", NAMES)
def test_mutated_config_is_refused_by_name_or_means_what_it_says(
    tmp_path: Path, rng: np.random.Generator, name: str
) -> None:
    model = load(name)
    folder = model.write(tmp_path)
    before = says(checkpoint.read_layer(folder, model.layer))
    expected = mx.MoELayer.from_checkpoint(folder, layer=model.layer)(**model.inputs(np.float32))
    for _ in range(NUM_MUTATIONS):
        config = copy.deepcopy(model.config)
        field, kind = mutate(config, rng)
        (folder / "config.json").write_text(json.dumps(config))
        try:
            layer = mx.MoELayer.from_checkpoint(folder, layer=model.layer)
        except (ValueError, TypeError) as error:
            assert "expected" in str(error)
            assert field in str(error), f"{kind} {field}: {error}"
            continue
        after = says(checkpoint.read_layer(folder, model.layer))
        changed = {key for key in after if after[key] != before[key]}
        allowed = [keys for pattern, keys in CHANGES.items() if re.search(pattern, field)]
        assert changed <= set().union(*allowed), f"{kind} {field}"
        result = layer(**model.inputs(np.float32))
        if not changed:
            assert result.tobytes() == expected.tobytes(), f"{kind} {field}"
        value = new_value(config, field)
        is_product = field == "route_scale" and "gate.global_scale" in " ".join(model.tensors)
        if changed and type(value) in (int, float) and not is_product:
            texts = [str(float(value)), str(value)]
            assert any(text in str(after[key]) for key in changed for text in texts), f"{kind} {field}"
