"""The fields that few layers have: each alone and all together, against the definition."""

from __future__ import annotations

import gc
import inspect
import pickle
import weakref
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_fields import BF16, COMBINATIONS, EXPERTS, FIELDS, HIDDEN, LATENT, ZERO, exact_call, random_call
from packed_bytes import with_table
from problems import assert_same_bits, rel_l2

import mxfp4moe as mx
from mxfp4moe import reference
from mxfp4moe.cli import main
from mxfp4moe.layer_description import LayerDescription
from mxfp4moe.layer_texts import later_fields
from mxfp4moe.packed.container import PackedFile

ALL = COMBINATIONS[-2:]  # with zero experts, or with latent ones
every_combination = pytest.mark.parametrize("names", COMBINATIONS, ids=" + ".join)


@every_combination
def test_exact_layers_are_equal_bit_for_bit(isa: str, rng: np.random.Generator, names: Any) -> None:
    call = exact_call(rng, names, 21)
    expected = call.reference()
    if not {"latent", "latent norm"} & {*names}:
        assert np.array_equal(expected, call.reference(float64=True))  # nothing is rounded
    assert len(np.unique(expected)) > 20
    assert_same_bits(call.run(), expected)
    for dtype in (np.float16, BF16):
        assert_same_bits(call.cast(dtype).run(), expected.astype(dtype))


def test_any_exact_layer_is_equal_bit_for_bit(isa: str) -> None:
    @settings(max_examples=12)
    @given(st.sets(st.sampled_from(FIELDS)), st.integers(0, 18), st.integers(0, 2**32))
    def check(names: set[str], num_tokens: int, seed: int) -> None:
        if names & {"latent", "latent norm"}:
            names = names - {"zero experts"}
        call = exact_call(np.random.default_rng(seed), names, num_tokens)
        assert_same_bits(call.run(), call.reference())

    check()


@every_combination
def test_random_layers_compute_their_definition(isa: str, rng: np.random.Generator, names: Any) -> None:
    call = random_call(rng, names, 19)
    result, contract, exact = call.run(), call.reference(), call.reference(float64=True)
    # At most three roundings to bfloat16 follow one another: of a latent hidden state, of the intermediate,
    # and of the latent sum. Each changes a number by a share of at most 2**-9, and random sums keep shares of
    # this size; four times as much leaves room for chance.
    assert rel_l2(contract, exact) < 3 * 2.0**-7
    assert rel_l2(result, contract) < 3 * 2.0**-7


@every_combination
def test_any_batch_gives_the_same_bits(isa: str, rng: np.random.Generator, names: Any) -> None:
    call = random_call(rng, names, 40)
    whole = call.run(num_threads=1)

    @settings(max_examples=8)
    @given(st.lists(st.integers(0, 39), min_size=1, max_size=70), st.integers(1, 4))
    def check(indexes: list[int], num_threads: int) -> None:
        assert_same_bits(call.tokens(np.array(indexes)).run(num_threads=num_threads), whole[indexes])

    check()
    assert_same_bits(call.tokens(7).run(), whole[7])
    assert_same_bits(call.tokens(np.arange(36).reshape(2, 3, 6)).run(), whole[:36].reshape(2, 3, 6, HIDDEN))
    assert call.tokens(slice(0)).run().shape == (0, HIDDEN)


@pytest.mark.parametrize("names", ALL, ids=["zero experts", "latent"])
def test_some_tokens_at_a_time(
    isa: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, names: Any
) -> None:
    call = random_call(rng, names, 30)
    whole = call.run()
    for tokens in (1, 7, 29):
        monkeypatch.setattr("mxfp4moe.layer_sum._SUM_BYTES", tokens * HIDDEN * 4 + 3)
        assert_same_bits(call.run(), whole)
        in_place = call.tokens(np.arange(30))
        assert in_place.run(out=in_place.hidden_states) is in_place.hidden_states
        assert_same_bits(in_place.hidden_states, whole)
        strided = np.zeros((30, 2, HIDDEN), np.float32)[:, 1]
        assert_same_bits(call.run(out=strided), whole)


# --- files and pickles --------------------------------------------------------------------------------------


