"""Packed files with an edited table of contents or header, whose lengths and checksums are right."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from typing import Any

from mxfp4moe.packed.container import MAGIC


def with_table(content: bytes, edit: Callable[[dict[str, Any]], Any], sizes: bool = True) -> bytes:
    """The file with its table of contents edited and every length and checksum of the header right again."""
    length = struct.unpack_from("<Q", content, 16)[0]
    table = json.loads(content[64 : 64 + length])
    begin = -(-(64 + length) // 4096) * 4096
    table = edit(table) or table
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    padded = -(-(64 + len(text)) // 4096) * 4096
    result = bytes(64) + text + bytes(padded - 64 - len(text)) + content[begin:]
    return with_header(result, toc=text, size=len(result) if sizes else None)


def with_header(
    content: bytes, toc: bytes = b"", version: int = 1, length: int | None = None, size: int | None = None
) -> bytes:
    if not toc:
        toc = content[64 : 64 + struct.unpack_from("<Q", content, 16)[0]]
    length = len(toc) if length is None else length
    size = struct.unpack_from("<Q", content, 24)[0] if size is None else size
    header = struct.pack("<8sIIQQ28x", MAGIC, version, zlib.crc32(toc), length, size)
    return header + struct.pack("<I", zlib.crc32(header)) + content[64:]
