"""Packed files whose weights are copied into memory near the processors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import whole_models
from packed_examples import FORMATS, ROUTINGS, SPECIAL_FORMATS, K, activation_of, make_experts, make_layer

import mxfp4moe as mx
from mxfp4moe import _core


@pytest.fixture(params=[1, 2, 5])
def nodes(request: pytest.FixtureRequest) -> Iterator[int]:
    """So many NUMA nodes are pretended."""
    _core.simulate_nodes(request.param)
    try:
        yield request.param
    finally:
        _core.simulate_nodes(0)


@pytest.mark.usefixtures("nodes")
@pytest.mark.parametrize("format", [*FORMATS, *SPECIAL_FORMATS])
def test_experts_are_the_same(tmp_path: Path, rng: np.random.Generator, format: str) -> None:
    experts = make_experts(rng, format)
    experts.save(tmp_path / "experts")
    with mx.num_threads(3):
        local = mx.PackedExperts.open(tmp_path / "experts", resident="local", verify=True)
        # What is written to the file afterwards does not reach them.
        with (tmp_path / "experts").open("r+b") as file:
            file.seek(4096)
            file.write(bytes(4096))
        assert local == experts
        x = rng.standard_normal((5, K), np.float32)
        slots = np.ones((5, 1), np.float32), np.array([[0], [1], [2], [1], [-1]])
        activation = activation_of(experts)
        assert np.array_equal(
            mx.fused_experts(x, local, *slots, activation=activation),  # type: ignore[arg-type]
            mx.fused_experts(x, experts, *slots, activation=activation),  # type: ignore[arg-type]
        )


@pytest.mark.usefixtures("nodes")
def test_matrices_are_the_same(tmp_path: Path, rng: np.random.Generator) -> None:
    for format in ("float32", "bf16", "mxfp8"):
        weight = rng.standard_normal((75, 64), np.float32)
        options = {"quantize": "mxfp8"} if format == "mxfp8" else {"format": format}
        matrix = mx.pack_linear(weight, bias=weight[:, 0], **options)  # type: ignore[arg-type]
        matrix.save(tmp_path / "matrix")
        local = mx.PackedLinear.open(tmp_path / "matrix", resident="local")
        assert local == matrix
        assert np.array_equal(local(weight[:3]), matrix(weight[:3]))


@pytest.mark.usefixtures("nodes")
@pytest.mark.parametrize("routing", ["gpt-oss", "deepseek v3", "nemotron"])
def test_layers_are_the_same(tmp_path: Path, rng: np.random.Generator, routing: str) -> None:
    assert routing in ROUTINGS
    whole = make_layer(rng, routing)
    whole.save(tmp_path / "layer")
    x = rng.standard_normal((4, K), np.float32)
    local = mx.MoELayer.open(tmp_path / "layer", resident="local")
    assert local == whole
    assert np.array_equal(local(x), whole(x))
    part = mx.MoELayer.open(tmp_path / "layer", experts=[2, 0], resident="local")
    assert part == whole.slice([2, 0])
    assert part.experts._places is None  # it holds no others
    assert mx.load_layers(tmp_path / "layer", experts=[2, 0], resident="local") == [part]


def test_whole_models_are_the_same(tmp_path: Path) -> None:
    for name in ("gpt_oss", "glm4_moe"):
        lm, ids = whole_models.open_model(name, tmp_path), whole_models.input_ids(name)
        lm.save(tmp_path / f"{name}-packed")
        local = mx.CausalLM.open(tmp_path / f"{name}-packed", resident="local")
        assert np.array_equal(local(ids), lm(ids))


def test_wrong_arguments(tmp_path: Path, rng: np.random.Generator) -> None:
    make_layer(rng, "default").save(tmp_path / "layer")
    for wrong, error in (("node 0", ValueError), (True, TypeError), (None, TypeError)):
        with pytest.raises(error, match="resident: expected 'mapped' or 'local'"):
            mx.MoELayer.open(tmp_path / "layer", resident=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='memory_limit: expected None with resident="local"'):
        mx.MoELayer.open(tmp_path / "layer", resident="local", memory_limit=1 << 30)
    source = whole_models.load("mixtral").write(tmp_path / "source")
    with pytest.raises(ValueError, match="resident: expected a packed folder, .* which is none"):
        mx.load_layers(source, resident="local")
