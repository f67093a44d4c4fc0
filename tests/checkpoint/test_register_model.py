"""Model types that a user adds, and rows that are wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_folders import load
from problems import rel_l2

import mxfp4moe as mx
from mxfp4moe.checkpoint import models
from mxfp4moe.checkpoint.model_type import (
    Choice,
    Count,
    Flag,
    FusedLayout,
    Groups,
    LayersFrom,
    ModelType,
    Names,
    Number,
    Routing,
    Shared,
)

pytestmark = pytest.mark.usefixtures("keep_model_types")


def test_type_made_of_another_one(isa: str, tmp_path: Path) -> None:
    model = load("mixtral")
    mx.register_model(replace(mx.checkpoint.get_model_type("mixtral"), model_types=("mine",)))
    assert "mine" in mx.checkpoint.supported_model_types()
    folder = model._replace(config={**model.config, "model_type": "mine"}).write(tmp_path)
    layer = mx.MoELayer.from_checkpoint(folder, layer=model.layer)
    assert rel_l2(layer(**model.inputs(np.float32)), model.golden["expected"]) <= 2.4e-3


def test_type_from_scratch(tmp_path: Path) -> None:
    """DeepSeek-V3 in other words: other fields, other names, and another place for the text model."""
    model = load("deepseek_v3")
    mx.register_model(
        ModelType(
            ("seek",),
            Routing(
                "topk_sigmoid",
                {"renormalize": Flag("norm", True), "routed_scaling_factor": Number("factor", 1.0)},
                tensors=("correction_bias",),
                groups=Groups(Count("groups", 1), Count("kept", 1)),
            ),
            section="inner.text",
            layers=("decoder.{layer}.",),
            names=(
                Names(
                    "ff",
                    "chooser",
                    experts="expert",
                    matrices=("a", "b", "c"),
                    shared="/always",
                    shared_matrices=("a", "b", "c"),
                    tensors={"correction_bias": "chooser.shift"},
                ),
            ),
            hidden_size=Count("width"),
            intermediate_size=Count("inner_width"),
            num_experts=Count("count"),
            top_k=Count("chosen"),
            num_layers=Count("depth", None),
            moe_layers=(LayersFrom(Count("plain", 0, minimum=0)),),
            activation=Choice("act", "s", of={"s": "silu"}),
            shared=Shared(1),
        )
    )
    words = {
        "mlp.gate.e_score_correction_bias": "ff.chooser.shift",
        "mlp.gate": "ff.chooser",
        "mlp.experts": "ff.expert",
        "mlp.shared_experts": "always",
        "gate_proj": "a",
        "up_proj": "b",
        "down_proj": "c",
        "model.layers": "decoder",
    }
    tensors = {}
    for name, array in model.tensors.items():
        for word, new in words.items():
            name = name.replace(word, new)
        tensors[name] = array
    text = {
        "width": 64,
        "inner_width": 32,
        "count": 8,
        "chosen": 2,
        "depth": 2,
        "plain": 1,
        "groups": 4,
        "kept": 2,
        "factor": 2.5,
    }
    config = {"model_type": "seek", "inner": {"text": text}}
    folder = model._replace(config=config, tensors=tensors).write(tmp_path)
    layer = mx.MoELayer.from_checkpoint(folder, layer=1)
    assert rel_l2(layer(**model.inputs(np.float32)), model.golden["expected"]) <= 2.4e-3
    with pytest.raises(ValueError, match="text.chosen: expected an integer"):
        text["chosen"] = 0
        mx.checkpoint.open(model._replace(config=config).write(tmp_path / "wrong"))


ROW = ModelType(("mine",), Routing("topk_softmax"))
WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "known name": ({"model_types": ("mine", "mixtral")}, ValueError, "row.model_types: .*'mixtral'"),
    "no name": ({"model_types": ()}, ValueError, "row.model_types: expected at least one"),
    "name of text": ({"model_types": "mine"}, TypeError, "row.model_types: expected a tuple of str"),
    "empty name": ({"model_types": ("",)}, ValueError, "row.model_types: expected no empty text"),
    "routing": ({"routing": "topk_softmax"}, TypeError, "row.routing: .* Routing"),
    "function": ({"routing": Routing("softmax")}, ValueError, "row.routing.function: .*'softmax'"),
    "argument": (
        {"routing": Routing("topk_softmax", {"correction_bias": 1})},
        ValueError,
        "row.routing.arguments: expected 'renormalize', got 'correction_bias'",
    ),
    "tensor": (
        {"routing": Routing("topk_sigmoid", tensors=("bias",))},
        ValueError,
        "row.routing.tensors: .* got 'bias'",
    ),
    "name of a tensor": (
        {"routing": Routing("select_experts", tensors=("expert_scale",))},
        ValueError,
        r"row.names\[0\].tensors: expected a name of expert_scale",
    ),
    "choice": (
        {"routing": Choice("kind", "a", of={"a": Routing("topk_softmax"), "b": Routing("x")})},
        ValueError,
        r"row.routing.of\['b'\].function",
    ),
    "prefix": ({"layers": ("model.layers.",)}, ValueError, "row.layers: .*{layer}"),
    "prefix with another name": (
        {"layers": ("m.{layer}.{part}.",)},
        ValueError,
        "row.layers: .*once, and a dot at the end",
    ),
    "prefix without a dot": ({"layers": ("m.{layer}",)}, ValueError, "row.layers: .*a dot at the end"),
    "step": ({"moe_layers": (LayersFrom(step=0),)}, ValueError, r"row.moe_layers\[0\].step: .*got 0"),
    "is_gated": ({"is_gated": "no"}, TypeError, "row.is_gated: expected a value of type bool"),
    "needed argument": (
        {"routing": Routing("hash_topk")},
        ValueError,
        "row.routing: expected tid2eid in arguments or tensors, which hash_topk needs",
    ),
    "groups of other scores": (
        {"routing": Routing("topk_softmax", groups=Groups())},
        ValueError,
        "row.routing.groups.function: expected 'topk_softmax', got 'grouped_topk'",
    ),
    "names": ({"names": Names()}, TypeError, "row.names: expected a tuple of Names"),
    "matrices": ({"names": (Names(matrices=("w1", "w2")),)}, ValueError, r"names\[0\].matrices: .*got 2"),
    "layouts": (
        {"names": (Names(layouts=(FusedLayout,)),)},  # type: ignore[arg-type]
        TypeError,
        r"names\[0\].layouts: expected a tuple of FusedLayout",
    ),
    "size": ({"hidden_size": 64}, TypeError, "row.hidden_size: expected a value of type Count"),
    "layer rule": ({"moe_layers": ("all",)}, TypeError, "row.moe_layers: expected a tuple of LayerRule"),
    "activation": ({"activation": "relu"}, ValueError, "row.activation: .*got 'relu'"),
    "limit": ({"limit": "7"}, TypeError, "row.limit: expected a number, a field or None"),
    "shared": ({"shared": 1}, TypeError, "row.shared: "),
    "shared size": ({"shared": Shared(size="x")}, TypeError, "row.shared.size: "),
    "field of a layer": ({"tensors": ("bias",)}, ValueError, "row.tensors: .*got 'bias'"),
    "option": ({"options": {"factor": 2}}, ValueError, "row.options: .*got 'factor'"),
    "constants": ({"constants": {"a": 1}}, TypeError, r"row.constants\['a'\]: expected a tuple"),
    "change": ({"change": "x"}, TypeError, "row.change: expected a function"),
}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Count(3), TypeError, "names: expected the names of a field, as text, got 3"),  # type: ignore[arg-type]
        (lambda: Count("a||b"), ValueError, "names: expected no empty name"),
        (lambda: Choice("a", "x", of={"y": 1}), ValueError, r"default: expected one of \['y'\], got 'x'"),
    ],
)
def test_wrong_fields_are_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("case", WRONG)
def test_wrong_rows_are_refused_by_attribute(case: str) -> None:
    changes, error, message = WRONG[case]
    before = mx.checkpoint.supported_model_types()
    with pytest.raises(error, match=message):
        mx.register_model(replace(ROW, **changes))
    assert mx.checkpoint.supported_model_types() == before


def test_what_is_no_row_is_refused() -> None:
    with pytest.raises(TypeError, match=r"row: expected a mxfp4moe.checkpoint.ModelType, got"):
        mx.register_model({"model_types": ("mine",)})  # type: ignore[arg-type]
    for name, error in ((3, TypeError), ("mine", ValueError)):
        with pytest.raises(error, match="name: expected"):
            mx.checkpoint.get_model_type(name)  # type: ignore[arg-type]


def test_rows_of_the_package_are_right() -> None:
    for name in list(models.MODELS):
        row = models.MODELS.pop(name)
        mx.register_model(replace(row, model_types=(name,)))
    assert models.MODELS
