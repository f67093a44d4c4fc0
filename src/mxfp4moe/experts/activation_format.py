"""What hidden states and intermediates are rounded to: the option `activation_format`, checked."""

from __future__ import annotations

from typing import Literal, get_args

from mxfp4moe import _core
from mxfp4moe._arguments import check_choice, join_choices, value_error
from mxfp4moe.formats import FORMATS, ExpertsFormat, LinearFormat, find_floats

ActivationFormat = Literal["int8"]
"""The values of `activation_format` beside None, which is bfloat16."""

_NAMES: tuple[ActivationFormat, ...] = get_args(ActivationFormat)
_WEIGHTS = tuple(format.name for format in FORMATS.values() if format.is_integral)
_BFLOAT16 = _core.ACTIVATION_FORMATS["bfloat16"]


def check_name(value: str | None) -> ActivationFormat | None:
    """`value`, or an error if there is no such format."""
    return None if value is None else check_choice("activation_format", value, _NAMES)


def check_activation_format(value: str | None, weights: ExpertsFormat | LinearFormat, what: str) -> int:
    """The number by which the kernels know it; raise if there is none, or none for weights of that format."""
    name = check_name(value)
    if name is not None and (other := find_floats(weights)) is not None:
        expected = f"None for {what} of format {other!r}, as integers are for {join_choices(_WEIGHTS)}"
        raise value_error("activation_format", expected, repr(name))
    return activation_format_code(name)


def possible_activation_format(
    value: ActivationFormat | None, weights: ExpertsFormat | LinearFormat
) -> ActivationFormat | None:
    """`value` where weights of that format allow it, else None."""
    return value if find_floats(weights) is None else None


def activation_format_code(value: ActivationFormat | None) -> int:
    """The number by which the kernels know it."""
    return _BFLOAT16 if value is None else _core.ACTIVATION_FORMATS[value]
