"""Fused mixture-of-experts from 4-bit and 8-bit weights on CPUs, for NumPy."""

__version__ = "0.1.0"

from .config import (
    active_isa,
    available_isas,
    get_num_threads,
    num_threads,
    set_num_threads,
    show_config,
    supported_isas,
    use_isa,
)
from .errors import IsaError, PackedFormatError

__all__ = [
    "IsaError",
    "PackedFormatError",
    "active_isa",
    "available_isas",
    "get_num_threads",
    "num_threads",
    "set_num_threads",
    "show_config",
    "supported_isas",
    "use_isa",
]
