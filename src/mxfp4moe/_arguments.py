"""The checks of arguments, and the exceptions that they raise.

Every message reads ``<argument>: expected <what>, got <what>``. TypeError means a wrong kind or dtype,
ValueError a wrong shape, value or layout.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from mxfp4moe._dlpack import EXPORT_ERRORS, from_dlpack, is_foreign

MAX_EXPERTS = 2**31 - 1
"""Ids are int32."""
_Choice = TypeVar("_Choice", bound=str)

_REGISTERED = 2  # the `isbuiltin` of dtypes that are not NumPy's own: those of ml_dtypes
_FLOAT32_MAX = float(np.finfo(np.float32).max)


def type_error(name: str, expected: str, got: str) -> TypeError:
    """The TypeError of an argument of the wrong kind or dtype."""
    return TypeError(message(name, expected, got))


def value_error(name: str, expected: str, got: str) -> ValueError:
    """The ValueError of an argument of the wrong shape, value or layout."""
    return ValueError(message(name, expected, got))


def message(name: str, expected: str, got: str) -> str:
    """The message of an error; `name` may be a path, all else is short."""
    return f"{printable(name, 5000)}: expected {printable(expected)}, got {printable(got)}"


def printable(text: str, limit: int = 1000) -> str:
    """`text` as one line for a terminal: at most `most` characters, those that do more than show escaped."""
    text = _shorten_middle(text, limit)
    if text.isprintable():
        return text
    return _shorten_middle("".join(c if c.isprintable() else repr(c)[1:-1] for c in text), limit)


def _shorten_middle(text: str, limit: int) -> str:
    half = (limit - 3) // 2
    return text if len(text) <= limit else f"{text[:half]}...{text[-half:]}"


def join_choices(choices: Iterable[object]) -> str:
    """``a``, ``a or b``, ``a, b or c``."""
    *first, last = (str(choice) for choice in choices)
    return f"{', '.join(first)} or {last}" if first else last


def format_ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers in words: ``3 to 60``, or ``1, 3, 5``."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    texts = [str(a) if a == b else f"{a}, {b}" if a + 1 == b else f"{a} to {b}" for a, b in ranges]
    return ", ".join(texts[:8]) + (", ..." if len(texts) > 8 else "")


def is_masked(value: object) -> bool:
    """Whether `value` is a masked array.

    NumPy imports their module when it is first asked for: in the middle of a call that would leave a lock
    behind in a process that is forked meanwhile. Where nobody has imported it, there are none.
    """
    return isinstance(value, getattr(sys.modules.get("numpy.ma.core"), "MaskedArray", ()))


def describe(value: object) -> str:
    """What came, in a few words: an array by dtype and shape, a plain scalar by value, all else by type."""
    if isinstance(value, np.ndarray):
        kind = "a masked array" if is_masked(value) else "an array"
        return f"{kind} of {value.dtype} and shape {value.shape}"
    if value is None or isinstance(value, (bool, int, float, np.generic)):
        return repr(value)
    if isinstance(value, str):
        return repr(value) if len(value) <= 60 else f"{value[:60]!r}..."
    return f"an object of type {type(value).__name__}"


def check_num_experts(name: str, count: int) -> None:
    """Raise if argument `name` has more experts than can have ids."""
    if count > MAX_EXPERTS:
        raise value_error(name, f"at most {MAX_EXPERTS} experts", str(count))


def check_choice(name: str, value: object, choices: Sequence[_Choice]) -> _Choice:
    """`value`, which must be one of the strings in `choices`."""
    if isinstance(value, str) and value in choices:
        return choices[choices.index(value)]
    error = value_error if isinstance(value, str) else type_error
    raise error(name, join_choices(map(repr, choices)), describe(value))


def check_bool(name: str, value: object) -> bool:
    """`value` as a bool; numbers are not taken for truth values."""
    if not isinstance(value, (bool, np.bool_)):
        raise type_error(name, "a bool", describe(value))
    return bool(value)


def check_int(name: str, value: Any, minimum: int, maximum: int | None = None) -> int:
    """`value` as an int of at least `minimum` and at most `maximum`; bool is not an integer here."""
    try:
        if isinstance(value, (bool, np.bool_, np.ndarray)):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise type_error(name, "an integer", describe(value)) from None
    if number < minimum or (maximum is not None and number > maximum):
        allowed = f"of at least {minimum}" if maximum is None else f"in [{minimum}, {maximum}]"
        raise value_error(name, f"an integer {allowed}", str(number))
    return number


def check_positive_int(name: str, value: Any, maximum: int | None = None) -> int:
    """`value` as an int of at least 1 and at most `maximum`; bool is not an integer here."""
    return check_int(name, value, 1, maximum)


def check_layer_number(name: str, value: Any) -> int:
    """`value` as an int of at least 0."""
    return check_int(name, value, 0)


def check_block_shape(name: str, value: Any, maximum: int | None = None) -> tuple[int | None, int | None]:
    """`value` as (rows, columns) of a block: integers in [1, `maximum`], or None for a whole axis."""
    expected = "a pair of positive integers or None"
    if not isinstance(value, (tuple, list)):
        raise type_error(name, expected, describe(value))
    if len(value) != 2:
        raise value_error(name, expected, f"{len(value)} values")
    rows, columns = (
        None if size is None else check_positive_int(f"{name}[{i}]", size, maximum)
        for i, size in enumerate(value)
    )
    return rows, columns


def check_real(name: str, value: Any) -> float:
    """`value` as a float, from any real scalar; its range is the caller's to check."""
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    # The scalars of ml_dtypes derive from np.generic alone.
    if not is_number and not (isinstance(value, np.generic) and "float" in value.dtype.name):
        raise type_error(name, "a real number", describe(value))
    try:
        return float(value)
    except OverflowError:
        raise value_error(name, "a number that a float can hold", "a larger integer") from None


