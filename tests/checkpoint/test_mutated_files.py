"""Files with random damage: an error that names the file, or exactly what was written; never a crash.

With the mutations of test_checkpoint.py, 10,000 files. MXFP4MOE_MUTATIONS multiplies their number.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bfloat16_models import write_model
from matrices import random_matrix
from packed_bytes import with_header
from packed_examples import E, K, make_experts, make_layer

import mxfp4moe as mx
from mxfp4moe.checkpoint.safetensors import SafetensorsFile
from mxfp4moe.packed.container import PackedFile

MULTIPLE = int(os.environ.get("MXFP4MOE_MUTATIONS", "1"))
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, *b'0123456789-.eE{}[]:,"nN')


def mutate(content: bytes, rng: np.random.Generator, begin: int, end: int) -> bytes:
    """Change one to three places in [begin, end): bytes changed, removed, repeated or cut off."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        position = int(rng.integers(begin, max(min(end, len(data)), begin + 1)))
        some = slice(position, position + int(rng.integers(1, 20)))
        match rng.integers(7):
            case 0 | 1:
                data[position : position + 1] = rng.bytes(1)
            case 2 | 3:
                data[position : position + 1] = bytes([rng.choice(INTERESTING)])
            case 4:
                del data[some]
            case 5:
                data[position:position] = data[some]
            case 6:
                data[some] = bytes(len(data[some]))
    return bytes(data)


def resize(content: bytes, rng: np.random.Generator) -> bytes:
    """Another length."""
    if rng.random() < 0.2:
        return content + rng.bytes(int(rng.integers(1, 5000)))
    return content[: int(rng.integers(len(content)))]


def damaged(content: bytes, rng: np.random.Generator, count: int) -> Iterator[bytes]:
    """Packed files with damage to the header, the table of contents, the length or anything."""
    table_end = 64 + struct.unpack_from("<Q", content, 16)[0]
    ranges = ((0, 64), (64, table_end), (64, table_end), (0, len(content)))
    for _ in range(MULTIPLE * count):
        if rng.random() < 0.1:
            yield resize(content, rng)
        else:
            yield mutate(content, rng, *ranges[rng.integers(len(ranges))])


