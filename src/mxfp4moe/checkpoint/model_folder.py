"""A Hugging Face model folder: config.json and one or several safetensors files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mxfp4moe._arguments import message, printable, value_error
from mxfp4moe._dtypes import DTYPES
from mxfp4moe._file_bytes import FileBytes
from mxfp4moe._json import MissingFileError, bad_path_error, missing_model_error, read_object, shorten
from mxfp4moe.checkpoint._config import Config
from mxfp4moe.checkpoint._near import none_among
from mxfp4moe.checkpoint._unread import Recording
from mxfp4moe.checkpoint.safetensors import SafetensorsFile

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_QUANTIZATION, _QUANTIZED = "hf_quant_config.json", "quantization_config"


class TensorError(ValueError):
    """A tensor is missing, or of another shape or dtype than the configuration says."""


class ModelFolder(Recording):
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
            raise missing_model_error(self.path, "a model folder")
        if not self.path.is_dir():
            FileBytes(self.path)  # which says more of a page or a pointer in the place of a file
            raise value_error(str(self.path), "a model folder", "a file")
        self.config = _read_config(self.path)
        self._files: dict[str, SafetensorsFile] = {}
        self.read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._file_of_tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of_tensor)

    def tensor(self, name: str, dtypes: Sequence[str], shape: tuple[int | None, ...]) -> NDArray[Any]:
        """Tensor `name` as a read-only array; its dtype must be one of `dtypes`, its shape `shape`.

        None in `shape` stands for any size.
        """
        file = self._file_with(name)
        info = file.infos[name]
        fits = len(info.shape) == len(shape) and all(
            target in (None, size) for target, size in zip(shape, info.shape, strict=True)
        )
        if info.dtype not in dtypes or not fits:
            sizes = ", ".join("any" if size is None else str(size) for size in shape)
            expected = f"{' or '.join(dtypes)} [{sizes}]"
            raise TensorError(message(f"{file.path}: tensor {name}", expected, str(info)[:80]))
        self.read.add(name)
        return file[name]

    def release(self) -> None:
        """Let go of the files: what no array needs is unmapped, and what is asked for is mapped anew."""
        self._files.clear()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of tensor `name`."""
        return self._file_with(name).infos[name].shape

    def shards(self) -> dict[str, tuple[SafetensorsFile, list[str]]]:
        """Each safetensors file, by name, with the names of its tensors, also those that no index has."""
        file_of_tensor = self._file_of_tensor
        for name, file_name in file_of_tensor.items():
            if name not in (file := self._file(file_name)):
                raise self._missing_error(name, file)
        return {
            file_name: (file, [name for name in file if file_of_tensor.get(name, file_name) == file_name])
            for file_name, file in self._files.items()
        }

    def spec(self, name: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
        """Dtype and shape of tensor `name`; its dtype must be one that NumPy has."""
        file = self._file_with(name)
        info = file.infos[name]
        if info.dtype not in DTYPES:
            raise value_error(f"{file.path}: tensor {name}", f"a dtype of {', '.join(DTYPES)}", str(info))
        return DTYPES[info.dtype], info.shape

    def dtype(self, name: str) -> str | None:
        """The dtype of tensor `name`, as safetensors calls it; None if there is no such tensor."""
        return self._file_with(name).infos[name].dtype if name in self else None

    def _file_with(self, name: str) -> SafetensorsFile:
        file_name = self._file_of_tensor.get(name)
        if file_name is None:
            found = none_among(name, self._file_of_tensor)
            raise TensorError(message(str(self._source), f"a tensor {name}", found))
        file = self._file(file_name)
        if name not in file.infos:
            raise self._missing_error(name, file)
        return file

    def _missing_error(self, name: str, file: SafetensorsFile) -> ValueError:
        """The error of a tensor that is not in the file that the index names."""
        expected = f"a tensor {printable(name, 200)} (as {self._source} says)"
        return value_error(str(file.path), expected, none_among(name, file))

    @cached_property
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


def _read_config(folder: Path) -> Config:
    """config.json, with what hf_quant_config.json says of quantization if it says nothing itself."""
    config, path = Config.read(folder / "config.json"), folder / _QUANTIZATION
    if _QUANTIZED not in config.fields and path.exists():
        config.attach(_QUANTIZED, Config.read(path))
    return config


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
