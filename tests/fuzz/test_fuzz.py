"""Some cases of each kind of tests/fuzz, and that the checks there find what they should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from packed_examples import SPECIAL_FORMATS, make_experts

import mxfp4moe as mx
from fuzz import calls, float64, routes
from fuzz.activations import ACTIVATIONS
from fuzz.bounded import Bounded, add, exactly, misses, multiply
from fuzz.cases import make_rng, run_all
from fuzz.files import FILES
from fuzz.kills import KILLS
from fuzz.limits import LIMITED


@pytest.mark.parametrize(
    ("campaign", "count"),
    [(ACTIVATIONS, 40), (calls.CALLS, 40), (routes.ROUTES, 40), (FILES, 50), (KILLS, 1), (LIMITED, 10)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_some_cases(campaign, count, capfd):
    assert run_all(campaign, count, num_workers=1), capfd.readouterr().out


@pytest.mark.nightly
def test_a_case_depends_on_its_number_alone(tmp_path: Path) -> None:
    case = FILES.prepare(tmp_path)
    first = [case(make_rng("files", number)) for number in range(6)]
    assert first == [case(make_rng("files", number)) for number in range(5, -1, -1)][::-1]


@pytest.mark.parametrize("format", ["mxfp4", "mxfp8 e5m2", "nvfp4", "fp8_block", "bf16", *SPECIAL_FORMATS])
def test_a_wrong_weight_is_found(isa: str, rng: np.random.Generator, format: str) -> None:
    experts = make_experts(rng, format)
    x, weights = rng.standard_normal((2, experts.hidden_size), np.float32), np.ones((2, 1), np.float32)
    ids = np.zeros((2, 1), np.int32)
    result = mx.fused_experts(x, experts, weights, ids)
    how = {name: getattr(experts, name) for name in ("format", "gate_up_layout", "block_shape")}
    arrays = experts.unpack()._asdict() | how
    options = float64.Options()
    assert not misses(result, float64.fused_experts(x, arrays, weights, ids, options)).any()
    arrays["w2"] = arrays["w2"].copy()
    arrays["w2"].view(np.uint8)[0, 5] ^= 0x88  # signs of a row
    wrong = misses(result, float64.fused_experts(x, arrays, weights, ids, options))
    assert wrong[:, 5].any() and not np.delete(wrong, 5, axis=1).any()


def test_bounds_of_special_values() -> None:
    values = exactly(np.array([np.inf, np.inf, np.nan, 2.0**126, 1.0]))
    others = exactly(np.array([-np.inf, 1.0, 0.0, 2.0**126, 2.0**-30]))
    with np.errstate(all="ignore"):
        total, product = add(values, others), multiply(values, others)
        unclear = multiply(exactly(np.array([np.inf])), Bounded(np.zeros(1), np.ones(1)))
    assert np.isnan(total.value[[0, 2]]).all() and total.value[1] == np.inf
    assert np.isinf(total.error).tolist() == [False, False, False, True, False]
    assert np.isinf(product.value[:2]).all() and np.isnan(product.value[2])
    assert np.isinf(unclear.error).all()


def test_a_wrong_route_is_found(rng: np.random.Generator) -> None:
    logits = rng.standard_normal((5, 12)).astype(np.float32)
    route = routes.Route("topk_sigmoid", logits, 3, None, {}, None, None)
    weights, ids = route.call()
    routes.check_route(route, weights, ids)
    with pytest.raises(AssertionError):
        routes.check_route(route, weights[:, ::-1], ids[:, ::-1])
    with pytest.raises(AssertionError):
        routes.check_route(route, weights * np.float32(1 + 2.0**-20), ids)