def check_float32(name: str, value: Any, minimum: float = -_FLOAT32_MAX) -> float:
    """`value` as a finite float within the range of float32, from any real scalar."""
    number = check_real(name, value)
    if not minimum <= number <= _FLOAT32_MAX:
        least = "" if minimum == -_FLOAT32_MAX else f" of at least {minimum}"
        raise value_error(name, f"a finite float32 number{least}", repr(number))
    return number


def check_dtype(name: str, value: Any, dtypes: Sequence[np.dtype[Any]]) -> np.dtype[Any]:
    """`value` as one of `dtypes`."""
    if isinstance(value, np.dtype) and value in dtypes:
        return value  # on the path of every decode step: no texts are made
    expected = join_choices(dtype.name for dtype in dtypes)
    if value is None:  # which would mean float64 to NumPy
        raise type_error(name, expected, "None")
    try:
        dtype: np.dtype[Any] = np.dtype(value)
    except TypeError:
        raise type_error(name, expected, describe(value)) from None
    if dtype not in dtypes:
        raise type_error(name, expected, str(dtype))
    return dtype


def as_array(name: str, value: Any, dtypes: Sequence[Any]) -> np.ndarray:
    """`value` as an aligned array in native byte order, of one of `dtypes`; copied only if needed.

    Masked arrays are refused because their mask would be lost, object arrays because they hold no numbers.
    """
    array = _as_ndarray(name, value)
    if array.dtype not in dtypes:
        expected = join_choices(np.dtype(dtype).name for dtype in dtypes)
        got = describe(array if array.dtype != object else value)
        raise type_error(name, f"an array of {expected}", got + _remedy(name, value, array.dtype, dtypes))
    return array if array.flags.aligned else array.copy()


def as_integer_array(name: str, value: Any) -> np.ndarray:
    """`value` as an aligned array in native byte order, of any NumPy integer dtype (bool is none)."""
    array = _as_ndarray(name, value)
    if array.dtype.kind not in "iu":
        raise type_error(name, "an array of integers", describe(array if array.dtype != object else value))
    return array if array.flags.aligned else array.copy()


def to_int64(array: np.ndarray) -> np.ndarray:
    """A copy of an integer array as int64; what is too large for int64 becomes the largest int64."""
    if array.dtype == np.uint64:
        array = np.minimum(array, np.uint64(2**63 - 1))
    return array.astype(np.int64)


