"""Wrong calls that compute or configure: each raises TypeError or ValueError: argument, expected, got."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from problems import Problem, Shape, assert_same_bits, bfloat16, masked, objects, random_problem

import mxfp4moe as mx

SHAPE = Shape(6, 64, 32, 4, 2)


class Base(NamedTuple):
    problem: Problem
    experts: mx.PackedExperts


@pytest.fixture(scope="module")
def base() -> Base:
    problem = random_problem(np.random.default_rng(1), SHAPE, dtype=np.float32, bias="both")
    return Base(problem, problem.pack())


def replaced(array: np.ndarray, position: Any, value: Any) -> np.ndarray:
    result = array.copy()
    result[position] = value
    return result


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def unaligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    buffer = np.zeros(math.prod(shape) * np.dtype(dtype).itemsize + 1, dtype=np.uint8)
    return buffer[1:].view(dtype).reshape(shape)


class Case(NamedTuple):
    change: Callable[[Problem], dict[str, Any]]  # arguments that replace right ones
    error: type[Exception]
    match: str


f32 = np.float32
FUSED_EXPERTS = {
    "hidden_float64": Case(
        lambda p: {"hidden_states": p.hidden_states.astype(np.float64)},
        TypeError,
        "hidden_states.*got.*float64",
    ),
    "hidden_integers": Case(
        lambda p: {"hidden_states": np.zeros((6, 64), int)}, TypeError, "hidden_states.*got.*int64"
    ),
    "hidden_complex": Case(
        lambda p: {"hidden_states": p.hidden_states.astype(np.complex64)},
        TypeError,
        "hidden_states.*got.*complex64",
    ),
    "hidden_float8": Case(
        lambda p: {"hidden_states": p.hidden_states.astype(ml_dtypes.float8_e4m3fn)},
        TypeError,
        "hidden_states.*got.*float8_e4m3fn",
    ),
    "hidden_raw_bytes": Case(
        lambda p: {"hidden_states": p.hidden_states.astype(bfloat16).view(np.uint16)},
        TypeError,
        "hidden_states.*got.*uint16",
    ),
    "hidden_structured": Case(
        lambda p: {"hidden_states": np.zeros((6, 64), dtype=[("x", "f4")])}, TypeError, "hidden_states.*got"
    ),
    "hidden_objects": Case(
        lambda p: {"hidden_states": objects(p.hidden_states)}, TypeError, "hidden_states.*got.*object"
    ),
    "hidden_masked": Case(
        lambda p: {"hidden_states": masked(p.hidden_states)}, TypeError, "hidden_states.*got.*masked"
    ),
    "hidden_none": Case(lambda p: {"hidden_states": None}, TypeError, "hidden_states.*got.*None"),
    "hidden_string": Case(lambda p: {"hidden_states": "hidden"}, TypeError, "hidden_states.*got"),
    "hidden_ragged": Case(lambda p: {"hidden_states": [[1.0], [1.0, 2.0]]}, TypeError, "hidden_states.*got"),
    "hidden_scalar": Case(
        lambda p: {"hidden_states": np.array(1, dtype=f32)}, ValueError, r"hidden_states.*64.*got.*\(\)"
    ),
    "hidden_too_wide": Case(
        lambda p: {"hidden_states": np.zeros((6, 65), f32)}, ValueError, r"hidden_states.*64.*got.*\(6, 65\)"
    ),
    "hidden_transposed": Case(
        lambda p: {"hidden_states": np.zeros((64, 6), f32)}, ValueError, r"hidden_states.*64.*got.*\(64, 6\)"
    ),
    "hidden_more_tokens": Case(
        lambda p: {"hidden_states": np.zeros((7, 64), f32)}, ValueError, r"topk_ids.*7.*got.*\(6, 2\)"
    ),
    "experts_none": Case(lambda p: {"experts": None}, TypeError, "experts.*PackedExperts.*got.*None"),
    "experts_arrays": Case(
        lambda p: {"experts": p.arrays.w13}, TypeError, "experts.*PackedExperts.*got.*uint8"
    ),
    "experts_class": Case(lambda p: {"experts": mx.PackedExperts}, TypeError, "experts.*PackedExperts.*got"),
    "weights_integers": Case(
        lambda p: {"topk_weights": np.ones((6, 2), np.int32)}, TypeError, "topk_weights.*got.*int32"
    ),
    "weights_objects": Case(
        lambda p: {"topk_weights": objects(p.topk_weights)}, TypeError, "topk_weights.*got.*object"
    ),
    "weights_masked": Case(
        lambda p: {"topk_weights": masked(p.topk_weights)}, TypeError, "topk_weights.*got.*masked"
    ),
    "weights_none": Case(lambda p: {"topk_weights": None}, TypeError, "topk_weights.*got"),
    "weights_other_top_k": Case(
        lambda p: {"topk_weights": np.ones((6, 3), f32)}, ValueError, r"topk_weights.*\(6, 2\).*got.*\(6, 3\)"
    ),
    "weights_flat": Case(
        lambda p: {"topk_weights": np.ones(12, f32)}, ValueError, r"topk_weights.*got.*\(12,\)"
    ),
    "ids_floats": Case(lambda p: {"topk_ids": p.topk_ids.astype(f32)}, TypeError, "topk_ids.*got.*float32"),
    "ids_bools": Case(lambda p: {"topk_ids": p.topk_ids > 1}, TypeError, "topk_ids.*integers.*got.*bool"),
    "ids_objects": Case(lambda p: {"topk_ids": objects(p.topk_ids)}, TypeError, "topk_ids.*got.*object"),
    "ids_masked": Case(lambda p: {"topk_ids": masked(p.topk_ids)}, TypeError, "topk_ids.*got.*masked"),
    "ids_dates": Case(
        lambda p: {"topk_ids": np.zeros((6, 2), "datetime64[s]")}, TypeError, "topk_ids.*got.*datetime64"
    ),
    "ids_none": Case(lambda p: {"topk_ids": None}, TypeError, "topk_ids.*got"),
    "ids_flat": Case(lambda p: {"topk_ids": np.zeros(12, int)}, ValueError, r"topk_ids.*got.*\(12,\)"),
    "ids_fewer_tokens": Case(
        lambda p: {"topk_ids": p.topk_ids[:5]}, ValueError, r"topk_ids.*6, top_k.*got.*\(5, 2\)"
    ),
    "ids_too_large": Case(
        lambda p: {"topk_ids": replaced(p.topk_ids, (5, 1), 4)},
        ValueError,
        r"topk_ids: expected values in \[-1, 3\], got 4 at position \(5, 1\)",
    ),
    "ids_too_small": Case(
        lambda p: {"topk_ids": replaced(p.topk_ids, (0, 1), -2)},
        ValueError,
        r"topk_ids: expected values in \[-1, 3\], got -2 at position \(0, 1\)",
    ),
    "ids_beyond_int32": Case(
        lambda p: {"topk_ids": replaced(p.topk_ids.astype(np.int64), (2, 0), 2**32 + 1)},
        ValueError,
        r"topk_ids.*\[-1, 3\], got 4294967297 at position \(2, 0\)",
    ),
    "ids_beyond_int64": Case(
        lambda p: {"topk_ids": replaced(p.topk_ids.astype(np.uint64), (2, 0), 2**64 - 1)},
        ValueError,
        r"topk_ids.*\[-1, 3\], got 18446744073709551615 at position \(2, 0\)",
    ),
    "ids_most_negative": Case(
        lambda p: {"topk_ids": replaced(p.topk_ids.astype(np.int64), (3, 0), -(2**63))},
        ValueError,
        r"topk_ids.*got -9223372036854775808 at position \(3, 0\)",
    ),
    "activation_unknown": Case(
        lambda p: {"activation": "relu"}, ValueError, "activation.*'silu'.*got 'relu'"
    ),
    "activation_upper_case": Case(lambda p: {"activation": "SiLU"}, ValueError, "activation.*got 'SiLU'"),
    "activation_none": Case(lambda p: {"activation": None}, TypeError, "activation.*got None"),
    "activation_bytes": Case(lambda p: {"activation": b"silu"}, TypeError, "activation.*got"),
    "activation_list": Case(lambda p: {"activation": ["silu"]}, TypeError, "activation.*got"),
    "alpha_without_swigluoai": Case(lambda p: {"alpha": 1.702}, ValueError, "alpha.*'silu'.*got 1.702"),
    "alpha_string": Case(
        lambda p: {"activation": "swigluoai", "alpha": "1.7"}, TypeError, "alpha.*number.*got '1.7'"
    ),
    "alpha_beyond_float32": Case(
        lambda p: {"activation": "swigluoai", "alpha": -1e39}, ValueError, "alpha.*float32.*got -1e\\+39"
    ),
    "alpha_of_situ_zero": Case(
        lambda p: {"activation": "situ", "alpha": 0}, ValueError, "alpha.*above 0.*'situ'.*got 0.0"
    ),
    "alpha_of_situ_negative": Case(
        lambda p: {"activation": "situ", "alpha": -4.0}, ValueError, "alpha.*above 0.*'situ'.*got -4.0"
    ),
    "alpha_of_silu_clamp": Case(
        lambda p: {"activation": "silu_clamp", "alpha": 1.0}, ValueError, "alpha.*'silu_clamp'.*got 1.0"
    ),
    "limit_zero_in_float32": Case(lambda p: {"limit": 1e-46}, ValueError, "limit.*float32.*got 1e-46"),
    "alpha_nan": Case(lambda p: {"activation": "swigluoai", "alpha": math.nan}, ValueError, "alpha.*got nan"),
    "limit_zero": Case(lambda p: {"limit": 0.0}, ValueError, "limit.*got 0"),
    "limit_negative": Case(lambda p: {"limit": -7}, ValueError, "limit.*got -7"),
    "limit_nan": Case(lambda p: {"limit": math.nan}, ValueError, "limit.*got nan"),
    "limit_minus_infinity": Case(lambda p: {"limit": -math.inf}, ValueError, "limit.*got -inf"),
    "limit_string": Case(lambda p: {"limit": "7"}, TypeError, "limit.*number.*got '7'"),
    "limit_bool": Case(lambda p: {"limit": True}, TypeError, "limit.*number.*got True"),
    "limit_array": Case(lambda p: {"limit": np.ones(2)}, TypeError, "limit.*number.*got"),
    "limit_complex": Case(lambda p: {"limit": 7 + 0j}, TypeError, "limit.*number.*got"),
    "limit_huge_integer": Case(lambda p: {"limit": 10**400}, ValueError, "limit.*expected.*got"),
    "weight_on_input_number": Case(
        lambda p: {"apply_router_weight_on_input": 1}, TypeError, "apply_router_weight_on_input.*bool.*got 1"
    ),
    "weight_on_input_string": Case(
        lambda p: {"apply_router_weight_on_input": "no"},
        TypeError,
        "apply_router_weight_on_input.*bool.*'no'",
    ),
    "threads_zero": Case(lambda p: {"num_threads": 0}, ValueError, "num_threads.*got 0"),
    "threads_negative": Case(lambda p: {"num_threads": -1}, ValueError, "num_threads.*got -1"),
    "threads_bool": Case(lambda p: {"num_threads": True}, TypeError, "num_threads.*integer.*got True"),
    "threads_float": Case(lambda p: {"num_threads": 2.0}, TypeError, "num_threads.*integer.*got 2.0"),
    "threads_string": Case(lambda p: {"num_threads": "2"}, TypeError, "num_threads.*integer.*got '2'"),
    "threads_huge": Case(
        lambda p: {"num_threads": 2**70}, ValueError, "num_threads.*got 1180591620717411303424"
    ),
    "map_floats": Case(
        lambda p: {"expert_map": np.zeros(4)}, TypeError, "expert_map.*integers.*got.*float64"
    ),
    "map_bools": Case(
        lambda p: {"expert_map": np.ones(4, bool)}, TypeError, "expert_map.*integers.*got.*bool"
    ),
    "map_two_axes": Case(
        lambda p: {"expert_map": np.zeros((2, 2), int)}, ValueError, r"expert_map.*got.*\(2, 2\)"
    ),
    "map_scalar": Case(lambda p: {"expert_map": np.array(0)}, ValueError, r"expert_map.*got.*\(\)"),
    "map_too_large": Case(
        lambda p: {"expert_map": np.array([0, 1, 2, 4])},
        ValueError,
        r"expert_map: expected values in \[-1, 3\], got 4 at position \(3,\)",
    ),
    "map_too_small": Case(
        lambda p: {"expert_map": np.array([0, -2, 2, 3])},
        ValueError,
        r"expert_map.*got -2 at position \(1,\)",
    ),
    "map_beyond_int64": Case(
        lambda p: {"expert_map": np.array([0, 1, 2, 2**64 - 1], dtype=np.uint64)},
        ValueError,
        r"expert_map.*got 18446744073709551615 at position \(3,\)",
    ),
    "map_too_short": Case(
        lambda p: {
            "expert_map": np.array([0, 1]),
            "topk_ids": replaced(np.zeros_like(p.topk_ids), (1, 0), 2),
        },
        ValueError,
        r"topk_ids.*\[-1, 1\], got 2 at position \(1, 0\)",
    ),
    "map_masked": Case(lambda p: {"expert_map": masked(np.arange(4))}, TypeError, "expert_map.*got.*masked"),
    "out_list": Case(lambda p: {"out": [[0.0] * 64] * 6}, TypeError, "out.*ndarray.*got.*list"),
    "out_masked": Case(lambda p: {"out": masked(np.zeros((6, 64), f32))}, TypeError, "out.*got.*masked"),
    "out_float64": Case(lambda p: {"out": np.zeros((6, 64))}, TypeError, "out.*got.*float64"),
    "out_big_endian": Case(lambda p: {"out": np.zeros((6, 64), ">f4")}, TypeError, "out.*got.*>f4"),
    "out_shape": Case(
        lambda p: {"out": np.zeros((64, 6), f32)}, ValueError, r"out.*\(6, 64\).*got.*\(64, 6\)"
    ),
    "out_flat": Case(lambda p: {"out": np.zeros(384, f32)}, ValueError, r"out.*\(6, 64\).*got.*\(384,\)"),
    "out_read_only": Case(
        lambda p: {"out": read_only(np.zeros((6, 64), f32))}, ValueError, "out.*writeable.*got.*read-only"
    ),
    "out_last_axis_strided": Case(
        lambda p: {"out": np.zeros((6, 128), f32)[:, ::2]}, ValueError, "out.*contiguous.*got"
    ),
    "out_last_axis_backwards": Case(
        lambda p: {"out": np.zeros((6, 64), f32)[:, ::-1]}, ValueError, "out.*contiguous.*got"
    ),
    "out_fortran": Case(
        lambda p: {"out": np.zeros((6, 64), f32, order="F")}, ValueError, "out.*contiguous.*got"
    ),
    "out_unaligned": Case(lambda p: {"out": unaligned((6, 64), f32)}, ValueError, "out.*aligned.*got"),
    "out_zero_stride": Case(
        lambda p: {"out": np.lib.stride_tricks.as_strided(np.zeros(64, f32), (6, 64), (0, 4))},
        ValueError,
        "out: expected.*got",
    ),
    "out_rows_overlap": Case(
        lambda p: {"out": np.lib.stride_tricks.as_strided(np.zeros(400, f32), (6, 64), (4 * 60, 4))},
        ValueError,
        "out: expected.*got",
    ),
}


def arguments(base: Base) -> dict[str, Any]:
    problem = base.problem
    return {
        "hidden_states": problem.hidden_states,
        "experts": base.experts,
        "topk_weights": problem.topk_weights,
        "topk_ids": problem.topk_ids,
    }


@pytest.mark.parametrize("case", FUSED_EXPERTS.values(), ids=FUSED_EXPERTS)
def test_fused_experts_refuses(base, case):
    with pytest.raises(case.error, match=case.match) as raised:
        mx.fused_experts(**{**arguments(base), **case.change(base.problem)})
    assert "expected" in str(raised.value)
    assert "got" in str(raised.value)


def overlaps(problem: Problem) -> dict[str, dict[str, Any]]:
    """Arguments whose out overlaps an input, but is not hidden_states itself."""
    memory = np.zeros(7 * 64 + 1, dtype=f32)
    one_row_apart = {
        "hidden_states": memory[: 6 * 64].reshape(6, 64),
        "out": memory[64 : 7 * 64].reshape(6, 64),
    }
    one_element_apart = {"hidden_states": memory[:384].reshape(6, 64), "out": memory[1:385].reshape(6, 64)}
    same = memory[:384].reshape(6, 64)
    short = np.zeros((12, 64), dtype=bfloat16)
    ids = np.zeros((6, 64), dtype=np.int32)
    weights = np.zeros((6, 64), dtype=f32)
    expert_map = np.zeros(384, dtype=np.int32)
    return {
        "one_row_apart": one_row_apart,
        "one_element_apart": one_element_apart,
        "reversed_rows": {"hidden_states": same, "out": same[::-1]},
        "other_dtype": {"hidden_states": short[:6], "out": short.view(f32).reshape(12, 32)[:].reshape(6, 64)},
        "interleaved_with_other_strides": {"hidden_states": short[:6], "out": short[::2]},
        "topk_ids": {"topk_ids": ids[:, :2], "out": ids.view(f32)},
        "topk_weights": {"topk_weights": weights[:, :2], "out": weights},
        "expert_map": {"expert_map": expert_map, "out": expert_map.view(f32).reshape(6, 64)},
    }


@pytest.mark.parametrize("name", sorted(overlaps(None)))
def test_out_must_not_overlap_inputs(base, name):
    changed = overlaps(base.problem)[name]
    before = {key: value.tobytes() for key, value in changed.items()}
    with pytest.raises(ValueError, match="out: expected memory apart from .*, got"):
        mx.fused_experts(**{**arguments(base), **changed})
    assert {key: value.tobytes() for key, value in changed.items()} == before


@pytest.mark.parametrize("name", ["one_row_apart", "topk_ids", "topk_weights"])
def test_memory_of_other_objects_is_found(base, name):
    changed = overlaps(base.problem)[name]
    changed.update({key: memoryview(value) for key, value in changed.items() if key != "out"})
    with pytest.raises(ValueError, match="out: expected memory apart from .*, got"):
        mx.fused_experts(**{**arguments(base), **changed})


def test_out_may_be_the_memory_of_hidden_states(base):
    out = base.problem.hidden_states.astype(f32)
    call = {**arguments(base), "hidden_states": memoryview(out), "out": out}
    expected = mx.fused_experts(**{**call, "out": None})
    assert_same_bits(mx.fused_experts(**call), expected)


def test_out_may_lie_between_the_rows_of_hidden_states(base):
    # The bounds of the two overlap, their elements do not.
    memory = np.zeros((6, 128), dtype=f32)
    memory[:, :64] = base.problem.hidden_states
    call = {**arguments(base), "hidden_states": memory[:, :64], "out": memory[:, 64:]}
    mx.fused_experts(**call)
    assert_same_bits(memory[:, 64:].copy(), mx.fused_experts(**arguments(base)))


class Liar(np.ndarray):
    """Says of itself what is not so."""

    shape = property(lambda self: (6, 64))
    strides = property(lambda self: (256, 4))
    ndim = property(lambda self: 2)

    def view(self, *_: Any) -> np.ndarray:
        return np.empty((1, 1), np.uint8)


def test_out_is_what_its_memory_is(base):
    out = np.zeros((1, 64), f32).view(Liar)
    with pytest.raises(ValueError, match=r"out: expected shape \(6, 64\), got shape \(1, 64\)"):
        mx.fused_experts(**{**arguments(base), "out": out})
    out = np.zeros((6, 64), f32).view(Liar)
    assert mx.fused_experts(**{**arguments(base), "out": out}) is out
    assert_same_bits(np.asarray(out), mx.fused_experts(**arguments(base)))


def test_overlap_that_takes_too_long_to_tell_is_refused():
    # Whether two elements are one is a subset-sum problem of as many numbers as there are axes.
    rng = np.random.default_rng(3)
    axes = 14
    memory = np.zeros(1 << 24, f32)
    strides, extent = [], 1
    for _ in range(axes):
        strides.append(extent + int(rng.integers(0, int(extent * 0.3) + 2)))
        extent += strides[-1]
    scale = memory.size // 2 // extent
    strides = [stride * scale + int(rng.integers(0, scale // 8 + 1)) for stride in strides]
    others = [int(stride) for stride in rng.integers(1, memory.size // 2 // axes, axes)]

    def view(start: int, strides: list[int]) -> np.ndarray:
        shape, nbytes = (2,) * axes + (1,), [4 * stride for stride in strides] + [4]
        return np.lib.stride_tricks.as_strided(memory[start:], shape, nbytes)

    out, hidden_states = view(0, strides), view(memory.size // 4, others)
    with pytest.raises(np.exceptions.TooHardError):
        np.shares_memory(out, hidden_states, max_work=100_000)
    experts = mx.pack_experts(np.ones((1, 2, 1), f32), None, np.ones((1, 1, 1), f32), None, format="bf16")
    slots = (2,) * axes + (1,)
    with pytest.raises(ValueError, match="out: expected memory apart from hidden_states"):
        mx.fused_experts(hidden_states, experts, np.ones(slots, f32), np.zeros(slots, int), out=out)


def test_unknown_and_missing_arguments(base):
    with pytest.raises(TypeError, match="activations"):
        mx.fused_experts(**arguments(base), activations="silu")
    with pytest.raises(TypeError, match="topk_ids"):
        mx.fused_experts(base.problem.hidden_states, base.experts, base.problem.topk_weights)
    with pytest.raises(TypeError, match="positional"):
        mx.fused_experts(*arguments(base).values(), "silu")


LEGAL = {
    "lists": lambda p: {"topk_weights": p.topk_weights.tolist(), "topk_ids": p.topk_ids.tolist()},
    "limit_infinite": lambda p: {"limit": math.inf},
    "limit_numpy": lambda p: {"limit": np.float16(np.inf)},
    "threads_numpy": lambda p: {"num_threads": np.int8(2)},
    "map_identity": lambda p: {"expert_map": [0, 1, 2, 3]},
    "map_longer": lambda p: {"expert_map": np.array([0, 1, 2, 3, -1, 0], dtype=np.int16)},
    "bool_numpy": lambda p: {"apply_router_weight_on_input": np.False_},
    "weights_float64": lambda p: {"topk_weights": p.topk_weights.astype(np.float64)},
    "weights_of_dropped_slots": lambda p: {
        "topk_weights": np.concatenate([p.topk_weights.astype(np.float64), np.full((6, 1), 1e300)], axis=-1),
        "topk_ids": np.concatenate([p.topk_ids, np.full((6, 1), -1)], axis=-1),
    },
    "subclass": lambda p: {"hidden_states": p.hidden_states.view(np.recarray)},
}


@pytest.mark.parametrize("change", LEGAL.values(), ids=LEGAL)
def test_fused_experts_computes_what_is_legal(base, change):
    result = mx.fused_experts(**{**arguments(base), **change(base.problem)})
    assert_same_bits(np.asarray(result), mx.fused_experts(**arguments(base)))


FUSED_MOE = {
    "logits_float8": (
        {"router_logits": np.zeros((6, 4), ml_dtypes.float8_e4m3fn)},
        TypeError,
        "router_logits.*got.*float8",
    ),
    "logits_integers": ({"router_logits": np.zeros((6, 4), int)}, TypeError, "router_logits.*got.*int64"),
    "logits_experts": (
        {"router_logits": np.zeros((6, 5), f32)},
        ValueError,
        r"router_logits.*\(6, 4\).*got.*\(6, 5\)",
    ),
    "logits_tokens": (
        {"router_logits": np.zeros((5, 4), f32)},
        ValueError,
        r"router_logits.*\(6, 4\).*got.*\(5, 4\)",
    ),
    "map_ragged": ({"expert_map": [[0], [1, 2]]}, TypeError, "expert_map: expected an array, got"),
    "map_object": ({"expert_map": object()}, TypeError, "expert_map: expected an array of integers, got"),
    "logits_nan": (
        {"router_logits": np.full((6, 4), np.nan, f32)},
        ValueError,
        r"router_logits.*got nan at position \(0, 0\)",
    ),
    "top_k_zero": ({"top_k": 0}, ValueError, r"top_k.*\[1, 4\].*got 0"),
    "top_k_negative": ({"top_k": -1}, ValueError, "top_k.*got -1"),
    "top_k_large": ({"top_k": 5}, ValueError, r"top_k.*\[1, 4\].*got 5"),
    "top_k_float": ({"top_k": 2.0}, TypeError, "top_k.*integer.*got 2.0"),
    "top_k_bool": ({"top_k": True}, TypeError, "top_k.*integer.*got True"),
    "top_k_array": ({"top_k": np.array([2])}, TypeError, "top_k.*integer.*got"),
    "renormalize": ({"renormalize": 1}, TypeError, "renormalize.*bool.*got 1"),
    "activation": ({"activation": "swiglu"}, ValueError, "activation.*got 'swiglu'"),
}


@pytest.mark.parametrize(("change", "error", "match"), FUSED_MOE.values(), ids=FUSED_MOE)
def test_fused_moe_refuses(base, change, error, match):
    call = {
        "hidden_states": base.problem.hidden_states,
        "experts": base.experts,
        "router_logits": np.zeros((6, 4), f32),
        "top_k": 2,
    }
    mx.fused_moe(**call)
    with pytest.raises(error, match=match):
        mx.fused_moe(**{**call, **change})


TOPK_SOFTMAX = {
    "scalar": ((f32(1), 1), ValueError, r"router_logits.*got.*\(\)"),
    "no_experts": ((np.zeros((3, 0), f32), 1), ValueError, r"router_logits.*got.*\(3, 0\)"),
    "objects": ((np.zeros((3, 4), object), 1), TypeError, "router_logits.*got.*object"),
    "complex": ((np.zeros((3, 4), complex), 1), TypeError, "router_logits.*got.*complex128"),
    "masked": ((masked(np.zeros((3, 4))), 1), TypeError, "router_logits.*got.*masked"),
    "none": ((None, 1), TypeError, "router_logits.*got"),
    "top_k_none": ((np.zeros((3, 4), f32), None), TypeError, "top_k.*got None"),
    "float64_overflow": (
        (np.full((3, 4), 1e300), 1),
        ValueError,
        r"router_logits.*got inf at position \(0, 0\)",
    ),
}


@pytest.mark.parametrize(("call", "error", "match"), TOPK_SOFTMAX.values(), ids=TOPK_SOFTMAX)
def test_topk_softmax_refuses(call, error, match):
    with pytest.raises(error, match=match):
        mx.topk_softmax(*call)


@pytest.mark.parametrize(
    ("function", "argument", "error", "match"),
    [
        (mx.set_num_threads, 0, ValueError, "expected.*got 0"),
        (mx.set_num_threads, True, TypeError, "expected.*got True"),
        (mx.set_num_threads, 1.5, TypeError, "expected.*got 1.5"),
        (mx.num_threads, -3, ValueError, "expected.*got -3"),
        (mx.num_threads, None, TypeError, "expected.*got None"),
        (mx.use_isa, "sse9", mx.IsaError, "expected.*'portable'.*got 'sse9'"),
        (mx.use_isa, "", mx.IsaError, "expected.*got ''"),
        (mx.use_isa, None, TypeError, "expected.*got None"),
        (mx.show_config, "json", ValueError, "mode.*'dicts'.*got 'json'"),
    ],
)
def test_configuration_refuses(function, argument, error, match):
    with pytest.raises(error, match=match):
        function(argument)


def test_errors_are_value_errors():
    assert issubclass(mx.IsaError, ValueError)
    assert issubclass(mx.PackedFormatError, ValueError)


def test_a_refused_call_leaves_the_library_usable(isa, base):
    expected = mx.fused_experts(**arguments(base))
    for case in FUSED_EXPERTS.values():
        with pytest.raises(case.error):
            mx.fused_experts(**{**arguments(base), **case.change(base.problem)})
    assert_same_bits(mx.fused_experts(**arguments(base)), expected)
