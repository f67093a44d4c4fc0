"""The tensors of a GGUF file, or of all files of a split one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mxfp4moe._arguments import value_error
from mxfp4moe._json import shorten
from mxfp4moe.checkpoint._near import none_among
from mxfp4moe.checkpoint._unread import Recording
from mxfp4moe.checkpoint.gguf.file import GgufFile

FLOATS = ("F32", "F16", "BF16")
_SPLIT_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


class Tensors(Recording):
    """The tensors of a GGUF file, or of all files of a split one."""

    def __init__(self, path: Path, files: list[GgufFile]) -> None:
        self.path = path
        self._file_of_tensor = {name: file for file in files for name in file.infos}
        self.read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._file_of_tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of_tensor)

    def type(self, name: str) -> str:
        """The type of tensor `name`, as GGUF calls it."""
        return self._file_with(name).infos[name].type

    def num_axes(self, name: str) -> int:
        """How many axes tensor `name` has."""
        return len(self._file_with(name).infos[name].shape)

    def shape(self, name: str, num_axes: int) -> tuple[int, ...]:
        """The shape of tensor `name`, which must have so many axes."""
        file = self._file_with(name)
        info = file.infos[name]
        if len(info.shape) != num_axes:
            raise value_error(f"{file.path}: tensor {name}", f"{num_axes} axes", str(info))
        return info.shape

    def tensor(self, name: str, types: tuple[str, ...], shape: tuple[int, ...]) -> NDArray[Any]:
        """Tensor `name`; its type must be one of `types`, its shape `shape`."""
        file = self._file_with(name)
        info = file.infos[name]
        if info.type not in types or info.shape != shape:
            expected = f"{' or '.join(types)} {list(shape)}"
            raise value_error(f"{file.path}: tensor {name}", expected, str(info))
        self.read.add(name)
        return file[name]

    def _file_with(self, name: str) -> GgufFile:
        if name not in self:
            raise value_error(str(self.path), f"a tensor {name}", none_among(name, self._file_of_tensor))
        return self._file_of_tensor[name]


def open_files(path: Path) -> list[GgufFile]:
    """The file at `path`, and the others of which it is one part."""
    first = GgufFile(path)
    count = first.value("split.count", 1)
    if type(count) is not int or not 0 <= count <= 99_999:
        raise value_error(f"{path}: split.count", "an integer in [0, 99999]", shorten(count))
    if count < 2:
        return [first]
    match = _SPLIT_NAME.fullmatch(path.name)
    if match is None or int(match[3]) != count:
        expected = f"a name that ends with -<number>-of-{count:05d}.gguf, for a file in {count} parts"
        raise value_error(str(path), expected, path.name)
    names = (path.with_name(f"{match[1]}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1))
    files = [first if name == path else GgufFile(name) for name in names]
    seen: set[str] = set()
    for file in files:
        twice = seen & set(file.infos)
        if twice:
            raise value_error(str(file.path), "each tensor in one file", f"{shorten(min(twice))} in two")
        seen |= set(file.infos)
    return files
