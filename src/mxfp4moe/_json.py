"""JSON as checkpoints hold it: strict, and every failure a ValueError that names the file."""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mxfp4moe._arguments import message, printable, value_error
from mxfp4moe._files import errors_name
from mxfp4moe._placeholders import HEAD_BYTES, check_is_content

# These bound time and memory; the largest models need a tenth of each.
MAX_JSON_BYTES = 100_000_000  # as safetensors has it for a header
_MAX_ITEMS = 2_000_000  # commas, colons and opening brackets, of which each value needs one
_MAX_NESTING = 64
_MAX_SHOWN = 80


class MissingFileError(FileNotFoundError, ValueError):
    """A checkpoint lacks a file; both a FileNotFoundError and a ValueError, so either catches it."""


def missing_model_error(path: Path, expected: str) -> MissingFileError:
    """The error of a path at which there should be a model; it says how to get one."""
    hint = "'hf download' gets a model, 'mxfp4moe demo --keep' makes a small one"
    return MissingFileError(message(str(path), expected, f"nothing at that path ({hint})"))


def shorten(value: object) -> str:
    """`repr`, cut short, and no more of it made than is shown: what came may be megabytes long."""
    text = ""
    for piece in _pieces(value):
        text += piece
        if len(text) > _MAX_SHOWN:
            return f"{text[: _MAX_SHOWN - 3]}..."
    return text


def _pieces(value: object) -> Iterator[str]:
    """The pieces of ``repr(value)``."""
    if type(value) in (list, tuple, dict):
        assert isinstance(value, list | tuple | dict)
        opening, closing = {list: ("[", "]"), tuple: ("(", ")"), dict: ("{", "}")}[type(value)]
        yield opening
        for i, item in enumerate(value):
            yield ", " if i else ""
            yield from _pieces(item)
            if isinstance(value, dict):
                yield ": "
                yield from _pieces(value[item])
        yield f",{closing}" if type(value) is tuple and len(value) == 1 else closing
    elif isinstance(value, str | bytes):
        yield repr(value[: _MAX_SHOWN + 1])
    elif isinstance(value, int) and value.bit_length() > 256:
        yield "an integer of more than 256 bits"
    else:
        yield repr(value)


def parse_object(data: bytes, source: str) -> dict[str, Any]:
    """Parse `data` as one JSON object without duplicate keys; `source` names it in errors.

    Raises
    ------
    ValueError
        If it is none, or has more values or more nesting than any model needs.
    """
    num_items = sum(map(data.count, (b",", b":", b"[", b"{")))
    if num_items > _MAX_ITEMS:
        raise value_error(source, f"at most {_MAX_ITEMS} commas, colons and brackets", str(num_items))

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
            raise ValueError(f"key {shorten(twice)} twice")
        return result

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except RecursionError:  # where Python gives up differs from version to version
        raise _nesting_error(source) from None
    except ValueError as error:
        raise value_error(source, "a JSON object", str(error)) from None
    if not isinstance(value, dict):
        raise value_error(source, "a JSON object", shorten(value))
    level: list[Any] = [value]
    for _ in range(_MAX_NESTING):
        items = (item for each in level for item in (each.values() if isinstance(each, dict) else each))
        level = [item for item in items if isinstance(item, dict | list)]
    if level:
        raise _nesting_error(source)
    return value


def _nesting_error(source: str) -> ValueError:
    return value_error(source, "a JSON object", f"one nested too deeply, in more than {_MAX_NESTING} levels")


def bad_path_error(path: Path, expected: str, error: OSError) -> OSError | ValueError:
    """The ValueError of a path that can never be opened; `error` itself if it has another cause."""
    if error.errno not in (errno.ELOOP, errno.ENAMETOOLONG):
        return error
    return value_error(printable(str(path), 200), expected, os.strerror(error.errno).lower())


def check_regular_file(path: Path) -> int:
    """Return the size of the regular file at `path`; opening a pipe or a device could block for ever."""
    try:
        size = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFileError(f"{path}: expected a file, got nothing at that path") from None
    except OSError as error:
        raise bad_path_error(path, "a file", error) from None
    if not path.is_file():
        raise value_error(str(path), "a file", "a directory" if path.is_dir() else "a special file")
    return size


def read_object(path: Path) -> dict[str, Any]:
    """Read the JSON file at `path` and return its one object."""
    size = check_regular_file(path)
    if size > MAX_JSON_BYTES:
        raise value_error(str(path), f"at most {MAX_JSON_BYTES} bytes of JSON", str(size))
    with path.open("rb") as file, errors_name(path):
        data = file.read(MAX_JSON_BYTES)  # the size may have changed
    check_is_content(path, data[:HEAD_BYTES])
    return parse_object(data, str(path))
