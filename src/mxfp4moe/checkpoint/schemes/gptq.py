"""GPTQ and AWQ, and AutoRound, which packs as either of them does."""

from __future__ import annotations

import re
from collections.abc import Callable

from mxfp4moe._json import shorten
from mxfp4moe.checkpoint._config import Config
from mxfp4moe.checkpoint._patterns import compile_pattern
from mxfp4moe.checkpoint.schemes import integer_formats, plain
from mxfp4moe.checkpoint.schemes._scheme import Scheme, later, mixture

_FIRST, _SECOND = 1, 0  # what is missing in the zero points of the versions of GPTQ
_VERSIONS = {"gptq": _FIRST, "gptq_v2": _SECOND}
_PACKINGS: dict[str, int | None] = {
    "auto_round:auto_gptq": _FIRST,
    "auto_round": _SECOND,
    "auto_round:gptqmodel": _SECOND,
    "auto_round:auto_awq": None,  # as AWQ
}


_FLOAT_BITS = (16, 32)


def find(quantization: Config) -> Scheme | None:
    """The scheme of ``quant_method`` awq, gptq or auto-round."""
    readers = {"awq": _awq, "gptq": _gptq, "auto-round": _auto_round, "intel/auto-round": _auto_round}
    method = quantization.get("quant_method")
    return readers[method](quantization) if isinstance(method, str) and method in readers else None


def _awq(quantization: Config) -> Scheme:
    _check_writer(quantization, "awq")
    quantization.choice("bits", (4,))
    quantization.choice("desc_act", (False,), default=False)
    quantization.choice(("checkpoint_format", "format"), ("gemm",), default="gemm")
    quantization.choice("version", ("gemm", "GEMM"), default="gemm")
    symmetric = not quantization.boolean("zero_point", default=True)
    quantization.choice("sym", (symmetric,), default=symmetric)
    return integer_formats.awq("AWQ", _group_size(quantization, None), symmetric)


def _gptq(quantization: Config) -> Scheme:
    _check_writer(quantization, "gptq")
    version = quantization.choice(("checkpoint_format", "format"), tuple(_VERSIONS), default="gptq")
    bits, group_size = quantization.choice("bits", (4, 8)), _group_size(quantization, None)
    ordered = quantization.boolean("desc_act", default=False)

    def scheme(section: Config) -> Scheme:
        section.boolean("sym", default=False)  # read and ignored: the zero points say the same
        return integer_formats.gptq(
            "GPTQ",
            section.choice("bits", (4, 8), default=bits),
            _group_size(section, group_size),
            _VERSIONS[version],
            section.boolean("desc_act", default=ordered),
        )

    general = scheme(quantization)
    dynamic = quantization.section("dynamic")
    rules = [
        (_pattern(dynamic, name, name.removeprefix("-:").removeprefix("+:")), _rule(dynamic, name, scheme))
        for name in dynamic.fields
    ]

    def choose(module: str) -> Scheme:
        return next((read() for pattern, read in rules if pattern.match(module)), general)

    return mixture("GPTQ", general, choose) if rules else general


def _rule(dynamic: Config, name: str, read: Callable[[Config], Scheme]) -> Callable[[], Scheme]:
    section = dynamic.detached(name)
    return (lambda: plain.SCHEME) if name.startswith("-:") else later(section, read)


def _auto_round(quantization: Config) -> Scheme:
    offset = _PACKINGS[quantization.choice("packing_format", tuple(_PACKINGS))]
    group_size = _group_size(quantization, None)
    bits = quantization.choice("bits", (4,) if offset is None else (4, 8))

    def scheme(section: Config) -> Scheme:
        if section.get("bits") in _FLOAT_BITS:
            section.get("data_type")
            return plain.SCHEME
        section.choice("data_type", ("int",), default="int")
        section.boolean("sym", default=False)
        size = _group_size(section, group_size)
        if offset is None:
            section.choice("bits", (4,), default=bits)
            return integer_formats.awq("AutoRound, packed as AWQ", size)
        return integer_formats.gptq(
            "AutoRound, packed as GPTQ", section.choice("bits", (4, 8), default=bits), size, offset
        )

    general = scheme(quantization)
    modules = quantization.section("extra_config")
    schemes = {name: later(modules.detached(name), scheme) for name in modules.fields}
    patterns = {name: _pattern(modules, name, name) for name in schemes if _is_pattern(name)}

    def choose(module: str) -> Scheme:
        name = module if module in schemes else None
        name = name or next((each for each in patterns if patterns[each].search(module)), None)
        return general if name is None else schemes[name]()

    return mixture("AutoRound", general, choose) if schemes else general


def _is_pattern(name: str) -> bool:
    """Whether a name of modules has what names have not."""
    return bool(set(name) & set("*+?^$()[]{}|\\"))


def _pattern(config: Config, name: str, text: str) -> re.Pattern[str]:
    try:
        return compile_pattern(text)
    except ValueError as error:
        raise config.error(shorten(name)[1:-1], "a regular expression", str(error)) from None


def _group_size(config: Config, default: int | None) -> int | None:
    """How many neighbours share a scale; None: those of a whole row."""
    size = config.integer("group_size", minimum=-1, maximum=1 << 20, default=default or -1)
    if (size > 0 and size % 32) or size == 0:
        raise config.error("group_size", "a multiple of 32, or -1 for a whole row", str(size))
    return size if size > 0 else None


def _check_writer(config: Config, method: str) -> None:
    """What GPTQModel and AutoRound add to the configuration of files that are as those of other writers."""
    config.choice("method", (method,), default=method)
    config.choice("pack_dtype", ("int32",), default="int32")
    config.choice("data_type", ("int",), default="int")
