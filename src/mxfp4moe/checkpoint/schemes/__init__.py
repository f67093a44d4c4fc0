"""Quantization schemes of Hugging Face checkpoints: one module each.

A module has ``find(quantization)``: the `Scheme` that this ``quantization_config`` describes, None if it is
another's, a ValueError if it is this one's with details that are not supported. A scheme that only one model
has needs no `find`: the model's module names it.
"""

from __future__ import annotations

from collections.abc import Callable

from mxfp4moe._arguments import join_choices
from mxfp4moe._json import shorten
from mxfp4moe.checkpoint._config import Config
from mxfp4moe.checkpoint.schemes import (
    compressed,
    fp8_block,
    mxfp8,
    plain,
    quark_mxfp4,
)
from mxfp4moe.checkpoint.schemes._scheme import FLOATS, Matrix, Scheme

__all__ = ["FLOATS", "Matrix", "Scheme", "find_scheme"]

_FINDERS: tuple[Callable[[Config], Scheme | None], ...] = tuple(
    module.find for module in (mxfp8, fp8_block, compressed, quark_mxfp4)
)
_SUPPORTED = (
    "fp8 with weight_block_size",
    "mxfp8",
    "compressed-tensors in mxfp4-pack-quantized or nvfp4-pack-quantized",
    "quark in fp4",
)


def find_scheme(config: Config, scale_name: str = "weight_scale_inv") -> Scheme:
    """The scheme of the weights, as ``quantization_config`` says; plain floats without one.

    `scale_name` is what the scales of FP8 matrices are called.
    """
    name = "quantization_config"
    if not config.section(name).fields:
        name = "compression_config"
    quantization = config.section(name)
    if not quantization.fields:
        return plain.SCHEME
    for find in _FINDERS:
        scheme = find(quantization)
        if scheme is not None:
            quantization.check_all_read()
            if scheme.block_shape is not None:
                return fp8_block.scheme(scheme.block_shape, scale_name)
            return scheme
    found = {
        key: quantization.fields[key] for key in ("quant_method", "format") if key in quantization.fields
    }
    raise config.error(name, join_choices(_SUPPORTED), shorten(found or quantization.fields))
