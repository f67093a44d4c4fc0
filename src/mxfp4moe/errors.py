"""The package's own exceptions."""

from __future__ import annotations

__all__ = ["IsaError", "PackedFormatError"]


class IsaError(ValueError):
    """An instruction set was asked for that does not exist or that this machine cannot run."""


class PackedFormatError(ValueError):
    """Packed expert weights that this version cannot read."""
