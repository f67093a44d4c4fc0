"""Every routing function against the golden files: ids equal as sets, weights to float32 rounding."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import golden
import numpy as np
import pytest

import mxfp4moe as mx
from mxfp4moe import reference

pytestmark = pytest.mark.emulation

Route = Callable[..., tuple[np.ndarray, np.ndarray]]


def load(name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with np.load(next(golden.DATA.glob(f"{name}*.npz"))) as file:
        data = dict(file)
    return data, json.loads(str(data["config"]))


def assert_same_routing(result: tuple[np.ndarray, np.ndarray], data: dict[str, np.ndarray]) -> None:
    weights, ids = result
    assert (weights.dtype, ids.dtype) == (np.float32, np.int32)
    order = np.argsort(ids, axis=-1)
    np.testing.assert_array_equal(np.take_along_axis(ids, order, -1), data["topk_ids"])
    # Ours are within 6 roundings of the formula. Theirs, all in float32, add those of exp, log and the sum
    # over k, fewer than 16 in all.
    bound = (6 + 16) * 2.0**-24
    np.testing.assert_allclose(np.take_along_axis(weights, order, -1), data["topk_weights"], rtol=bound)


@pytest.fixture(params=[mx, reference], ids=["kernels", "reference"])
def functions(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.parametrize(
    ("name", "renormalize"), [("gptoss", True), ("mixtral_gguf", True), ("qwen3_mxfp4", False)]
)
def test_topk_softmax(functions, name, renormalize):
    data, config = load(name)
    logits = data["router_logits"]
    assert_same_routing(functions.topk_softmax(logits, config["topk"], renormalize=renormalize), data)


@pytest.mark.parametrize("rule", ["topk_sigmoid", "grouped_topk"])
def test_deepseek_v3(functions, rule):
    data, config = load("deepseek_v3")
    options = {
        "correction_bias": data["e_score_correction_bias"],
        "renormalize": config["norm_topk_prob"],
        "routed_scaling_factor": config["routed_scaling_factor"],
    }
    if rule == "grouped_topk":
        options |= {"num_groups": config["n_group"], "topk_group": config["topk_group"]}
    route: Route = getattr(functions, rule)
    assert_same_routing(route(data["router_logits"], config["topk"], **options), data)


def test_deepseek_v4_hash(functions):
    data, config = load("deepseek_v4")
    tables = data["input_ids"], data["tid2eid"]
    factor = config["routed_scaling_factor"]
    weights, ids = functions.hash_topk(data["router_logits"], *tables, routed_scaling_factor=factor)
    np.testing.assert_array_equal(ids, data["tid2eid"][data["input_ids"]])
    assert_same_routing((weights, ids), data)


def test_minimax_m3(functions):
    data, config = load("minimax_m3")
    bias = data["e_score_correction_bias"]
    assert_same_routing(
        functions.topk_sigmoid(data["router_logits"], config["topk"], correction_bias=bias), data
    )


# These model types route by a rule of several parts: each has its function and the options that are numbers.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "cohere2_moe_sum": ("select_experts", {"scoring": "sigmoid", "select_by": "logit", "renormalize": False}),
    "dbrx": ("select_experts", {"select_by": "logit", "norm_epsilon": 0, "norm_order": 1}),
    "deepseek_v2": ("select_experts", {"select_by": "logit", "renormalize": False}),
    "ernie4_5_moe": ("select_experts", {"norm_epsilon": 0, "norm_floor": 1e-12}),
    "gemma4": ("select_experts", {"select_by": "logit", "norm_epsilon": 0}),
    "inkling_text": (
        "select_experts",
        {"scoring": "sigmoid", "num_shared_experts": 2, "routed_scaling_factor": 11.125},
    ),
    "kolibri1": ("select_experts", {"scoring": "sigmoid", "select_by": "logit", "renormalize": False}),
    "laguna": ("select_experts", {"scoring": "sigmoid"}),
    "lfm2_moe": ("select_experts", {"scoring": "sigmoid", "norm_epsilon": 1e-6}),
    "llama4_text": ("select_experts", {"scoring": "sigmoid", "select_by": "logit", "renormalize": False}),
    "longcat_flash": ("select_experts", {"renormalize": False, "routed_scaling_factor": 6}),
    "mistral4": ("select_experts", {"masked_groups": "zero"}),
    "phimoe": ("sparsemixer", {"jitter_eps": 0.2}),
}


@pytest.mark.parametrize("model", MODELS)
def test_model_types(functions, model):
    with np.load(golden.DATA / "routing_of_models.npz") as file:
        names = [name for name in file if name.startswith(f"{model}/")]
        data = {name.removeprefix(f"{model}/"): file[name] for name in names}
    logits, expected_ids, expected_weights, logit_error = (
        data.pop(name) for name in ("router_logits", "topk_ids", "topk_weights", "logit_error")
    )
    function, options = MODELS[model]
    top_k = expected_ids.shape[-1]
    weights, ids = getattr(functions, function)(logits, top_k, **options, **data)
    order = np.argsort(ids[:, :top_k], axis=-1)
    np.testing.assert_array_equal(np.take_along_axis(ids, order, -1), expected_ids)
    # As above, with one more product of ours; a logit of theirs is a float32 sum, and no weight changes by
    # more than twice its share.
    bound = (7 + 16) * 2.0**-24 + 2 * logit_error
    np.testing.assert_allclose(np.take_along_axis(weights, order, -1), expected_weights, rtol=bound)
