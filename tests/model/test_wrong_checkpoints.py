"""What a configuration or a folder says and nobody computes is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import whole_models
from problems import rel_l2

import mxfp4moe as mx

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1e4}


def rope(**fields: Any) -> dict[str, Any]:
    """A configuration as transformers 4 has it, of the same rotary embedding."""
    return {"rope_parameters": ..., **fields}


def refused(folder: whole_models.ModelFolder, path: Path, match: str) -> None:
    with pytest.raises(ValueError, match=match) as info:
        mx.CausalLM.from_checkpoint(folder.write(path))
    assert str(path) in str(info.value)


@pytest.mark.parametrize(
    ("name", "config", "match"),
    [
        ("mixtral", {"final_logit_softcapping": 30.0}, "final_logit_softcapping: expected 0, got 30.0"),
        ("mixtral", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping: expected 0"),
        ("mixtral", {"logits_scaling": 8}, "logits_scaling: expected 1, got 8"),
        ("mixtral", {"residual_multiplier": 0.22}, "residual_multiplier: expected 1, got 0.22"),
        ("mixtral", {"attention_bias": True}, "attention_bias: expected 0, got True"),
        ("mixtral", {"clip_qkv": 8.0}, "clip_qkv: expected 0, got 8.0"),
        ("olmoe", {"sliding_window": 4}, "sliding_window: expected 0, got 4"),
        ("glm4_moe", {"sliding_window": 4}, "sliding_window: expected 0, got 4"),
        ("gpt_oss", {"use_qk_norm": True}, "use_qk_norm: expected 0, got True"),
        ("qwen3_moe", {"num_attention_heads": 3}, "num_key_value_heads: expected a divisor of 3"),
        ("qwen3_moe", {"max_position_embeddings": ...}, "max_position_embeddings: expected an integer"),
        ("qwen3_moe", {"vocab_size": 98}, r"embed_tokens.weight: expected BF16 or F16 or F32 \[98, 64\]"),
        ("qwen3_moe", {"head_dim": 8}, r"q_norm.weight: expected BF16 or F16 or F32 \[8\]"),
        ("qwen3_moe", {"eos_token_id": 97}, "eos_token_id: expected ids of the vocabulary, got 97"),
        (
            "qwen3_moe",
            {"rope_parameters": {"rope_type": "llama3"}},
            "expected 'default' or 'yarn'",
        ),
        (
            "qwen3_moe",
            {"rope_parameters": {**YARN, "short_factor": [1]}},
            "short_factor: expected none",
        ),
        ("qwen3_moe", {"rope_parameters": {"rope_type": "yarn"}}, "factor: expected a finite number"),
        ("qwen3_moe", {"rope_parameters": {"mrope_section": [1, 2]}}, "mrope_section: expected none"),
        ("qwen3_moe", rope(rope_scaling={"type": "linear", "factor": 2.0}), "'default' or 'yarn'"),
        ("qwen3_moe", {"partial_rotary_factor": 1.5}, "partial_rotary_factor: expected a part of a head"),
        (
            "qwen2_moe",
            {"layer_types": ...},
            "layer_types: expected the kind of each layer, got no such field",
        ),
        ("qwen2_moe", {"use_sliding_window": False}, "layer_types: expected 'full_attention' for each layer"),
        ("gpt_oss", {"layer_types": ["chunked_attention"] * 3}, "layer_types: expected 'sliding_attention'"),
        ("gpt_oss", {"layer_types": ["full_attention"]}, "layer_types: expected a list of 3"),
    ],
)
def test_configurations(tmp_path: Path, name: str, config: dict[str, Any], match: str) -> None:
    refused(whole_models.changed(name, **config), tmp_path / "model", match)


def add(name: str, shape: tuple[int, ...]) -> Callable[[dict[str, Any]], None]:
    def change(tensors: dict[str, Any]) -> None:
        tensors[name] = np.ones(shape, np.float32)

    return change


def drop(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda tensors: tensors.pop(name)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (add("model.layers.1.self_attn.g_proj.weight", (4, 4)), "self_attn.g_proj.weight', which may change"),
        (add("model.layers.1.post_feedforward_layernorm.weight", (64,)), "post_feedforward_layernorm.weight"),
        (add("model.layers.1.self_attn.q_proj.bias", (64,)), "self_attn.q_proj.bias', which may change"),
        (add("model.layers.1.mlp.gate.weight", (8, 64)), "mlp.gate.weight', which may change"),
        (
            add("model.embed_norm.weight", (64,)),
            "no tensors but those that are used, got 'model.emb",
        ),
        (add("lm_head.bias", (97,)), "expected no tensors but those that are used, got 'lm_head.bias'"),
        (drop("lm_head.weight"), "expected a tensor lm_head.weight"),
        (drop("model.norm.weight"), "expected a tensor model.norm.weight"),
        (drop("model.layers.2.self_attn.o_proj.weight"), "expected a tensor model.layers.2.self_attn.o_proj"),
        (drop("model.layers.1.mlp.up_proj.weight"), "expected a tensor model.layers.1.mlp.up_proj.weight"),
    ],
)
def test_tensors(tmp_path: Path, change: Callable[[dict[str, Any]], None], match: str) -> None:
    folder = whole_models.load("qwen3_moe")  # whose layer 1 is dense
    tensors = dict(folder.tensors)
    change(tensors)
    refused(folder._replace(tensors=tensors), tmp_path / "model", match)


def test_other_models(tmp_path: Path) -> None:
    config = {**whole_models.load("mixtral").config, "model_type": "phimoe"}
    folder = whole_models.load("mixtral")._replace(config=config)
    refused(folder, tmp_path / "model", r"model_type: expected a model type that can be run as a whole \(gpt")


def test_what_changes_nothing(tmp_path: Path) -> None:
    """Fields that say what is computed anyway; tensors of buffers, and of layers for further tokens."""
    folder = whole_models.changed(
        "glm4_moe", logits_scaling=1.0, clip_qkv=None, sliding_window=0, rope_scaling=None, torch_dtype="bf16"
    )
    tensors = {
        **folder.tensors,
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32),
        "model.layers.3.eh_proj.weight": np.ones((4, 4), np.float32),
    }
    lm = mx.CausalLM.from_checkpoint(folder._replace(tensors=tensors).write(tmp_path / "model"))
    assert rel_l2(lm(folder.golden["input_ids"]), folder.golden["logits"]) <= 1.5e-2


def test_tied_head_that_differs(tmp_path: Path) -> None:
    folder = whole_models.load("qwen2_moe")
    embedding = folder.tensors["model.embed_tokens.weight"]
    same = {**folder.tensors, "lm_head.weight": embedding}
    lm = mx.CausalLM.from_checkpoint(folder._replace(tensors=same).write(tmp_path / "same"))
    assert lm.vocab_size == len(embedding)
    other = folder._replace(tensors={**same, "lm_head.weight": embedding[::-1]})
    refused(other, tmp_path / "other", "expected no tensor lm_head.weight but model.embed_tokens.weight")


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("qwen3_moe", rope(rope_theta=10000.0)),
        ("mixtral", rope()),  # whose default is the base in use
        ("glm4_moe", rope(rope_theta=10000.0, partial_rotary_factor=0.5)),
        ("glm4_moe", rope()),
        (
            "gpt_oss",
            rope(
                rope_theta=150000,
                initial_context_length=16,
                rope_scaling={
                    "type": "yarn", "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
                    "original_max_position_embeddings": 16,
                },
            ),
        ),
        ("gpt_oss", {"layer_types": ...}),  # every second layer slides
        ("gpt_oss", {"attention_bias": ...}),
        ("qwen2_moe", {"num_key_value_heads": 2, "qkv_bias": ...}),
    ],
)  # fmt: skip
def test_other_spellings(tmp_path: Path, name: str, config: dict[str, Any]) -> None:
    folder = whole_models.changed(name, **config)
    lm = mx.CausalLM.from_checkpoint(folder.write(tmp_path / "model"))
    same = mx.CausalLM.from_checkpoint(whole_models.load(name).write(tmp_path / "same"))
    ids = folder.golden["input_ids"]
    assert np.array_equal(lm(ids), same(ids))


def test_without_windows(tmp_path: Path) -> None:
    """Which layers would slide is not asked where none does."""
    folder = whole_models.changed("qwen2_moe", use_sliding_window=False, layer_types=...)
    lm = mx.CausalLM.from_checkpoint(folder.write(tmp_path / "model"))
    assert lm([1, 2, 3]).shape == (3, 97)
    windows = mx.CausalLM.from_checkpoint(whole_models.load("qwen2_moe").write(tmp_path / "windows"))
    ids = folder.golden["input_ids"][0]
    assert np.array_equal(lm(ids[:5]), windows(ids[:5]))  # as many as the window has
    assert not np.array_equal(lm(ids[:6])[-1], windows(ids[:6])[-1])


def test_end_ids(tmp_path: Path) -> None:
    path = whole_models.changed("mixtral", eos_token_id=[4, 5]).write(tmp_path / "model")
    assert mx.CausalLM.from_checkpoint(path).end_ids == (4, 5)
    (path / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert mx.CausalLM.from_checkpoint(path).end_ids == (7,)
    path = whole_models.changed("mixtral", eos_token_id=...).write(tmp_path / "none")
    assert mx.CausalLM.from_checkpoint(path).end_ids == ()
