"""Synthetic checkpoints: whole models of small sizes are read as the models that they are of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_decoders import SMALL_DECODERS

import mxfp4moe as mx
from mxfp4moe.cli._synthetic import SyntheticCheckpoint
from mxfp4moe.cli._synthetic_model import Decoder, GptOss, Qwen3Moe


@pytest.mark.parametrize("model", SMALL_DECODERS, ids=lambda model: model.title)
def test_layers_of_a_whole_model(tmp_path: Path, rng: np.random.Generator, model: Decoder) -> None:
    written: list[int] = []
    checkpoint = SyntheticCheckpoint(model, 0)
    checkpoint.write(tmp_path, written.append)
    assert sum(written) == checkpoint.nbytes == model.end_bytes + 2 * model.layer_bytes
    layers = mx.load_layers(tmp_path)
    assert len(layers) == 2
    hidden_states = rng.standard_normal((32, model.hidden_size), np.float32)
    for layer in layers:
        assert (layer.experts.num_experts, layer.top_k) == (8, model.num_experts_per_tok)
        assert 0.3 <= np.std(layer(hidden_states)) <= 6


@pytest.mark.parametrize(("model", "num_bytes"), [(GptOss(), 13.8e9), (Qwen3Moe(), 18.5e9)])
def test_default_sizes_are_those_of_the_published_model(model: Decoder, num_bytes: float) -> None:
    """Published: 21 and 30 billion weights, all but few of them in 4.25 bits, the rest in 16."""
    total = model.end_bytes + model.num_hidden_layers * model.layer_bytes
    assert abs(total / num_bytes - 1) < 0.01