def cast(array: np.ndarray, dtype: DTypeLike) -> np.ndarray:
    """`array` as `dtype`, itself if it is that; no warning where large is infinite, a signaling NaN a NaN."""
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return array.astype(dtype)


def as_rows(array: np.ndarray) -> np.ndarray:
    """`array` of any leading axes with one in their place; copied only if its strides need that."""
    return array if array.ndim == 2 else array.reshape(-1, array.shape[-1])


def check_shape(name: str, array: np.ndarray, expected: Sequence[int | str]) -> None:
    """Raise unless `array` has the `expected` shape, in which a string names an axis of any size."""
    fits = array.ndim == len(expected) and all(
        isinstance(size, str) or size == got for size, got in zip(expected, array.shape, strict=True)
    )
    if not fits:
        shape = ", ".join(map(str, expected)) + ("," if len(expected) == 1 else "")
        raise value_error(name, f"shape ({shape})", f"shape {array.shape}")


def as_output(name: str, value: Any) -> np.ndarray:
    """The memory of `value`, an array or what DLPack hands over, as a plain array to write a result to."""
    if is_foreign(value):
        return _from_foreign(name, value, may_copy=False)
    if not isinstance(value, np.ndarray) or is_masked(value):
        raise type_error(name, "an ndarray or an object with __dlpack__", describe(value))
    return np.asarray(value)


def frozen(name: str, value: Any) -> Any:
    """A read-only copy of `value` if it is an array; numbers, strings, lists and all else as they are."""
    if isinstance(value, (list, tuple)) or num_axes(value) == 0:
        return value
    array = _as_ndarray(name, value).copy()
    array.flags.writeable = False
    return array


def num_axes(value: Any) -> int:
    """How many axes `value` has as an array, 0 if it is none."""
    if hasattr(value, "ndim"):
        return int(value.ndim)
    try:
        return _as_ndarray("value", value).ndim
    except (TypeError, ValueError):
        return 0


def _as_ndarray(name: str, value: Any) -> np.ndarray:
    if type(value) is np.ndarray and value.dtype.isnative:
        return value  # on the path of every decode step: what follows would find nothing
    if is_masked(value):
        raise type_error(name, "an array without a mask", describe(value))
    if is_foreign(value):
        array = _from_foreign(name, value, may_copy=True)
    else:
        try:
            array = np.asarray(value)
        except EXPORT_ERRORS as error:
            raise type_error(name, "an array", f"{describe(value)} ({error})") from error
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _from_foreign(name: str, value: Any, *, may_copy: bool) -> np.ndarray:
    """The memory that `value` hands over by DLPack; where it does not, a copy if `value` can make one."""
    try:
        return from_dlpack(value)
    except BufferError as error:
        if may_copy and hasattr(value, "__array__"):
            with suppress(*EXPORT_ERRORS):
                return np.asarray(value)
        raise type_error(name, "an array", f"{describe(value)} ({error})") from error
    except (TypeError, ValueError) as error:
        error_of = type_error if isinstance(error, TypeError) else value_error
        raise error_of(name, "an array", f"{describe(value)} ({error})") from error


def _remedy(name: str, value: Any, dtype: np.dtype[Any], accepted: Sequence[Any]) -> str:
    """What makes of `value`, an array of `dtype`, one of an `accepted` dtype; empty if nothing plain does."""
    array = name if isinstance(value, np.ndarray) else f"np.asarray({name})"
    if isinstance(value, np.ndarray) and not value.dtype.isnative:
        array = f"{name}.astype(np.{dtype.name})"
    is_small_float = dtype.isbuiltin == _REGISTERED
    if not is_small_float and dtype.kind in "iuV" and dtype.names is None:
        # Files and libraries without the small floats of ml_dtypes keep their bits in such arrays.
        same_size = [each for each in map(np.dtype, accepted) if each.itemsize == dtype.itemsize]
        names = [each.name for each in same_size if each.isbuiltin == _REGISTERED]
        if names:
            ways = join_choices(f"{array}.view(ml_dtypes.{each})" for each in names)
            return f"; if these are the bits of floats, pass {ways}"
    if np.float32 in accepted and (is_small_float or dtype.kind in "fi"):
        return f"; pass {array}.astype(np.float32)"
    return ""
