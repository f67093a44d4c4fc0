"""What a checkpoint says and nobody reads is refused by name, unless it is known to change nothing."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
from checkpoints import MODELS, Written
from golden_layers import check_against_golden

import mxfp4moe as mx
from mxfp4moe import checkpoint

COMPRESSED = {"mxfp4": "compressed-tensors mxfp4", "nvfp4": "compressed-tensors nvfp4"}
GROUPS: dict[str, dict[str, Any]] = {
    "mxfp4": {
        "format": "mxfp4-pack-quantized",
        "weights": {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32},
    },
    "nvfp4": {
        "format": "nvfp4-pack-quantized",
        "weights": {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
    },
    "other": {"format": "marlin-24", "weights": {"num_bits": 8, "type": "int", "strategy": "channel"}},
}


def refused(folder: Path, layer: int = 0) -> str:
    with pytest.raises(ValueError, match=str(folder)) as caught:
        checkpoint.read_layer(folder, layer)
    return str(caught.value)


# --- tensors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_of_the_block_is_used(tmp_path: Path, name: str) -> None:
    written = MODELS[name]()
    block = checkpoint.open(written.write(tmp_path / "a"))._model.blocks(written.layer)[0].path
    for suffix in (
        "experts.0.extra.weight_zero_point",
        "gate.weight_scale_2",
        "extra",
        "shared.w1.input_rotation",
    ):
        tensors = {**written.tensors, f"{block}.{suffix}": np.zeros(3, np.float32)}
        message = refused(written._replace(tensors=tensors).write(tmp_path / suffix), written.layer)
        assert f"but those that are used, got '{block}.{suffix}'" in message


@pytest.mark.parametrize("name", MODELS)
def test_harmless_tensors_and_those_of_other_parts(tmp_path: Path, name: str) -> None:
    written = MODELS[name]()
    block = checkpoint.open(written.write(tmp_path / "a"))._model.blocks(written.layer)[0].path
    layer = block.rpartition(".")[0]
    names = [f"{block}.experts.0.{suffix}" for suffix in ("input_scale", "w1.input_global_scale", "k_scale")]
    names += [f"{layer}.self_attn.rotation", f"{layer}.input_layernorm.weight", f"{block}_other.weight"]
    tensors = {**written.tensors, **{each: np.zeros(1, np.float32) for each in names}}
    folder = written._replace(tensors=tensors).write(tmp_path / "b")
    assert checkpoint.read_layer(folder, written.layer).num_experts


# --- members of quantization_config -------------------------------------------------------------------------


QUANTIZED = [name for name, make in MODELS.items() if "quantization_config" in make().config]


@pytest.mark.parametrize("name", QUANTIZED)
def test_every_member_is_used(tmp_path: Path, name: str) -> None:
    written = MODELS[name]()
    for i, member in enumerate(({"rotation": "hadamard"}, {"a": [[None, 0]]}, {"b": False}, {"c": {"d": 1}})):
        config = copy.deepcopy(written.config)
        config["quantization_config"] |= member
        message = refused(written._replace(config=config).write(tmp_path / str(i)), written.layer)
        assert f"quantization_config.{next(iter(member))}: expected none" in message


@pytest.mark.parametrize("name", QUANTIZED)
def test_harmless_members_and_those_that_say_nothing(tmp_path: Path, name: str) -> None:
    written = MODELS[name]()
    written.config["quantization_config"] |= {
        "input_activations": {"num_bits": 8},
        "activation_scheme": "static",
        "kv_cache_scheme": {"num_bits": 8},
        "modules_to_not_convert": ["lm_head"],
        "unknown": None,
        "unknown too": {"a": [], "b": {"c": None}},
    }
    assert checkpoint.read_layer(written.write(tmp_path), written.layer).num_experts


def compressed(kind: str, **quantization: Any) -> Written:
    written = checkpoints.qwen3(COMPRESSED[kind])
    targets = {"targets": ["Linear"]}
    defaults = {"quant_method": "compressed-tensors", "config_groups": {"group_0": GROUPS[kind] | targets}}
    written.config["quantization_config"] = copy.deepcopy(defaults | quantization)
    return written


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("mxfp4", {"transform_config": {"config_groups": {"R4": {"type": "hadamard"}}}}, "transform_config"),
        ("nvfp4", {"transform_config": {"config_groups": {"R1": {"apply": [1]}}}}, "transform_config"),
        ("mxfp4", {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config: .*of format dense"),
        ("nvfp4", {"sparsity_config": [1]}, "sparsity_config: .*of format dense"),
    ],
)
def test_compressed_tensors_that_compute_otherwise(
    tmp_path: Path, kind: str, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"config.json: quantization_config.{message}"):
        checkpoint.read_layer(compressed(kind, **change).write(tmp_path), 1)


@pytest.mark.parametrize(
    ("member", "value"),
    [("num_bits", 8), ("type", "int"), ("group_size", 64), ("symmetric", False), ("rotation", True)],
)
def test_weights_of_a_group_are_as_its_format_has_them(tmp_path: Path, member: str, value: Any) -> None:
    written = compressed("mxfp4")
    written.config["quantization_config"]["config_groups"]["group_0"]["weights"][member] = value
    with pytest.raises(ValueError, match=f"config_groups.group_0.weights.{member}: expected"):
        checkpoint.read_layer(written.write(tmp_path), 1)


def test_a_configuration_as_llm_compressor_writes_it(tmp_path: Path) -> None:
    unused = {"actorder": None, "block_structure": None, "observer": "minmax", "observer_kwargs": {"a": 1}}
    unused |= {"dynamic": False, "symmetric": True, "scale_dtype": "torch.uint8", "zp_dtype": "torch.uint8"}
    group = copy.deepcopy(GROUPS["mxfp4"])
    group["weights"] |= unused
    group |= {"targets": ["Linear"], "input_activations": {"num_bits": 4}, "output_activations": None}
    written = compressed(
        "mxfp4",
        config_groups={"group_0": group},
        format="mxfp4-pack-quantized",
        global_compression_ratio=1.5,
        ignore=["lm_head", "re:.*mlp.gate$"],
        kv_cache_scheme={"num_bits": 8},
        quantization_status="compressed",
        sparsity_config={"format": "dense", "targets": [], "global_sparsity": 0.1},
        transform_config={"config_groups": {}},
        version="0.12.2",
    )
    check_against_golden(mx.MoELayer.from_checkpoint(written.write(tmp_path), 1), written.golden)


@pytest.mark.parametrize(
    ("algorithms", "is_refused"),
    [
        (None, False),
        ([], False),
        ([{"name": "autosmoothquant", "alpha": 0.5}], False),
        ({"name": "awq"}, False),
        ([{"name": "gptq"}, {"name": "rotation", "online_r1_rotation": True}], True),
        ({"name": "quarot"}, True),
        ("rotation", True),
    ],
)
def test_algorithms_of_quark(tmp_path: Path, algorithms: Any, is_refused: bool) -> None:
    written = checkpoints.qwen3("quark")
    written.config["quantization_config"]["algo_config"] = algorithms
    folder = written.write(tmp_path)
    if is_refused:
        assert "quantization_config.algo_config: expected algorithms" in refused(folder, 1)
    else:
        check_against_golden(mx.MoELayer.from_checkpoint(folder, 1), written.golden)


# --- groups of compressed-tensors ---------------------------------------------------------------------------

EXPERTS, REST = r"re:.*mlp\.experts\.\d+\.", r"re:.*self_attn"
FIRST = "model.layers.1.mlp.experts.0.gate_proj"
# Groups with their targets, in their order: kinds of GROUPS, "it" that of the experts, "not" the other.
MIXTURES: dict[str, list[tuple[str, list[str]]]] = {
    "a pattern": [("not", [REST]), ("it", [EXPERTS])],
    "a pattern, first": [("it", [EXPERTS]), ("not", [REST])],
    "a class": [("not", [REST]), ("it", ["Linear"])],
    "a pattern before a class": [("not", ["Linear"]), ("it", [EXPERTS])],
    "a pattern before a class, first": [("it", [EXPERTS]), ("other", ["Linear"])],
    "patterns match from the start": [("not", [r"re:mlp\.experts"]), ("it", ["Linear"])],
    "a class that is no matrix": [("not", ["Embedding"]), ("it", ["Linear"])],
    "three": [("other", [REST]), ("not", ["lm_head"]), ("it", [r"re:.*_proj$"])],
    "the first pattern in order": [("not", [r"re:.*mlp"]), ("it", [r"re:.*experts"])],
}


def mixture(kind: str, groups: list[tuple[str, list[str]]], **fields: Any) -> Written:
    other = "nvfp4" if kind == "mxfp4" else "mxfp4"
    kinds = {"it": kind, "not": other, "other": "other"}
    sections = {
        f"group_{i}": GROUPS[kinds[which]] | {"targets": targets} for i, (which, targets) in enumerate(groups)
    }
    return compressed(kind, config_groups=sections, **({"format": "mixed-precision"} | fields))


@pytest.mark.parametrize("kind", COMPRESSED)
@pytest.mark.parametrize("name", MIXTURES)
def test_targets_decide(tmp_path: Path, name: str, kind: str) -> None:
    written = mixture(kind, MIXTURES[name])
    layer = mx.MoELayer.from_checkpoint(written.write(tmp_path), 1)
    assert layer.experts.format == kind
    check_against_golden(layer, written.golden)


def test_names_come_before_patterns(tmp_path: Path) -> None:
    """All matrices by name: each is read as its own group says."""
    count = compressed("nvfp4").config["num_experts"]
    experts = [f"model.layers.1.mlp.experts.{expert}" for expert in range(count)]
    names = [f"{expert}.{part}_proj" for expert in experts for part in ("gate", "up", "down")]
    written = mixture("nvfp4", [("not", [EXPERTS]), ("it", names)])
    check_against_golden(mx.MoELayer.from_checkpoint(written.write(tmp_path), 1), written.golden)


@pytest.mark.parametrize("kind", COMPRESSED)
def test_the_format_at_the_top_is_that_of_groups_without_one(tmp_path: Path, kind: str) -> None:
    written = mixture(kind, [("it", [EXPERTS])], format=GROUPS[kind]["format"])
    (group,) = written.config["quantization_config"]["config_groups"].values()
    del group["format"]
    check_against_golden(mx.MoELayer.from_checkpoint(written.write(tmp_path), 1), written.golden)


@pytest.mark.parametrize("ignore", [[EXPERTS], ["Linear"], ["re:model"]])
def test_ignored_experts_are_floats(tmp_path: Path, ignore: list[str]) -> None:
    quantization = compressed("mxfp4", ignore=ignore).config["quantization_config"]
    written = checkpoints.qwen3("bfloat16")
    written.config["quantization_config"] = quantization
    assert mx.MoELayer.from_checkpoint(written.write(tmp_path / "a"), 1).experts.format == "bf16"
    message = refused(compressed("mxfp4", ignore=ignore).write(tmp_path / "b"), 1)
    assert f"a tensor {FIRST}.weight, got none" in message


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([("it", [REST])], f"a group in .* that targets {FIRST}, got none"),
        ([("it", [REST]), ("other", [EXPERTS])], f"a group in .* that targets {FIRST}, got 'marlin-24'"),
        ([("it", ["re:(", EXPERTS])], r"config_groups.targets: expected regular expressions, got 're:\('"),
        (
            [("it", [r"re:.*gate_proj"]), ("not", [r"re:.*(up|down)_proj"])],
            "that are all stored alike, got .*mxfp4.* for .*gate_proj and .*nvfp4.* for .*up_proj",
        ),
    ],
)
def test_no_group_for_the_experts(tmp_path: Path, groups: list[tuple[str, list[str]]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checkpoint.read_layer(mixture("mxfp4", groups).write(tmp_path), 1)


# --- null ---------------------------------------------------------------------------------------------------


def outcome(folder: Path, config: dict[str, Any], layer: int) -> str:
    (folder / "config.json").write_text(json.dumps(config))
    try:
        model = checkpoint.open(folder)
        facts = {name: value for name, value in vars(model).items() if not name.startswith("_")}
        return f"{facts} {model.describe_layer(layer)}"
    except ValueError as error:
        return str(error)


def sections_of(config: dict[str, Any]) -> Iterator[tuple[Callable[[dict[str, Any]], dict[str, Any]], str]]:
    """(how to get at the object, name) of each member, of objects in it too."""

    def at(path: tuple[str, ...]) -> Callable[[dict[str, Any]], dict[str, Any]]:
        def get(fields: dict[str, Any]) -> dict[str, Any]:
            for name in path:
                fields = fields[name]
            return fields

        return get

    def walk(fields: dict[str, Any], path: tuple[str, ...]) -> Iterator[tuple[Any, str]]:
        for name, value in fields.items():
            yield at(path), name
            if isinstance(value, dict):
                yield from walk(value, (*path, name))

    return walk(config, ())


@pytest.mark.parametrize("name", [*MODELS, *COMPRESSED])
def test_null_is_missing(tmp_path: Path, name: str) -> None:
    written = compressed(name) if name in COMPRESSED else MODELS[name]()
    written.write(tmp_path)
    for section, member in sections_of(written.config):
        config = copy.deepcopy(written.config)
        section(config)[member] = None
        null = outcome(tmp_path, config, written.layer)
        del section(config)[member]
        assert null == outcome(tmp_path, config, written.layer), member


def test_shared_expert_of_deepseek_v3_that_the_configuration_leaves_out(tmp_path: Path) -> None:
    written = checkpoints.deepseek_v3()
    del written.config["n_shared_experts"]
    model = checkpoint.open(written.write(tmp_path / "a"))
    assert model.shared_intermediate_size == model.intermediate_size
    check_against_golden(mx.MoELayer.from_checkpoint(tmp_path / "a", written.layer), written.golden)
    tensors = {name: array for name, array in written.tensors.items() if "shared_experts" not in name}
    model = checkpoint.open(written._replace(tensors=tensors).write(tmp_path / "b"))
    assert model.shared_intermediate_size == 0
    assert model.read_layer(written.layer).shared_experts is None
