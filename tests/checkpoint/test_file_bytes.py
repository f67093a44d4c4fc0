"""Files that cannot be mapped, that have changed, and what is left in the place of a file."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from bfloat16_models import write_model
from gguf_bytes import gguf_bytes
from packed_examples import K, make_experts, make_layer

import mxfp4moe as mx
from mxfp4moe import _core, checkpoint
from mxfp4moe._file_bytes import FileBytes
from mxfp4moe.checkpoint.gguf.file import GgufFile
from mxfp4moe.checkpoint.safetensors import SafetensorsFile, save_file
from mxfp4moe.packed.container import PackedFile


def refuse_mapping(monkeypatch: pytest.MonkeyPatch, error: int = errno.ENODEV) -> None:
    """From now on no file can be mapped."""

    def refuse(*_: int) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(_core, "FileMapping", refuse)


@pytest.fixture
def unmappable(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file can be mapped."""
    refuse_mapping(monkeypatch)


def _write_mixtral(folder: Path, rng: np.random.Generator) -> dict[str, np.ndarray]:
    folder.mkdir()
    return write_model(folder, rng, "mixtral")


def run(code: str, *args: object) -> str:
    """What a new interpreter prints that runs `code`."""
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.strip()


# --- mapped or read -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [errno.ENODEV, errno.EACCES, errno.EINVAL, errno.ENOMEM])
def test_slices_are_read_where_nothing_can_be_mapped(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    refuse_mapping(monkeypatch, error)
    content = rng.bytes(100_000)
    (tmp_path / "a").write_bytes(content)
    data = FileBytes(tmp_path / "a")
    assert data.size == len(content)
    for begin, end in ((0, 8), (3, 99_999), (5000, 70_000), (7, 7), (9, 3), (99_990, 200_000)):
        part = data[begin:end]
        assert part.tobytes() == content[begin:end]
        assert not part.flags.writeable
        assert part.size == 0 or part.ctypes.data % 64 == 0


def test_tensors_of_a_file_that_cannot_be_mapped(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {"a": rng.standard_normal((5, 33)), "b": rng.integers(0, 9, 7, np.uint8), "c": np.empty((0, 3))}
    save_file(tmp_path / "a.safetensors", tensors)
    (tmp_path / "a.gguf").write_bytes(gguf_bytes({"n": 3}, {"x": tensors["a"].astype(np.float32)}))
    refuse_mapping(monkeypatch)
    file = SafetensorsFile(tmp_path / "a.safetensors")
    for name, array in tensors.items():
        assert np.array_equal(file[name], array)
    assert np.array_equal(GgufFile(tmp_path / "a.gguf")["x"], tensors["a"].astype(np.float32))


def test_models_and_packed_files_that_cannot_be_mapped_are_the_same(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_mixtral(tmp_path / "model", rng)
    layer = mx.MoELayer.from_checkpoint(tmp_path / "model", quantize="mxfp4")
    layer.save(tmp_path / "layer")
    make_experts(rng, "nvfp4").save(tmp_path / "experts")
    experts = mx.PackedExperts.open(tmp_path / "experts")
    x = rng.standard_normal((3, layer.hidden_size), np.float32)
    refuse_mapping(monkeypatch)
    read = mx.MoELayer.from_checkpoint(tmp_path / "model", quantize="mxfp4")
    opened = mx.MoELayer.open(tmp_path / "layer", verify=True)
    owned = mx.PackedExperts.open(tmp_path / "experts", verify=True)
    for path in tmp_path.iterdir():  # experts that were read own their memory
        path.rename(tmp_path / f"moved-{path.name}")
    assert read.experts == layer.experts
    assert opened.experts == layer.experts
    assert np.array_equal(read(x), layer(x))
    assert np.array_equal(opened(x), layer(x))
    assert owned == experts


@pytest.mark.usefixtures("unmappable")
def test_damage_is_found_in_a_packed_file_that_cannot_be_mapped(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    make_experts(rng, "mxfp4").save(tmp_path / "a")
    content = bytearray((tmp_path / "a").read_bytes())
    content[PackedFile(tmp_path / "a").parts["experts/w2"].begin] ^= 1
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(mx.PackedFormatError, match=r"a: expected the checksum .* 'experts/w2', row 0"):
        mx.PackedExperts.open(tmp_path / "a", verify=True)


@pytest.mark.usefixtures("unmappable")
def test_a_file_that_was_replaced_is_not_read(tmp_path: Path) -> None:
    """Else its tensors would be taken from the places where the header of the other file had them."""
    path = tmp_path / "a.safetensors"
    save_file(path, {"a": np.zeros(5)})
    file = SafetensorsFile(path)
    save_file(path, {"a": np.ones(5)})
    with pytest.raises(ValueError, match=r"a\.safetensors: expected the file that was opened, got one that"):
        file["a"]


@pytest.mark.usefixtures("unmappable")
def test_a_file_that_is_shorter_than_its_size_says(tmp_path: Path) -> None:
    """As files of /proc and /sys are."""
    (tmp_path / "a").write_bytes(bytes(100))
    data = FileBytes(tmp_path / "a")
    data.size = 5000
    with pytest.raises(ValueError, match="a: expected 5000 bytes, got the end after 100"):
        data[50:5000]


@pytest.mark.usefixtures("unmappable")
def test_what_does_not_fit_into_memory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(tmp_path / "a.safetensors", {"a": np.zeros(5000)})
    file = SafetensorsFile(tmp_path / "a.safetensors")

    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(np, "empty", fail)
    with pytest.raises(MemoryError, match=r"a\.safetensors: cannot be mapped, .* 40000 of its"):
        file["a"]


def test_a_limit_of_address_space_smaller_than_the_file(tmp_path: Path) -> None:
    """The tensor that fits is read; the one that does not is a MemoryError that names the file."""
    size = 64 << 30
    header = {
        "small": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "large": {"dtype": "U8", "shape": [size], "data_offsets": [3, 3 + size]},
    }
    text = json.dumps(header).encode()
    with (tmp_path / "a.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + b"\1\2\3")
        file.truncate(8 + len(text) + 3 + size)  # sparse
    code = """if 1:
        import resource, sys
        from mxfp4moe.checkpoint.safetensors import SafetensorsFile
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, -1))
        file = SafetensorsFile(sys.argv[1])
        print(file["small"].tolist())
        try:
            file["large"]
        except MemoryError as error:
            print(error)
    """
    small, large = run(code, tmp_path / "a.safetensors").splitlines()
    assert small == "[1, 2, 3]"
    assert large.startswith(f"{tmp_path / 'a.safetensors'}: cannot be mapped")


def test_more_files_than_descriptors(tmp_path: Path, rng: np.random.Generator) -> None:
    """A model in 200 files, and a GGUF file in 100 parts, with 40 descriptors."""
    tensors = _write_mixtral(tmp_path / "one", rng)
    (tmp_path / "many").mkdir()
    (tmp_path / "many/config.json").write_bytes((tmp_path / "one/config.json").read_bytes())
    names = [*tensors, *(f"other.{i}" for i in range(200 - len(tensors)))]
    for i, name in enumerate(names):
        array = tensors.get(name, np.zeros(4, ml_dtypes.bfloat16))
        save_file(tmp_path / f"many/part-{i}.safetensors", {name: array})
    for i in range(100):
        keys = {"general.architecture": "llama", "split.count": 100}
        part = gguf_bytes(keys, {f"blk.{i}.x": np.full(5, i, np.float32)})
        (tmp_path / f"a-{i + 1:05d}-of-00100.gguf").write_bytes(part)
    code = """if 1:
        import resource, sys
        import mxfp4moe as mx
        from mxfp4moe.checkpoint.gguf.tensors import open_files
        from pathlib import Path
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
        folder = Path(sys.argv[1])
        one, many = (mx.MoELayer.from_checkpoint(folder / name) for name in ("one", "many"))
        files = open_files(folder / "a-00007-of-00100.gguf")
        numbers = [int(file[name][0]) for file in files for name in file.infos]
        print(one.experts == many.experts, numbers == [*range(100)])
    """
    assert run(code, tmp_path) == "True True"


# --- in the place of a file ---------------------------------------------------------------------------------

PLACEHOLDERS = {
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4665a5\nsize 4998663696\n",
    "an HTML page": b"<!DOCTYPE html>\n<html><head><title>Not Found</title></head></html>\n",
    "an HTML page, as": b"\xef\xbb\xbf\n <!-- a cache --> <HTML lang='en'>Please log in</HTML>",
    "an XML page": b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>AccessDenied</Code></Error>",
}


def read_model(path: Path) -> None:
    mx.MoELayer.from_checkpoint(path.parent)


READERS: dict[str, Callable[[Path], Any]] = {
    "config.json": read_model,
    "model.safetensors.index.json": read_model,
    "model-00001-of-00003.safetensors": read_model,
    "packed_layers.json": read_model,
    "a.gguf": checkpoint.open,
    "downloaded": checkpoint.open,
    "a.packed": mx.MoELayer.open,
    "experts.packed": mx.PackedExperts.open,
    "a.safetensors": SafetensorsFile,
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("what", PLACEHOLDERS)
def test_what_is_left_in_the_place_of_a_file_is_named(
    tmp_path: Path, rng: np.random.Generator, name: str, what: str
) -> None:
    write_model(tmp_path, rng, "mixtral")
    (tmp_path / name).write_bytes(PLACEHOLDERS[what])
    with pytest.raises(ValueError, match=f"{name}: expected the content of the file, got {what}"):
        READERS[name](tmp_path / name)


def test_layers_in_packed_folders_are_named_too(tmp_path: Path, rng: np.random.Generator) -> None:
    make_layer(rng, "default").save(tmp_path / "layer-00000.packed")
    index = {"packed_layers": 1, "model_type": "x", "num_layers": 1, "layers": {"0": "layer-00000.packed"}}
    (tmp_path / "packed_layers.json").write_text(json.dumps(index))
    assert mx.load_layers(tmp_path)[0].hidden_size == K
    (tmp_path / "layer-00000.packed").write_bytes(PLACEHOLDERS["a Git LFS pointer"])
    with pytest.raises(mx.PackedFormatError, match=r"layer-00000\.packed: .* got a Git LFS pointer"):
        mx.load_layers(tmp_path)


def test_no_format_begins_like_what_is_left(tmp_path: Path) -> None:
    """A tensor may well hold such a text."""
    for content in PLACEHOLDERS.values():
        save_file(tmp_path / "a.safetensors", {"a": np.frombuffer(content, np.uint8)})
        assert SafetensorsFile(tmp_path / "a.safetensors")["a"].tobytes() == content
