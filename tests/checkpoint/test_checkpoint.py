"""Model folders: valid ones are read right, everything else is refused by name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from damage import mutate

from mxfp4moe import checkpoint
from mxfp4moe.checkpoint import LayerDescription
from mxfp4moe.checkpoint.safetensors import SafetensorsFile, save_file
from mxfp4moe.cli._synthetic import GptOssShape, SyntheticCheckpoint

SHAPE = GptOssShape(hidden_size=64, intermediate_size=32, num_experts=3, top_k=2)
MLP = "model.layers.0.mlp"
INDEX = "model.safetensors.index.json"


# --- gpt-oss folders ----------------------------------------------------------------------------------------


def write_sharded(folder: Path) -> Path:
    """A small valid gpt-oss folder of two files with an index."""
    SyntheticCheckpoint(SHAPE, seed=0).write(folder, lambda num_bytes: None)
    return folder


def all_tensors(folder: Path) -> dict[str, np.ndarray]:
    return {k: v for path in sorted(folder.glob("*.safetensors")) for k, v in SafetensorsFile(path).items()}


def edit_json(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def merge(folder: Path, edit: Callable[[dict[str, Any]], object] = lambda tensors: None) -> None:
    """Make the sharded folder one of a single file, with tensors edited."""
    tensors = {name: array.copy() for name, array in all_tensors(folder).items()}
    edit(tensors)
    for path in [*folder.glob("*.safetensors"), folder / INDEX]:
        path.unlink(missing_ok=True)
    save_file(folder / "model.safetensors", tensors)


def assert_same_parts(got: LayerDescription, tensors: dict[str, np.ndarray]) -> None:
    names = {
        "w13": "gate_up_proj_blocks",
        "w13_scales": "gate_up_proj_scales",
        "w13_bias": "gate_up_proj_bias",
        "w2": "down_proj_blocks",
        "w2_scales": "down_proj_scales",
        "w2_bias": "down_proj_bias",
    }
    for argument, name in names.items():
        expected = tensors[f"{MLP}.experts.{name}"]
        assert got.experts.arrays[argument].dtype == expected.dtype
        assert got.experts.arrays[argument].tobytes() == expected.tobytes()
    assert np.array_equal(got.router_weight, tensors[f"{MLP}.router.weight"])
    assert got.router_bias is not None
    assert np.array_equal(got.router_bias, tensors[f"{MLP}.router.bias"])


def remove_index(folder: Path) -> None:
    (folder / INDEX).unlink()


@pytest.mark.parametrize(
    "arrange", [lambda folder: None, merge, remove_index], ids=["index", "single", "all files"]
)
def test_every_arrangement_of_files_is_read(tmp_path: Path, arrange: Callable[[Path], None]) -> None:
    write_sharded(tmp_path)
    tensors = {name: array.copy() for name, array in all_tensors(tmp_path).items()}
    arrange(tmp_path)
    parts = checkpoint.read_layer(tmp_path)
    assert (parts.hidden_size, parts.intermediate_size, parts.num_experts, parts.top_k) == (64, 32, 3, 2)
    assert (parts.activation, parts.limit) == ("swigluoai", 7.0)
    assert parts.experts.arrays["gate_up_layout"] == "interleaved"
    assert_same_parts(parts, tensors)


def test_path_may_be_a_string_and_the_layer_a_numpy_integer(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    assert checkpoint.read_layer(str(tmp_path), np.int64(0)).top_k == 2  # type: ignore[arg-type]


def test_other_names_and_missing_optional_fields(tmp_path: Path) -> None:
    write_sharded(tmp_path)

    def edit(config: dict[str, Any]) -> None:
        for name in ("num_experts_per_tok", "swiglu_limit", "quantization_config", "num_hidden_layers"):
            del config[name]

    edit_json(tmp_path / "config.json", edit)
    parts = checkpoint.read_layer(tmp_path)
    assert (parts.top_k, parts.limit) == (2, 7.0)


def test_scales_may_be_e8m0_and_biases_float32(tmp_path: Path) -> None:
    write_sharded(tmp_path)

    def edit(tensors: dict[str, Any]) -> None:
        for name, array in tensors.items():
            if name.endswith("_scales"):
                tensors[name] = array.view(ml_dtypes.float8_e8m0fnu)
            if array.dtype == ml_dtypes.bfloat16:
                tensors[name] = array.astype(np.float32)

    merge(tmp_path, edit)
    parts = checkpoint.read_layer(tmp_path)
    assert parts.experts.arrays["w13_scales"].dtype == ml_dtypes.float8_e8m0fnu
    assert parts.router_weight.dtype == np.float32


def test_only_the_files_of_the_layer_are_opened(tmp_path: Path) -> None:
    write_sharded(tmp_path)

    def edit(index: dict[str, Any]) -> None:
        index["weight_map"]["model.layers.1.mlp.router.weight"] = "model-00009-of-00009.safetensors"

    edit_json(tmp_path / INDEX, edit)
    assert checkpoint.read_layer(tmp_path).top_k == 2


def setting(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.update(fields)


def without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.pop(name)


CONFIGS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "model_type missing": (without("model_type"), "model_type: expected a string, got no such field"),
    "model_type a number": (setting(model_type=3), "model_type: expected a string, got 3"),
    "model_type unknown": (
        setting(model_type="llama"),
        "model_type: expected 'gpt_oss', .* or another of .*supported_model_types.., got 'llama'",
    ),
    "model_type empty": (setting(model_type=""), "model_type: expected 'gpt_oss', .*, got ''"),
    "hidden_size missing": (without("hidden_size"), "hidden_size: expected an integer .*, got no such field"),
    "hidden_size a string": (setting(hidden_size="64"), "hidden_size: expected an integer .*, got '64'"),
    "hidden_size a float": (setting(hidden_size=64.0), "hidden_size: expected an integer .*, got 64.0"),
    "hidden_size a bool": (setting(hidden_size=True), "hidden_size: expected an integer .*, got True"),
    "hidden_size null": (setting(hidden_size=None), "hidden_size: expected an integer .*, got no such field"),
    "hidden_size 0": (setting(hidden_size=0), "hidden_size: expected an integer .*, got 0"),
    "hidden_size negative": (setting(hidden_size=-64), "hidden_size: expected an integer .*, got -64"),
    "hidden_size no multiple": (setting(hidden_size=65), "hidden_size: .*multiple of 32, got 65"),
    "hidden_size too large": (
        setting(hidden_size=2**40),
        f"hidden_size: expected an integer .*, got {2**40}",
    ),
    "hidden_size another": (
        setting(hidden_size=96),
        r"gate_up_proj_blocks: expected U8 \[3, 64, 3, 16\], got U8 \[3, 64, 2, 16\]",
    ),
    "intermediate_size missing": (without("intermediate_size"), "intermediate_size: .*, got no such field"),
    "intermediate_size no multiple": (setting(intermediate_size=31), "intermediate_size: .*, got 31"),
    "intermediate_size another": (setting(intermediate_size=64), r"expected U8 \[3, 128, 2, 16\], got"),
    "num_local_experts missing": (
        without("num_local_experts"),
        "num_local_experts.*: expected an integer .*, got no such field",
    ),
    "num_local_experts a list": (setting(num_local_experts=[3]), r"num_local_experts: .*, got \[3\]"),
    "num_local_experts another": (setting(num_local_experts=4), r"expected U8 \[4, 64, 2, 16\], got"),
    "top_k missing": (
        lambda config: (config.pop("num_experts_per_tok"), config.pop("experts_per_token"))[0],
        r"num_experts_per_tok or .*experts_per_token.*: expected an integer in \[1, 3\], got no such field",
    ),
    "top_k 0": (setting(num_experts_per_tok=0), r"num_experts_per_tok: expected .* \[1, 3\], got 0"),
    "top_k above experts": (
        setting(num_experts_per_tok=4),
        r"num_experts_per_tok: expected .* \[1, 3\], got 4",
    ),
    "limit a string": (setting(swiglu_limit="7"), "swiglu_limit: expected a finite number above 0, got '7'"),
    "limit 0": (setting(swiglu_limit=0), "swiglu_limit: expected a finite number above 0, got 0"),
    "limit NaN": (setting(swiglu_limit=float("nan")), "swiglu_limit: expected a finite number .*, got nan"),
    "limit infinite": (
        setting(swiglu_limit=float("inf")),
        "swiglu_limit: expected a finite number .*, got inf",
    ),
    "limit 10^400": (
        setting(swiglu_limit=10**400),
        "swiglu_limit: expected a finite number .*, got an integer",
    ),
    "num_hidden_layers 0": (setting(num_hidden_layers=0), "num_hidden_layers: expected an integer .*, got 0"),
    "quantization another": (
        setting(quantization_config={"quant_method": "another"}),
        "quantization_config: expected .*, got .*'another'",
    ),
    "quantization a list": (
        setting(quantization_config=[]),
        r"quantization_config: expected an object, got \[\]",
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_wrong_config_is_refused(tmp_path: Path, case: str) -> None:
    edit, message = CONFIGS[case]
    write_sharded(tmp_path)
    edit_json(tmp_path / "config.json", edit)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path)) + ".*" + message):
        checkpoint.read_layer(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b"\xff\xfe", b'{"a": 1, "a": 2}', b"[" * 100_000, b"null"]
)
@pytest.mark.parametrize("name", ["config.json", INDEX])
def test_json_that_is_no_object_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    write_sharded(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: expected a JSON object, got "):
        checkpoint.read_layer(tmp_path)


@pytest.mark.parametrize(
    "file_name",
    ["../x.safetensors", "/x.safetensors", "a/x.safetensors", "..\\x.safetensors", "C:x.safetensors",
     "x\0.safetensors", "\ud800.safetensors", "..", "", ".", "config.json", 3, None, ["x.safetensors"]],
)  # fmt: skip
def test_index_must_not_reach_outside_its_folder(tmp_path: Path, file_name: Any) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write_sharded(folder)
    edit_json(folder / INDEX, lambda index: index["weight_map"].update({f"{MLP}.router.bias": file_name}))
    with pytest.raises(
        ValueError, match=r"weight_map: 'model.*bias': expected the plain name of a .safetensors file"
    ):
        checkpoint.read_layer(folder)


@pytest.mark.parametrize("weight_map", [None, [], "x", 0])
def test_index_without_weight_map_is_refused(tmp_path: Path, weight_map: Any) -> None:
    write_sharded(tmp_path)
    edit_json(tmp_path / INDEX, setting(weight_map=weight_map))
    with pytest.raises(ValueError, match=f"{INDEX}: weight_map: expected an object, got "):
        checkpoint.read_layer(tmp_path)


def test_index_that_names_the_wrong_file_is_refused(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    wrong = "model-00001-of-00002.safetensors"
    edit_json(tmp_path / INDEX, lambda index: index["weight_map"].update({f"{MLP}.router.bias": wrong}))
    with pytest.raises(
        ValueError, match=rf"{wrong}: expected a tensor {MLP}.router.bias \(as .*{INDEX} says\), got none"
    ):
        checkpoint.read_layer(tmp_path)


TENSORS: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray], str]] = {
    "blocks int8": ("experts.gate_up_proj_blocks", lambda a: a.view(np.int8), "U8 .*, got I8"),
    "blocks flat": ("experts.down_proj_blocks", lambda a: a.reshape(3, 64, 16), r"got U8 \[3, 64, 16\]"),
    "scales of another K": ("experts.gate_up_proj_scales", lambda a: a[..., :1], r"got U8 \[3, 64, 1\]"),
    "scales float32": (
        "experts.down_proj_scales",
        lambda a: a.astype(np.float32),
        "U8 or F8_E8M0 .*, got F32",
    ),
    "bias of one expert": (
        "experts.gate_up_proj_bias",
        lambda a: a[0],
        r"BF16 or F16 or F32 \[3, 64\], got BF16 \[64\]",
    ),
    "bias integer": (
        "experts.down_proj_bias",
        lambda a: a.astype(np.int32),
        "BF16 or F16 or F32 .*, got I32",
    ),
    "router transposed": (
        "router.weight",
        lambda a: np.ascontiguousarray(a.T),
        r"\[3, 64\], got BF16 \[64, 3\]",
    ),
    "router bias of another E": ("router.bias", lambda a: a[:2], r"F32 \[3\], got BF16 \[2\]"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_wrong_tensor_is_refused(tmp_path: Path, case: str) -> None:
    name, change, message = TENSORS[case]
    name = f"{MLP}.{name}"
    write_sharded(tmp_path)
    merge(tmp_path, lambda tensors: tensors.update({name: change(tensors[name])}))
    with pytest.raises(ValueError, match=f"model.safetensors: tensor {name}: expected .*{message}"):
        checkpoint.read_layer(tmp_path)


@pytest.mark.parametrize("name", ["experts.gate_up_proj_blocks", "experts.down_proj_bias", "router.bias"])
def test_missing_tensor_is_refused(tmp_path: Path, name: str) -> None:
    write_sharded(tmp_path)
    merge(tmp_path, without(f"{MLP}.{name}"))
    with pytest.raises(ValueError, match=rf"expected a tensor {MLP}.{name}, got none among 7"):
        checkpoint.read_layer(tmp_path)


def test_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a model folder, got nothing"):
        checkpoint.read_layer(tmp_path / "nowhere")
    for name in ("nowhere", "nowhere.gguf"):
        with pytest.raises(FileNotFoundError, match=f"{name}: .*'hf download'.*'mxfp4moe demo --keep'"):
            checkpoint.open(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="config.json: expected a file, got nothing"):
        checkpoint.read_layer(tmp_path)
    write_sharded(tmp_path)
    with pytest.raises(ValueError, match="expected a model folder, got a file"):
        checkpoint.read_layer(tmp_path / "config.json")
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="00002-of-00002.safetensors: expected a file, got nothing"):
        checkpoint.read_layer(tmp_path)
    for path in [*tmp_path.glob("*.safetensors"), tmp_path / INDEX]:
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"expected \*.safetensors files, got none"):
        checkpoint.read_layer(tmp_path)


def test_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    remove_index(tmp_path)
    save_file(tmp_path / "more.safetensors", {f"{MLP}.router.bias": np.zeros(3, np.float32)})
    with pytest.raises(
        ValueError, match="in one file, got model-00002-of-00002.safetensors and more.safetensors"
    ):
        checkpoint.read_layer(tmp_path)


@pytest.mark.parametrize(
    ("path", "layer", "error", "message"),
    [
        (3, 0, TypeError, "path: expected a str or os.PathLike, got 3"),
        (None, 0, TypeError, "path: expected a str or os.PathLike, got None"),
        (b"model", 0, TypeError, "path: expected a str or os.PathLike, got"),
        ("a\0b", 0, ValueError, "path: expected no null character, got"),
        (None, 1.0, TypeError, "layer: expected an integer, got 1.0"),
        (None, True, TypeError, "layer: expected an integer, got True"),
        (None, "0", TypeError, "layer: expected an integer, got '0'"),
        (None, -1, ValueError, "layer: expected an integer of at least 0, got -1"),
    ],
)
def test_wrong_arguments_are_refused(path: Any, layer: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        checkpoint.read_layer(path, layer)


def test_layer_out_of_range_is_refused(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    with pytest.raises(ValueError, match=r"layer: expected an integer in \[0, 0\], got 1"):
        checkpoint.read_layer(tmp_path, 1)
    edit_json(tmp_path / "config.json", setting(num_hidden_layers=2))
    with pytest.raises(
        ValueError, match=r"expected a tensor model.layers.1.mlp.experts.gate_up_proj_blocks, got none"
    ):
        checkpoint.read_layer(tmp_path, 1)


# --- mutations ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", INDEX, "model-00001-of-00002.safetensors"])
def test_mutated_checkpoint_is_refused_or_read_in_full(
    tmp_path: Path, rng: np.random.Generator, name: str
) -> None:
    write_sharded(tmp_path)
    content = (tmp_path / name).read_bytes()
    num_refused = 0
    for _ in range(300):
        # A new file each time: a mapped one must not change under its readers.
        (tmp_path / name).unlink()
        (tmp_path / name).write_bytes(mutate(content, rng))
        try:
            parts = checkpoint.read_layer(tmp_path)
        except (ValueError, TypeError, OSError) as error:
            num_refused += 1
            assert "expected" in str(error)
            continue
        arrays = [a for a in parts.experts.arrays.values() if isinstance(a, np.ndarray)]
        for array in [*arrays, parts.router_weight, parts.router_bias]:
            assert array is not None
            assert len(array.tobytes()) == array.nbytes
            assert array.shape[0] == parts.num_experts
    assert num_refused > 50


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_links_to_themselves_are_refused(tmp_path: Path, name: str) -> None:
    merge(write_sharded(tmp_path))
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(name)
    with pytest.raises(ValueError, match="expected .*, got "):
        checkpoint.read_layer(tmp_path)


def test_names_that_are_too_long_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a model folder, got file name too long"):
        checkpoint.read_layer("a" * 5000)
    write_sharded(tmp_path)
    name = f"{'a' * 300}.safetensors"
    edit_json(
        tmp_path / INDEX,
        lambda content: content.update(weight_map=dict.fromkeys(content["weight_map"], name)),
    )
    with pytest.raises(ValueError, match="expected a file, got file name too long"):
        checkpoint.read_layer(tmp_path)
