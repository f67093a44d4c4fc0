"""The activation between the two matrices of an expert: its names, and its parameters checked."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from mxfp4moe import _core
from mxfp4moe._arguments import check_choice, check_float32, check_real, value_error

Activation = Literal["silu", "swigluoai", "gelu", "gelu_tanh", "silu_clamp", "situ", "relu2"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)

_FORMULAS: dict[Activation, str] = {
    "silu": "g * sigmoid(g) * u",
    "swigluoai": "g * sigmoid(alpha * g) * (u + 1)",
    "gelu": "g * (1 + erf(g / sqrt(2))) / 2 * u",
    "gelu_tanh": "g * (1 + tanh(sqrt(2 / pi) * (g + 0.044715 * g**3))) / 2 * u",
    "silu_clamp": "min(gate * sigmoid(gate), limit) * u",
    "situ": "alpha * tanh(gate / alpha) * sigmoid(gate) * limit * tanh(up / limit)",
    "relu2": "max(u, 0)**2, for experts without a gate, which take no other",
}
_Function = TypeVar("_Function", bound=Callable[..., Any])

_LEAST = 2.0**-149  # the least float32 number above 0


class _Rule(NamedTuple):
    """Which experts an activation is for, and its parameters if not given; without an alpha it takes none."""

    gated: bool
    alpha: float | None
    limit: float
    positive_alpha: bool


_RULES = {name: _Rule(*rule) for name, rule in _core.ACTIVATION_RULES.items()}


def with_activations(function: _Function) -> _Function:
    """Put a table of the activations in the place of ``{activations}`` in a docstring."""
    rows = [("activation", "alpha", "limit", "intermediate")]
    for name in ACTIVATIONS:
        rule = _RULES[name]
        alpha = "" if rule.alpha is None else f"{rule.alpha:g}"
        rows.append((f'"{name}"', alpha, f"{rule.limit:g}", _FORMULAS[name]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    border = ("=" * widths[0], "=" * widths[1], "=" * widths[2], "=" * widths[3])
    rows = [border, rows[0], border, *rows[1:], border]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    if function.__doc__:  # which an interpreter with -OO leaves out
        place = re.compile(r"^( *)\{activations\}$", re.MULTILINE)
        function.__doc__ = place.sub(
            lambda found: "\n".join(found[1] + line for line in lines), function.__doc__
        )
    return function


class ActivationArgs(NamedTuple):
    """An activation as the kernels take it."""

    gated: bool
    kind: int
    alpha: float
    limit: float


# The calls without alpha and limit need no arithmetic: they are on the path of every decode step.
_DEFAULTS = {
    name: ActivationArgs(rule.gated, _core.ACTIVATIONS[name], rule.alpha or 0.0, rule.limit)
    for name, rule in _RULES.items()
}


def check_activation(
    activation: str, alpha: float | None, limit: float | None, gated: bool
) -> ActivationArgs:
    """The three as the kernels take them; raise unless they are right and fit each other and the experts."""
    function = _DEFAULTS.get(activation) if type(activation) is str else None
    if function is None:
        function = _DEFAULTS[check_choice("activation", activation, ACTIVATIONS)]
    if function.gated != gated:
        names = [name for name, rule in _RULES.items() if rule.gated == gated]
        whose = "experts with a gate" if gated else "experts without a gate (gated=False)"
        raise value_error("activation", f"one of {names} for {whose}", repr(activation))
    if alpha is not None:
        number = check_float32("alpha", alpha)
        rule = _RULES[activation]
        if rule.alpha is None:
            raise value_error("alpha", f"None with activation {activation!r}", repr(number))
        if rule.positive_alpha and number < _LEAST:
            raise value_error("alpha", f"a number above 0 with activation {activation!r}", repr(number))
        function = function._replace(alpha=number)
    if limit is not None:
        number = check_real("limit", limit)
        if not number >= _LEAST:
            raise value_error("limit", "a number above 0 in float32 (inf: no clamp)", repr(number))
        function = function._replace(limit=number)
    return function
