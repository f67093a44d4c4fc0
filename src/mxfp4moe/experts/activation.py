"""The activation between the two matrices of an expert: its names, and its parameters checked."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

from mxfp4moe import _core
from mxfp4moe._arguments import check_choice, check_float32, check_real, value_error

Activation = Literal["silu", "swigluoai", "gelu", "gelu_tanh"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
_SWIGLUOAI_ALPHA = 1.702
_SWIGLUOAI_LIMIT = 7.0


class _ActivationArgs(NamedTuple):
    kind: int
    alpha: float
    limit: float


# The calls without alpha and limit need no arithmetic: they are on the path of every decode step.
_DEFAULTS = {
    name: _ActivationArgs(kind, _SWIGLUOAI_ALPHA, _SWIGLUOAI_LIMIT if name == "swigluoai" else math.inf)
    for name, kind in _core.ACTIVATIONS.items()
}


def check_activation(activation: str, alpha: float | None, limit: float | None) -> _ActivationArgs:
    """The three as the kernels take them; raise unless they are right and fit each other."""
    function = _DEFAULTS.get(activation) if type(activation) is str else None
    if function is None:
        function = _DEFAULTS[check_choice("activation", activation, ACTIVATIONS)]
    if alpha is not None:
        number = check_float32("alpha", alpha)
        if activation != "swigluoai":
            raise value_error("alpha", f"None with activation {activation!r}", repr(number))
        function = function._replace(alpha=number)
    if limit is not None:
        number = check_real("limit", limit)
        if not number > 0:
            raise value_error("limit", "a number above 0 (inf: no clamp)", repr(number))
        function = function._replace(limit=number)
    return function
