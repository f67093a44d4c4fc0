"""The activation between the two matrices of an expert: its names, and its parameters checked."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

from mxfp4moe import _core
from mxfp4moe._arguments import check_choice, check_float32, check_real, value_error

Activation = Literal["silu", "swigluoai", "gelu", "gelu_tanh", "silu_clamp", "situ", "relu2"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)

_LEAST = 2.0**-149  # the least float32 number above 0


class _Rule(NamedTuple):
    """Which experts an activation is for, and its parameters if not given; without an alpha it takes none."""

    gated: bool
    alpha: float | None
    limit: float
    positive_alpha: bool


_RULES = {name: _Rule(*rule) for name, rule in _core.ACTIVATION_RULES.items()}


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