def repaired(content: bytes, rng: np.random.Generator, count: int) -> Iterator[bytes]:
    """Packed files whose table of contents is damaged behind right checksums and lengths."""
    length = struct.unpack_from("<Q", content, 16)[0]
    table, payload = content[64 : 64 + length], content[-(-(64 + length) // 4096) * 4096 :]
    for _ in range(MULTIPLE * count):
        text = mutate_values(table, rng) if rng.random() < 0.7 else mutate(table, rng, 0, length)
        padded = bytes(64) + text + bytes(-(64 + len(text)) % 4096)
        yield with_header(padded + payload, toc=text, size=len(padded) + len(payload))


def mutate_values(table: bytes, rng: np.random.Generator) -> bytes:
    """A table of contents that is still JSON, with one value changed, removed or exchanged."""
    values: tuple[Any, ...] = (
        None,
        True,
        -1,
        0,
        1,
        2,
        31,
        64,
        2**31,
        2**63,
        2**64,
        1.5,
        "",
        "U8",
        "F64",
        [],
        {},
        [0],
    )

    def places(value: Any) -> Iterator[tuple[Any, Any]]:
        keys = value if isinstance(value, dict) else range(len(value))
        for key in keys:
            yield value, key
            if isinstance(value[key], dict | list):
                yield from places(value[key])

    root = json.loads(table)
    found = list(places(root))
    owner, key = found[rng.integers(len(found))]
    if rng.random() < 0.2:
        del owner[key]
    elif rng.random() < 0.3:
        other, other_key = found[rng.integers(len(found))]
        owner[key] = json.loads(json.dumps(other[other_key]))
    else:
        owner[key] = values[rng.integers(len(values))]
    return json.dumps(root).encode()


def try_each(path: Path, files: Iterator[bytes], read: Callable[[Path], None]) -> tuple[int, int]:
    """How many files were refused and how many were read."""
    num_refused = num_read = 0
    for content in files:
        path.unlink(missing_ok=True)  # a mapped file must not change under its readers
        path.write_bytes(content)
        try:
            read(path)
            num_read += 1
        except mx.PackedFormatError as error:
            assert str(error).startswith(str(path))
            assert len(str(error)) < 2000
            num_refused += 1
    return num_refused, num_read


@pytest.mark.parametrize("name", ["mxfp4", "fp8_block"])
def test_damaged_experts_are_refused_or_equal(tmp_path: Path, rng: np.random.Generator, name: str) -> None:
    experts = make_experts(rng, name)
    experts.save(tmp_path / "good")

    def read(path: Path) -> None:
        assert mx.PackedExperts.open(path, verify=True) == experts

    files = damaged((tmp_path / "good").read_bytes(), rng, 2000)
    num_refused, _ = try_each(tmp_path / "bad", files, read)
    assert num_refused > 1900 * MULTIPLE  # the others were changed into themselves


@pytest.mark.parametrize("name", ["bf16", "fp8_block-24x64", "float32"])
def test_damaged_matrices_are_refused_or_equal(tmp_path: Path, rng: np.random.Generator, name: str) -> None:
    linear = mx.pack_linear(**random_matrix(rng, name, 40, 96))
    linear.save(tmp_path / "good")

    def read(path: Path) -> None:
        assert mx.PackedLinear.open(path, verify=True) == linear

    files = damaged((tmp_path / "good").read_bytes(), rng, 500)
    num_refused, _ = try_each(tmp_path / "bad", files, read)
    assert num_refused > 450 * MULTIPLE


@pytest.mark.parametrize("name", ["mxfp4", "fp8_block-24x64", "float32"])
def test_wrong_tables_of_matrices(tmp_path: Path, rng: np.random.Generator, name: str) -> None:
    """Whatever such a file says, it is refused, or a matrix that works on the bytes that are there."""
    linear = mx.pack_linear(**random_matrix(rng, name, 40, 96))
    linear.save(tmp_path / "good")

    def read(path: Path) -> None:
        opened = mx.PackedLinear.open(path)
        assert opened.nbytes == linear.nbytes
        opened.unpack()
        opened(np.ones((2, opened.shape[1]), np.float32))

    num_refused, _ = try_each(tmp_path / "bad", repaired((tmp_path / "good").read_bytes(), rng, 500), read)
    assert num_refused > 250 * MULTIPLE


def test_damaged_layers_are_refused_or_equal(tmp_path: Path, rng: np.random.Generator) -> None:
    layer = make_layer(rng, "minimax")
    layer.save(tmp_path / "good")
    x = rng.standard_normal((3, K), np.float32)
    expected = layer(x)

    def read(path: Path) -> None:
        assert np.array_equal(mx.MoELayer.open(path, verify=True)(x), expected)

    files = damaged((tmp_path / "good").read_bytes(), rng, 1500)
    num_refused, _ = try_each(tmp_path / "bad", files, read)
    assert num_refused > 1400 * MULTIPLE


def test_damage_that_is_not_looked_for_changes_weights_alone(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    """Without `verify`, what is accepted has the right sizes, and can be used."""
    experts = make_experts(rng, "nvfp4")
    experts.save(tmp_path / "good")
    x, ids = rng.standard_normal((2, K), np.float32), rng.integers(0, E, (2, 2))

    def read(path: Path) -> None:
        opened = mx.PackedExperts.open(path)
        assert repr(opened) == repr(experts)
        opened.unpack()
        mx.fused_experts(x, opened, np.ones((2, 2), np.float32), ids)

    num_refused, num_read = try_each(
        tmp_path / "bad", damaged((tmp_path / "good").read_bytes(), rng, 1000), read
    )
    assert num_refused > 600 * MULTIPLE
    assert num_read > 50 * MULTIPLE


@pytest.mark.parametrize("routing", ["deepseek v3", "deepseek v4"])
def test_wrong_tables_behind_right_checksums(tmp_path: Path, rng: np.random.Generator, routing: str) -> None:
    """Whatever such a file says, it is refused, or a layer that works on the bytes that are there."""
    layer = make_layer(rng, routing, "mxfp4 of gpt-oss")
    layer.save(tmp_path / "good")

    def read(path: Path) -> None:
        opened = mx.MoELayer.open(path)
        assert opened.experts.nbytes == layer.experts.nbytes
        opened.experts.unpack()
        x = np.ones((2, opened.hidden_size), np.float32)
        opened(x, np.zeros(2, np.int64))

    num_refused, num_read = try_each(
        tmp_path / "bad", repaired((tmp_path / "good").read_bytes(), rng, 1000), read
    )
    assert num_refused > 600 * MULTIPLE
    assert num_read > 20 * MULTIPLE


def test_damaged_index_of_a_packed_folder(tmp_path: Path, rng: np.random.Generator) -> None:
    make_layer(rng, "default").save(tmp_path / "layer-00001.packed")
    index = {"packed_layers": 1, "model_type": "x", "num_layers": 3, "layers": {"1": "layer-00001.packed"}}
    content = json.dumps(index).encode()
    files = (mutate(content, rng, 0, len(content)) for _ in range(400 * MULTIPLE))

    def read(path: Path) -> None:
        try:
            (layer,) = mx.load_layers(path.parent)
        except FileNotFoundError as error:
            raise mx.PackedFormatError(f"{path}: expected {error}") from error
        assert layer.num_experts == E

    num_refused, _ = try_each(tmp_path / "packed_layers.json", files, read)
    assert num_refused > 250 * MULTIPLE


def test_damaged_pickles_of_fields(rng: np.random.Generator) -> None:
    experts = make_experts(rng, "mxfp8 e4m3")
    make, (version, fields, data) = experts.__reduce_ex__(4)
    text = json.dumps(fields).encode()
    for _ in range(300 * MULTIPLE):
        changed = json.loads(mutate_values(text, rng))
        try:
            assert pickle.loads(pickle.dumps(make(version, changed, data))).nbytes == experts.nbytes
        except mx.PackedFormatError as error:
            assert str(error).startswith("pickle: ")


def test_damaged_safetensors_files(tmp_path: Path, rng: np.random.Generator) -> None:
    """Accepted files have tensors that lie in the file, cover its data and do not overlap."""
    write_model(tmp_path, rng, "mixtral")
    content = (tmp_path / "model-00003-of-00003.safetensors").read_bytes()
    header_end = 8 + struct.unpack_from("<Q", content)[0]
    path = tmp_path / "bad.safetensors"
    num_refused = 0
    for number in range(900 * MULTIPLE):
        end = header_end if number % 4 else 8
        changed = resize(content, rng) if rng.random() < 0.1 else mutate(content, rng, 0, end)
        path.unlink(missing_ok=True)
        path.write_bytes(changed)
        try:
            file = SafetensorsFile(path)
            nbytes = sum(file[name].nbytes for name in file)
        except ValueError as error:
            assert str(error).startswith(str(path))
            num_refused += 1
            continue
        assert nbytes == len(changed) - 8 - struct.unpack_from("<Q", changed)[0]
        assert all(zlib.crc32(file[name].tobytes()) >= 0 for name in file)  # reads every byte
    assert num_refused > 600 * MULTIPLE


def test_the_mutations_find_what_they_should(tmp_path: Path, rng: np.random.Generator) -> None:
    """An open that did not look at checksums would accept many of these files."""
    make_experts(rng, "mxfp4").save(tmp_path / "good")
    content = (tmp_path / "good").read_bytes()
    parts = PackedFile(tmp_path / "good").parts
    changed = [c for c in damaged(content, rng, 200) if len(c) == len(content) and c[:4096] == content[:4096]]
    inside = [
        c for c in changed if any(c[p.begin : p.end] != content[p.begin : p.end] for p in parts.values())
    ]
    assert len(inside) > 5
