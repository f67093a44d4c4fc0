"""Where the C library of this package is, for programs that are compiled with it."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def get_include() -> str:
    """Return the folder of `mxfp4moe.h` and `mxfp4moe.hpp`.

    Returns
    -------
    str
        For the option ``-I`` of a compiler.

    Examples
    --------
    >>> import mxfp4moe as mx
    >>> from pathlib import Path
    >>> sorted(path.name for path in Path(mx.get_include()).iterdir())
    ['mxfp4moe.h', 'mxfp4moe.hpp']
    """
    return str(_PACKAGE / "include")


def library_dir() -> str:
    """The folder of the shared library, and of the files for CMake and pkg-config below it."""
    return str(_PACKAGE / "lib")
