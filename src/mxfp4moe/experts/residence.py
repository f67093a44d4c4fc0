"""Where weights of packed files are while they are used: mapped, within a budget, or in local memory."""

from __future__ import annotations

from typing import Any, NamedTuple

from mxfp4moe._arguments import check_positive_int, value_error
from mxfp4moe.experts.budget import MemoryBudget
from mxfp4moe.packed.weights import is_resident_local


class Residence(NamedTuple):
    """What is asked of weights of packed files; `MAPPED` asks for nothing."""

    is_local: bool = False
    """Whether they are copied into memory near the processors that read them."""
    budget: MemoryBudget | None = None
    """What experts share, if they are larger than memory."""


MAPPED = Residence()


def check_residence(resident: Any, memory_limit: Any) -> Residence:
    """The arguments of these names of what opens packed files."""
    is_local = is_resident_local(resident)
    if memory_limit is None:
        return Residence(is_local)
    limit = check_positive_int("memory_limit", memory_limit)
    if is_local:
        raise value_error("memory_limit", 'None with resident="local", which copies all weights', str(limit))
    return Residence(budget=MemoryBudget(limit))
