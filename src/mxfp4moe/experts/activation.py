"""The activation between the two matrices of an expert: its names, and its parameters checked."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

from mxfp4moe import _core
from mxfp4moe._arguments import check_choice, check_float32, check_real, value_error

Activation = Literal["silu", "swigluoai", "gelu", "gelu_tanh", "silu_clamp", "situ"]

_LEAST = 2.0**-149  # of what is above 0 in float32


class _Rule(NamedTuple):
    """The parameters of an activation that are not given; without a default alpha it takes none."""

    alpha: float | None = None
    limit: float = math.inf
    positive_alpha: bool = False


_RULES: dict[str, _Rule] = {
    "silu": _Rule(),
    "swigluoai": _Rule(alpha=1.702, limit=7.0),
    "gelu": _Rule(),
    "gelu_tanh": _Rule(),
    "silu_clamp": _Rule(),
    "situ": _Rule(alpha=4.0, limit=25.0, positive_alpha=True),
}
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)


class _ActivationArgs(NamedTuple):
    kind: int
    alpha: float
    limit: float


# The calls without alpha and limit need no arithmetic: they are on the path of every decode step.
_DEFAULTS = {
    name: _ActivationArgs(_core.ACTIVATIONS[name], rule.alpha or 0.0, rule.limit)
    for name, rule in _RULES.items()
}


def check_activation(activation: str, alpha: float | None, limit: float | None) -> _ActivationArgs:
    """The three as the kernels take them; raise unless they are right and fit each other."""
    function = _DEFAULTS.get(activation) if type(activation) is str else None
    if function is None:
        function = _DEFAULTS[check_choice("activation", activation, ACTIVATIONS)]
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
