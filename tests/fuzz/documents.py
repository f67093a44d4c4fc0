"""Files as trees and bytes, and back with every length, count, offset and checksum right again, if wanted."""

from __future__ import annotations

import copy
import json
import math
import struct
import zlib
from typing import Any, Protocol

import numpy as np

from fuzz.trees import RAW, Rng, encode, mutated, reordered

MAX_BYTES = 1 << 20  # of a tensor that is made as large as its shape says

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64, "F16": 16,
    "F32": 32, "F64": 64, "C64": 64, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4,
}  # fmt: skip


# GGUF files have these layouts of scalars, other types of values, and sizes of a block: elements and bytes.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 20: (32, 18), 23: (256, 136), 30: (1, 2),
    39: (32, 17), 40: (64, 36),
}  # fmt: skip


class Document(Protocol):
    """A file that can be changed."""

    def mutate(self, rng: Rng) -> bytes:
        """The file with structural changes."""

    def vary(self, rng: Rng) -> bytes:
        """The file with changes that mean nothing: what is read must be the same."""


def resized(data: bytes, size: int) -> bytes:
    """Cut, or with its own bytes again."""
    return (data * (size // max(len(data), 1) + 1))[:size].ljust(size, b"\0")


def sized(entry: Any) -> int | None:
    """Bytes of what an entry with `dtype` and `shape` describes; None if it has no size, or a large one."""
    if not isinstance(entry, dict):
        return None
    bits, shape = (
        BITS.get(entry["dtype"]) if isinstance(entry.get("dtype"), str) else None,
        entry.get("shape"),
    )
    if bits is None or not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        return None
    size = math.prod(shape) * bits // 8
    return size if size <= MAX_BYTES else None


class Json:
    """A file that is one JSON object."""

    def __init__(self, content: bytes) -> None:
        self.root = json.loads(content)

    def mutate(self, rng: Rng) -> bytes:
        return encode(mutated(rng, self.root))

    def vary(self, rng: Rng) -> bytes:
        root = reordered(rng, self.root)
        return json.dumps(root, indent=int(rng.integers(4)), ensure_ascii=bool(rng.random() < 0.5)).encode()


class Safetensors:
    """A header length, a JSON header, and data."""

    def __init__(self, content: bytes) -> None:
        length = int.from_bytes(content[:8], "little")
        self.header, self.data = json.loads(content[8 : 8 + length]), content[8 + length :]

    def mutate(self, rng: Rng) -> bytes:
        header = mutated(rng, self.header)
        data = self._laid_out(header) if rng.random() < 0.7 else self.data
        text = encode(header)
        length = len(text) if rng.random() < 0.97 else int(rng.integers(2 * len(text)))
        return length.to_bytes(8, "little") + text + data

    def vary(self, rng: Rng) -> bytes:
        header = reordered(rng, self.header)
        if rng.random() < 0.5:
            header["unrelated.weight"] = {"dtype": "F16", "shape": [3, 1], "data_offsets": [0, 6]}
        if rng.random() < 0.5:
            header["__metadata__"] = {"format": "pt", "note": "x" * int(rng.integers(100))}
        data = self._laid_out(header)
        text = json.dumps(header, indent=int(rng.integers(3)) or None).encode() + b" " * int(rng.integers(9))
        return len(text).to_bytes(8, "little") + text + data

    def _laid_out(self, header: Any) -> bytes:
        """The data of tensors one after the other, as long as their shapes say; offsets are made to fit."""
        pieces, end = [], 0
        for name, entry in header.items() if isinstance(header, dict) else ():
            size = sized(entry)
            if name == "__metadata__" or size is None:
                continue
            old = self.header.get(name, entry).get("data_offsets")
            begin, stop = (
                old
                if isinstance(old, list) and len(old) == 2 and type(old[0]) is type(old[1]) is int
                else (0, 64)
            )
            pieces.append(resized(self.data[max(begin, 0) : max(stop, 0)], size))
            entry["data_offsets"] = [end, end + size]
            end += size
        return b"".join(pieces)


class Packed:
    """A header with checksums, a JSON table of contents, and parts on page boundaries."""

    PAGE = 4096

    def __init__(self, content: bytes) -> None:
        self.magic = content[:8]
        length = struct.unpack_from("<Q", content, 16)[0]
        self.table = json.loads(content[64 : 64 + length])
        begin, self.parts = self._up(64 + length), {}
        for part in self.table["parts"]:
            size = sized(part)
            assert size is not None
            self.parts[part["name"]] = content[begin : begin + size]
            begin += self._up(size)

    @classmethod
    def _up(cls, size: int) -> int:
        return -(-size // cls.PAGE) * cls.PAGE

    def mutate(self, rng: Rng) -> bytes:
        table = mutated(rng, self.table)
        return self._file(table, encode, repair=rng.random() < 0.9)

    def vary(self, rng: Rng) -> bytes:
        indent = int(rng.integers(4))
        return self._file(
            reordered(rng, self.table), lambda t: json.dumps(t, indent=indent).encode(), repair=True
        )

    def _file(self, table: Any, write: Any, repair: bool) -> bytes:
        parts = table.get("parts") if isinstance(table, dict) else None
        data = [self._part(part, repair) for part in (parts if isinstance(parts, list) else [])]
        text = write(table)
        body = b"".join(piece.ljust(self._up(len(piece)), b"\0") for piece in data)
        content = (bytes(64) + text).ljust(self._up(64 + len(text)), b"\0") + body
        header = struct.pack("<8sIIQQ28x", self.magic, 1, zlib.crc32(text), len(text), len(content))
        return header + struct.pack("<I", zlib.crc32(header)) + content[64:]

    def _part(self, part: Any, repair: bool) -> bytes:
        size = sized(part)
        if size is None:
            return b""
        name = part.get("name")
        data = resized(self.parts.get(name if isinstance(name, str) else "", b""), size)
        sums = part.get("crc32")
        if repair and isinstance(sums, list) and 0 < len(sums) <= max(size, 1):
            rows = size // len(sums)
            part["crc32"] = [zlib.crc32(data[i * rows : (i + 1) * rows]) for i in range(len(sums))]
        return data


class Gguf:
    """Metadata, tensor descriptions and aligned data.

    The tree has a version, metadata, each ``[key, type, value]``, and tensors, each ``[name, sizes, type,
    offset]``. The value of an array is ``[type, values]``.
    """

    def __init__(self, tree: dict[str, Any], data: dict[str, bytes]) -> None:
        self.tree, self.data = tree, data

    def content(self) -> bytes:
        return self._file(self.tree, 32, offsets=True)

    def mutate(self, rng: Rng) -> bytes:
        counts = (0, 0) if rng.random() < 0.95 else (int(rng.integers(-2, 3)), int(rng.integers(-2, 3)))
        return self._file(mutated(rng, self.tree), 32, offsets=rng.random() < 0.8, counts=counts)

    def vary(self, rng: Rng) -> bytes:
        tree = copy.deepcopy(self.tree)
        tree["version"] = int(rng.integers(2, 4))
        extra = [
            ["fuzz.nested", 9, [9, [[4, [1, 2]], [8, ["é", ""]]]]],
            ["fuzz.text", 8, "x"],
            ["fuzz.f", 12, 0.5],
        ]
        tree["metadata"] += [extra[i] for i in rng.permutation(3)[: rng.integers(4)]]
        alignment = int(2 ** rng.integers(0, 8))
        tree["metadata"].append(["general.alignment", 4, alignment])
        for name in ("metadata", "tensors"):
            tree[name] = [tree[name][i] for i in rng.permutation(len(tree[name]))]
        return self._file(tree, alignment, offsets=True)

    def _file(self, tree: Any, alignment: int, offsets: bool, counts: tuple[int, int] = (0, 0)) -> bytes:
        tree = tree if isinstance(tree, dict) else {}
        tensors, metadata = (
            value if isinstance(value, list) else [] for value in map(tree.get, ("tensors", "metadata"))
        )
        head = b"GGUF" + self._number(tree.get("version"), "I")
        head += self._number(len(tensors) + counts[0], "Q") + self._number(len(metadata) + counts[1], "Q")
        head += b"".join(self._entry(entry) for entry in metadata)
        body = b""
        for tensor in tensors:
            name, sizes, kind, offset = self._cut(tensor, 4)
            data = resized(
                self.data.get(name if isinstance(name, str) else "", b"\x11"), self._size(sizes, kind)
            )
            if offsets:
                body = body.ljust(-(-len(body) // alignment) * alignment, b"\0")
                offset = len(body)
            body += data
            sizes = sizes if isinstance(sizes, list) else [sizes]
            head += self._string(name) + self._number(len(sizes), "I")
            head += b"".join(self._number(size, "Q") for size in sizes)
            head += self._number(kind, "I") + self._number(offset, "Q")
        return head.ljust(-(-len(head) // alignment) * alignment, b"\0") + body

    @staticmethod
    def _cut(value: Any, length: int) -> list[Any]:
        return ((value if isinstance(value, list) else [value]) + length * [0])[:length]

    def _entry(self, entry: Any) -> bytes:
        key, kind, value = self._cut(entry, 3)
        return self._string(key) + self._number(kind, "I") + self._value(kind, value, 0)

    def _value(self, kind: Any, value: Any, depth: int) -> bytes:
        if kind == STRING:
            return self._string(value)
        if kind == ARRAY and depth < 200:
            element, values = self._cut(value, 2)
            values = values if isinstance(values, list) else [values]
            items = b"".join(self._value(element, item, depth + 1) for item in values)
            return self._number(element, "I") + self._number(len(values), "Q") + items
        return self._number(value, SCALARS.get(kind, "I") if isinstance(kind, int) else "I")

    @staticmethod
    def _number(value: Any, layout: str) -> bytes:
        """`value` cut to the bits that it has in the file; 7 where it is no number."""
        try:
            if layout in "fd":
                return struct.pack("<" + layout, float(value))
            bits = 8 * struct.calcsize(layout)
            return (int(value) % 2**bits).to_bytes(bits // 8, "little")
        except (TypeError, ValueError, OverflowError):
            return (7).to_bytes(struct.calcsize(layout), "little")

    @staticmethod
    def _string(value: Any) -> bytes:
        text = RAW.get(value, value) if isinstance(value, str) else str(value)
        data = text.encode("utf-8", "surrogatepass")
        return len(data).to_bytes(8, "little") + data

    def _size(self, sizes: Any, kind: Any) -> int:
        block, size = BLOCKS.get(kind, (1, 1)) if isinstance(kind, int) else (1, 1)
        numbers = sizes if isinstance(sizes, list) else [sizes]
        if not all(type(number) is int and number >= 0 for number in numbers):
            return 64
        total = math.prod(numbers) // block * size
        return total if total <= MAX_BYTES else 64


def gguf_tensor(array: np.ndarray, kind: int) -> tuple[list[Any], bytes]:
    """Sizes, type and offset of a tensor, and its data; blocks come as bytes."""
    sizes = list(array.shape[::-1])
    elements, nbytes = BLOCKS[kind]
    if elements > 1:
        sizes[0] = sizes[0] // nbytes * elements
    return [sizes, kind, 0], array.tobytes()
