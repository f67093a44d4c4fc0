"""Which instruction set and how many threads a call uses, and what this build can do."""

from __future__ import annotations

import atexit
import os
import platform
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple, TypeVar, overload

import numpy as np

from mxfp4moe import _core
from mxfp4moe._arguments import check_choice, check_positive_int, describe, join_choices, type_error
from mxfp4moe.errors import IsaError

__all__ = [
    "active_isa",
    "available_isas",
    "get_num_threads",
    "num_threads",
    "set_num_threads",
    "show_config",
    "supported_isas",
    "use_isa",
]

ISAS = ("portable", "avx2", "avx512", "amx")
MAX_THREADS = 1024

T = TypeVar("T")


class _KernelTable(NamedTuple):
    name: str
    isa: str
    automatic: bool
    supported: bool


_TABLES = [_KernelTable(*table) for table in _core.kernel_tables()]
_kernels: ContextVar[int | None] = ContextVar("mxfp4moe_kernels", default=None)
_context_threads: ContextVar[int | None] = ContextVar("mxfp4moe_num_threads", default=None)
_process_threads: int | None = None

# Waiting threads hinder nothing, but an interpreter that ends should leave none behind.
atexit.register(_core.release_workers)


@contextmanager
def _override(variable: ContextVar[T], value: T) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


# ---- instruction sets ----


def available_isas() -> tuple[str, ...]:
    """Instruction sets that this build has kernels for.

    Returns
    -------
    tuple of str
        Names out of "portable", "avx2", "avx512" and "amx", the preferred ones last.

    Examples
    --------
    >>> import mxfp4moe as mx
    >>> "portable" in mx.available_isas()
    True
    """
    return tuple(dict.fromkeys(table.isa for table in _TABLES if table.automatic))


def supported_isas() -> tuple[str, ...]:
    """Instruction sets of this build that this machine can run.

    Returns
    -------
    tuple of str
        Names out of `available_isas`, the preferred ones last.

    Examples
    --------
    >>> import mxfp4moe as mx
    >>> set(mx.supported_isas()) <= set(mx.available_isas())
    True
    """
    return tuple(dict.fromkeys(table.isa for table in _TABLES if table.automatic and table.supported))


def active_isa() -> str:
    """Instruction set that a call made here and now uses.

    Returns
    -------
    str
        One of `supported_isas`: the one of the innermost `use_isa`, else of the environment variable
        ``MXFP4MOE_ISA``, else the preferred one.

    Examples
    --------
    >>> import mxfp4moe as mx
    >>> mx.active_isa() in mx.supported_isas()
    True
    """
    return _TABLES[active_kernels()].isa


def use_isa(name: str) -> AbstractContextManager[None]:
    """Use the instruction set `name`, exactly that one, within a ``with`` block.

    The choice is a context variable: it holds for the calling thread or asyncio task alone.

    Parameters
    ----------
    name : str
        One of `supported_isas`.

    Returns
    -------
    context manager

    Raises
    ------
    TypeError
        If `name` is not a string.
    IsaError
        If there is no such instruction set, this build lacks it, or this machine cannot run it.

    Examples
    --------
    >>> import mxfp4moe as mx
    >>> with mx.use_isa("portable"):
    ...     mx.active_isa()
    'portable'
    """
    return _override(_kernels, _find_isa("name", name))


def active_kernels() -> int:
    """Index of the kernel table that a call made here and now uses."""
    index = _kernels.get()
    return _default_kernels if index is None else index


def _use_kernels(table_name: str) -> AbstractContextManager[None]:
    """Use one kernel table by its own name, also one that is never chosen by itself: for tests."""
    for index, table in enumerate(_TABLES):
        if table.name == table_name and table.supported:
            return _override(_kernels, index)
    names = join_choices(repr(table.name) for table in _TABLES if table.supported)
    raise IsaError(f"table_name: expected {names}, got {describe(table_name)}")


