"""Layers with tokens that are NaN or infinite: refused, or NaN alone."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from packed_examples import ROUTINGS, make_layer

import mxfp4moe as mx

BAD = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf, "too large for bfloat16": np.finfo(np.float32).max}


def propagating(layer: mx.MoELayer) -> mx.MoELayer:
    return mx.MoELayer(**layer.arguments(), nonfinite="propagate")


def inputs(rng: np.random.Generator, layer: mx.MoELayer, num_tokens: int) -> tuple[np.ndarray, ...]:
    x = rng.standard_normal((num_tokens, layer.hidden_size), np.float32)
    return x, rng.integers(0, 3, num_tokens)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("kind", ROUTINGS)
def test_the_row_is_nan_and_the_others_are_right(isa: str, rng: Any, kind: str, value: str) -> None:
    layer = make_layer(rng, kind)
    x, ids = inputs(rng, layer, 9)
    expected = layer(x, ids)
    bad = np.zeros(9, bool)
    bad[[2, 8]] = True
    x[bad, rng.integers(0, layer.hidden_size, 2)] = BAD[value]
    ids[bad] = -(2**40)  # padding may hold anything
    result = propagating(layer)(x, ids)
    assert np.isnan(result[bad]).all()
    assert np.array_equal(result[~bad].view(np.uint32), expected[~bad].view(np.uint32))
    with pytest.raises(ValueError, match="hidden_states: expected values to rou"):
        layer(x, ids)


@pytest.mark.parametrize("kind", ROUTINGS)
def test_logits_that_are_all_minus_infinity_do_not_hide_such_a_token(rng: Any, kind: str) -> None:
    layer = make_layer(rng, kind)
    weight = layer.router_weight.copy()
    weight[:, 3] = -abs(weight[:, 3]) - 1
    layer = mx.MoELayer(**layer.arguments() | {"router_weight": weight})
    x, ids = inputs(rng, layer, 4)
    x[2, 3] = np.inf
    for call in (layer, layer.route):
        with pytest.raises(ValueError, match=r"hidden_states: .* got inf at position \(2, 3\)"):
            call(x, ids)


def test_a_function_of_the_callers_hides_no_such_token(rng: Any) -> None:
    layer = make_layer(rng, "default")

    def first(logits: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        shape = (*logits.shape[:-1], top_k)
        return np.full(shape, 0.5, np.float32), np.broadcast_to(np.arange(top_k), shape)

    own = mx.MoELayer(**layer.arguments() | {"routing": first, "routing_arguments": {}})
    x, _ = inputs(rng, layer, 4)
    x[1, 5] = np.nan
    with pytest.raises(ValueError, match=r"hidden_states: .* got nan at position \(1, 5\)"):
        own(x)


def test_route_drops_the_slots_of_such_tokens(isa: str, rng: Any) -> None:
    layer = propagating(make_layer(rng, "default"))
    x, _ = inputs(rng, layer, 5)
    weights, ids = layer.route(x)
    x[3, 0] = np.nan
    got_weights, got_ids = layer.route(x)
    assert (got_ids[3] == -1).all()
    assert np.isnan(got_weights[3]).all()
    rest = np.arange(5) != 3
    assert np.array_equal(got_ids[rest], ids[rest])
    assert np.array_equal(got_weights[rest], weights[rest])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
def test_every_token_bad_any_shape_and_out_in_place(rng: Any, dtype: Any, shape: tuple[int, ...]) -> None:
    layer = propagating(make_layer(rng, "default"))
    x = np.full((*shape, layer.hidden_size), np.nan, dtype)
    assert layer(x, out=x) is x
    assert np.isnan(x.astype(np.float32)).all()


def test_finite_hidden_states_with_infinite_logits_propagate_too(rng: Any) -> None:
    layer = make_layer(rng, "default")
    large = mx.MoELayer(**layer.arguments() | {"router_weight": np.full(layer.router_weight.shape, 1e38)
                                               .astype(np.float32)}, nonfinite="propagate")  # fmt: skip
    x = np.ones((2, layer.hidden_size), np.float32)
    x[0] = 1e-38
    result = large(x)
    assert np.isfinite(result[0]).all()
    assert np.isnan(result[1]).all()


def test_a_function_of_the_callers_may_return_unsigned_ids(rng: Any) -> None:
    layer = make_layer(rng, "default")

    def first(logits: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        shape = (*logits.shape[:-1], top_k)
        return np.full(shape, 0.5, np.float32), np.broadcast_to(np.arange(top_k, dtype=np.uint16), shape)

    own = mx.MoELayer(
        **layer.arguments() | {"routing": first, "routing_arguments": {}}, nonfinite="propagate"
    )
    x, _ = inputs(rng, layer, 4)
    expected = own(x)
    x[1] = np.inf
    result = own(x)
    assert np.isnan(result[1]).all()
    assert np.array_equal(result[[0, 2, 3]], expected[[0, 2, 3]])


def test_every_way_to_make_a_layer_takes_it(tmp_path: Path, rng: Any) -> None:
    layer = make_layer(rng, "default")
    layer.save(tmp_path / "a")
    layers = [
        mx.MoELayer.open(tmp_path / "a", nonfinite="propagate"),
        mx.MoELayer.from_checkpoint(tmp_path / "a", layer.layer_number or 0, nonfinite="propagate"),
        *mx.load_layers(tmp_path / "a", nonfinite="propagate"),
        pickle.loads(pickle.dumps(propagating(layer))),
    ]
    assert [each.nonfinite for each in layers] == ["propagate"] * 4
    assert layer.nonfinite == "raise"
    for wrong in (
        lambda: mx.MoELayer(**layer.arguments(), nonfinite="ignore"),
        lambda: mx.MoELayer.open(tmp_path / "a", nonfinite="ignore"),
        lambda: mx.MoELayer.from_checkpoint(tmp_path / "a", nonfinite="ignore"),
        lambda: mx.load_layers(tmp_path / "a", nonfinite="ignore"),
    ):
        with pytest.raises(ValueError, match="nonfinite: expected 'raise' or 'propagate', got 'ignore'"):
            wrong()


@pytest.mark.parametrize(
    "name", ["top_k", "limit", "router_weight", "layer_number", "num_experts", "nonfinite"]
)
def test_attributes_are_read_only(rng: Any, name: str) -> None:
    layer = make_layer(rng, "default")
    with pytest.raises(AttributeError, match=name):
        setattr(layer, name, 1)


def test_layers_are_equal_if_they_compute_the_same(rng: Any) -> None:
    layer = make_layer(rng, "default")
    equal = mx.MoELayer(**layer.arguments())
    assert (equal == layer, hash(equal) == hash(layer), layer == 3) == (True, True, False)
    arguments = layer.arguments()
    for name, value in (
        ("top_k", 1),
        ("routed_scaling_factor", 2.5),
        ("router_weight", layer.router_weight * 2),
    ):
        assert mx.MoELayer(**arguments | {name: value}) != layer
