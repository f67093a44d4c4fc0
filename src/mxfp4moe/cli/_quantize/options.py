"""What a user may say about the result of ``mxfp4moe quantize``, and which target that is."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from mxfp4moe._arguments import join_choices, value_error
from mxfp4moe.checkpoint._config import Config
from mxfp4moe.cli._arguments import group_size_of
from mxfp4moe.cli._quantize.targets import Fp8Block, GptOssMxfp4, Integers, Mxfp4, Mxfp8, Nvfp4, Target

COMPRESSED_TENSORS, GPT_OSS = "compressed-tensors", "gpt-oss"


class Options(NamedTuple):
    """The options of the result; None stands for the default of the format."""

    format: str = "mxfp4"
    layout: str | None = None
    scale_rule: str | None = None
    group_size: int | None = None

    def integers(self, bits: int) -> Integers:
        """Integers in groups as said."""
        return Integers(bits, group_size_of(self.group_size))


_TARGETS: dict[str, Callable[[Options], Target]] = {
    "mxfp4": lambda options: Mxfp4(options.scale_rule or "floor"),
    "fp8_block": lambda options: Fp8Block(),
    "mxfp8": lambda options: Mxfp8(options.scale_rule or "floor"),
    "nvfp4": lambda options: Nvfp4(),
    "int4": lambda options: options.integers(4),
    "int8": lambda options: options.integers(8),
}
"""Targets by format, in all layouts but that of gpt-oss."""
_HAVE_RULES, _HAVE_GROUPS = ("mxfp4", "mxfp8"), ("int4", "int8")


def find_target(options: Options, config: Config, is_gpt_oss: bool) -> tuple[str, Target]:
    """The layout, and how matrices are quantized; raise for options that do not fit."""
    format = options.format
    for name, value, formats in (
        ("--scale-rule", options.scale_rule, _HAVE_RULES),
        ("--group-size", options.group_size, _HAVE_GROUPS),
    ):
        if value is not None and format not in formats:
            raise value_error(
                name, f"none but with --format {join_choices(formats)}", f"{value} with {format}"
            )
    own = GPT_OSS if is_gpt_oss and format == "mxfp4" else COMPRESSED_TENSORS
    layout = options.layout or own
    if (layout != own and layout == GPT_OSS) or (is_gpt_oss and format == "fp8_block"):
        expected = "gpt-oss with mxfp4" if is_gpt_oss else COMPRESSED_TENSORS
        raise config.error("model_type", f"one of layout {layout} and format {format}",
                           f"{config.string('model_type')!r}, which needs {expected}")  # fmt: skip
    if layout == GPT_OSS:
        return layout, GptOssMxfp4(options.scale_rule or "floor")
    return layout, _TARGETS[format](options)
