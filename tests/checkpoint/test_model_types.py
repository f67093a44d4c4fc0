"""Every model type against transformers: numbers, ids, and the same through all ways to keep a layer."""

from __future__ import annotations

import pickle
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from model_folders import NAMES, load
from problems import rel_l2

import mxfp4moe as mx
from mxfp4moe.checkpoint import supported_model_types
from mxfp4moe.cli import main

# The bounds on a call, 2.0e-3 for float32 hidden states and 2.6e-3 for bfloat16, hold where rounding
# averages out. Here each sum has 64 terms and fewer: a fifth more. Two more projections round twice more.
BOUNDS = {np.float32: 2.4e-3, ml_dtypes.bfloat16: 3.0e-3}
LATENT_BOUND = 4.5e-3


def test_every_type_has_a_folder() -> None:
    """By the types in the configurations; other names of a type are of the same row."""
    types = {load(name).config["model_type"] for name in NAMES}
    rows = {mx.checkpoint.get_model_type(name).model_types for name in supported_model_types()}
    without = sorted(names for names in rows if not types & set(names))
    assert without == [("sarvam_moe",)]  # which is GLM-4.5 by the names of Bailing


@pytest.mark.parametrize("name", NAMES)
def test_layer_agrees_with_transformers(isa: str, tmp_path: Path, name: str) -> None:
    model = load(name)
    layer = mx.MoELayer.from_checkpoint(model.write(tmp_path), layer=model.layer)
    for dtype, bound in BOUNDS.items():
        error = rel_l2(layer(**model.inputs(dtype)), model.golden["expected"])
        assert error <= (LATENT_BOUND if model.is_latent else bound)


@pytest.mark.parametrize("name", NAMES)
def test_router_chooses_the_same_experts(tmp_path: Path, name: str) -> None:
    model = load(name)
    layer = mx.MoELayer.from_checkpoint(model.write(tmp_path), layer=model.layer)
    weights, ids = layer.route(**model.inputs(np.float32))
    assert weights.shape == ids.shape
    assert np.array_equal(np.sort(ids, axis=1), np.sort(model.golden["topk_ids"], axis=1))


@pytest.mark.parametrize("name", NAMES)
def test_packed_and_pickled_layers_are_the_same(tmp_path: Path, name: str) -> None:
    model = load(name)
    folder = model.write(tmp_path / "model")
    layer = mx.MoELayer.from_checkpoint(folder, layer=model.layer)
    inputs = model.inputs(np.float32)
    expected = layer(**inputs).tobytes()
    layer.save(tmp_path / "layer.packed")
    others = [mx.MoELayer.open(tmp_path / "layer.packed"), pickle.loads(pickle.dumps(layer))]
    if len(mx.checkpoint.open(folder).moe_layers) == 1:  # of others, the folder has but one layer
        packed = tmp_path / "packed"
        assert main(["pack", str(folder), str(packed)]) == 0
        others.append(mx.MoELayer.from_checkpoint(packed, layer=model.layer))
    for other in others:
        assert other == layer
        assert other(**inputs).tobytes() == expected
