"""Wrong calls of pack_experts: each raises TypeError or ValueError with argument, expected and got."""

import re

import ml_dtypes
import numpy as np
import pytest
from problems import Shape, masked, objects, pack, random_problem

import mxfp4moe as mx
from mxfp4moe.reference import ExpertArrays

f32 = np.float32


@pytest.fixture(scope="module")
def arrays() -> ExpertArrays:
    """Four experts with K = 64 and I = 32."""
    return random_problem(np.random.default_rng(1), Shape(6, 64, 32, 4, 2), bias="both").arrays


PACK_EXPERTS = {
    "w13_float": (lambda a: {"w13": a.w13.astype(f32)}, TypeError, "w13.*uint8.*got.*float32"),
    "w13_uint16": (lambda a: {"w13": a.w13.astype(np.uint16)}, TypeError, "w13.*uint8.*got.*uint16"),
    "w13_objects": (lambda a: {"w13": objects(a.w13)}, TypeError, "w13.*got.*object"),
    "w13_masked": (lambda a: {"w13": masked(a.w13)}, TypeError, "w13.*got.*masked"),
    "w13_none": (lambda a: {"w13": None}, TypeError, "w13.*got"),
    "w13_one_expert": (lambda a: {"w13": a.w13[0]}, ValueError, r"w13.*got.*\(64, 32\)"),
    "w13_odd_rows": (lambda a: {"w13": a.w13[:, :63]}, ValueError, r"w13.*64.*got.*63"),
    "w13_half_the_rows": (lambda a: {"w13": a.w13[:, :32]}, ValueError, r"w13.*64.*got.*32"),
    "w13_short_k": (lambda a: {"w13": a.w13[..., :16]}, ValueError, r"w13.*32.*got.*16"),
    "w13_fewer_experts": (lambda a: {"w13": a.w13[:3]}, ValueError, "w13.*4.*got 3"),
    "w13_wrong_block": (lambda a: {"w13": a.w13.reshape(4, 64, 4, 8)}, ValueError, r"w13.*16.*got.*8"),
    "w13_ragged": (
        lambda a: {"w13": [*a.w13[:3], a.w13[3, :62]], "w13_scales": list(a.w13_scales)},
        ValueError,
        r"w13.*64.*got.*62.*expert 3",
    ),
    "w13_sequence_of_floats": (
        lambda a: {"w13": [*a.w13[:3], a.w13[3].astype(f32)]},
        TypeError,
        r"w13\[3\].*uint8.*got.*float32",
    ),
    "w13_scales_float": (
        lambda a: {"w13_scales": a.w13_scales.astype(f32)},
        TypeError,
        "w13_scales.*float8_e8m0fnu.*got.*float32",
    ),
    "w13_scales_e4m3": (
        lambda a: {"w13_scales": a.w13_scales.view(ml_dtypes.float8_e4m3fn)},
        TypeError,
        "w13_scales.*float8_e8m0fnu.*got.*float8_e4m3fn",
    ),
    "w13_scales_int8": (
        lambda a: {"w13_scales": a.w13_scales.view(np.int8)},
        TypeError,
        "w13_scales.*uint8.*got.*int8",
    ),
    "w13_scales_none": (lambda a: {"w13_scales": None}, TypeError, "w13_scales.*got"),
    "w13_scales_shape": (
        lambda a: {"w13_scales": a.w13_scales[..., :1]},
        ValueError,
        r"w13_scales.*\(64, 2\).*got.*\(64, 1\)",
    ),
    "w13_scales_transposed": (
        lambda a: {"w13_scales": a.w13_scales.transpose(0, 2, 1)},
        ValueError,
        r"w13_scales.*got.*\(2, 64\)",
    ),
    "w2_shape": (lambda a: {"w2": a.w2[:, :32]}, ValueError, r"w13.*\(64, 16\).*got \(64, 32\)"),
    "w2_scales_shape": (
        lambda a: {"w2_scales": a.w2_scales[:, :63]},
        ValueError,
        r"w2_scales.*\(64, 1\).*got.*\(63, 1\)",
    ),
    "w2_none": (lambda a: {"w2": None}, TypeError, "w2.*got"),
    "no_experts": (
        lambda a: {
            "w13": a.w13[:0],
            "w13_scales": a.w13_scales[:0],
            "w2": a.w2[:0],
            "w2_scales": a.w2_scales[:0],
        },
        ValueError,
        "expected at least 1 expert, got 0",
    ),
    "no_experts_in_lists": (
        lambda a: {"w13": [], "w13_scales": [], "w2": [], "w2_scales": []},
        ValueError,
        "expert.*got 0",
    ),
    "w13_bias_float16": (
        lambda a: {"w13_bias": a.w13_bias.astype(np.float16)},
        TypeError,
        "w13_bias.*bfloat16.*got.*float16",
    ),
    "w13_bias_float64": (
        lambda a: {"w13_bias": a.w13_bias.astype(np.float64)},
        TypeError,
        "w13_bias.*float32.*got.*float64",
    ),
    "w13_bias_shape": (lambda a: {"w13_bias": a.w13_bias[:, :32]}, ValueError, r"w13_bias.*64.*got.*32"),
    "w13_bias_one_axis": (lambda a: {"w13_bias": a.w13_bias[0]}, ValueError, r"w13_bias.*got.*\(64,\)"),
    "w2_bias_shape": (lambda a: {"w2_bias": a.w13_bias[:, :32]}, ValueError, "w2_bias.*64.*got.*32"),
    "w2_bias_experts": (lambda a: {"w2_bias": a.w2_bias[:3]}, ValueError, "w2_bias.*4.*got.*3"),
    "format_unknown": (lambda a: {"format": "int3"}, ValueError, "format.*'mxfp4'.*got 'int3'"),
    "format_none": (lambda a: {"format": None}, TypeError, "format.*got None"),
    "layout_unknown": (
        lambda a: {"gate_up_layout": "chunked"},
        ValueError,
        "gate_up_layout.*'interleaved'.*got 'chunked'",
    ),
    "layout_bool": (lambda a: {"gate_up_layout": True}, TypeError, "gate_up_layout.*got True"),
    "block_shape": (lambda a: {"block_shape": (128, 128)}, ValueError, "block_shape.*mxfp4.*got"),
    "tensor_scale": (
        lambda a: {"w2_tensor_scale": np.ones(4, f32)},
        ValueError,
        "w13_tensor_scale: expected a float32 array .*, got None",
    ),
    "pair_interleaved": (
        lambda a: {
            "w13": (a.w13[:, :32], a.w13[:, 32:]),
            "w13_scales": (a.w13_scales[:, :32], a.w13_scales[:, 32:]),
            "gate_up_layout": "interleaved",
        },
        ValueError,
        "gate_up_layout.*concatenated.*got 'interleaved'",
    ),
    "pair_of_unequal_rows": (
        lambda a: {
            "w13": (a.w13[:, :30], a.w13[:, 30:]),
            "w13_scales": (a.w13_scales[:, :30], a.w13_scales[:, 30:]),
        },
        ValueError,
        r"w13.*32.*got.*30",
    ),
    "pair_of_scales_alone": (
        lambda a: {"w13_scales": (a.w13_scales[:, :32], a.w13_scales[:, 32:])},
        ValueError,
        "w13.*pair.*got",
    ),
}


