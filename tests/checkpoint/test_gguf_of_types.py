"""GGUF files of the small checkpoints of every model type, against what transformers computes."""

from __future__ import annotations

from pathlib import Path

import gguf_of_types
import numpy as np
import pytest
from golden_layers import BOUNDS
from problems import rel_l2

import mxfp4moe as mx


@pytest.mark.parametrize("name", gguf_of_types.TYPES)
def test_type(isa: str, tmp_path: Path, name: str) -> None:
    folder = gguf_of_types.write(tmp_path / "model.gguf", name)
    layer = mx.MoELayer.from_checkpoint(tmp_path / "model.gguf", layer=folder.layer)
    for dtype, bound in BOUNDS:
        assert rel_l2(layer(**folder.inputs(dtype)), folder.golden["expected"]) <= bound
    arguments = folder.inputs(np.float32)
    if "router_hidden_states" not in arguments:
        _, ids = layer.route(arguments["hidden_states"], arguments.get("input_ids"))
        assert np.array_equal(np.sort(ids), np.sort(folder.golden["topk_ids"]))
