"""Rows of experts, computed by several ranks one after another in this process: the bits of whole experts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from format_problems import FORMATS, FREE_SIZES, format_problem
from packed_examples import SPECIAL_FORMATS, make_experts
from problems import Shape, bfloat16, pack, ungated

import mxfp4moe as mx
from mxfp4moe.experts.activation import ACTIVATIONS, check_activation
from mxfp4moe.experts.activation_format import find_floats
from mxfp4moe.experts.fused import expert_options
from mxfp4moe.mpi._cut_experts import PANEL, CutExperts, Order
from mxfp4moe.mpi._tensor_parallel import _join

Options = dict[str, Any]


def run_cut(
    experts: mx.PackedExperts, x: np.ndarray, slots: tuple[np.ndarray, np.ndarray], size: int, **how: Any
) -> np.ndarray:
    """What ranks that have some rows of each expert compute together."""
    function = check_activation(how["activation"], how.get("alpha"), how.get("limit"), experts.gated)
    on_input = how.get("apply_router_weight_on_input", False)
    options = expert_options(function, on_input, 1 if how.get("activation_format") else 0)
    ranks = [CutExperts(experts, options, rank, size) for rank in range(size)]
    tokens, order = x.astype(ranks[0].dtype), Order.of(slots)
    parts = []
    for rank, part in enumerate(ranks):
        mine = np.full((len(order.token), PANEL * part.w13_panels[rank]), np.nan, part.dtype)
        part.intermediates(tokens, order, mine, 1)
        parts.append(mine.reshape(-1, PANEL))
    width, panels = experts.intermediate_size, ranks[0].w13_panels
    intermediates = _join(np.concatenate(parts), panels, len(order.token), width)
    columns = []
    for rank, part in enumerate(ranks):
        result = np.full((len(x), PANEL * part.w2_panels[rank]), np.nan, np.float32)
        part.sums(intermediates, order, result, 1)
        columns.append(result.reshape(-1, PANEL))
    return _join(np.concatenate(columns), ranks[0].w2_panels, len(x), experts.hidden_size)


def check(
    experts: mx.PackedExperts, x: np.ndarray, slots: tuple[np.ndarray, np.ndarray], size: int, **how: Any
) -> None:
    expected = np.empty(x.shape, np.float32)
    mx.fused_experts(x, experts, *slots, out=expected, **how)
    assert run_cut(experts, x, slots, size, **how).tobytes() == expected.tobytes()


def random_slots(
    rng: np.random.Generator, num_tokens: int, num_experts: int
) -> tuple[np.ndarray, np.ndarray]:
    """Three slots for each token; some are dropped, and some have the expert of another one."""
    ids = rng.integers(-1, num_experts, (num_tokens, 3), np.int32)
    return rng.standard_normal(ids.shape, np.float32), ids


@pytest.mark.parametrize("size", [3, 7])
@pytest.mark.parametrize("format", FORMATS)
def test_every_format_and_sizes_that_do_not_fit(
    isa: str, rng: np.random.Generator, format: str, size: int
) -> None:
    """Blocks of rows with one scale are cut, a last panel is not full, some ranks of seven have no row."""
    widths = (200, 72) if format in FREE_SIZES else (160, 96)
    shape = Shape(9, *widths, num_experts=4, top_k=2)
    layout = "interleaved" if size == 3 else "concatenated"
    problem = format_problem(rng, shape, format, layout=layout, bias="both")
    x = rng.standard_normal((9, widths[0]), np.float32)
    check(pack(problem.arrays), x, random_slots(rng, 9, 4), size, activation="silu")


@pytest.mark.parametrize("name", [*SPECIAL_FORMATS, "mxfp4 of gpt-oss", "mxfp4 scaled", "int4 ungated"])
def test_orders_of_rows_and_columns_and_scales_of_tensors(
    isa: str, rng: np.random.Generator, name: str
) -> None:
    experts = make_experts(rng, name, 3)
    x = rng.standard_normal((5, experts.hidden_size), np.float32)
    activation = "silu" if experts.gated else "relu2"
    check(experts, x, random_slots(rng, 5, 3), 2, activation=activation)


@pytest.mark.parametrize("activation_format", [None, "int8"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(
    isa: str, rng: np.random.Generator, activation: str, activation_format: str | None
) -> None:
    shape = Shape(40, 64, 96, num_experts=2, top_k=2)
    problem = format_problem(rng, shape, "int4")
    problem = ungated(problem) if activation == "relu2" else problem
    experts = pack(problem.arrays)
    assert find_floats(experts.format) is None
    x = rng.standard_normal((40, 64), np.float32) * 4
    how: Options = {"activation": activation, "activation_format": activation_format}
    check(experts, x, random_slots(rng, 40, 2), 3, **how)
    check(experts, x, random_slots(rng, 40, 2), 2, **how, apply_router_weight_on_input=True)


def test_slots_that_are_all_dropped(rng: np.random.Generator) -> None:
    experts = make_experts(rng, "mxfp4", 2)
    slots = np.ones((4, 2), np.float32), np.full((4, 2), -1, np.int32)
    check(experts, rng.standard_normal((4, experts.hidden_size), np.float32), slots, 3, activation="silu")


def test_values_that_are_not_finite(isa: str, rng: np.random.Generator) -> None:
    """NaN and infinity come where they do in whole experts; the signs of NaN may be others."""
    experts = make_experts(rng, "bf16", 2)
    x = rng.standard_normal((6, experts.hidden_size), np.float32)
    x[1, 3], x[2, 5], x[4] = np.nan, np.inf, 3e38
    slots = random_slots(rng, 6, 2)
    expected = np.empty(x.shape, np.float32)
    mx.fused_experts(x, experts, *slots, out=expected)
    with np.errstate(all="ignore"):
        got = run_cut(experts, x.astype(bfloat16), slots, 3, activation="silu")
    assert np.array_equal(got, expected, equal_nan=True)


def test_groups_of_sixteen_in_one_matrix_alone(rng: np.random.Generator) -> None:
    arguments = make_experts(rng, "int4 with offsets", 1).arguments()
    halves = make_experts(rng, "int8 in groups of 16, int4 with offsets", 1).arguments()
    mixed = arguments | {name: halves[name] for name in halves if name.startswith("w13") or name == "format"}
    mixed.pop("w13_offsets")
    options = expert_options(check_activation("silu", None, None, True), False, 0)
    with pytest.raises(ValueError, match="scales of groups of 16 in both matrices or in none.*got group"):
        CutExperts(mx.pack_experts(**mixed), options, 0, 2)