@pytest.mark.parametrize(("change", "error", "match"), PACK_EXPERTS.values(), ids=PACK_EXPERTS)
def test_pack_experts_refuses(arrays, change, error, match):
    changed = change(arrays)
    fields = {key: value for key, value in changed.items() if key in arrays._fields}
    options = {key: value for key, value in changed.items() if key not in arrays._fields}
    with pytest.raises(error, match=match) as raised:
        pack(arrays._replace(**fields), **options)
    assert "expected" in str(raised.value)
    assert "got" in str(raised.value)


@pytest.mark.parametrize(
    ("hidden_size", "intermediate_size"), [(48, 32), (32, 48), (16, 32), (32, 16), (0, 32), (32, 0)]
)
def test_pack_experts_refuses_sizes_that_are_no_multiples_of_32(hidden_size, intermediate_size):
    k, i = hidden_size, intermediate_size
    blocks = np.zeros((2, 2 * i, k // 2), np.uint8), np.zeros((2, k, i // 2), np.uint8)
    scales = np.zeros((2, 2 * i, -(-k // 32)), np.uint8), np.zeros((2, k, -(-i // 32)), np.uint8)
    with pytest.raises(ValueError, match="w13|w2"):
        mx.pack_experts(blocks[0], scales[0], blocks[1], scales[1], format="mxfp4")


WRONG_W2 = {
    "rows": (lambda w2: w2[:, :32], "hidden_size 32 and intermediate_size 32", "(32, 16)"),
    "columns": (lambda w2: np.tile(w2, (1, 1, 2)), "hidden_size 64 and intermediate_size 64", "(64, 32)"),
    "transposed": (lambda w2: w2.reshape(4, 32, 32), "hidden_size 32 and intermediate_size 64", "(32, 32)"),
    "blocks": (lambda w2: w2.reshape(4, 32, 2, 16), "hidden_size 32 and intermediate_size 64", "(32, 2, 16)"),
}


@pytest.mark.parametrize(("change", "sizes", "shape"), WRONG_W2.values(), ids=WRONG_W2)
def test_errors_say_which_sizes_come_from_w2(arrays, change, sizes, shape):
    inferred = re.escape(f"({sizes} are inferred from w2, whose expert 0 has shape {shape})")
    with pytest.raises(
        ValueError, match=rf"^w13: expected shape .* for each expert {inferred}, got \(64, 32\)"
    ):
        pack(arrays._replace(w2=change(arrays.w2)))


@pytest.mark.parametrize("name", ["w13", "w13_scales", "w2_scales", "w13_bias", "w2_bias"])
def test_errors_of_other_arrays_name_w2(arrays, name):
    inferred = re.escape(
        "(hidden_size 64 and intermediate_size 32 are inferred from w2, whose expert 0 has shape (64, 16))"
    )
    with pytest.raises(ValueError, match=f"^{name}: expected shape .* {inferred}, got .* for expert 0$"):
        pack(arrays._replace(**{name: getattr(arrays, name)[:, :-1]}))


@pytest.mark.parametrize(("rows", "columns"), [(48, 32), (64, 48), (0, 32), (64, 0)])
def test_sizes_of_w2_that_its_format_cannot_have_are_its_own_error(arrays, rows, columns):
    w2 = np.zeros((4, rows, columns // 2), np.uint8)
    expected = "w2: expected a hidden_size and an intermediate_size that are positive multiples of 32"
    got = re.escape(f"got {rows} and {columns}, from an expert of shape ({rows}, {columns // 2})")
    with pytest.raises(ValueError, match=f"^{expected}, {got}$"):
        pack(arrays._replace(w2=w2))
