"""GGUF files written byte by byte, also those that the gguf package would refuse to write."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

ALIGNMENT = 32
_TYPES = {"float32": 0, "float16": 1, "bfloat16": 30}


def string(text: str | bytes) -> bytes:
    """A string with its length."""
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def entry(key: str | bytes, value: int | str | bytes) -> bytes:
    """A metadata key with a uint32, a string, or any value as bytes that begin with its type."""
    if isinstance(value, int):
        return string(key) + struct.pack("<II", 4, value)
    if isinstance(value, str):
        return string(key) + struct.pack("<I", 8) + string(value)
    return string(key) + value


def header(num_tensors: int, num_keys: int) -> bytes:
    """The first bytes of a file of version 3."""
    return b"GGUF" + struct.pack("<IQQ", 3, num_tensors, num_keys)


def info(name: str | bytes, array: np.ndarray[Any, Any], begin: int) -> bytes:
    """The description of a tensor."""
    sizes = array.shape[::-1]
    place = struct.pack("<IQ", _TYPES[array.dtype.name], begin)
    return string(name) + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes) + place


def gguf_bytes(
    keys: Mapping[str, int | str | bytes], tensors: Mapping[str | bytes, np.ndarray[Any, Any]]
) -> bytes:
    """A file with these metadata and tensors."""
    head, data = header(len(tensors), len(keys)), b""
    head += b"".join(entry(key, value) for key, value in keys.items())
    for name, array in tensors.items():
        head += info(name, array, len(data))
        data += array.tobytes() + bytes(-array.nbytes % ALIGNMENT)
    return head + bytes(-len(head) % ALIGNMENT) + data
