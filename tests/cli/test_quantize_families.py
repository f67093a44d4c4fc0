"""``mxfp4moe quantize`` of every family and both styles of names: published names, which our readers read."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bfloat16_models import BF16, EXPERTS, HIDDEN, INTERMEDIATE, TOP_K, Tensors, write_json

import mxfp4moe as mx
from mxfp4moe.checkpoint.safetensors import SafetensorsFile, save_file
from mxfp4moe.cli import main
from mxfp4moe.cli._quantize.targets import Fp8Block, Mxfp4

FORMATS = {
    "mxfp4": ("weight_packed", "weight_scale"),
    "fp8_block": ("weight", "weight_scale_inv"),
    "mxfp8": ("weight", "weight_scale"),
    "nvfp4": ("weight_packed", "weight_scale", "weight_global_scale"),
    "int4": ("weight_packed", "weight_scale", "weight_shape"),
    "int8": ("weight_packed", "weight_scale", "weight_shape"),
}
"""The ends of the names of what a matrix becomes."""
PROJ, W = ("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2")
BIAS = "gate.e_score_correction_bias"


@dataclass(frozen=True)
class Style:
    """Names of the tensors of a block."""

    block: str
    experts: tuple[str, str, str] | None = None
    """None: all in gate_up_proj and down_proj."""
    shared: tuple[str, ...] = PROJ
    bias: str = BIAS
    is_transposed: bool = False


@dataclass(frozen=True)
class Family:
    """Layers of one model type; those of `moe_layers` have experts."""

    config: dict[str, Any]
    published: Style
    others: tuple[Style, ...]
    """What transformers saves, and anything else that is met."""
    moe_layers: tuple[int, ...] = (0, 1)
    num_shared: int = 0
    tensors: tuple[str, ...] = ()
    """What the router has beside its weight: "bias" in each layer, or "tid2eid" in layer 0 instead."""
    written: dict[str, Any] = field(default_factory=dict)
    """Fields of config.json that `quantize` leaves out."""


def nested(text: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"text_config": text, **fields}


_EXPERTS = {"num_experts_per_tok": TOP_K, "num_hidden_layers": 2, "hidden_size": HIDDEN, "vocab_size": 11}
_MINIMAX = {**_EXPERTS, "num_local_experts": EXPERTS, "intermediate_size": INTERMEDIATE}
_M3 = {**_MINIMAX, "shared_intermediate_size": INTERMEDIATE, "mlp_layer_types": ["dense", "sparse"]}
_MANY = {**_EXPERTS, "n_routed_experts": EXPERTS, "moe_intermediate_size": INTERMEDIATE}
_QWEN = {**_EXPERTS, "num_experts": EXPERTS, "moe_intermediate_size": INTERMEDIATE}
_FUSED = Style("model.layers.{}.mlp")
_M2_PUBLISHED = Style("model.layers.{}.block_sparse_moe", W, bias="e_score_correction_bias")
_M3_PUBLISHED = Style("language_model.model.layers.{}.block_sparse_moe", W, bias="e_score_correction_bias")
_VL = "model.language_model.layers.{}.mlp"

FAMILIES = {
    "mixtral": Family(
        {"model_type": "mixtral", **_MINIMAX},
        Style("model.layers.{}.block_sparse_moe", W),
        (_FUSED, Style("model.layers.{}.mlp", PROJ)),
    ),
    "qwen3_moe": Family({"model_type": "qwen3_moe", **_QWEN}, Style("model.layers.{}.mlp", PROJ), (_FUSED,)),
    "qwen3_vl_moe": Family(
        nested({"model_type": "qwen3_vl_moe_text", **_QWEN}, model_type="qwen3_vl_moe"),
        Style(_VL, PROJ),
        (Style(_VL), Style(_VL, is_transposed=True)),
    ),
    "deepseek_v3": Family(
        {"model_type": "deepseek_v3", **_MANY, "first_k_dense_replace": 1, "n_group": 1},
        Style("model.layers.{}.mlp", PROJ),
        (_FUSED,),
        moe_layers=(1, 2),  # the second is one that predicts further tokens
        num_shared=1,
        tensors=("bias",),
    ),
    "deepseek_v4": Family(
        {"model_type": "deepseek_v4", **_MANY, "num_hash_layers": 1, "expert_dtype": "fp4"},
        Style("layers.{}.ffn", W, W, bias="gate.bias"),
        (Style("model.layers.{}.ffn", W, W, bias="gate.bias"), _FUSED),
        num_shared=1,
        tensors=("bias", "tid2eid"),
        written={"expert_dtype": "fp4"},
    ),
    "minimax_m2": Family(
        {"model_type": "minimax_m2", **_MINIMAX},
        _M2_PUBLISHED,
        (Style("model.layers.{}.mlp", bias="e_score_correction_bias"),),
        tensors=("bias",),
    ),
    "minimax_m3_vl": Family(
        nested({"model_type": "minimax_m3_vl_text", **_M3}, model_type="minimax_m3_vl"),
        _M3_PUBLISHED,
        (Style(_VL, shared=("gate_up_proj", "down_proj")), Style(_VL)),
        moe_layers=(1,),
        num_shared=1,
        tensors=("bias",),
    ),
    "minimax_m3_vl_text": Family(
        {"model_type": "minimax_m3_vl_text", **_M3},
        _M2_PUBLISHED,
        (Style("model.layers.{}.mlp", shared=("gate_up_proj", "down_proj")),),
        moe_layers=(1,),
        num_shared=1,
        tensors=("bias",),
    ),
}
CASES = [
    (name, number) for name, family in FAMILIES.items() for number in range(-1, len(family.others))
]  # -1: the published style


def style_of(name: str, number: int) -> Style:
    return FAMILIES[name].published if number < 0 else FAMILIES[name].others[number]


def matrices(rng: np.random.Generator, *leading: int) -> dict[str, np.ndarray]:
    shapes = {"gate": (INTERMEDIATE, HIDDEN), "up": (INTERMEDIATE, HIDDEN), "down": (HIDDEN, INTERMEDIATE)}
    return {part: rng.standard_normal((*leading, *shape)).astype(BF16) for part, shape in shapes.items()}


def block_tensors(name: str, style: Style, rng: np.random.Generator, layer: int) -> Tensors:
    """The same numbers in every style."""
    family, block = FAMILIES[name], style.block.format(layer)
    experts, shared = matrices(rng, EXPERTS), matrices(rng)
    tensors: Tensors = {f"{block}.gate.weight": rng.standard_normal((EXPERTS, HIDDEN)).astype(BF16)}
    bias, table = rng.standard_normal(EXPERTS).astype(np.float32), rng.integers(0, EXPERTS, (11, TOP_K))
    if "tid2eid" in family.tensors and layer == 0:
        tensors[f"{block}.gate.tid2eid"] = table
    elif "bias" in family.tensors:
        tensors[f"{block}.{style.bias}"] = bias
    if style.experts is None:
        both = [np.concatenate([experts["gate"], experts["up"]], axis=1), experts["down"]]
        if style.is_transposed:
            both = [np.ascontiguousarray(array.transpose(0, 2, 1)) for array in both]
        tensors |= dict(
            zip((f"{block}.experts.gate_up_proj", f"{block}.experts.down_proj"), both, strict=True)
        )
    else:
        for part, matrix in zip(experts, style.experts, strict=True):
            for expert, array in enumerate(experts[part]):
                tensors[f"{block}.experts.{expert}.{matrix}.weight"] = array
    if family.num_shared:
        arrays = list(shared.values())
        if len(style.shared) == 2:
            arrays = [np.concatenate(arrays[:2]), arrays[2]]
        for matrix, array in zip(style.shared, arrays, strict=True):
            tensors[f"{block}.shared_experts.{matrix}.weight"] = array
    return tensors


def write_family(folder: Path, name: str, style: Style, seed: int = 1) -> Tensors:
    rng = np.random.default_rng(seed)
    tensors: Tensors = {"lm_head.weight": np.ones((11, HIDDEN), BF16)}
    for layer in FAMILIES[name].moe_layers:
        tensors |= block_tensors(name, style, rng, layer)
    folder.mkdir()
    write_json(folder / "config.json", FAMILIES[name].config)
    save_file(folder / "model.safetensors", tensors)
    return tensors


def new_names(name: str, style: Style, format: str) -> set[str]:
    """The names of the result: those of the published style after the prefix that the layers have."""
    published = FAMILIES[name].published
    prefix = style.block.rpartition(".")[0]
    style = Style(
        f"{prefix}.{published.block.rpartition('.')[2]}",
        published.experts,
        published.shared,
        published.bias,
    )
    rng = np.random.default_rng(0)
    names = {"lm_head.weight"}
    for layer in FAMILIES[name].moe_layers:
        for tensor in block_tensors(name, style, rng, layer):
            stem = tensor.removesuffix(".weight")
            names |= {f"{stem}.{s}" for s in FORMATS[format]} if ".experts." in tensor else {tensor}
    return names


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("name", "number"), CASES)
def test_result_is_read_and_has_published_names(tmp_path: Path, name: str, number: int, format: str) -> None:
    family, style = FAMILIES[name], style_of(name, number)
    a, b = tmp_path / "a", tmp_path / "b"
    source = write_family(a, name, style)
    assert main(["quantize", str(a), str(b), "--format", format]) == 0
    result = dict(SafetensorsFile(b / "model.safetensors").items())
    assert result.keys() == new_names(name, style, format)
    config = json.loads((b / "config.json").read_text())
    quantization = config.pop("quantization_config")
    assert config == {k: v for k, v in family.config.items() if k not in family.written}
    listed = quantization["modules_to_not_convert" if format == "fp8_block" else "ignore"]
    assert sorted(listed) == sorted(
        n.removesuffix(".weight")
        for n, array in result.items()
        if array.dtype == BF16 and n.endswith(".weight") and array.ndim == 2
    )
    assert len(source) > 2
    for layer in family.moe_layers:
        if layer > 1:  # beyond num_hidden_layers
            continue
        got = mx.MoELayer.from_checkpoint(b, layer)
        plain, quantized = (mx.MoELayer.from_checkpoint(a, layer, quantize=q) for q in (None, format))
        assert got.experts.format == format
        # Bytes, since scales may be in uint8 tensors. Gate and up of NVFP4 share a scale in the files alone.
        for one, other in zip(got.experts.unpack(), quantized.experts.unpack(), strict=True):
            assert format == "nvfp4" or one is other is None or one.tobytes() == other.tobytes()
        assert got.shared_experts == plain.shared_experts == quantized.shared_experts
        assert np.array_equal(got.router_weight, plain.router_weight)
        assert str(got.routing_arguments) == str(plain.routing_arguments)


@pytest.mark.parametrize("name", FAMILIES)
def test_styles_hold_the_same_numbers(tmp_path: Path, name: str) -> None:
    layers = []
    for number in range(-1, len(FAMILIES[name].others)):
        folder = tmp_path / str(number)
        write_family(folder, name, style_of(name, number))
        layers.append(mx.MoELayer.from_checkpoint(folder, 1))
    x, ids = np.random.default_rng(2).standard_normal((5, HIDDEN)).astype(np.float32), np.arange(5)
    results = [layer(x, ids) if layer.routing == "hash_topk" else layer(x) for layer in layers]
    assert all(np.array_equal(result, results[0]) for result in results)


def test_gpt_oss_in_float16(tmp_path: Path, rng: np.random.Generator) -> None:
    from bfloat16_models import write_model

    (tmp_path / "a").mkdir()
    write_model(tmp_path / "a", rng, "gpt_oss")
    for path in (tmp_path / "a").glob("*.safetensors"):
        tensors = {
            n: a.astype("f2") if a.dtype == BF16 else a.copy() for n, a in SafetensorsFile(path).items()
        }
        path.unlink()
        save_file(path, tensors)
    assert main(["quantize", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    got, expected = mx.load_layers(tmp_path / "b"), mx.load_layers(tmp_path / "a", quantize="mxfp4")
    x = rng.standard_normal((5, HIDDEN), np.float32)
    assert [layer.experts.format for layer in got] == ["mxfp4", "mxfp4"]
    assert all(np.array_equal(a(x), b(x)) for a, b in zip(got, expected, strict=True))


# --- refusals -----------------------------------------------------------------------------------------------


def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """The one line that says why; nothing is left beside the source."""
    assert main(["quantize", str(tmp_path / "a"), str(tmp_path / "b"), *options]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("mxfp4moe: error: ")
    return line


@pytest.mark.parametrize("model_type", ["llama", "openai_privacy_filter", "anything"])
@pytest.mark.parametrize("style", [_FUSED, Style("model.layers.{}.mlp", PROJ)])
def test_experts_of_an_unknown_model_type_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model_type: str, style: Style
) -> None:
    write_family(tmp_path / "a", "qwen3_moe", style)
    write_json(tmp_path / "a" / "config.json", FAMILIES["qwen3_moe"].config | {"model_type": model_type})
    assert "config.json: model_type: expected 'gpt_oss', " in (error := refused(tmp_path, capsys))
    assert error.endswith(f"got '{model_type}'")


@pytest.mark.parametrize("field", ["hidden_size", "intermediate_size"])
@pytest.mark.parametrize(("name", "number"), CASES)
def test_sizes_of_the_configuration_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, number: int, field: str
) -> None:
    style = style_of(name, number)
    write_family(tmp_path / "a", name, style)
    config = json.loads(json.dumps(FAMILIES[name].config))
    text = config.get("text_config", config)
    for key in text.keys() & {field, f"moe_{field}"}:
        text[key] *= 2
    write_json(tmp_path / "a" / "config.json", config)
    error = refused(tmp_path, capsys)
    assert f"{style.block.format(FAMILIES[name].moe_layers[0])}." in error
    assert "expected " in error
    assert ", got " in error


def test_transposed_experts_are_refused_where_a_type_has_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_family(tmp_path / "a", "qwen3_moe", Style("model.layers.{}.mlp", is_transposed=True))
    # HIDDEN is twice INTERMEDIATE, so that the other tensor shows it.
    assert "experts.down_proj: expected BF16 or F16 or F32 [3, 64, 32], got BF16 [3, 32, 64]" in refused(
        tmp_path, capsys
    )


def test_rows_that_no_block_divides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_family(tmp_path / "a", "qwen3_moe", _FUSED)
    write_json(tmp_path / "a" / "config.json", FAMILIES["qwen3_moe"].config | {"moe_intermediate_size": 16})
    tensors = {n: a.copy() for n, a in SafetensorsFile(tmp_path / "a" / "model.safetensors").items()}
    for name, array in tensors.items():
        if name.endswith("gate_up_proj"):
            tensors[name] = np.ascontiguousarray(array[:, :32])
        if name.endswith("down_proj"):
            tensors[name] = np.ascontiguousarray(array[:, :, :16])
    (tmp_path / "a" / "model.safetensors").unlink()
    save_file(tmp_path / "a" / "model.safetensors", tensors)
    expected = "experts.down_proj: expected rows of a multiple of 32 weights, got 16"
    assert expected in refused(tmp_path, capsys)


@pytest.mark.parametrize("where", ["quantization_config", "compression_config", "text_config"])
def test_what_is_quantized_already(tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str) -> None:
    write_family(tmp_path / "a", "minimax_m3_vl", _M3_PUBLISHED)
    config = json.loads(json.dumps(FAMILIES["minimax_m3_vl"].config))
    part = config["text_config"] if where == "text_config" else config
    part["quantization_config" if where == "text_config" else where] = {"quant_method": "mxfp8"}
    write_json(tmp_path / "a" / "config.json", config)
    assert "expected none: a checkpoint in bfloat16, got one" in refused(tmp_path, capsys)


@pytest.mark.parametrize(
    ("target", "config"),
    [
        (Mxfp4, {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}),
        (Fp8Block, {"quant_method": "fp8", "weight_block_size": [16, 32]}),
        (Fp8Block, {"quant_method": "unheard of"}),
    ],
)
def test_a_result_that_cannot_be_read_gets_no_name(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    target: Any,
    config: dict[str, Any],
) -> None:
    monkeypatch.setattr(target, "config", lambda self, unquantized: config)
    write_family(tmp_path / "a", "deepseek_v3", _FUSED)
    assert "expected " in refused(
        tmp_path, capsys, "--format", "fp8_block" if target is Fp8Block else "mxfp4"
    )
