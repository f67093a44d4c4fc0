"""Packed folders: read like any checkpoint, and refused where index and files do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packed_examples import INTERMEDIATE, E, K, make_layer

import mxfp4moe as mx


def write_folder(folder: Path, rng: np.random.Generator) -> list[mx.MoELayer]:
    layers = [make_layer(rng, "default"), make_layer(rng, "minimax")]
    for number, layer in zip((1, 3), layers, strict=True):
        layer.save(folder / f"layer-{number:05d}.packed")
    files = {str(n): f"layer-{n:05d}.packed" for n in (3, 1)}
    index = {"packed_layers": 1, "model_type": "mixtral", "num_layers": 5, "layers": files}
    (folder / "packed_layers.json").write_text(json.dumps(index))
    return layers


def test_folder_is_read_like_a_checkpoint(tmp_path: Path, rng: np.random.Generator) -> None:
    layers = write_folder(tmp_path, rng)
    x = rng.standard_normal((4, K), np.float32)
    model = mx.checkpoint.open(tmp_path)
    assert (model.moe_layers, model.num_layers, model.model_type) == ((1, 3), 5, "mixtral")
    assert (model.hidden_size, model.intermediate_size, model.num_experts, model.top_k) == (
        K,
        INTERMEDIATE,
        E,
        2,
    )
    assert model.describe_layer(3).shared_source == "packed bf16"
    for loaded in (mx.load_layers(tmp_path), [mx.MoELayer.from_checkpoint(tmp_path, n) for n in (1, 3)]):
        assert [layer.layer_number for layer in loaded] == [1, 3]
        assert all(np.array_equal(a(x), b(x)) for a, b in zip(loaded, layers, strict=True))
    again = mx.pack_experts(**model.read_layer(3).experts.arguments())
    assert again == layers[1].experts
    with pytest.raises(ValueError, match="layer: expected one that has experts .1, 3., got 2, a dense layer"):
        mx.MoELayer.from_checkpoint(tmp_path, 2)
    with pytest.raises(ValueError, match="quantize: expected None for layers that are packed, got 'mxfp4'"):
        mx.MoELayer.from_checkpoint(tmp_path, 1, quantize="mxfp4")


def test_single_file_is_a_checkpoint_of_one_layer(tmp_path: Path, rng: np.random.Generator) -> None:
    layer = make_layer(rng, "default")
    layer = mx.MoELayer(**layer.arguments() | {"layer_number": 7})
    layer.save(tmp_path / "a")
    assert mx.checkpoint.open(tmp_path / "a").moe_layers == (7,)
    assert mx.MoELayer.from_checkpoint(tmp_path / "a", 7).layer_number == 7
    with pytest.raises(ValueError, match="layer: expected one that has experts .7., got 0"):
        mx.MoELayer.from_checkpoint(tmp_path / "a", 0)


WRONG_INDEXES: dict[str, tuple[dict[str, Any], str]] = {
    "version": ({"packed_layers": 2}, "expected packed_layers 1, got 2"),
    "no layers": ({"layers": {}}, "expected layers such as"),
    "layers a list": ({"layers": []}, "expected layers such as"),
    "another folder": ({"layers": {"1": "../layer-00001.packed"}}, "expected layers such as"),
    "another file": ({"layers": {"1": "layer-00003.packed"}}, "expected layers such as"),
    "name a list": ({"layers": {"1": []}}, "expected layers such as"),
    "beyond the last": ({"num_layers": 3}, "expected layers such as"),
    "number of layers": ({"num_layers": 10**9}, r"expected num_layers in \[1, 100000\], got 1000000000"),
    "no model_type": ({"model_type": 3}, "expected a string as model_type, got 3"),
}


@pytest.mark.parametrize("case", WRONG_INDEXES)
def test_wrong_index_is_refused(tmp_path: Path, rng: np.random.Generator, case: str) -> None:
    fields, message = WRONG_INDEXES[case]
    write_folder(tmp_path, rng)
    path = tmp_path / "packed_layers.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(mx.PackedFormatError, match=f"packed_layers.json: {message}"):
        mx.load_layers(tmp_path)


def test_files_that_do_not_fit_the_index_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    layers = write_folder(tmp_path, rng)
    moved = mx.MoELayer(**layers[0].arguments() | {"layer_number": 2})
    moved.save(tmp_path / "layer-00003.packed")
    with pytest.raises(mx.PackedFormatError, match="layer-00003.packed: expected layer 3, got layer 2"):
        mx.load_layers(tmp_path)
    (tmp_path / "layer-00003.packed").unlink()
    with pytest.raises(
        FileNotFoundError, match="layer-00003.packed: expected a file, got nothing at that path"
    ):
        mx.load_layers(tmp_path)
    (tmp_path / "packed_layers.json").write_bytes(b"[")
    with pytest.raises(mx.PackedFormatError, match="packed_layers.json: expected a JSON object, got"):
        mx.load_layers(tmp_path)
