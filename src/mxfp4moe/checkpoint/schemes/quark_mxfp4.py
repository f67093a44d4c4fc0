"""MXFP4 as AMD Quark writes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxfp4moe._arguments import join_choices
from mxfp4moe._json import shorten
from mxfp4moe.checkpoint._config import Config
from mxfp4moe.checkpoint.schemes._scheme import Matrix, Scheme

if TYPE_CHECKING:
    from mxfp4moe.checkpoint.model_folder import ModelFolder

_ALGORITHMS = ("awq", "autosmoothquant", "gptq", "gptaq", "qronos", "smooth")


def find(quantization: Config) -> Scheme | None:
    """The scheme of ``quant_method: quark`` whose weights are FP4 in groups of 32."""
    if quantization.get("quant_method") != "quark":
        return None
    _check_algorithms(quantization)
    weight = quantization.section("global_quant_config").section("weight")
    weight.choice("dtype", ("fp4",), default="fp4")
    weight.choice("group_size", (32,), default=32)
    weight.choice("scale_format", ("e8m0",), default="e8m0")
    return SCHEME


def _check_algorithms(quantization: Config) -> None:
    """Raise for an algorithm that may need more than the stored weights, such as a rotation of the input."""
    value = quantization.get("algo_config") or []
    algorithms = value if isinstance(value, list) else [value]
    names = [item.get("name") if isinstance(item, dict) else item for item in algorithms]
    if wrong := [name for name in names if name not in _ALGORITHMS]:
        expected = f"algorithms whose result is in the weights: {join_choices(_ALGORITHMS)}"
        raise quantization.error("algo_config", expected, shorten(wrong[0]))


def _read(folder: ModelFolder, name: str, rows: int, columns: int) -> Matrix:
    return Matrix(
        folder.tensor(f"{name}.weight", ("U8",), (rows, columns // 2)),
        folder.tensor(f"{name}.weight_scale", ("U8", "F8_E8M0"), (rows, columns // 32)),
    )


SCHEME = Scheme("Quark MXFP4", "mxfp4", _read, multiple_of=32)
