"""AMD Quark: MXFP4, and FP8 with a scale for each row or matrix."""

from __future__ import annotations

from fnmatch import fnmatchcase

from mxfp4moe._arguments import join_choices
from mxfp4moe._json import shorten
from mxfp4moe.checkpoint._config import Config
from mxfp4moe.checkpoint.schemes import mx_formats, plain
from mxfp4moe.checkpoint.schemes._scheme import BlockShape, Scheme, later, mixture

_ALGORITHMS = ("awq", "autosmoothquant", "gptq", "gptaq", "qronos", "smooth")
_CLASSES = ("Linear", "nn.Linear", "<class 'torch.nn.modules.linear.Linear'>")
_MXFP4 = mx_formats.mxfp4("Quark MXFP4")
_FP8: dict[str, BlockShape] = {"per_channel": (1, None), "per_tensor": (None, None)}


def find(quantization: Config) -> Scheme | None:
    """The scheme of ``quant_method: quark``: by patterns of names, by class, or that of all modules."""
    if quantization.get("quant_method") != "quark":
        return None
    _check_algorithms(quantization)
    by_class = quantization.section("layer_type_quant_config")
    name = next((name for name in _CLASSES if name in by_class.fields), None)
    for other in by_class.fields.keys() - {name}:
        by_class.member(other)
    if name is None:
        general = _scheme(quantization.section("global_quant_config"))
    else:
        quantization.get("global_quant_config")  # which is for modules of other classes
        general = later(by_class.detached(name), _scheme)()
    by_name = quantization.section("layer_quant_config")
    schemes = {pattern: later(by_name.detached(pattern), _scheme) for pattern in by_name.fields}

    def choose(module: str) -> Scheme:
        return next((schemes[each]() for each in schemes if fnmatchcase(module, each)), general)

    return mixture("Quark", general, choose) if schemes else general


def _scheme(section: Config) -> Scheme:
    """What the weights of a configuration of modules are; without one they are floats."""
    weight = section.section("weight")
    if not weight.fields:
        return plain.SCHEME
    if weight.choice("dtype", ("fp4", "fp8_e4m3"), default="fp4") == "fp4":
        weight.choice("group_size", (32,), default=32)
        weight.choice("scale_format", ("e8m0",), default="e8m0")
        return _MXFP4
    kind = weight.choice("qscheme", tuple(_FP8))
    if kind == "per_channel":
        weight.choice("ch_axis", (0,), default=0)
    weight.choice("group_size", (None, -1), default=None)
    weight.choice("scale_format", ("float32", None), default=None)
    return mx_formats.fp8(f"Quark FP8, {kind.replace('_', ' ')}", _FP8[kind])


def _check_algorithms(quantization: Config) -> None:
    """Raise for an algorithm that may need more than the stored weights, such as a rotation of the input."""
    value = quantization.get("algo_config") or []
    algorithms = value if isinstance(value, list) else [value]
    names = [item.get("name") if isinstance(item, dict) else item for item in algorithms]
    if wrong := [name for name in names if name not in _ALGORITHMS]:
        expected = f"algorithms whose result is in the weights: {join_choices(_ALGORITHMS)}"
        raise quantization.error("algo_config", expected, shorten(wrong[0]))
