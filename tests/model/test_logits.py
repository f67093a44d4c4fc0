"""Logits of whole models against another implementation, and each layer against float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import whole_models
from attention_float64 import EPS16, EPS32, Bounded, attention_float64
from golden_layers import BOUNDS
from problems import rel_l2

import mxfp4moe as mx
from mxfp4moe import checkpoint, reference
from mxfp4moe.checkpoint import LayerDescription
from mxfp4moe.model.decoder import Step
from mxfp4moe.reference._precision import FLOAT64

LOGIT_BOUND = 1.5e-2  # relative L2: bfloat16 is rounded to some twenty times on the way


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("name", whole_models.NAMES)
def test_logits(isa: str, root: Path, name: str) -> None:
    lm, golden = whole_models.open_model(name, root), whole_models.load(name).golden
    logits, expected = lm(golden["input_ids"]), golden["logits"]
    assert logits.shape == expected.shape
    assert logits.dtype == np.float32
    assert rel_l2(logits, expected) <= LOGIT_BOUND
    # Where the likeliest token is so far ahead of the next that no error of this size can change it.
    first, second = np.sort(expected, axis=-1)[..., :-3:-1].transpose(2, 0, 1)
    is_clear = first - second > 2 * LOGIT_BOUND * np.linalg.norm(expected, axis=-1)
    assert is_clear.any()
    assert (logits.argmax(-1) == expected.argmax(-1))[is_clear].all()


@pytest.mark.parametrize("name", whole_models.NAMES)
def test_each_layer(isa: str, root: Path, name: str) -> None:
    """Each half of a layer, given the residual stream before it, within what its roundings allow."""
    folder, lm = whole_models.load(name), whole_models.open_model(name, root)
    decoder, model = lm._decoder, checkpoint.open(root / name)
    ids = whole_models.input_ids(name)[0].astype(np.int64)
    step = Step(ids, (len(ids),), [lm.new_cache().layers], 1)
    residual = decoder.embedding[ids].astype(np.float32)
    for number, layer in enumerate(decoder.layers):
        expected = attention_float64(folder, number, residual)
        sums = residual + expected.value
        decoder._attend(number, residual, np.arange(len(ids)), step)
        assert (abs(residual - sums) <= expected.error + EPS32 * (abs(sums) + expected.error)).all()
        exact = mx.rms_norm(residual, layer.post_norm, eps=folder.config["rms_norm_eps"])
        rows = exact.astype(ml_dtypes.bfloat16)
        before = Bounded(residual.astype(np.float64), np.zeros(residual.shape))
        norm = before.norm(layer.post_norm.astype(np.float64), folder.config["rms_norm_eps"]).rounded(EPS16)
        assert (abs(rows.astype(np.float64) - norm.value) <= norm.error).all()
        added = np.empty_like(residual)
        decoder._run_block(layer, residual, added, 1)
        if isinstance(layer.block, mx.MoELayer):
            block = moe_float64(rows, exact, model.read_layer(number))
        else:
            block = dense_float64(folder, number, rows.astype(np.float64))
        assert rel_l2(added, block) <= BOUNDS[1][1]
        residual += added
    head = folder.tensors.get("lm_head.weight", folder.tensors["model.embed_tokens.weight"])
    last = Bounded(residual.astype(np.float64), np.zeros(residual.shape))
    weight = folder.tensors["model.norm.weight"].astype(np.float64)
    rows64 = last.norm(weight, folder.config["rms_norm_eps"]).rounded(EPS16)
    logits = rows64.times(head.astype(np.float64), None)
    got = lm(ids)
    assert (abs(got - logits.value) <= logits.error + EPS32 * abs(logits.value)).all()


def moe_float64(rows: np.ndarray, read: np.ndarray, layer: LayerDescription[Any]) -> np.ndarray:
    """The block of a layer whose router reads float32 hidden states, its experts the rounded ones."""
    logits = read.astype(np.float64) @ layer.router_weight.astype(np.float64).T
    if layer.router_bias is not None:
        logits += layer.router_bias.astype(np.float64)
    chosen = layer.chooser(logits.astype(np.float32), None, 1)
    return reference.layer._evaluate(rows, layer, chosen, FLOAT64)


def dense_float64(folder: whole_models.ModelFolder, layer: int, rows: np.ndarray) -> np.ndarray:
    gate, up, down = (
        folder.tensors[f"model.layers.{layer}.mlp.{name}_proj.weight"].astype(np.float64)
        for name in ("gate", "up", "down")
    )
    hidden = rows @ gate.T
    return np.asarray((hidden / (1 + np.exp(-hidden)) * (rows @ up.T)) @ down.T)
