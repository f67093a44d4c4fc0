"""Quantization schemes of Hugging Face checkpoints: one module for each software that writes them.

A module has ``find(quantization)``: the `Scheme` that this ``quantization_config`` describes, None if it is
another's, a ValueError if it is this one's with details that are not supported. A scheme that only one model
has needs no `find`: the model's module names it.
"""

from __future__ import annotations

from collections.abc import Callable

from mxfp4moe._arguments import join_choices, value_error
from mxfp4moe._json import shorten
from mxfp4moe.checkpoint._config import Config
from mxfp4moe.checkpoint.schemes import compressed, fp8_block, gptq, mlx, modelopt, mxfp8, plain, quark
from mxfp4moe.checkpoint.schemes._scheme import E8M0, FLOATS, WEIGHTS, Matrix, Scheme, Tensors

__all__ = ["E8M0", "FLOATS", "WEIGHTS", "Matrix", "Scheme", "Tensors", "find_scheme"]

_FINDERS: tuple[Callable[[Config], Scheme | None], ...] = (
    mxfp8.find,
    fp8_block.find,
    modelopt.find,
    compressed.find,
    quark.find,
    gptq.find,
    mlx.find,
)
_NAMES = ("quantization_config", "compression_config", "quantization")
_SUPPORTED = (
    "fp8 with weight_block_size",
    "mxfp8",
    "modelopt",
    f"compressed-tensors in {join_choices(compressed.FORMATS)}",
    "quark in fp4 or fp8",
    "gptq",
    "awq",
    "auto-round",
    "a mode of MLX",
)


def find_scheme(config: Config, scale_name: str = "") -> Scheme:
    """The scheme of the weights, as ``quantization_config`` says; plain floats without one.

    `scale_name` is what the scales of FP8 matrices in blocks are called, if not as usual.
    """
    names = [name for name in _NAMES if isinstance(config.get(name), dict) and config.section(name).fields]
    name = (names or _NAMES)[0]
    quantization = config.section(name)
    if not quantization.fields:
        return plain.SCHEME
    for find in _FINDERS:
        scheme = find(quantization)
        if scheme is not None:
            quantization.check_all_read()
            if find is mlx.find:
                _check_same(config, name)
            if scale_name and find is fp8_block.find and scheme.block_shape is not None:
                return fp8_block.scheme(scheme.block_shape, scale_name)
            return scheme
    found = {
        key: quantization.fields[key] for key in ("quant_method", "format") if key in quantization.fields
    }
    place = f"{quantization.path}: {config.prefix}{name}"
    raise value_error(place, join_choices(_SUPPORTED), shorten(found or quantization.fields))


def _check_same(config: Config, name: str) -> None:
    """Raise if what MLX says under two names is not the same."""
    other = _NAMES[-1]
    if config.fields.get(other, config.fields[name]) != config.fields[name]:
        raise config.error(other, f"the same as {name}", shorten(config.fields[other]))