@every_combination
def test_files_and_pickles(tmp_path: Path, rng: np.random.Generator, names: Any) -> None:
    call = random_call(rng, names, 5)
    call.layer.save(tmp_path / "a")
    expected = call.run()
    for again in (
        mx.MoELayer.open(tmp_path / "a", verify=True),
        mx.MoELayer.from_checkpoint(tmp_path / "a"),
        pickle.loads(pickle.dumps(call.layer)),
        mx.MoELayer(**call.layer.arguments()),
    ):
        assert again == call.layer
        assert_same_bits(call._replace(layer=again).run(), expected)
        for name, value in again.arguments().items():
            assert not isinstance(value, np.ndarray) or not value.flags.writeable, name
    for name in later_fields(call.layer):
        assert f"{name}=" in repr(call.layer)


def test_the_constructor_takes_the_fields() -> None:
    for layer_class in (LayerDescription, mx.MoELayer):
        names = list(inspect.signature(layer_class).parameters)
        assert names == [each.name for each in fields(LayerDescription)]
    annotations = inspect.signature(mx.MoELayer).parameters
    assert annotations["experts"].annotation == "PackedExperts"
    with pytest.raises(TypeError, match=r"^MoELayer.__init__\(\) got an unexpected keyword argument 'topk'"):
        mx.MoELayer(topk=2)  # type: ignore[call-arg]


def test_files_name_only_what_a_layer_has(tmp_path: Path, rng: np.random.Generator) -> None:
    later = {name for names in ALL for name in later_fields(random_call(rng, names, 1).layer)}
    slices_and_int8 = {"expert_map", "activation_format"}
    assert later | slices_and_int8 == {
        each.name for each in fields(LayerDescription) if each.metadata.get("is_later")
    }
    for names, expected in (
        (["factor", "shared", "router bias"], set()),
        (["shared gate", "zero experts"], {"shared_gate", "num_zero_experts"}),
    ):
        random_call(rng, names, 1).layer.save(tmp_path / "a")
        assert PackedFile(tmp_path / "a").meta.keys() & later == expected