def _find_isa(argument: str, name: object) -> int:
    """Index of the preferred kernel table of the instruction set `name`."""
    expected = f"a supported instruction set ({join_choices(map(repr, supported_isas()))})"
    if not isinstance(name, str):
        raise type_error(argument, expected, describe(name))
    indices = [i for i, table in enumerate(_TABLES) if table.isa == name and table.automatic]
    supported = [i for i in indices if _TABLES[i].supported]
    if supported:
        return supported[-1]
    reason = f" ({_why_unsupported(name)})" if name in ISAS else ""
    raise IsaError(f"{argument}: expected {expected}, got {describe(name)}{reason}")


def _why_unsupported(isa: str) -> str:
    if isa not in available_isas():
        return "not in this build"
    # AMX kernels need AVX-512 beside the tiles, so the tiles may be usable and the kernels not.
    return (isa == "amx" and _core.amx_status()) or "the CPU or the operating system lacks it"


# ---- threads ----


def num_threads(n: int) -> AbstractContextManager[None]:
    """Use at most `n` threads for each call within a ``with`` block.

    The number is a context variable: it holds for the calling thread or asyncio task alone.

    Parameters
    ----------
    n : int
        From 1 to 1024.

    Returns
    -------
    context manager

    Raises
    ------
    TypeError
        If `n` is not an integer.
    ValueError
        If `n` is out of range.

    Examples
    --------
    >>> import mxfp4moe as mx
    >>> with mx.num_threads(3):
    ...     mx.get_num_threads()
    3
    """
    return _override(_context_threads, check_positive_int("n", n, MAX_THREADS))


def set_num_threads(n: int) -> None:
    """Use at most `n` threads for each call of this process, outside of `num_threads` blocks.

    Parameters
    ----------
    n : int
        From 1 to 1024.

    Raises
    ------
    TypeError
        If `n` is not an integer.
    ValueError
        If `n` is out of range.

    Examples
    --------
    >>> import mxfp4moe as mx
    >>> mx.set_num_threads(mx.get_num_threads())
    """
    global _process_threads
    _process_threads = check_positive_int("n", n, MAX_THREADS)


def get_num_threads() -> int:
    """Most threads that a call made here and now uses.

    Returns
    -------
    int
        From the innermost `num_threads`, else `set_num_threads`, else the environment variables
        ``MXFP4MOE_NUM_THREADS`` and ``OMP_NUM_THREADS`` as they were at import, else the number of
        processors that the affinity mask and the cgroup quota allow.

    Examples
    --------
    >>> import mxfp4moe as mx
    >>> mx.get_num_threads() >= 1
    True
    """
    return _num_threads_and_source()[0]


def resolve_num_threads(value: int | None) -> int:
    """The ``num_threads`` argument of a call, or if it is None the number that holds here."""
    if value is None:
        return _num_threads_and_source()[0]
    if type(value) is int and 0 < value <= MAX_THREADS:  # the most common numbers, checked with one look
        return value
    return check_positive_int("num_threads", value, MAX_THREADS)


def _num_threads_and_source() -> tuple[int, str]:
    number = _context_threads.get()
    if number is not None:
        return number, "num_threads()"
    if _process_threads is not None:
        return _process_threads, "set_num_threads()"
    if _environment_threads is not None:
        return _environment_threads
    return min(_core.available_cpus(), MAX_THREADS), "available processors"


# ---- the environment, read once ----


def _read_isa(environment: Mapping[str, str]) -> int | None:
    given = environment.get("MXFP4MOE_ISA", "")
    if not given:
        return None
    name = given.lower() if given.lower() in ISAS else given  # an error shows what was given
    try:
        return _find_isa("MXFP4MOE_ISA", name)
    except IsaError as error:
        raise ImportError(str(error)) from None


