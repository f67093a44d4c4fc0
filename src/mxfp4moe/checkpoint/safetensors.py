"""The safetensors format: a header length (8 bytes, little-endian), a JSON header, then the tensors.

Reading maps the file and returns views; writing streams. Both keep to NumPy and ml_dtypes, which is why BF16,
FP8 and FP4 tensors come out as themselves.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mxfp4moe._arguments import printable, type_error, value_error
from mxfp4moe._dtypes import DTYPE_NAMES, DTYPES
from mxfp4moe._file_bytes import FileBytes
from mxfp4moe._files import atomic_file
from mxfp4moe._json import MAX_JSON_BYTES, parse_object, shorten

_BITS = {name: 8 * dtype.itemsize for name, dtype in DTYPES.items()} | {"F4": 4}
_MAX_DIMS = 64  # of NumPy
_DATA_ALIGNMENT = 64  # of the first tensor in files that we write


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: `begin` and `end` are offsets from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    def __str__(self) -> str:
        return f"{printable(self.dtype, 20)} {list(self.shape)}"


class SafetensorsFile(Mapping[str, "np.ndarray[Any, Any]"]):
    """A safetensors file, memory-mapped where it can be: a mapping from tensor names to read-only arrays.

    The whole header is checked here, so that afterwards every tensor is known to lie inside the file. The
    file must not be truncated while it is in use.

    Parameters
    ----------
    path : str or os.PathLike

    Attributes
    ----------
    path : pathlib.Path
    metadata : dict of str to str
    infos : dict of str to TensorInfo

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is not a valid safetensors file; the message says what was expected and what came.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from mxfp4moe.checkpoint.safetensors import SafetensorsFile, save_file
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file(f"{folder}/a.safetensors", {"x": np.arange(3, dtype=np.float32)})
    ...     print(SafetensorsFile(f"{folder}/a.safetensors")["x"])
    [0. 1. 2.]
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._bytes = FileBytes(self.path)
        size = self._bytes.size
        if size < 8:
            raise value_error(str(self.path), "a header length of 8 bytes", f"a file of {size} bytes")
        header_bytes = int.from_bytes(self._bytes[:8].tobytes(), "little")
        limit = min(size - 8, MAX_JSON_BYTES)
        if not 2 <= header_bytes <= limit:
            raise value_error(str(self.path), f"a header of 2 to {limit} bytes", str(header_bytes))
        header = parse_object(self._bytes[8 : 8 + header_bytes].tobytes(), f"{self.path}: header")
        self._begin = 8 + header_bytes
        self._data_bytes = size - self._begin
        self.metadata = self._check_metadata(header.pop("__metadata__", {}))
        self.infos = {name: self._check_entry(name, entry) for name, entry in header.items()}
        self._check_offsets()

    def __len__(self) -> int:
        return len(self.infos)

    def __iter__(self) -> Iterator[str]:
        return iter(self.infos)

    def __contains__(self, name: object) -> bool:
        return name in self.infos

    def __repr__(self) -> str:
        return f"SafetensorsFile({str(self.path)!r}, {len(self)} tensors, {self._bytes.size} bytes)"

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return tensor `name` as a read-only array: a view of the mapping if it is aligned for its dtype.

        F4 comes as uint8, two elements a byte (the low half first), the last axis half as long.
        """
        info = self.infos[name]
        data = self._bytes[self._begin + info.begin : self._begin + info.end]
        if info.dtype == "F4":
            if info.shape[-1] % 2:
                raise self._error(name, "an even last axis for F4", list(info.shape))
            return data.reshape(*info.shape[:-1], info.shape[-1] // 2)
        if info.dtype not in DTYPES:
            raise self._error(name, f"a dtype of {', '.join(_BITS)}", shorten(info.dtype))
        if info.dtype == "BOOL" and data.size and data.max() > 1:
            raise self._error(name, "BOOL bytes of 0 or 1", int(data.max()))
        array: NDArray[Any] = data.view(DTYPES[info.dtype]).reshape(info.shape)
        if not array.flags.aligned:
            array = array.copy()
            array.flags.writeable = False
        return array

    def _error(self, name: str, expected: str, got: object) -> ValueError:
        return value_error(f"{self.path}: tensor {shorten(name)}", expected, str(got))

    def _check_metadata(self, metadata: object) -> dict[str, str]:
        if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
            raise value_error(f"{self.path}: __metadata__", "strings by name", shorten(metadata))
        return metadata

    def _check_entry(self, name: str, entry: object) -> TensorInfo:
        keys = {"dtype", "shape", "data_offsets"}
        if not isinstance(entry, dict) or set(entry) != keys:
            raise self._error(name, "an object of dtype, shape and data_offsets", shorten(entry))
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str):
            raise self._error(name, "a string as dtype", shorten(dtype))
        if not _is_sizes(shape) or len(shape) > _MAX_DIMS:
            raise self._error(name, f"a shape of at most {_MAX_DIMS} sizes in [0, 2^63)", shorten(shape))
        if not _is_sizes(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= self._data_bytes:
            expected = f"data_offsets [begin, end] with 0 <= begin <= end <= {self._data_bytes}"
            raise self._error(name, expected, shorten(offsets))
        begin, end = offsets
        if math.prod(size for size in shape if size) >= 2**60:  # as NumPy counts: empty arrays can be too big
            raise self._error(name, "a shape that can be addressed", shorten(shape))
        if dtype in _BITS:
            bits = math.prod(shape) * _BITS[dtype]
            if bits != 8 * (end - begin):
                expected = f"{-(-bits // 8)} bytes for {dtype} {shorten(shape)}"
                raise self._error(name, expected, f"{end - begin} bytes")
        return TensorInfo(dtype, tuple(shape), begin, end)

    def _check_offsets(self) -> None:
        """The format wants the data covered without holes, so that nothing can hide in a file."""
        covered = 0
        for name, info in sorted(self.infos.items(), key=lambda item: (item[1].begin, item[1].end)):
            if info.begin != covered:
                raise self._error(name, f"data that begins at {covered}", f"{info.begin} (overlap or hole)")
            covered = info.end
        if covered != self._data_bytes:
            expected = f"{covered} bytes of tensors after the header"
            raise value_error(str(self.path), expected, str(self._data_bytes))


def _is_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 2**63 for size in value)


class SafetensorsWriter:
    """Writes a safetensors file tensor by tensor, without holding more than the caller passes at a time.

    A context manager. The file appears under its name only when all tensors are complete; on an error nothing
    is left behind. The permissions of a file that it replaces are kept; of a symbolic link, what it points to
    is replaced. Folders, devices and pipes are not: an OSError.

    Parameters
    ----------
    path : str or os.PathLike
    tensors : mapping of str to (dtype, shape)
        In the order in which they will be written; `dtype` is a NumPy or ml_dtypes dtype.
    metadata : mapping of str to str, optional
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        tensors: Mapping[str, tuple[DTypeLike, tuple[int, ...]]],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.path = Path(path)
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        self._remaining: list[tuple[str, np.dtype[Any], int]] = []
        end = 0
        for name, (dtype_like, shape) in tensors.items():
            dtype = np.dtype(dtype_like)
            if dtype not in DTYPE_NAMES:
                raise type_error(f"tensors[{name!r}]", f"a dtype of {', '.join(DTYPES)}", str(dtype))
            begin, end = end, end + math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
            self._remaining.append((name, dtype, end - begin))
        self._remaining.reverse()
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % _DATA_ALIGNMENT)
        self._header = len(text).to_bytes(8, "little") + text
        #: Size of the complete file.
        self.nbytes = len(self._header) + end

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._file = stack.enter_context(atomic_file(self.path))
            self._file.write(self._header)
            stack.push(self._check_complete)
            self._closing = stack.pop_all()
        return self

    def write(self, name: str, array: NDArray[Any]) -> None:
        """Append `array` to tensor `name`, the first incomplete one; any number of pieces make a tensor."""
        while self._remaining and self._remaining[-1][2] == 0 and self._remaining[-1][0] != name:
            self._remaining.pop()
        due, dtype, nbytes = self._remaining[-1] if self._remaining else ("no more", array.dtype, 0)
        if name != due:
            raise value_error("name", f"{due} (tensors come in the declared order)", name)
        if array.dtype != dtype:
            raise type_error("array", f"dtype {dtype} for {name}", str(array.dtype))
        if array.nbytes > nbytes:
            raise value_error("array", f"at most {nbytes} more bytes for {name}", str(array.nbytes))
        self._file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        self._remaining[-1] = (name, dtype, nbytes - array.nbytes)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.__exit__(kind, error, trace)

    def _check_complete(self, kind: type[BaseException] | None, *_: object) -> None:
        missing = [name for name, _, nbytes in self._remaining if nbytes]
        if kind is None and missing:
            raise value_error(str(self.path), "all tensors", f"no complete {missing[-1]}")


def save_file(
    path: str | os.PathLike[str],
    tensors: Mapping[str, NDArray[Any]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write `tensors` to a safetensors file at `path`, atomically."""
    specs = {name: (array.dtype, array.shape) for name, array in tensors.items()}
    with SafetensorsWriter(path, specs, metadata) as writer:
        for name, array in tensors.items():
            writer.write(name, array)