WRONG_FILES: dict[str, tuple[Any, str]] = {
    "part without field": (
        lambda m: m.pop("output_bias"),
        "expected a part output_bias if the field .*, got None",
    ),
    "field no bool": (
        lambda m: m.update(output_bias=1),
        "expected a part output_bias if the field .*, got 1",
    ),
    "field without part": (
        lambda m: m.update(router_scale=True),
        "expected a part router_scale if .*, got True",
    ),
    "option": (lambda m: m.update(num_zero_experts=1), "router_weight: expected shape"),
    "option a float": (
        lambda m: m.update(num_zero_experts=1.0),
        "num_zero_experts: expected an integer, got 1.0",
    ),
    "option a number": (
        lambda m: m.update(separate_router_input=1),
        "separate_router_input: expected a bool, got 1",
    ),
    "epsilon inf": (
        lambda m: m.update(router_norm_eps="inf"),
        "router_norm_eps: expected a number in .*, got inf",
    ),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_wrong_files_are_refused(tmp_path: Path, rng: np.random.Generator, case: str) -> None:
    edit, message = WRONG_FILES[case]
    path = tmp_path / "a"
    random_call(rng, ["output bias"], 1).layer.save(path)
    path.write_bytes(with_table(path.read_bytes(), lambda table: edit(table["meta"]) and None))
    with pytest.raises(mx.PackedFormatError, match=f"a: {message}"):
        mx.MoELayer.open(path)


def test_inspect_shows_what_few_layers_have(
    tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    random_call(rng, ["shared gate", "zero experts"], 1).layer.save(tmp_path / "a")
    assert main(["inspect", str(tmp_path / "a")]) == 0
    assert "All layers: shared_gate=float32[72], num_zero_experts=3\n" in capsys.readouterr().out
    random_call(rng, ["shared"], 1).layer.save(tmp_path / "b")
    assert main(["inspect", str(tmp_path / "b")]) == 0
    assert "All layers" not in capsys.readouterr().out


@pytest.mark.parametrize("names", ALL, ids=["zero experts", "latent"])
def test_a_layer_is_freed_when_it_is_no_longer_used(rng: np.random.Generator, names: Any) -> None:
    layer = random_call(rng, names, 1).layer
    reference_to_it = weakref.ref(layer)
    gc.disable()  # which also ends what refers to itself, but later
    try:
        del layer
        assert reference_to_it() is None
    finally:
        gc.enable()


# --- what is refused ----------------------------------------------------------------------------------------


def floats(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


LATENT_ARRAYS = {"latent_down": floats(LATENT, HIDDEN), "latent_up": floats(HIDDEN, LATENT)}
WRONG: dict[str, tuple[tuple[str, ...], dict[str, Any], type[Exception], str]] = {
    "gate of nothing": ((), {"shared_gate": floats(HIDDEN)}, ValueError,
        "shared_gate: expected None without shared_experts, got an array"),
    "factor of nothing": ((), {"shared_scaling_factor": 0.5}, ValueError,
        "shared_scaling_factor: expected 1 without shared_experts, got 0.5"),
    "gate of another size": (("shared",), {"shared_gate": floats(HIDDEN - 1)}, ValueError,
        r"shared_gate: expected shape \(72,\), got shape \(71,\)"),
    "gate of one row": (("shared",), {"shared_gate": floats(1, HIDDEN)}, ValueError,
        r"shared_gate: expected shape \(72,\), got shape \(1, 72\)"),
    "gate of integers": (("shared",), {"shared_gate": np.ones(HIDDEN, int)}, TypeError,
        "shared_gate: expected an array of float32, bfloat16 or float16"),
    "shared factor 0": (("shared",), {"shared_scaling_factor": 0.0}, ValueError,
        "shared_scaling_factor: expected a finite float32 number above 0, got 0.0"),
    "shared factor NaN": (("shared",), {"shared_scaling_factor": np.nan}, ValueError,
        "shared_scaling_factor: expected a finite float32 number above 0, got nan"),
    "zero experts -1": ((), {"num_zero_experts": -1}, ValueError,
        "num_zero_experts: expected an integer of at least 0, got -1"),
    "zero experts a bool": ((), {"num_zero_experts": True}, TypeError,
        "num_zero_experts: expected an integer, got True"),
    "zero experts without rows": ((), {"num_zero_experts": 2}, ValueError,
        r"router_weight: expected shape \(7, 72\), got shape \(5, 72\)"),
    "too many chosen": (("zero experts",), {"top_k": EXPERTS + ZERO + 1},
        ValueError,
        r"top_k: expected an integer in \[1, 8\], got 9"),
    "latent ones of the full width": (("zero experts",), LATENT_ARRAYS, ValueError,
        r"latent_down: expected shape \(72, hidden_size\), got shape \(40, 72\)"),
    "epsilon 0": ((), {"router_norm_eps": 0}, ValueError, "router_norm_eps: expected a number in .*, got 0"),
    "epsilon a string": ((), {"router_norm_eps": "1e-6"}, TypeError,
        "router_norm_eps: expected a real number, got '1e-6'"),
    "scale of another size": ((), {"router_scale": floats(EXPERTS)}, ValueError,
        r"router_scale: expected shape \(72,\), got shape \(5,\)"),
    "separate a number": ((), {"separate_router_input": 1}, TypeError,
        "separate_router_input: expected a bool, got 1"),
    "on input a number": ((), {"apply_router_weight_on_input": 0}, TypeError,
        "apply_router_weight_on_input: expected a bool, got 0"),
    "bias of another size": ((), {"output_bias": floats(HIDDEN, 1)}, ValueError,
        r"output_bias: expected shape \(72,\), got shape \(72, 1\)"),
    "down alone": ((), {"latent_down": floats(HIDDEN, 96)}, ValueError,
        "latent_down: expected None without latent_up, got an array"),
    "up alone": ((), {"latent_up": floats(96, HIDDEN)}, ValueError,
        "latent_up: expected None without latent_down, got an array"),
    "norm alone": ((), {"latent_norm": floats(HIDDEN)}, ValueError,
        "latent_norm: expected None without latent_down, got an array"),
    "epsilon alone": (("latent",), {"latent_norm_eps": 1e-5}, ValueError,
        "latent_norm_eps: expected None without latent_norm, got 1e-05"),
    "norm without epsilon": (("latent",), {"latent_norm": floats(LATENT)}, TypeError,
        "latent_norm_eps: expected a real number, got None"),
    "norm of the full width": (("latent",), {"latent_norm": floats(HIDDEN), "latent_norm_eps": 1e-5},
        ValueError,
        r"latent_norm: expected shape \(40,\), got shape \(72,\)"),
    "down transposed": (("latent",), {"latent_down": floats(HIDDEN, LATENT)}, ValueError,
        r"latent_down: expected shape \(40, hidden_size\), got shape \(72, 40\)"),
    "down of no columns": (("latent",), {"latent_down": floats(LATENT, 0), "latent_up": floats(0, LATENT)},
        ValueError, "latent_down: expected a hidden_size of at least 1, got 0"),
    "up transposed": (("latent",), {"latent_up": floats(LATENT, HIDDEN)}, ValueError,
        r"latent_up: expected shape \(72, 40\), got shape \(40, 72\)"),
    "router of the latent width": (("latent",), {"router_weight": floats(EXPERTS, LATENT)}, ValueError,
        r"router_weight: expected shape \(5, 72\), got shape \(5, 40\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_fields_are_refused(rng: np.random.Generator, case: str) -> None:
    names, change, error, message = WRONG[case]
    arguments = random_call(rng, names, 1).layer.arguments()
    with pytest.raises(error, match=message):
        mx.MoELayer(**arguments | change)


def test_zero_experts_and_latent_ones_exclude_each_other(rng: np.random.Generator) -> None:
    arguments = random_call(rng, ["latent"], 1).layer.arguments()
    with pytest.raises(ValueError, match="num_zero_experts: expected 0 with latent_down, got 2"):
        mx.MoELayer(**arguments | {"num_zero_experts": 2, "router_weight": floats(EXPERTS + 2, HIDDEN)})


def test_shared_experts_have_the_full_width(rng: np.random.Generator) -> None:
    arguments = random_call(rng, ["latent"], 1).layer.arguments()
    shared = mx.pack_experts(floats(1, 64, LATENT), None, floats(1, LATENT, 32), None, format="bf16")
    with pytest.raises(ValueError, match="shared_experts: expected hidden_size 72, as latent_down"):
        mx.MoELayer(**arguments | {"shared_experts": shared})


# --- a router that reads another array ----------------------------------------------------------------------


def test_router_input_is_given_where_the_layer_has_one(rng: np.random.Generator) -> None:
    call = random_call(rng, ["router input"], 4)
    layer, x = call.layer, call.hidden_states
    for function in (layer, layer.route, layer.router_logits):
        with pytest.raises(TypeError, match="router_hidden_states: expected the array that .* None"):
            function(x)
        with pytest.raises(ValueError, match=r"router_hidden_states: expected shape \(4, 72\), got"):
            function(x, router_hidden_states=x[:3])
        with pytest.raises(ValueError, match=r"router_hidden_states: expected shape \(\.\.\., 72\), got"):
            function(x, router_hidden_states=x[:, :64])
        with pytest.raises(TypeError, match="router_hidden_states: expected an array of bfloat16"):
            function(x, router_hidden_states=x.astype(int))
    other = mx.MoELayer(**layer.arguments() | {"separate_router_input": False})
    for function in (other, other.route, other.router_logits):
        with pytest.raises(TypeError, match="router_hidden_states: expected None, for the router"):
            function(x, router_hidden_states=x)
    with pytest.raises(TypeError, match="router_hidden_states: expected"):
        reference.moe_layer(x, layer)


def test_router_input_alone_routes(isa: str, rng: np.random.Generator) -> None:
    call = random_call(rng, ["router input", "router norm", "router scale"], 6)
    plain = mx.MoELayer(**call.layer.arguments() | {"separate_router_input": False})
    assert call.router is not None
    for got, expected in zip(
        call.layer.route(call.hidden_states, **call.inputs), plain.route(call.router), strict=True
    ):
        assert_same_bits(got, expected)
    assert_same_bits(
        call.layer.router_logits(np.zeros_like(call.router), **call.inputs), plain.router_logits(call.router)
    )
    assert call.layer(call.hidden_states.astype(BF16), **call.inputs).dtype == BF16


def test_out_apart_from_the_router_input(rng: np.random.Generator) -> None:
    call = random_call(rng, ["router input"], 6)
    with pytest.raises(ValueError, match="out: expected memory apart from router_hidden_states"):
        call.run(out=call.router)
    same = call._replace(router=call.hidden_states)
    with pytest.raises(ValueError, match="out: expected memory apart from router_hidden_states"):
        same.run(out=call.hidden_states)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, float(np.finfo(np.float32).max)])
@pytest.mark.parametrize("which", ["hidden_states", "router"])
def test_tokens_that_are_not_finite(isa: str, rng: np.random.Generator, which: str, value: float) -> None:
    call = random_call(rng, ALL[1], 9)
    expected = call.run()
    array = getattr(call, which).copy()
    array[[2, 8], [5, 0]] = value
    call = call._replace(**{which: array})
    name = "hidden_states" if which == "hidden_states" else "router_hidden_states"
    for function in (call.layer, call.layer.route):
        with pytest.raises(ValueError, match=rf"^{name}: expected values .* in bfloat16, got .*\(2, 5\)"):
            function(call.hidden_states, **call.inputs)
    layer = mx.MoELayer(**call.layer.arguments(), nonfinite="propagate")
    result = call._replace(layer=layer).run()
    bad = np.isin(np.arange(9), [2, 8])
    assert np.isnan(result[bad]).all()
    assert_same_bits(result[~bad], expected[~bad])
    weights, ids = layer.route(call.hidden_states, **call.inputs)
    assert (ids[bad] == -1).all()
    assert np.isnan(weights[bad]).all()


# --- single terms -------------------------------------------------------------------------------------------


def test_layer_of_zero_experts_alone_gives_weights_times_tokens(isa: str, rng: np.random.Generator) -> None:
    call = random_call(rng, ["zero experts"], 11)
    bias = np.where(np.arange(EXPERTS + ZERO) < EXPERTS, -np.inf, 0).astype(np.float32)
    layer = mx.MoELayer(**call.layer.arguments() | {"router_bias": bias})
    weights, ids = layer.route(call.hidden_states)
    assert (ids >= EXPERTS).all()
    total = (weights[:, 0] + weights[:, 1]) + weights[:, 2]
    rounded = call.hidden_states.astype(BF16).astype(np.float32)
    assert_same_bits(layer(call.hidden_states), total[:, None] * rounded)


def test_own_function_may_choose_zero_experts(rng: np.random.Generator) -> None:
    call = random_call(rng, ["zero experts"], 4)
    arguments = call.layer.arguments() | {"routing_arguments": {}}

    def choosing(last: int, dtype: Any) -> mx.MoELayer:
        def own(logits: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
            assert logits.shape[-1] == EXPERTS + ZERO
            return np.full((len(logits), 2), 0.5, np.float64), np.full((len(logits), 2), [0, last], dtype)

        return mx.MoELayer(**arguments | {"routing": own})

    half = np.full((4, 1), 0.5, np.float32), np.zeros((4, 1), int)
    x = call.hidden_states
    single = mx.fused_experts(x, call.layer.experts, *half)
    expected = single + np.float32(0.5) * x.astype(BF16).astype(np.float32)
    for dtype in (np.int16, np.uint8, np.int64):
        assert_same_bits(choosing(EXPERTS + 1, dtype)(x), expected)
    assert_same_bits(choosing(-1, np.int32)(x), single)
    with pytest.raises(
        ValueError, match=r"topk_ids: expected values in \[-1, 7\], got 8 at position \(0, 1\)"
    ):
        choosing(EXPERTS + ZERO, np.int32)(x)


def test_shared_gate_of_any_size(isa: str, rng: np.random.Generator) -> None:
    call = random_call(rng, ["shared gate"], 3)
    arguments = call.layer.arguments()
    x = np.ones((3, HIDDEN), np.float32)
    alone = mx.MoELayer(**arguments | {"shared_experts": None, "shared_gate": None})(x)
    ungated = mx.MoELayer(**arguments | {"shared_gate": None})(x)
    for value, factor in ((3e38, ungated), (-3e38, alone), (20.0, ungated), (-200.0, alone)):
        gate = np.full(HIDDEN, value, np.float32)  # whose sum may be infinite
        assert_same_bits(mx.MoELayer(**arguments | {"shared_gate": gate})(x), factor)
    gate[0] = np.nan
    assert np.isnan(mx.MoELayer(**arguments | {"shared_gate": gate})(x)).all()
