"""JSON as checkpoints hold it: strict, and every failure a ValueError that names the file."""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from mxfp4moe._arguments import value_error

MAX_JSON_BYTES = 100_000_000


class MissingFileError(FileNotFoundError, ValueError):
    """A checkpoint lacks a file; both a FileNotFoundError and a ValueError, so either catches it."""


def shorten(value: object) -> str:
    """`repr`, cut short: what came may be megabytes long."""
    if isinstance(value, int) and value.bit_length() > 256:
        return "an integer of more than 256 bits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def parse_object(data: bytes, source: str) -> dict[str, Any]:
    """Parse `data` as one JSON object without duplicate keys; `source` names it in errors."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
            raise ValueError(f"key {shorten(twice)} twice")
        return result

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except RecursionError:
        raise value_error(source, "a JSON object", "one nested too deeply") from None
    except ValueError as error:
        raise value_error(source, "a JSON object", str(error)) from None
    if not isinstance(value, dict):
        raise value_error(source, "a JSON object", shorten(value))
    return value


def bad_path_error(path: Path, expected: str, error: OSError) -> OSError | ValueError:
    """The ValueError of a path that can never be opened; `error` itself if it has another cause."""
    if error.errno not in (errno.ELOOP, errno.ENAMETOOLONG):
        return error
    return value_error(shorten(str(path)), expected, os.strerror(error.errno).lower())


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
    return parse_object(path.read_bytes(), str(path))
