"""The golden files, on every kernel table."""

import golden
import pytest
from golden_layers import BOUNDS
from problems import rel_l2

import mxfp4moe as mx

pytestmark = pytest.mark.emulation


@pytest.mark.parametrize("name", golden.NAMES)
@pytest.mark.parametrize(("dtype", "bound"), BOUNDS)
def test_fused_experts_agrees_with_golden(isa, name, dtype, bound):
    case = golden.load(name)
    problem = case.problem._replace(hidden_states=case.problem.hidden_states.astype(dtype))
    result = problem.run(**case.options)
    assert result.dtype == dtype
    assert rel_l2(result, case.expected) <= bound


@pytest.mark.parametrize("name", [n for n in golden.NAMES if n != "deepseek_v4"])
@pytest.mark.parametrize(("dtype", "bound"), BOUNDS)
def test_fused_moe_agrees_with_golden(isa, name, dtype, bound):
    case = golden.load(name)
    hidden_states = case.problem.hidden_states.astype(dtype)
    top_k = case.problem.topk_ids.shape[-1]
    options = {"renormalize": case.renormalize, **case.options}
    result = mx.fused_moe(hidden_states, case.problem.pack(), case.router_logits, top_k, **options)
    assert rel_l2(result, case.expected) <= bound
