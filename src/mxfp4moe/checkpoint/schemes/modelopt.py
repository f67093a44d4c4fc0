"""NVIDIA Model Optimizer: NVFP4, FP8 and MXFP8, said in config.json or in hf_quant_config.json alone."""

from __future__ import annotations

from mxfp4moe._arguments import join_choices
from mxfp4moe.checkpoint._config import Config
from mxfp4moe.checkpoint.schemes import mx_formats, plain
from mxfp4moe.checkpoint.schemes._scheme import Scheme, mixture

_MIXED = "MIXED_PRECISION"
_SCHEMES = {
    "NVFP4": mx_formats.nvfp4("ModelOpt NVFP4", "weight", mx_formats.scale_2),
    "FP8": mx_formats.fp8("ModelOpt FP8", (None, None)),
    "FP8_PER_CHANNEL_PER_TOKEN": mx_formats.fp8("ModelOpt FP8, per channel", (1, None)),
    "MXFP8": mx_formats.mxfp8("ModelOpt MXFP8"),
}
_WEIGHTS = {
    "NVFP4": (4, 16),
    "FP8": (8, None),
    "FP8_PER_CHANNEL_PER_TOKEN": (8, None),
    "MXFP8": (8, 32),
}
"""Bits, and weights that share a scale."""


def find(quantization: Config) -> Scheme | None:
    """The scheme of ``quant_method: modelopt``, or of what Model Optimizer says in a file of its own."""
    producer = quantization.section("producer") if "producer" in quantization.fields else None
    is_own = producer is not None and producer.get("name") == "modelopt"
    if not (is_own or quantization.get("quant_method") in ("modelopt", "modelopt_fp4", "modelopt_mixed")):
        return None
    quantization.get("quant_method")
    if producer is not None:
        producer.get("version")
    # Its own file has everything in an object of this name, as older configurations do.
    nested = quantization.section("quantization")
    section = nested if nested.fields else quantization
    section.list_of("ignore", str)  # the dtype of a matrix tells whether it was left in floats
    algorithm = section.choice("quant_algo", (*_SCHEMES, _MIXED))
    if algorithm == _MIXED:
        return _mixed(section)
    bits, group_size = _WEIGHTS[algorithm]
    section.choice("group_size", (group_size,), default=group_size)
    groups = section.section("config_groups")
    for name in groups.fields:
        group = groups.section(name)
        group.get("targets")
        weights = group.section("weights")
        weights.choice("num_bits", (bits,), default=bits)
        weights.choice("type", ("float",), default="float")
        weights.choice("group_size", (group_size,), default=group_size)
    return _SCHEMES[algorithm]


def _mixed(section: Config) -> Scheme:
    """The scheme of each layer by its name, or by that of what it is in."""
    section.get("config_groups")  # says the same by groups
    layers = section.section("quantized_layers")
    algorithms = {}
    for name in layers.fields:
        layer = layers.detached(name)
        algorithms[name] = layer.string("quant_algo")
        if algorithms[name] in _WEIGHTS:
            group_size = _WEIGHTS[algorithms[name]][1]
            layer.choice("group_size", (group_size,), default=group_size)
            layer.check_all_read()
    schemes = [_SCHEMES[each] for each in algorithms.values() if each in _SCHEMES]
    if not schemes:
        raise section.error("quantized_layers", f"layers in {join_choices(_SCHEMES)}", "none")

    def choose(module: str) -> Scheme:
        parts = module.split(".")
        names = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
        name = next((each for each in names if each in algorithms), None)
        if name is None:
            return plain.SCHEME
        if algorithms[name] not in _SCHEMES:
            raise layers.error(f"{name}.quant_algo", join_choices(_SCHEMES), algorithms[name])
        return _SCHEMES[algorithms[name]]

    return mixture("ModelOpt", schemes[0], choose)