def _read_num_threads(environment: Mapping[str, str]) -> tuple[int, str] | None:
    text = environment.get("MXFP4MOE_NUM_THREADS", "")
    if text:
        number = _parse_count(text)
        if number is None or number > MAX_THREADS:
            expected = f"an integer in [1, {MAX_THREADS}]"
            raise ImportError(f"MXFP4MOE_NUM_THREADS: expected {expected}, got {describe(text)}")
        return number, "MXFP4MOE_NUM_THREADS"
    # A list gives the numbers of nested regions. The variable is that of OpenMP, so nonsense is ignored.
    number = _parse_count(environment.get("OMP_NUM_THREADS", "").split(",")[0])
    return None if number is None else (min(number, MAX_THREADS), "OMP_NUM_THREADS")


def _parse_count(text: str) -> int | None:
    """A positive decimal number of at most nine digits, or None."""
    text = text.strip()
    if not (text.isascii() and text.isdecimal() and len(text) <= 9):
        return None
    return int(text) or None


_environment_kernels = _read_isa(os.environ)
_preferred_kernels = max(i for i, table in enumerate(_TABLES) if table.automatic and table.supported)
_default_kernels = _preferred_kernels if _environment_kernels is None else _environment_kernels
_environment_threads = _read_num_threads(os.environ)


# ---- show_config ----


@overload
def show_config(mode: Literal["stdout"] = "stdout") -> None: ...


@overload
def show_config(mode: Literal["dicts"]) -> dict[str, dict[str, Any]]: ...


def show_config(mode: Literal["stdout", "dicts"] = "stdout") -> dict[str, dict[str, Any]] | None:
    """Print or return what this build has, what this machine can run, and what a call here and now would use.

    Parameters
    ----------
    mode : {"stdout", "dicts"}
        Print the configuration, or return it as nested dictionaries.

    Returns
    -------
    dict or None
        The configuration if `mode` is "dicts".

    Raises
    ------
    TypeError
        If `mode` is not a string.
    ValueError
        If `mode` is another string.

    Examples
    --------
    >>> import mxfp4moe as mx
    >>> mx.show_config(mode="dicts")["isas"]["active"] == mx.active_isa()
    True
    """
    check_choice("mode", mode, ("stdout", "dicts"))
    config = _describe_config()
    if mode == "dicts":
        return config
    for section, entries in config.items():
        print(f"{section}:")
        for key, value in entries.items():
            line = f"  {key.replace('_', ' ')}: {_format_entry(value)}"
            print(textwrap.fill(line, 80, subsequent_indent="    ", break_on_hyphens=False))
    return None


def _describe_config() -> dict[str, dict[str, Any]]:
    # It is imported here, because at the top it would slow down the import of the package.
    import ml_dtypes

    table = _TABLES[active_kernels()]
    compiled = available_isas()
    supported = supported_isas()
    number, source = _num_threads_and_source()
    return {
        "build": {
            "mxfp4moe": _core.version(),
            "packed_layout_version": _core.layout_version(),
            "compiler": _core.compiler(),
        },
        "isas": {
            "compiled": list(compiled),
            "left_out": [isa for isa in ISAS if isa not in compiled],
            "supported": list(supported),
            "unsupported": {isa: _why_unsupported(isa) for isa in compiled if isa not in supported},
            "active": table.isa,
            "reason": _why_active(),
            "kernels": table.name,
        },
        "cpu": {
            "machine": platform.machine(),
            "features": _core.cpu_features(),
            "amx": _core.amx_status() or "usable",
        },
        "threads": {"number": number, "source": source, "available_processors": _core.available_cpus()},
        "runtime": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "ml_dtypes": ml_dtypes.__version__,
            "platform": platform.platform(),
        },
    }


def _why_active() -> str:
    if _kernels.get() is not None:
        return "forced by use_isa()"
    if _environment_kernels is not None:
        return "forced by MXFP4MOE_ISA"
    return "the preferred one of the supported"


def _format_entry(value: object) -> str:
    if isinstance(value, dict):
        if all(isinstance(flag, bool) for flag in value.values()):
            value = [key for key, flag in value.items() if flag]
        else:
            value = [f"{key} ({text})" for key, text in value.items()]
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)
