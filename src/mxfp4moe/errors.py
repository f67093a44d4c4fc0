"""The package's own exceptions."""

from __future__ import annotations

__all__ = ["IsaError", "PackedFormatError"]


class IsaError(ValueError):
    """An instruction set was asked for that does not exist or that this machine cannot run.

    Examples
    --------
    >>> import mxfp4moe as mx
    >>> try:
    ...     mx.use_isa("sse2")
    ... except mx.IsaError as error:
    ...     print("got 'sse2'" in str(error))
    True
    """


class PackedFormatError(ValueError):
    """Packed expert weights that this version cannot read.

    Examples
    --------
    >>> import mxfp4moe as mx
    >>> try:
    ...     mx.PackedExperts.open(mx.__file__)
    ... except mx.PackedFormatError as error:
    ...     print("expected a packed file" in str(error))
    True
    """
