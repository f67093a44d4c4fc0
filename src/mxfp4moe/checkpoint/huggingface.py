"""A Hugging Face model folder: config.json and one or several safetensors files."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mxfp4moe.checkpoint._json import MissingFileError, bad_path_error, read_object, shorten
from mxfp4moe.checkpoint.safetensors import SafetensorsFile
from mxfp4moe.errors import value_error

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


class Config:
    """The fields of a config.json; each method returns one field, checked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fields = read_object(path)

    def integer(self, *names: str, maximum: int = 2**31 - 1, multiple_of: int = 1) -> int:
        """An integer field in [1, maximum]; with several names, the first one found counts."""
        expected = f"an integer in [1, {maximum}]"
        expected += f" that is a multiple of {multiple_of}" if multiple_of > 1 else ""
        name, value = self._find(names, expected)
        if type(value) is not int or not 1 <= value <= maximum or value % multiple_of:
            raise self.error(name, expected, shorten(value))
        return value

    def positive_number(self, name: str, default: float) -> float:
        """A real, finite field above 0."""
        value = self.fields.get(name, default)
        if type(value) not in (int, float) or not 0 < value <= sys.float_info.max:
            raise self.error(name, "a finite number above 0", shorten(value))
        return float(value)

    def string(self, name: str) -> str:
        """A string field."""
        _, value = self._find((name,), "a string")
        if not isinstance(value, str):
            raise self.error(name, "a string", shorten(value))
        return value

    def section(self, name: str) -> dict[str, Any]:
        """A field that holds an object; empty if it is missing or null."""
        value = self.fields.get(name)
        if not isinstance(value, dict | None):
            raise self.error(name, "an object", shorten(value))
        return value or {}

    def error(self, name: str, expected: str, got: str) -> ValueError:
        """The ValueError of field `name`."""
        return value_error(f"{self.path}: {name}", expected, got)

    def _find(self, names: Sequence[str], expected: str) -> tuple[str, Any]:
        for name in names:
            if name in self.fields:
                return name, self.fields[name]
        raise self.error(" or ".join(names), expected, "no such field")


class ModelFolder:
    """A model folder. Files of tensors are opened (memory-mapped) when a tensor of theirs is asked for.

    Parameters
    ----------
    path : str or os.PathLike
        A folder with a config.json and the tensors: as ``model.safetensors.index.json`` says, else in
        ``model.safetensors``, else in every ``*.safetensors`` of the folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            exists = self.path.exists()
        except OSError as error:
            raise bad_path_error(self.path, "a model folder", error) from None
        if not exists:
            raise MissingFileError(f"{self.path}: expected a model folder, got nothing at that path")
        if not self.path.is_dir():
            raise value_error(str(self.path), "a model folder", "a file")
        self.config = Config(self.path / "config.json")
        self._files: dict[str, SafetensorsFile] = {}

    def tensor(self, name: str, dtypes: Sequence[str], shape: tuple[int, ...]) -> NDArray[Any]:
        """Tensor `name` as a read-only array; its dtype must be one of `dtypes`, its shape `shape`."""
        source, file_name = self._source, self._file_of_tensor.get(name)
        if file_name is None:
            raise value_error(str(source), f"a tensor {name}", f"none among {len(self._file_of_tensor)}")
        file = self._file(file_name)
        info = file.infos.get(name)
        if info is None:
            raise value_error(str(file.path), f"a tensor {name} (as {source} says)", "none")
        if info.dtype not in dtypes or info.shape != shape:
            expected = f"{' or '.join(dtypes)} {list(shape)}"
            raise value_error(f"{file.path}: tensor {name}", expected, str(info)[:80])
        return file[name]

    @property
    def _source(self) -> Path:
        """What says which tensors there are: the index, the single file or the folder."""
        return next((p for n in (_INDEX, _SINGLE) if (p := self.path / n).exists()), self.path)

    @cached_property
    def _file_of_tensor(self) -> dict[str, str]:
        if self._source.name == _INDEX:
            return _read_weight_map(self._source)
        names = [_SINGLE] if self._source.name == _SINGLE else self._safetensors_names()
        result: dict[str, str] = {}
        for file_name in names:
            for name in self._file(file_name):
                if name in result:
                    expected = f"tensor {shorten(name)} in one file"
                    raise value_error(str(self.path), expected, f"{result[name]} and {file_name}")
                result[name] = file_name
        return result

    def _safetensors_names(self) -> list[str]:
        names = sorted(path.name for path in self.path.glob("*.safetensors"))
        if not names:
            raise MissingFileError(f"{self.path}: expected *.safetensors files, got none")
        return names

    def _file(self, name: str) -> SafetensorsFile:
        if name not in self._files:
            self._files[name] = SafetensorsFile(self.path / name)
        return self._files[name]


def _read_weight_map(path: Path) -> dict[str, str]:
    """File by tensor. Only plain names are followed: an index must not reach outside its folder."""
    weight_map = read_object(path).get("weight_map")
    if not isinstance(weight_map, dict):
        raise value_error(f"{path}: weight_map", "an object", shorten(weight_map))
    for name, file_name in weight_map.items():
        if (
            not isinstance(file_name, str)
            or not file_name.isprintable()
            or set("/\\:") & set(file_name)
            or not file_name.endswith(".safetensors")
        ):
            place = f"{path}: weight_map: {shorten(name)}"
            raise value_error(place, "the plain name of a .safetensors file", shorten(file_name))
    return weight_map
