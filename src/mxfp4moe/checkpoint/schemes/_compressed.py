"""What compressed-tensors says of the format of weights."""

from __future__ import annotations

from mxfp4moe.checkpoint._config import Config


def is_compressed(quantization: Config, format: str) -> bool:
    """Whether this is a configuration of compressed-tensors in `format`.

    Where matrices differ ("mixed-precision"), each group has a format of its own: any one counts. Tensors
    of the formats differ, so that nothing is read wrongly.
    """
    fields = quantization.fields
    if fields.get("quant_method", "compressed-tensors") != "compressed-tensors":
        return False
    if fields.get("format") not in (None, "mixed-precision"):
        return bool(fields["format"] == format)
    groups = quantization.section("config_groups")
    return any(groups.section(name).fields.get("format") == format for name in groups.fields)
