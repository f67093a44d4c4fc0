"""Slices: layers that hold a part of their experts, made of layers, checkpoints and packed files."""

from __future__ import annotations

import copy
import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import gguf_models
import integer_storages
import layer_fields
import model_folders
import numpy as np
import pytest
import quantized_folders
from packed_examples import FORMATS, ROUTINGS, E, K, make_experts, make_layer

import mxfp4moe as mx
from mxfp4moe import cli

X_ROWS = 9


def place_ids(count: int) -> list[list[int]]:
    """Some parts of `count` experts: one, a range, scattered ones in another order."""
    return [[count - 1], list(range(count // 2)), sorted(range(0, count, 2), reverse=True)]


@pytest.mark.parametrize("routing", ROUTINGS)
def test_parts_are_the_terms_of_their_experts(isa: str, rng: np.random.Generator, routing: str) -> None:
    whole = make_layer(rng, routing)
    x = rng.standard_normal((X_ROWS, K), np.float32)
    inputs = {"input_ids": np.arange(X_ROWS) % 4} if routing == "deepseek v4" else {}
    for ids in place_ids(E):
        layer = whole.slice(ids)
        held = sorted(ids)
        expected_map = np.full(E, -1)
        expected_map[held] = np.arange(len(held))
        assert np.array_equal(layer.expert_map, expected_map)
        assert (layer.num_experts, layer.experts.num_experts) == (E, len(held))
        routed = layer.route(x, **inputs)
        assert all(np.array_equal(a, b) for a, b in zip(routed, whole.route(x, **inputs), strict=True))
        got = layer(x, **inputs)
        weights, ids_of_slots = layer.choose(layer.router_logits(x), inputs.get("input_ids"))
        kept = np.where(ids_of_slots < E, ids_of_slots, -1)
        part = mx.fused_experts(
            x,
            whole.experts,
            weights,
            np.where(np.isin(kept, held), kept, -1),
            activation=whole.activation,
            alpha=whole.alpha,
            limit=whole.limit,
        )
        assert np.array_equal(got, part * np.float32(whole.routed_scaling_factor))


@pytest.mark.parametrize("names", layer_fields.COMBINATIONS, ids="-".join)
def test_slices_of_layers_with_any_field(isa: str, rng: np.random.Generator, names: tuple[str, ...]) -> None:
    """An exact part is what the reference says; the parts add up to the layer without what it adds once."""
    call = layer_fields.exact_call(rng, names, 7)
    parts = [call.layer.slice(range(2)), call.layer.slice(range(2, layer_fields.EXPERTS))]
    for layer in parts:
        part = layer_fields.Call(layer, call.hidden_states, call.router)
        if layer.latent_norm is not None:
            with pytest.raises(ValueError, match="expert_map: expected the whole layer, for latent_norm is"):
                part.run()
            continue
        assert np.array_equal(part.run(), part.reference())


@pytest.mark.parametrize("format", FORMATS)
def test_selected_experts_are_those_of_the_whole(rng: np.random.Generator, format: str) -> None:
    """Their bytes are in the same memory, and are what they would be if they had been packed alone."""
    experts = make_experts(rng, format, num_experts=6)
    arrays = experts.unpack()
    for places in ([5], [1, 2, 3], [0, 3, 4]):
        selected = experts._select(np.array(places, np.int32))
        assert selected.nbytes * 6 == sum(size for _, _, size in experts._storage.parts()) * 6 * len(places)
        for name, array in selected.unpack()._asdict().items():
            expected = getattr(arrays, name)
            assert (array is None) == (expected is None)
            assert array is None or array.tobytes() == expected[places].tobytes()
        assert mx.pack_experts(**selected.arguments()) == selected
        for same in (pickle.loads(pickle.dumps(selected)), copy.deepcopy(selected)):
            assert same == selected
        again = selected._select(np.array([len(places) - 1], np.int32))
        assert again == experts._select(np.array(places[-1:], np.int32))


def test_slices_are_saved_and_whole_files_are_opened_in_part(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    for routing, ids in zip(("deepseek v4", "nemotron", "gpt-oss"), place_ids(E), strict=True):
        whole = make_layer(rng, routing)
        whole.save(tmp_path / "whole")
        expected = whole.slice(ids)
        for verify in (False, True):
            assert mx.MoELayer.open(tmp_path / "whole", experts=ids, verify=verify) == expected
        expected.save(tmp_path / "part")
        part = mx.MoELayer.open(tmp_path / "part", verify=True)
        assert part == expected
        assert part.experts == expected.experts
        assert mx.MoELayer.open(tmp_path / "part", experts=ids[:1], verify=True) == whole.slice(ids[:1])
        with pytest.raises(ValueError, match="experts: expected experts of this slice"):
            mx.MoELayer.open(tmp_path / "part", experts=set(range(E)) - set(ids))


def test_pages_of_other_experts_are_not_read(tmp_path: Path, rng: np.random.Generator) -> None:
    """Damage in an expert that is not used is neither found nor of any effect."""
    whole = make_layer(rng, "default")
    whole.save(tmp_path / "layer")
    begin = next(part.begin for part in _parts(tmp_path / "layer") if part.name == "experts/w13")
    data = bytearray((tmp_path / "layer").read_bytes())
    data[begin] ^= 1
    (tmp_path / "layer").write_bytes(data)
    with pytest.raises(mx.PackedFormatError, match="row 0"):
        mx.MoELayer.open(tmp_path / "layer", verify=True)
    with pytest.raises(mx.PackedFormatError, match="row 0"):
        mx.MoELayer.open(tmp_path / "layer", verify=True, experts=[0])
    assert mx.MoELayer.open(tmp_path / "layer", verify=True, experts=[1, 2]) == whole.slice([1, 2])


def _parts(path: Path) -> Any:
    from mxfp4moe.packed.container import PackedFile

    return PackedFile(path).parts.values()


@pytest.mark.parametrize("names", [("zero experts",), ("shared",)], ids="-".join)
def test_loads_are_counted(rng: np.random.Generator, names: tuple[str, ...]) -> None:
    call = layer_fields.random_call(rng, names, 11)
    layer = call.layer.slice([0, 2])
    for layer_of_call in (layer, call.layer):
        one = layer_fields.Call(layer_of_call, call.hidden_states, call.router)
        one.run()
        one.tokens(slice(4)).run()
        _, ids = layer_of_call.route(np.concatenate([call.hidden_states, call.hidden_states[:4]]))
        expected = [(ids == expert).sum() for expert in range(layer_fields.EXPERTS)]
        tokens, slots = layer_of_call.load_statistics()
        assert (tokens, slots.tolist()) == (15, expected)


# --- checkpoints --------------------------------------------------------------------------------------------


def check_slices(path: Path, layer: int, num_slices: int = 2) -> None:
    whole = mx.MoELayer.from_checkpoint(path, layer)
    for ids in place_ids(whole.num_experts)[-num_slices:]:
        assert mx.MoELayer.from_checkpoint(path, layer, experts=ids) == whole.slice(ids)


@pytest.mark.parametrize("name", model_folders.NAMES)
def test_slices_of_every_model_type(tmp_path: Path, name: str) -> None:
    folder = model_folders.load(name)
    check_slices(folder.write(tmp_path), folder.layer, 1)


@pytest.mark.parametrize("name", quantized_folders.NAMES)
def test_slices_of_every_quantization(tmp_path: Path, name: str) -> None:
    folder = quantized_folders.load(name)
    check_slices(folder.write(tmp_path), folder.layer)


@pytest.mark.parametrize("name", integer_storages.CASES)
def test_slices_of_every_integer_layout(tmp_path: Path, name: str) -> None:
    model, _ = integer_storages.written(integer_storages.CASES[name])
    check_slices(model.write(tmp_path), model.layer)


@pytest.mark.parametrize("name", gguf_models.CASES)
def test_slices_of_every_gguf_architecture(tmp_path: Path, name: str) -> None:
    pytest.importorskip("gguf", reason="the gguf package, which writes the files, is not installed")
    path = tmp_path / "model.gguf"
    gguf_models.write(path, name)
    check_slices(path, mx.checkpoint.open(path).moe_layers[0], 1)


@pytest.mark.parametrize("quantize", ["mxfp4", "nvfp4", "int8", "fp8_block"])
def test_quantized_while_they_are_read(tmp_path: Path, quantize: Any) -> None:
    folder = model_folders.load("mixtral")
    path = folder.write(tmp_path)
    whole = mx.load_layers(path, [folder.layer], quantize=quantize)
    parts = mx.load_layers(path, [folder.layer], quantize=quantize, experts=range(1, 3))
    assert [part == layer.slice([1, 2]) for part, layer in zip(parts, whole, strict=True)]


# --- the command --------------------------------------------------------------------------------------------


def test_pack_experts(tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]) -> None:
    whole = make_layer(rng, "minimax")
    whole.save(tmp_path / "layer")
    assert (
        cli.main(["pack", f"{tmp_path}/layer", f"{tmp_path}/part", f"--experts=0,2-{E - 1}", "--json"]) == 0
    )
    assert json.loads(capsys.readouterr().out)["whole_model"] is False
    assert mx.load_layers(tmp_path / "part") == [whole.slice([0, *range(2, E)])]
    assert cli.main(["pack", f"{tmp_path}/layer", f"{tmp_path}/none", f"--experts={E}"]) == 1
    assert f"--experts[0]: expected an integer in [0, {E - 1}], got {E}" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "a", "3-", "-3", "5-3", "1,,2", "0-99999999", "1-2-3"])
def test_wrong_lists_of_experts(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    with pytest.raises(SystemExit):
        cli.main(["pack", str(tmp_path), str(tmp_path / "part"), f"--experts={text}"])
    assert "--experts: expected ids such as 0-15,40" in capsys.readouterr().err


# --- what is wrong ------------------------------------------------------------------------------------------

WRONG: list[tuple[Any, type[Exception], str]] = [
    ([E], ValueError, rf"experts\[0\]: expected an integer in \[0, {E - 1}\], got {E}"),
    (range(-1, 2), ValueError, rf"experts\[0\]: expected an integer in \[0, {E - 1}\], got -1"),
    ([0, 2, 0], ValueError, "experts: expected each expert once, got 0 twice"),
    (range(10**15), ValueError, rf"experts\[{E}\]: expected an integer in \[0, {E - 1}\], got {E}"),
    (itertools.repeat(1), ValueError, "experts: expected each expert once, got 1 twice"),
    ([], ValueError, "experts: expected at least one expert, got none"),
    (range(0), ValueError, "experts: expected at least one expert, got none"),
    (np.ones((1, 1), int), ValueError, "experts: expected an array with one axis"),
    (np.ones(1), TypeError, "experts: expected an array of integers"),
    (1, TypeError, "experts: expected a range or ids of experts, got 1"),
    ("01", TypeError, "experts: expected a range or ids of experts, got '01'"),
    ({0: 1}, TypeError, "experts: expected a range or ids of experts, got an object of type dict"),
    ([1.0], TypeError, r"experts\[0\]: expected an integer, got 1.0"),
    ([True], TypeError, r"experts\[0\]: expected an integer, got True"),
]


@pytest.mark.parametrize(("ids", "error", "message"), WRONG)
def test_wrong_ids(
    tmp_path: Path, rng: np.random.Generator, ids: Any, error: type[Exception], message: str
) -> None:
    layer = make_layer(rng, "default")
    layer.save(tmp_path / "layer")
    for call in (
        lambda: layer.slice(ids),
        lambda: mx.MoELayer.open(tmp_path / "layer", experts=ids),
        lambda: mx.MoELayer.from_checkpoint(tmp_path / "layer", experts=ids),
        lambda: mx.load_layers(tmp_path / "layer", experts=ids),
    ):
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize(
    ("expert_map", "error", "message"),
    [
        ([0, 1, 1, 2], ValueError, "expert_map: expected 0 to 2 in ascending order, and -1 for"),
        ([0, 2, 1], ValueError, "expert_map: expected 0 to 2 .* got 2 as number 1 of them"),
        ([0, 1, -1], ValueError, "expert_map: expected 0 to 2 .* got 2 of them"),
        ([[0, 1, 2]], ValueError, r"expert_map: expected shape \(num_experts,\)"),
        ([0.0, 1.0, 2.0], TypeError, "expert_map: expected an array of integers"),
    ],
)
def test_wrong_maps(rng: np.random.Generator, expert_map: Any, error: type[Exception], message: str) -> None:
    weight = np.ones((np.size(expert_map), K), np.float32)
    with pytest.raises(error, match=message):
        mx.MoELayer(make_experts(rng, "mxfp4"), weight, top_k=2, expert_map=expert_map)


def test_a_whole_model_is_not_opened_with_slices(tmp_path: Path) -> None:
    import whole_models

    lm = whole_models.open_model(whole_models.NAMES[0], tmp_path)
    lm.save(tmp_path / "packed")
    number = next(iter(mx.checkpoint.open(tmp_path / "packed").moe_layers))
    path = tmp_path / "packed" / f"layer-{number:05d}.packed"
    mx.MoELayer.from_checkpoint(tmp_path / "packed", number).slice([0]).save(path)
    with pytest.raises(mx.PackedFormatError, match="with all of their experts beside it, got a slice"):
        mx.CausalLM.open(tmp_path / "packed")
