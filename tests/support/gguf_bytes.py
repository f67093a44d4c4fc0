"""GGUF files written byte by byte, also those that the gguf package would refuse to write."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

ALIGNMENT = 32
_TYPES = {"float32": 0, "float16": 1, "int32": 26, "bfloat16": 30}

Value = bool | int | float | str | bytes | list[Any]


def string(text: str | bytes) -> bytes:
    """A string with its length."""
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def entry(key: str | bytes, value: Value) -> bytes:
    """A metadata key with its value; bytes begin with the type of what follows."""
    if isinstance(value, bytes):
        return string(key) + value
    kind, data = _packed(value)
    return string(key) + struct.pack("<I", kind) + data


def _packed(value: bool | int | float | str | list[Any]) -> tuple[int, bytes]:
    """The type of a value, and the bytes after it: a bool, uint32, float32 or string, or an array of such."""
    if isinstance(value, bool):
        return 7, struct.pack("<?", value)
    if isinstance(value, int):
        return 4, struct.pack("<I", value)
    if isinstance(value, float):
        return 6, struct.pack("<f", value)
    if isinstance(value, str):
        return 8, string(value)
    kinds, data = zip(*map(_packed, value), strict=True)
    return 9, struct.pack("<IQ", kinds[0], len(data)) + b"".join(data)


def header(num_tensors: int, num_keys: int) -> bytes:
    """The first bytes of a file of version 3."""
    return b"GGUF" + struct.pack("<IQQ", 3, num_tensors, num_keys)


def info(name: str | bytes, array: np.ndarray[Any, Any], begin: int) -> bytes:
    """The description of a tensor."""
    sizes = array.shape[::-1]
    place = struct.pack("<IQ", _TYPES[array.dtype.name], begin)
    return string(name) + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes) + place


def gguf_bytes(keys: Mapping[str, Value], tensors: Mapping[str | bytes, np.ndarray[Any, Any]]) -> bytes:
    """A file with these metadata and tensors."""
    head, data = header(len(tensors), len(keys)), b""
    head += b"".join(entry(key, value) for key, value in keys.items())
    for name, array in tensors.items():
        head += info(name, array, len(data))
        data += array.tobytes() + bytes(-array.nbytes % ALIGNMENT)
    return head + bytes(-len(head) % ALIGNMENT) + data
