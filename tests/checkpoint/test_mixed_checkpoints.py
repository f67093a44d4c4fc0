"""Checkpoints whose modules are stored differently: each is read as it was written, or an error names two.

The writer is given what each module is; the configuration says it as each software does.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from checkpoints import PARTS, Written
from golden_layers import dequantize
from integer_storages import BLOCK, CASES, random_ints
from problems import bfloat16

from mxfp4moe import (
    checkpoint,
    dequantize_mxfp4,
    dequantize_nvfp4,
    pack_experts,
    quantize_mxfp4,
    quantize_nvfp4,
)

EXPERTS, HIDDEN, INTERMEDIATE, SHARED = 3, 64, 128, 192
SHAPES = {"gate": (INTERMEDIATE, HIDDEN), "up": (INTERMEDIATE, HIDDEN), "down": (HIDDEN, INTERMEDIATE)}

Tensors = dict[str, np.ndarray]


def fp8(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Tensors, np.ndarray]:
    """A scale of a power of two, so that weights are exact in float32."""
    codes = rng.standard_normal(shape).astype(ml_dtypes.float8_e4m3fn)
    scale = np.float32(2.0 ** -int(rng.integers(4)))
    return {"weight": codes, "weight_scale": np.array(scale)}, codes.astype(np.float32) * scale


def mxfp4(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Tensors, np.ndarray]:
    codes, scales = quantize_mxfp4(rng.standard_normal(shape).astype(np.float32))
    return {"weight": codes, "weight_scale": scales.view(np.uint8)}, dequantize_mxfp4(codes, scales)


def packed_mxfp4(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Tensors, np.ndarray]:
    tensors, values = mxfp4(rng, shape)
    return {"weight_packed": tensors["weight"], "weight_scale": tensors["weight_scale"]}, values


def nvfp4(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Tensors, np.ndarray]:
    codes, scales, tensor_scale = quantize_nvfp4(rng.standard_normal(shape).astype(np.float32))
    two = np.exp2(np.round(np.log2(tensor_scale)))
    tensors = {"weight": codes, "weight_scale": scales, "weight_scale_2": np.array(two)}
    return tensors | {"input_scale": np.array(np.float32(1))}, dequantize_nvfp4(codes, scales, two)


FLOAT_CODES = {"fp8": fp8, "mxfp4": mxfp4, "packed mxfp4": packed_mxfp4, "nvfp4": nvfp4}


class Layer:
    """A layer of Qwen2-MoE, which has a shared expert, each module written on its own."""

    def __init__(self, quantization: dict[str, Any], method: str = "quantization_config") -> None:
        self.rng = np.random.default_rng(0)
        self.tensors: Tensors = {}
        self.values: Tensors = {}
        self.config: dict[str, Any] = {
            "model_type": "qwen2_moe",
            "hidden_size": HIDDEN,
            "moe_intermediate_size": INTERMEDIATE,
            "shared_expert_intermediate_size": SHARED,
            "num_experts": EXPERTS,
            "num_experts_per_tok": 2,
            "num_hidden_layers": 2,
            "hidden_act": "silu",
            method: quantization,
        }

    def write_all(self, how: Callable[[str], str]) -> Layer:
        """Write all modules, each as the case of CASES that `how` says, or as "floats"."""
        for layer in range(2):
            block = BLOCK.replace("0", str(layer))
            modules = {f"{block}.gate": (EXPERTS, HIDDEN), f"{block}.shared_expert_gate": (1, HIDDEN)}
            for part, shape in SHAPES.items():
                modules |= {f"{block}.experts.{e}.{part}_proj": shape for e in range(EXPERTS)}
                size = tuple(SHARED if each == INTERMEDIATE else each for each in shape)
                modules[f"{block}.shared_expert.{part}_proj"] = size  # type: ignore[assignment]
            for module, shape in modules.items():
                self.write(module, shape, how(module))
        return self

    def write(self, module: str, shape: tuple[int, int], how: str) -> None:
        if how == "floats":
            values = self.rng.standard_normal(shape).astype(bfloat16)
            self.tensors[f"{module}.weight"] = values
            self.values[module] = values.astype(np.float32)
            return
        if how in FLOAT_CODES:
            tensors, self.values[module] = FLOAT_CODES[how](self.rng, shape)
            self.tensors.update({f"{module}.{suffix}": array for suffix, array in tensors.items()})
            return
        case = CASES[how]
        ints = random_ints(self.rng, case, (1, *shape))
        for suffix, array in case.store(ints, case).items():
            self.tensors[f"{module}.{suffix}"] = np.ascontiguousarray(array[0])
        self.values[module] = ints.values()[0]

    def check(self, path: Path) -> None:
        """Read both layers; all weights must be those that were written."""
        written = Written(self.config, self.tensors, 0, {}).write(path)
        for layer in range(2):
            block = BLOCK.replace("0", str(layer))
            parts = checkpoint.read_layer(written, layer)
            pack_experts(**parts.experts.arguments())
            got = dequantize(parts.experts)
            assert parts.shared_experts is not None
            shared = dequantize(parts.shared_experts)
            for part in PARTS:
                for expert in range(EXPERTS):
                    expected = self.values[f"{block}.experts.{expert}.{part}_proj"]
                    assert np.array_equal(got[part][expert], expected), (layer, part, expert)
                assert np.array_equal(shared[part][0], self.values[f"{block}.shared_expert.{part}_proj"])
            assert np.array_equal(parts.router_weight.astype(np.float32), self.values[f"{block}.gate"])

    def refused(self, path: Path, message: str) -> None:
        written = Written(self.config, self.tensors, 0, {}).write(path)
        with pytest.raises(ValueError, match=re.escape(str(path)) + ".*" + message):
            checkpoint.read_layer(written, 0)


def fits(pattern: str) -> Callable[[str], bool]:
    return lambda module: re.search(pattern, module) is not None


def floats_in(pattern: str, how: str) -> Callable[[str], str]:
    return lambda module: "floats" if fits(pattern)(module) else how


# Modules that are never quantized here, unless a case says so.
USUAL = r"gate$"
LEFT_OUT = {
    "the shared expert": r"shared_expert\.",
    "the first layer": r"layers\.0\.",
    "the last layer": r"layers\.1\.",
    "all down projections": r"experts\.\d+\.down_proj",
    "all gate and up projections": r"experts\.\d+\.(?:gate|up)_proj",
    "down of the shared expert": r"shared_expert\.down_proj",
}
REFUSED = {
    "gate of an expert": (r"layers\.0\.mlp\.experts\.1\.gate_proj", "gate"),
    "down of an expert": (r"layers\.0\.mlp\.experts\.2\.down_proj", "down"),
    "all gates": (r"experts\.\d+\.gate_proj", "gate"),
    "an expert": (r"experts\.1\.", "gate"),
    "gate of the shared expert": (r"shared_expert\.gate_proj", "gate"),
}


def compressed(how: str, pattern: str) -> dict[str, Any]:
    return CASES[how].quantization() | {"ignore": ["lm_head", f"re:.*{USUAL}", f"re:.*{pattern}.*"]}


def compressed_by_target(how: str, pattern: str) -> dict[str, Any]:
    """No list of exceptions but a target that the modules left out do not match."""
    fields = CASES[how].quantization()
    group = fields["config_groups"]["group_0"] | {"targets": [f"re:^(?!.*{pattern})(?!.*{USUAL}).*$"]}
    return fields | {"config_groups": {"group_0": group}, "ignore": []}


def gptq(how: str, pattern: str) -> dict[str, Any]:
    return CASES[how].quantization() | {"dynamic": {f"-:.*{USUAL}": {}, f"-:.*{pattern}": {}}}


def listed(how: str, pattern: str) -> dict[str, Any]:
    """As AWQ has it: parts of names, from which nobody can tell the layer; dtypes say the rest."""
    return CASES[how].quantization() | {"modules_to_not_convert": ["gate", "shared_expert", "layers.0."]}


def auto_round(how: str, pattern: str) -> dict[str, Any]:
    exceptions = {f".*{each}.*": {"bits": 16, "data_type": "float"} for each in (USUAL, pattern)}
    return CASES[how].quantization() | {"extra_config": exceptions}


WRITERS: list[tuple[str, Callable[[str, str], dict[str, Any]]]] = [
    ("ct 4 bits", compressed),
    ("ct 8 bits, zeros", compressed),
    ("ct int", compressed),
    ("ct 4 bits, zeros", compressed_by_target),
    ("gptq", gptq),
    ("gptq v2, 8 bits, zeros", gptq),
    ("gptq, zeros", listed),
    ("awq", listed),
    ("auto-round auto_round", auto_round),
    ("auto-round auto_round:auto_awq", auto_round),
]


@pytest.mark.parametrize("left_out", LEFT_OUT)
@pytest.mark.parametrize(("how", "quantization"), WRITERS)
def test_modules_left_in_floats(
    tmp_path: Path, how: str, quantization: Callable[[str, str], dict[str, Any]], left_out: str
) -> None:
    pattern = LEFT_OUT[left_out]
    layer = Layer(quantization(how, pattern)).write_all(floats_in(f"{USUAL}|{pattern}", how))
    layer.check(tmp_path)


@pytest.mark.parametrize("left_out", REFUSED)
@pytest.mark.parametrize(("how", "quantization"), WRITERS)
def test_some_matrices_left_in_floats(
    tmp_path: Path, how: str, quantization: Callable[[str, str], dict[str, Any]], left_out: str
) -> None:
    pattern, part = REFUSED[left_out]
    layer = Layer(quantization(how, pattern)).write_all(floats_in(f"{USUAL}|{pattern}", how))
    layer.refused(tmp_path, f"alike, got .*(plain floats for .*{part}_proj|{part}_proj)")


# --- several formats ----------------------------------------------------------------------------------------


def first_of(rules: dict[str, str], otherwise: str) -> Callable[[str], str]:
    """What the first rule says whose pattern is found in the name."""
    return lambda module: next((how for pattern, how in rules.items() if fits(pattern)(module)), otherwise)


def groups(**targets: str) -> dict[str, Any]:
    """Several groups of compressed-tensors, by case; targets are regular expressions, or a class."""
    found = {}
    for name, target in targets.items():
        how = name.replace("_", " ")
        if how == "packed mxfp4":
            weights: dict[str, Any] = {"num_bits": 4, "type": "float", "group_size": 32}
            group: dict[str, Any] = {"format": "mxfp4-pack-quantized", "weights": weights}
        elif how == "fp8":
            weights = {"num_bits": 8, "type": "float", "strategy": "tensor"}
            group = {"format": "float-quantized", "weights": weights}
        else:
            group = CASES[how].quantization()["config_groups"]["group_0"]
        found[f"group_{len(found)}"] = group | {"targets": [target]}
    ignore = [f"re:.*{USUAL}"]
    return {
        "quant_method": "compressed-tensors",
        "format": "mixed-precision",
        "config_groups": found,
        "ignore": ignore,
    }


def by_layer(**algorithms: str) -> dict[str, Any]:
    modules = {name.replace("__", "."): {"quant_algo": how} for name, how in algorithms.items()}
    return {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": modules}


QUARK_FP8 = {"weight": {"dtype": "fp8_e4m3", "qscheme": "per_tensor"}}
QUARK_FP4 = {"weight": {"dtype": "fp4", "qscheme": "per_group", "group_size": 32, "scale_format": "e8m0"}}
SEVERAL: dict[str, tuple[dict[str, Any], dict[str, str], str]] = {
    "ct, shared expert in FP8": (
        groups(fp8=r"re:.*shared_expert\..*", ct_4_bits="Linear"),
        {r"shared_expert\.": "fp8"},
        "ct 4 bits",
    ),
    "ct, down in FP8": (
        groups(fp8=r"re:.*down_proj$", packed_mxfp4="Linear"),
        {"down_proj": "fp8"},
        "packed mxfp4",
    ),
    "ct, layers of two formats": (
        groups(ct_int=r"re:.*layers\.0\..*", ct_4_bits=r"re:.*layers\.1\..*"),
        {r"layers\.0\.": "ct int"},
        "ct 4 bits",
    ),
    "ct, gate of 8 bits": (
        groups(ct_8_bits=r"re:.*gate_proj", ct_4_bits="Linear"),
        {"gate_proj": "ct 8 bits"},
        "ct 4 bits",
    ),
    "ct, an expert of 8 bits": (
        groups(ct_8_bits=r"re:.*experts\.1\.", packed_mxfp4="Linear"),
        {r"experts\.1\.": "ct 8 bits"},
        "packed mxfp4",
    ),
    "modelopt, shared expert in FP8": (
        by_layer(
            **{f"model__layers__{n}__mlp__experts": "NVFP4" for n in range(2)},
            **{f"model__layers__{n}__mlp__shared_expert": "FP8" for n in range(2)},
        ),
        {r"shared_expert\.": "fp8"},
        "nvfp4",
    ),
    "modelopt, first layer in FP8": (
        by_layer(model__layers__0="FP8", model__layers__1="NVFP4"),
        {r"layers\.0\.": "fp8"},
        "nvfp4",
    ),
    "modelopt, first layer in floats": (
        by_layer(model__layers__1__mlp="NVFP4"),
        {r"layers\.0\.": "floats"},
        "nvfp4",
    ),
    "modelopt, down in floats": (
        {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["*down_proj", "*gate"]},
        {"down_proj": "floats"},
        "nvfp4",
    ),
    "modelopt, down in NVFP4": (
        {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["*gate*", "*up_proj"]},
        {r"(gate|up)_proj": "floats"},
        "nvfp4",
    ),
    "modelopt, excluded": (
        {"quant_method": "modelopt", "quant_algo": "FP8", "exclude_modules": ["model.layers.0*", "*gate"]},
        {r"layers\.0\.": "floats"},
        "fp8",
    ),
    "modelopt, ignored": (
        {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["*shared_expert*", "*gate"]},
        {r"shared_expert\.": "floats"},
        "nvfp4",
    ),
    "quark, shared expert in FP8": (
        {
            "quant_method": "quark",
            "global_quant_config": QUARK_FP4,
            "layer_quant_config": {"*shared_expert*": QUARK_FP8},
            "exclude": ["lm_head", "re:.*gate$"],
        },
        {r"shared_expert\.": "fp8"},
        "mxfp4",
    ),
    "quark, down in FP8": (
        {
            "quant_method": "quark",
            "global_quant_config": QUARK_FP4,
            "layer_quant_config": {"*.down_proj": QUARK_FP8},
            "exclude": ["*gate"],
        },
        {"down_proj": "fp8"},
        "mxfp4",
    ),
    "quark, excluded": (
        {
            "quant_method": "quark",
            "global_quant_config": QUARK_FP8,
            "exclude": ["re:.*shared_expert.*", "model.layers.0.mlp.gate"],
        },
        {r"shared_expert\.": "floats"},
        "fp8",
    ),
    "gptq, shared expert of 8 bits": (
        CASES["gptq"].quantization() | {"dynamic": {r"+:.*shared_expert\.": {"bits": 8}, r"-:.*gate$": {}}},
        {r"shared_expert\.": "gptq 8 bits"},
        "gptq",
    ),
    "gptq, down of 8 bits": (
        CASES["gptq"].quantization() | {"dynamic": {r".*down_proj": {"bits": 8}, r"-:.*gate$": {}}},
        {"down_proj": "gptq 8 bits"},
        "gptq",
    ),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_modules_of_several_formats(tmp_path: Path, name: str) -> None:
    quantization, rules, otherwise = SEVERAL[name]
    how = first_of({USUAL: "floats", **rules}, otherwise)
    Layer(quantization).write_all(how).check(tmp_path)


@pytest.mark.parametrize(
    ("quantization", "rules", "otherwise"),
    [
        (
            groups(fp8=r"re:.*experts\.1\.down_proj", ct_4_bits="Linear"),
            {r"experts\.1\.down": "fp8"},
            "ct 4 bits",
        ),
        (groups(fp8="re:.*up_proj", packed_mxfp4="Linear"), {"up_proj": "fp8"}, "packed mxfp4"),
        (
            {
                "quant_method": "quark",
                "global_quant_config": QUARK_FP4,
                "layer_quant_config": {"*.2.up_proj": QUARK_FP8},
            },
            {r"2\.up_proj": "fp8"},
            "mxfp4",
        ),
    ],
    ids=["ct, down of an expert", "ct, all up", "quark, up of an expert"],
)
def test_formats_that_are_not_alike(
    tmp_path: Path, quantization: dict[str, Any], rules: dict[str, str], otherwise: str
) -> None:
    layer = Layer(quantization).write_all(first_of({USUAL: "floats", **rules}, otherwise))
    layer.refused(tmp_path, "experts of a layer that are all stored alike, got .* for .* and .* for ")


# --- routers ------------------------------------------------------------------------------------------------

ROUTERS: dict[str, tuple[dict[str, Any], str, str]] = {
    "ct 8 bits": (
        groups(ct_8_bits="re:.*gate$", ct_4_bits="Linear") | {"ignore": []},
        "ct 8 bits",
        "ct 4 bits",
    ),
    "ct 4 bits": (CASES["ct 4 bits"].quantization() | {"ignore": []}, "ct 4 bits", "ct 4 bits"),
    "ct int, zeros": (
        CASES["ct int, zeros"].quantization() | {"ignore": []},
        "ct int, zeros",
        "ct int, zeros",
    ),
    "gptq": (CASES["gptq, zeros"].quantization() | {"dynamic": {}}, "gptq, zeros", "gptq, zeros"),
    "gptq of 8 bits": (
        CASES["gptq"].quantization() | {"dynamic": {".*gate$": {"bits": 8}}},
        "gptq 8 bits",
        "gptq",
    ),
    "awq": (CASES["awq"].quantization() | {"modules_to_not_convert": None}, "awq", "awq"),
    "auto-round": (
        CASES["auto-round auto_round"].quantization() | {"extra_config": {}},
        "auto-round auto_round",
        "auto-round auto_round",
    ),
    "modelopt": ({"quant_method": "modelopt", "quant_algo": "FP8"}, "fp8", "fp8"),
    "modelopt nvfp4": ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4", "nvfp4"),
    "quark": ({"quant_method": "quark", "global_quant_config": QUARK_FP4}, "mxfp4", "mxfp4"),
}


@pytest.mark.parametrize("name", ROUTERS)
def test_quantized_routers(tmp_path: Path, name: str) -> None:
    """The gate of the shared expert too, which has one row."""
    quantization, router, experts = ROUTERS[name]
    Layer(quantization).write_all(first_of({USUAL: router}, experts)).check(tmp_path)


# --- MLX ----------------------------------------------------------------------------------------------------


def mlx_layer(rules: dict[str, str], otherwise: str, field: str) -> Layer:
    """Experts in one tensor for each projection; the configuration names each module that is special."""
    layer = Layer({**CASES[otherwise].quantization()}, field)
    how = first_of(rules, otherwise)
    for number in range(2):
        block = BLOCK.replace("0", str(number))
        modules = {f"{block}.switch_mlp.{part}_proj": shape for part, shape in SHAPES.items()}
        for part, shape in SHAPES.items():
            size = tuple(SHARED if each == INTERMEDIATE else each for each in shape)
            modules[f"{block}.shared_expert.{part}_proj"] = size  # type: ignore[assignment]
        modules |= {f"{block}.gate": (EXPERTS, HIDDEN), f"{block}.shared_expert_gate": (1, HIDDEN)}
        for module, shape in modules.items():
            if how(module) != otherwise:
                case = CASES.get(how(module))
                layer.config[field][module] = False if case is None else case.quantization()
            if "switch_mlp" not in module:
                layer.write(module, shape, how(module))
                continue
            for expert in range(EXPERTS):
                layer.write(f"{module}.{expert}", shape, how(module))
                name = module.replace("switch_mlp", f"experts.{expert}")
                layer.values[name] = layer.values.pop(f"{module}.{expert}")
            suffixes = [n.removeprefix(f"{module}.0.") for n in layer.tensors if n.startswith(f"{module}.0.")]
            for suffix in suffixes:
                each = [layer.tensors.pop(f"{module}.{expert}.{suffix}") for expert in range(EXPERTS)]
                layer.tensors[f"{module}.{suffix}"] = np.stack(each)
    return layer


MLX: dict[str, tuple[dict[str, str], str]] = {
    "router of 8 bits": ({USUAL: "mlx 8 bits"}, "mlx"),
    "router of 8 bits with biases": ({USUAL: "mlx 8 bits, biases"}, "mlx, biases"),
    "all alike": ({}, "mlx, biases"),
    "shared expert in floats": ({r"shared_expert\.": "floats", USUAL: "mlx 8 bits"}, "mlx"),
    "shared expert of 8 bits": ({r"shared_expert\.": "mlx 8 bits", USUAL: "floats"}, "mlx, biases"),
    "first layer in floats": ({r"layers\.0\.": "floats"}, "mlx"),
    "first layer of 8 bits": ({r"layers\.0\.": "mlx 8 bits, biases"}, "mlx, biases"),
    "down of 8 bits": ({r"switch_mlp\.down": "mlx 8 bits", USUAL: "mlx 8 bits"}, "mlx"),
    "down in floats": ({r"switch_mlp\.down": "floats", USUAL: "mlx 8 bits"}, "mlx"),
    "gate of 8 bits": ({r"switch_mlp\.gate_": "mlx 8 bits, zeros", USUAL: "floats"}, "mlx"),
    "gate of 8 bits with biases": ({r"switch_mlp\.gate_": "mlx 8 bits, biases", USUAL: "floats"}, "mlx"),
}


@pytest.mark.parametrize("field", ["quantization", "quantization_config"])
@pytest.mark.parametrize("name", MLX)
def test_modules_of_mlx(tmp_path: Path, name: str, field: str) -> None:
    mlx_layer(*MLX[name], field).check(tmp_path)


@pytest.mark.parametrize("part", ["gate", "up"])
def test_half_of_w13_in_floats_is_refused(tmp_path: Path, part: str) -> None:
    layer = mlx_layer({rf"switch_mlp\.{part}_": "floats"}, "mlx", "quantization")
    layer.refused(tmp_path, "all stored alike, got .* for .* and .* for ")
