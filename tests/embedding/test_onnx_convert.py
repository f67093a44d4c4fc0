"""Converted models compute what ONNX Runtime's own QMoE and MoE do, or are refused by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx_models import Model, library, node, run, session
from problems import assert_same_bits

import mxfp4moe as mx

E, K, INTERMEDIATE, TOP_K, TOKENS = 6, 64, 96, 3, 5
_INPUTS = {
    "QMoE": (
        "x", "router", "fc1", "fc1_scales", "fc1_bias", "fc2", "fc2_scales", "fc2_bias", "fc3", "fc3_scales",
        "fc3_bias", "fc1_zero_points", "fc2_zero_points", "fc3_zero_points", "router_weights", "fc1_global",
        "fc2_global",
    ),
    "MoE": ("x", "router", "fc1", "fc1_bias", "fc2", "fc2_bias", "fc3", "fc3_bias"),
}  # fmt: skip


@dataclass
class Case:
    """A node of com.microsoft with its constants, and its weights as float64 matrices."""

    kind: str = "QMoE"
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    inputs: dict[str, np.ndarray] = field(default_factory=dict)

    def model(self) -> Model:
        given = self.constants | self.inputs
        names = [name if name in given else "" for name in _INPUTS[self.kind]]
        while not names[-1]:
            names.pop()
        each = node(self.kind, names, ["out"], "com.microsoft", name="moe", **self.attributes)
        return Model([each], self.inputs, {"out": np.float32}, self.constants)


def integers(rng: np.random.Generator, name: str, rows: int, columns: int, case: Case, options: Any) -> None:
    """Codes as com.microsoft has them: unsigned, two in a byte along the columns, zero points packed too."""
    bits, block, zero = options
    groups = columns // (block or columns)
    codes = rng.integers(0, 2**bits, (E, rows, columns)).astype(np.uint8)
    zeros = rng.integers(0, 2**bits, (E, rows, groups)).astype(np.uint8)
    scales = rng.uniform(0.01, 0.03, (E, rows, groups)).astype(np.float32)
    if not zero:
        zeros[...] = 2 ** (bits - 1)
    wide = [np.repeat(each.astype(np.float64), columns // groups, axis=2) for each in (zeros, scales)]
    case.weights[name] = (codes - wide[0]) * wide[1]
    packed = codes if bits == 8 else codes[..., ::2] | codes[..., 1::2] << 4
    case.constants |= {name: packed, f"{name}_scales": scales if block else scales[..., 0]}
    if zero:
        flat = zeros if block else zeros[..., 0]
        case.constants[f"{name}_zero_points"] = flat if bits == 8 else flat[..., ::2] | flat[..., 1::2] << 4


def fp4(rng: np.random.Generator, name: str, rows: int, columns: int, case: Case, options: Any) -> None:
    w = rng.standard_normal((E, rows, columns))
    global_scale = options[0](rng).astype(np.float32)
    if case.attributes["quant_type"] == "fp4":
        codes, scales = mx.quantize_mxfp4(w)
        wide = mx.dequantize_mxfp4(codes, scales)
    else:
        codes, scales, _ = mx.quantize_nvfp4(w, tensor_scale=np.ones(E, np.float32))
        wide = mx.dequantize_nvfp4(codes, scales, np.ones(E, np.float32))
    case.weights[name] = wide.astype(np.float64) * global_scale[:, None, None]
    case.constants |= {name: codes, f"{name}_scales": scales, f"{name}_global": global_scale}


def ones(rng: np.random.Generator) -> np.ndarray:
    return np.ones(E)


def powers(rng: np.random.Generator) -> np.ndarray:
    """Scales whose products with those of blocks are exact, also where a kernel rounds them to 16 bits."""
    return 2.0 ** rng.integers(-2, 3, E)


def any_scales(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(0.5, 2, E)


def floats(rng: np.random.Generator, name: str, rows: int, columns: int, case: Case, options: Any) -> None:
    w = rng.standard_normal((E, rows, columns)).astype(ml_dtypes.bfloat16).astype(np.float32)
    case.weights[name] = w.astype(np.float64)
    case.constants[name] = w


SWIGLU = {"activation_type": "swiglu", "swiglu_fusion": 1}
GPT_OSS = SWIGLU | {"activation_alpha": 1.702, "activation_beta": 1.0, "swiglu_limit": 7.0}
NO_LIMIT = {name: value for name, value in GPT_OSS.items() if name != "swiglu_limit"}
# Each has a maker of weights, its options and attributes: all that the CPU kernels compute.
CASES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "int4 rows": (integers, (4, None, False), SWIGLU),
    "int4 blocks": (integers, (4, 32, False), GPT_OSS | {"block_size": 32}),
    "int4 rows, zero points": (integers, (4, None, True), NO_LIMIT),
    "int8 rows": (integers, (8, None, False), GPT_OSS | {"expert_weight_bits": 8}),
    "int8 rows, zero points": (
        integers,
        (8, None, True),
        SWIGLU | {"expert_weight_bits": 8, "swiglu_limit": 2.0},
    ),
    "mxfp4": (fp4, (ones,), GPT_OSS | {"quant_type": "fp4", "weights_prepacked": 1}),
    "mxfp4, global scales": (fp4, (powers,), SWIGLU | {"quant_type": "fp4", "weights_prepacked": 1}),
    "nvfp4": (fp4, (powers,), SWIGLU | {"quant_type": "nvfp4", "weights_prepacked": 1}),
    "floats": (floats, (), SWIGLU),
}


@pytest.fixture(autouse=True)
def _library() -> None:
    library()


def make(rng: np.random.Generator, name: str, fc3: bool = False, bias: bool = True, **changed: Any) -> Case:
    maker, options, attributes = CASES[name]
    case = Case("MoE" if maker is floats else "QMoE", attributes=attributes | {"k": TOP_K} | changed)
    if fc3:
        case.attributes |= {"swiglu_fusion": 0}
    for each, rows, columns in (
        ("fc1", INTERMEDIATE * (1 if fc3 else 2), K),
        ("fc2", K, INTERMEDIATE),
        *([("fc3", INTERMEDIATE, K)] if fc3 else []),
    ):
        maker(rng, each, rows, columns, case, options)
        if bias:
            case.constants[f"{each}_bias"] = rng.standard_normal((E, rows)).astype(np.float32)
    # Hidden states that bfloat16 has, so that rounding them changes nothing.
    x = rng.standard_normal((TOKENS, K)).astype(ml_dtypes.bfloat16).astype(np.float32)
    case.inputs = {"x": x, "router": rng.standard_normal((TOKENS, E)).astype(np.float32)}
    return case


U32, U16 = 2.0**-24, 2.0**-9  # relative errors of a rounding to float32 and to bfloat16


def float64_result(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """The result by definition, and how far both float32 and ours may be from it, added up.

    Sums of n float32 terms err by n roundings of the sum of magnitudes. A clamp keeps an error or lowers it,
    and swish has a slope of at most 1.1 for every alpha. Ours rounds the product to bfloat16. A weight of the
    softmax errs by a few roundings, and one below 1e-8 may be left out.
    """
    attributes = dict.fromkeys(("activation_beta", "normalize_routing_weights"), 0) | case.attributes
    alpha, beta = attributes.get("activation_alpha", 1.0), attributes["activation_beta"]
    limit = attributes.get("swiglu_limit", np.inf)
    x, logits = (case.inputs[name].astype(np.float64) for name in ("x", "router"))
    zero = np.zeros((E, 1))
    w1, w2 = case.weights["fc1"], case.weights["fc2"]
    b1, b2 = (
        case.constants.get(f"{name}_bias", zero + np.zeros(rows))
        for name, rows in (("fc1", len(w1[0])), ("fc2", K))
    )
    if attributes["swiglu_fusion"] == 0:
        w1 = np.concatenate([w1, case.weights["fc3"]], axis=1)
        b1 = (
            np.concatenate([b1, case.constants["fc3_bias"]], axis=1)
            if "fc3_bias" in case.constants
            else np.zeros((E, len(w1[0])))
        )
    both = np.einsum("enk,tk->etn", w1, x) + b1[:, None]
    error = (K + 4) * U32 * (np.einsum("enk,tk->etn", abs(w1), abs(x)) + abs(b1[:, None]))
    halves = (slice(0, None, 2), slice(1, None, 2)) if attributes["swiglu_fusion"] == 1 else (
        slice(0, INTERMEDIATE), slice(INTERMEDIATE, None))  # fmt: skip
    gate, up = np.minimum(both[..., halves[0]], limit), np.clip(both[..., halves[1]], -limit, limit)
    gate_error, up_error = error[..., halves[0]], error[..., halves[1]]
    hidden = gate / (1 + np.exp(-alpha * gate)) * (up + beta)
    slope = 1.1 * gate_error * (abs(up) + beta + up_error) + abs(gate) * up_error
    hidden_error = slope + (U16 + 16 * U32) * (abs(hidden) + slope)
    out = np.einsum("ekn,etn->etk", w2, hidden) + b2[:, None]
    size = np.einsum("ekn,etn->etk", abs(w2), abs(hidden) + hidden_error) + abs(b2[:, None])
    out_error = np.einsum("ekn,etn->etk", abs(w2), hidden_error) + (INTERMEDIATE + 8) * U32 * size
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    chosen = np.argsort(-logits, axis=1, kind="stable")[:, :TOP_K]
    mask = np.zeros_like(weights)
    np.put_along_axis(mask, chosen, 1, axis=1)
    chosen_alone = case.kind == "QMoE" and attributes.get("quant_type", "int") == "int"
    if chosen_alone or attributes["normalize_routing_weights"]:
        weights = weights * mask
    weights = weights / weights.sum(axis=1, keepdims=True) * mask
    if "router_weights" in case.inputs:
        weights = case.inputs["router_weights"] * mask
        if attributes["normalize_routing_weights"] and chosen_alone:
            weights = weights / weights.sum(axis=1, keepdims=True)
    result = np.einsum("te,etk->tk", weights, out)
    bound = np.einsum("te,etk->tk", abs(weights), out_error + (E + 16) * U32 * size) + 1e-8 * size.sum(axis=0)
    return result, 2 * bound


def convert(case: Case, folder: Path, **options: Any) -> Any:
    import onnx

    model = case.model()
    onnx.save(model.proto, folder / "in.onnx")
    assert mx.onnxruntime.convert(folder / "in.onnx", folder / "out.onnx", **options) == 1
    converted = onnx.load(folder / "out.onnx")
    assert {each.op_type for each in converted.graph.node} >= {"TopK", "FusedExperts"}
    assert not {each.name for each in converted.graph.initializer} & case.constants.keys()
    return converted


def check(case: Case, folder: Path, **options: Any) -> None:
    """Both results are within a bound of the definition, and so near to each other."""
    expected, bound = float64_result(case)
    got = run(session(convert(case, folder, **options)), case.inputs)[0]
    assert (abs(got - expected) <= bound / 2).all(), (abs(got - expected) / bound).max()
    theirs = case.model().run(case.inputs)[0]
    assert (abs(theirs - got) <= bound).all(), (abs(theirs - got) / bound).max()


@pytest.mark.parametrize("normalize", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_results_of_onnxruntime(rng: np.random.Generator, tmp_path: Path, name: str, normalize: int) -> None:
    check(make(rng, name, normalize_routing_weights=normalize, bias=bool(normalize)), tmp_path)


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4"])
def test_global_scales_are_exact(rng: np.random.Generator, tmp_path: Path, name: str) -> None:
    maker, _, attributes = CASES[name]
    case = Case(attributes=attributes | {"k": TOP_K})
    for each, rows, columns in (("fc1", 2 * INTERMEDIATE, K), ("fc2", K, INTERMEDIATE)):
        maker(rng, each, rows, columns, case, (any_scales,))
    case.inputs = make(rng, name).inputs
    expected, bound = float64_result(case)
    got = run(session(convert(case, tmp_path)), case.inputs)[0]
    assert (abs(got - expected) <= bound / 2).all()


@pytest.mark.parametrize("normalize", [0, 1])
@pytest.mark.parametrize("name", ["int4 rows", "nvfp4"])
def test_weights_of_the_router(rng: np.random.Generator, tmp_path: Path, name: str, normalize: int) -> None:
    case = make(rng, name, normalize_routing_weights=normalize)
    case.inputs["router_weights"] = rng.random((TOKENS, E), np.float32)
    check(case, tmp_path)


@pytest.mark.parametrize("fusion", [0, 2])
@pytest.mark.parametrize("name", ["int4 blocks", "int8 rows, zero points", "floats"])
def test_other_orders_of_gate_and_up(
    rng: np.random.Generator, tmp_path: Path, name: str, fusion: int
) -> None:
    """The CPU kernels have only interleaved rows; the definition is that of the documentation."""
    case = make(rng, name, fc3=fusion == 0, swiglu_fusion=fusion)
    expected, bound = float64_result(case)
    got = run(session(convert(case, tmp_path)), case.inputs)[0]
    assert (abs(got - expected) <= bound / 2).all()
    if fusion == 0 and "alpha" not in str(case.attributes):
        case.attributes["activation_type"] = "silu"
        case.attributes.pop("swiglu_limit", None)
        expected, bound = float64_result(case)
        assert (abs(run(session(convert(case, tmp_path)), case.inputs)[0] - expected) <= bound / 2).all()


def test_packed_files_and_three_axes(rng: np.random.Generator, tmp_path: Path) -> None:
    """Packed files give the bits of initializers, and tokens may be in batches."""
    case = make(rng, "int8 rows, zero points")
    expected = run(session(convert(case, tmp_path)), case.inputs)[0]
    got = run(session(convert(case, tmp_path, packed_folder=tmp_path)), case.inputs)[0]
    assert (tmp_path / "experts-0").is_file()
    assert_same_bits(got, expected)
    case.inputs["x"] = case.inputs["x"][None]
    assert_same_bits(run(session(convert(case, tmp_path)), case.inputs)[0], expected[None])


def test_nodes_in_other_graphs(rng: np.random.Generator, tmp_path: Path) -> None:
    """Both branches of an If, whose weights are constants of the graph around it; the file is replaced."""
    import onnx

    case = make(rng, "int4 rows")
    model = case.model().proto
    moe = model.graph.node[0]
    helper = onnx.helper
    branches = []
    for name in ("then", "else"):
        inner = onnx.NodeProto.FromString(moe.SerializeToString())
        inner.output[0] = f"{name} out"
        result = helper.make_tensor_value_info(f"{name} out", onnx.TensorProto.FLOAT, None)
        branches.append(helper.make_graph([inner], name, [], [result]))
    del model.graph.node[:]
    model.graph.node.append(
        helper.make_node("If", ["flag"], ["out"], then_branch=branches[0], else_branch=branches[1])
    )
    model.graph.input.append(helper.make_tensor_value_info("flag", onnx.TensorProto.BOOL, []))
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    expected = run(session(convert(case, tmp_path)), case.inputs)[0]
    assert mx.onnxruntime.convert(path, path) == 2
    import onnxruntime

    of = session(str(path))
    for flag in (True, False):
        values = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in case.inputs.items()
        }
        values["flag"] = onnxruntime.OrtValue.ortvalue_from_numpy(np.array(flag))
        assert_same_bits(of.run_with_ort_values(["out"], values)[0].numpy(), expected)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "relu": ("int4 rows", {"activation_type": "relu"}, "activation_type: expected swiglu or silu, got relu"),
    "sparse mixer": ("int4 rows", {"use_sparse_mixer": 1}, "use_sparse_mixer: expected 0, got 1"),
    "beta": (
        "int4 rows",
        {"activation_beta": 0.5},
        "activation_beta: expected .* got alpha 1.0 and beta 0.5",
    ),
    "no third matrix": ("int4 rows", {"swiglu_fusion": 0}, "fc3_experts_weights: expected an input"),
    "bits": ("int4 rows", {"expert_weight_bits": 2}, "expert_weight_bits: expected 4 or 8, got 2"),
    "other bits": (
        "int4 rows",
        {"fc1_expert_weight_bits": 8},
        "fc1_expert_weight_bits: expected None or 4, got 8",
    ),
    "layout": ("int4 rows", {"weights_prepacked": 1}, "weights_prepacked: expected -1 or 0, got 1"),
    "block": ("int4 blocks", {"block_size": 16}, "block_size: expected a multiple of 32, or none, got 16"),
    "fp8": ("int4 rows", {"quant_type": "fp8"}, "quant_type: expected int or fp4 or nvfp4, got fp8"),
    "scales": ("int4 rows", {"block_size": 32}, "scales: expected"),
    "limit": ("int4 rows", {"swiglu_limit_after_activation": 1}, "swiglu_limit_after_activation: expected 0"),
    "unknown": ("floats", {"quant_type": "int"}, "quant_type: expected no such attribute of MoE, got int"),
    "experts": ("int4 rows", {"k": 0}, "k: expected a positive integer, got 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_computed(rng: np.random.Generator, tmp_path: Path, name: str) -> None:
    import onnx

    of, changed, match = REFUSED[name]
    onnx.save(make(rng, of, **changed).model().proto, tmp_path / "in.onnx")
    with pytest.raises(ValueError, match=f"in.onnx: node moe: {match}"):
        mx.onnxruntime.convert(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_weights_that_are_computed(rng: np.random.Generator, tmp_path: Path) -> None:
    import onnx

    case = make(rng, "floats")
    case.inputs["fc2"] = case.constants.pop("fc2")
    onnx.save(case.model().proto, tmp_path / "in.onnx")
    with pytest.raises(
        ValueError, match="fc2_experts_weights: expected an initializer or a constant, got fc2"
    ):
        mx.onnxruntime.convert(tmp_path / "in.onnx", tmp_path / "out.onnx")


def test_files(rng: np.random.Generator, tmp_path: Path) -> None:
    import onnx

    case = make(rng, "floats")
    case.kind, case.attributes = "QMoE", {}
    relu = Model([node("Relu", ["x"], ["out"], "")], {"x": case.inputs["x"]}, {"out": np.float32}, {})
    onnx.save(relu.proto, tmp_path / "relu.onnx")
    with pytest.raises(ValueError, match="relu.onnx: expected a node QMoE or MoE of com.microsoft, got none"):
        mx.onnxruntime.convert(tmp_path / "relu.onnx", tmp_path / "out.onnx")
    (tmp_path / "text").write_text("text")
    with pytest.raises(ValueError, match="text: expected an ONNX model"):
        mx.onnxruntime.convert(tmp_path / "text", tmp_path / "out.onnx")
    with pytest.raises(FileNotFoundError, match="missing"):
        mx.onnxruntime.convert(tmp_path / "missing", tmp_path / "out.onnx")
    with pytest.raises(NotADirectoryError, match="nowhere: expected a folder"):
        mx.onnxruntime.convert(tmp_path / "relu.onnx", tmp_path / "out", packed_folder=tmp_path / "nowhere")
