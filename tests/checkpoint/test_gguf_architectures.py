"""Each architecture of GGUF files: what its layer computes, its defaults, and metadata that are wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf_models
import ml_dtypes
import numpy as np
import pytest
from gguf_bytes import Value
from gguf_models import CASES, HIDDEN, INTERMEDIATE, LAYER, NUM_EXPERTS, NUM_LAYERS, SHARED, Case, Inputs
from paths import ROOT
from problems import rel_l2

import mxfp4moe as mx
from mxfp4moe import checkpoint
from mxfp4moe.checkpoint.gguf.architectures import ARCHITECTURES

KEYED = tuple(
    name
    for name, case in CASES.items()
    if "expert_weights_norm" in case.keys and case.scores != "chosen" and not case.table
)
GATED = tuple(name for name, case in CASES.items() if case.gated and not case.fused)

# The root mean square of the error of rounding to bfloat16, relative to a number at the bottom of a binade.
# There it is largest.
ROUNDING = 2**-8 / 3**0.5


def clear_inputs(name: str, rng: np.random.Generator) -> tuple[Inputs, np.ndarray, np.ndarray]:
    """Tokens whose experts do not depend on roundings, what the layer gives for them, and their experts."""
    given = gguf_models.inputs(rng)
    expected, ids, clear = gguf_models.expected(name, given)
    assert clear.sum() >= 10
    some = Inputs(
        *(array[clear] for array in (given.hidden_states, given.router_hidden_states, given.input_ids))
    )
    return some, expected[clear], ids[clear]


def check(layer: mx.MoELayer, name: str, rng: np.random.Generator) -> None:
    """The layer computes what the architecture does."""
    given, expected, ids = clear_inputs(name, rng)
    arguments = given.besides(CASES[name])
    for dtype in (np.float32, ml_dtypes.bfloat16):
        states = given.hidden_states.astype(dtype)
        # The intermediate, what the projections of latent experts read and write, and the output.
        roundings = 1 + (2 if CASES[name].latent else 0) + (dtype is ml_dtypes.bfloat16)
        assert rel_l2(layer(states, **arguments), expected) <= ROUNDING * roundings**0.5
    if not CASES[name].router:
        _, got = layer.route(given.hidden_states, arguments.get("input_ids"))
        assert np.array_equal(np.sort(got), np.sort(ids))


@pytest.mark.parametrize("name", CASES)
def test_architecture(isa: str, tmp_path: Path, rng: np.random.Generator, name: str) -> None:
    path = gguf_models.write(tmp_path / "model.gguf", name)
    opened = checkpoint.open(path)
    assert (opened.num_layers, opened.moe_layers) == (NUM_LAYERS, (LAYER,))
    assert (opened.num_experts, opened.hidden_size, opened.intermediate_size) == (
        NUM_EXPERTS,
        HIDDEN,
        INTERMEDIATE,
    )
    assert opened.shared_intermediate_size == (SHARED if CASES[name].shared else 0)
    check(mx.MoELayer.from_checkpoint(path, layer=LAYER), name, rng)


def test_there_is_a_case_for_each_architecture() -> None:
    assert {gguf_models.architecture(name) for name in CASES} == set(ARCHITECTURES)


@pytest.mark.parametrize("name", CASES)
def test_names_are_those_of_the_gguf_package(name: str) -> None:
    gguf = pytest.importorskip("gguf", reason="the gguf package, which knows the names, is not installed")
    numbers = {text: number for number, text in gguf.MODEL_ARCH_NAMES.items()}
    number = numbers.get(gguf_models.architecture(name))
    if number is None:
        pytest.skip("this version of the gguf package does not know the architecture")
    allowed = {gguf.TENSOR_NAMES[each].removeprefix("blk.{bid}.") for each in gguf.MODEL_TENSORS[number]}
    apart = {key.rsplit(".", 1)[0] for key in gguf_models.tensors(name)}
    in_file = {key.removeprefix(f"blk.{LAYER}.").rsplit(".", 1)[0] for key in gguf_models.stored(name)}
    assert (
        apart <= allowed or in_file <= allowed
    )  # it knows gate_up for few of those that llama.cpp reads it for


def test_keys_are_those_of_the_gguf_package() -> None:
    gguf = pytest.importorskip("gguf", reason="the gguf package, which knows the keys, is not installed")
    sections = [section for section in vars(gguf.Keys).values() if isinstance(section, type)]
    known = {str(key).removeprefix("{arch}.") for section in sections for key in vars(section).values()}
    later = {
        "expert_latent_length",
        "hash_layer_count",
        "activation.situ_beta",
        "activation.situ_linear_beta",
    }
    assert {key for name in CASES for key in gguf_models.metadata(name)} <= known | later


@pytest.mark.parametrize("name", GATED)
def test_gate_and_up_in_one_tensor(tmp_path: Path, name: str) -> None:
    apart = checkpoint.read_layer(gguf_models.write(tmp_path / "a.gguf", name), LAYER)
    names = [f"blk.{LAYER}.ffn_{part}_exps" for part in ("gate", "up", "gate_up")]
    both = gguf_models.stored(name)
    for suffix in ("weight", "bias"):
        if f"{names[0]}.{suffix}" in both:
            parts = [both.pop(f"{each}.{suffix}") for each in names[:2]]
            both[f"{names[2]}.{suffix}"] = np.concatenate(parts, axis=1)
    fused = checkpoint.read_layer(gguf_models.write(tmp_path / "b.gguf", name, contents=both), LAYER)
    assert mx.pack_experts(**fused.experts.arguments()) == mx.pack_experts(**apart.experts.arguments())


@pytest.mark.parametrize("name", KEYED)
def test_weights_are_normalized_where_the_file_says_so(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Without the key they are not, but in architectures that always do."""
    keys = gguf_models.metadata(name)
    del keys["expert_weights_norm"]
    layer_of = mx.MoELayer.from_checkpoint
    default = layer_of(gguf_models.write(tmp_path / "a.gguf", name, keys), layer=LAYER)
    always = gguf_models.architecture(name) == "kimi-linear"
    monkeypatch.setitem(CASES, name, replace(CASES[name], normalize=always))
    check(default, name, rng)


@pytest.mark.parametrize("name", [name for name in KEYED if CASES[name].factor != 1])
@pytest.mark.parametrize("value", [None, 0.0])
def test_no_factor(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, name: str, value: float | None
) -> None:
    keys = gguf_models.metadata(name) | {"expert_weights_scale": value}
    keys = {key: each for key, each in keys.items() if each is not None}
    layer = mx.MoELayer.from_checkpoint(gguf_models.write(tmp_path / "a.gguf", name, keys), layer=LAYER)
    monkeypatch.setitem(CASES, name, replace(CASES[name], factor=1.0))
    check(layer, name, rng)


# Where llama.cpp computes without the correction bias, if a file has none.
MAYBE_BIAS = {
    "bailingmoe2",
    "deepseek2",
    "deepseek32",
    "dots1",
    "ernie4_5-moe",
    "exaone-moe",
    "glm-dsa",
    "hy_v3",
    "hy_v4",
    "mimo2",
    "step35",
}


@pytest.mark.parametrize("name", CASES)
def test_tensors_that_are_missing(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """An error that names the tensor, or what the architecture computes without it."""
    case, kind = CASES[name], gguf_models.architecture(name)
    unneeded = {f"blk.{LAYER}.{each}.weight" for each in case.beside} | {f"blk.{LAYER}.ffn_down_exps.scale"}
    for key in set(gguf_models.stored(name)) - unneeded:
        some = gguf_models.stored(name)
        del some[key]
        path = gguf_models.write(tmp_path / "model.gguf", name, contents=some)
        without = None
        if "exp_probs_b" in key and kind in MAYBE_BIAS:
            without = replace(case, bias="")
        elif case.latent and case.latent[2] and key.endswith(f"{case.latent[2]}.weight"):
            without = replace(case, latent=(*case.latent[:2], ""))
        if without is None:
            missing = key.replace("gate_up_exps", "gate_exps").replace("ffn_up_shexp", "ffn_(up|gate)_shexp")
            with pytest.raises(ValueError, match=f"model.gguf: expected a tensor {missing}, got|latent"):
                checkpoint.read_layer(path, LAYER)
            continue
        with monkeypatch.context() as context:
            context.setitem(CASES, name, without)
            check(mx.MoELayer.from_checkpoint(path, layer=LAYER), name, rng)


# What llama.cpp takes where a file does not say how scores are made; it refuses the others.
SIGMOID_BY_DEFAULT = {
    "afmoe",
    "cohere2moe",
    "glm-dsa",
    "glm4moe",
    "glm5-next",
    "hy_v3",
    "hy_v4",
    "laguna",
    "llama4",
    "mimo2",
    "nemotron_h_moe",
    "step35",
}
REQUIRED = {
    "bailingmoe2",
    "bailingmoe3",
    "deepseek32",
    "deepseek4",
    "dots1",
    "dots3note",
    "exaone-moe",
    "kimi-linear",
    "kimi-k3",
    "lfm2moe",
    "minimax-m2",
    "minimax-m3",
}


@pytest.mark.parametrize(
    "name",
    [name for name, case in CASES.items() if "expert_gating_func" in case.keys and case.scores != "chosen"],
)
def test_how_scores_are_made_by_default(tmp_path: Path, rng: np.random.Generator, name: str) -> None:
    keys, kind = gguf_models.metadata(name), gguf_models.architecture(name)
    del keys["expert_gating_func"]
    path = gguf_models.write(tmp_path / "a.gguf", name, keys)
    if kind in SIGMOID_BY_DEFAULT or CASES[name].scores == "softmax":
        check(mx.MoELayer.from_checkpoint(path, layer=LAYER), name, rng)
        return
    assert kind in REQUIRED or kind == "deepseek2"
    with pytest.raises(ValueError, match=f"a.gguf: {kind}.expert_gating_func: expected "):
        checkpoint.read_layer(path, LAYER)
    path = gguf_models.write(tmp_path / "b.gguf", name, keys | {"expert_gating_func": 5})
    with pytest.raises(ValueError, match=f"b.gguf: {kind}.expert_gating_func: expected .*, got 5"):
        checkpoint.read_layer(path, LAYER)


SCORES = {1: "softmax", 2: "sigmoid", 3: "chosen", 4: "sqrt_softplus"}
CHANGES: dict[str, tuple[Value | None, ...]] = {
    "expert_gating_func": (None, 0, 1, 2, 3, 4),
    "expert_weights_norm": (None, False, True),
    "expert_weights_scale": (None, 0.0, 1.0, 3.0),
    "expert_used_count": (1, 2, 4, 9),
    "expert_group_count": (None, 0, 1, 2, 3, 4),
    "expert_group_used_count": (None, 0, 1, 2, 3),
}


def with_routing(name: str, keys: dict[str, Any]) -> tuple[Case, set[str]]:
    """The case with the routing that these keys say, and the keys for which it is refused."""
    case, kind = CASES[name], gguf_models.architecture(name)
    default = {"gpt-oss": 3}.get(kind, 2 if kind in SIGMOID_BY_DEFAULT else 0 if kind in REQUIRED else 1)
    gating = keys.get("expert_gating_func", 0) or default
    if kind == "cohere2moe" and gating == 1:
        gating = 3
    is_keyed = kind in map(gguf_models.architecture, KEYED) and kind != "kimi-linear"
    normalize = keys.get("expert_weights_norm", case.normalize and not is_keyed)
    count, kept = keys.get("expert_group_count", 1) or 1, keys.get("expert_group_used_count", 0)
    top_k = keys["expert_used_count"]
    wrong = {
        "expert_gating_func": gating not in ((4,) if kind == "deepseek4" else (1, 2, 3))
        or (case.bias and gating in (1, 3) and kind != "ernie4_5-moe"),
        "expert_group_count": NUM_EXPERTS % count or (count > 1 and kind in ("cohere2moe", "llama4")),
        "expert_group_used_count": count > 1 and not 1 <= kept <= count,
        "expert_used_count": top_k > (NUM_EXPERTS if count == 1 else min(kept, count) * NUM_EXPERTS // count),
    }
    how = "max" if kind == "deepseek2" and gating in (1, 3) else "top2_sum"
    return replace(
        case,
        keys=keys,
        scores=SCORES.get(gating, ""),
        normalize=normalize or gating == 3,
        factor=keys.get("expert_weights_scale", 0.0) or 1.0,
        groups=(count, kept, how) if count > 1 else None,
    ), {key for key, is_wrong in wrong.items() if is_wrong}


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if not case.is_mixer and not case.table]
)
def test_other_routing(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Metadata of other models of an architecture: right numbers, or an error that names a key."""
    for number in range(12):
        keys: dict[str, Any] = gguf_models.metadata(name)
        keys |= {
            key: values[rng.integers(len(values))] for key, values in CHANGES.items() if rng.random() < 0.5
        }
        keys = {key: value for key, value in keys.items() if value is not None}
        path = gguf_models.write(tmp_path / f"{number}.gguf", name, keys)
        case, wrong = with_routing(name, keys)
        if wrong:
            with pytest.raises(ValueError, match=f"{number}.gguf: .*[.]({'|'.join(wrong)}): expected "):
                checkpoint.read_layer(path, LAYER)
            continue
        with monkeypatch.context() as context:
            context.setitem(CASES, name, case)
            check(mx.MoELayer.from_checkpoint(path, layer=LAYER), name, rng)


@pytest.mark.parametrize("name", CASES)
def test_values_of_another_type(tmp_path: Path, name: str) -> None:
    for key, value in gguf_models.metadata(name).items():
        if key.startswith("attention") and not CASES[name].router and (CASES[name].latent or ("",))[-1] == "":
            continue
        wrong: list[Value] = ["2", {bool: 1, float: 1, list: 1}.get(type(value), 1.5)]
        wrong += [[1, 2, 3]] if not isinstance(value, list) else [value[:1], ["a"], [1, 2]]
        for number, each in enumerate(wrong):
            path = gguf_models.write(
                tmp_path / f"{number}.gguf", name, gguf_models.metadata(name) | {key: each}
            )
            with pytest.raises(
                ValueError, match=f"{number}.gguf: {gguf_models.architecture(name)}.{key}: expected "
            ):
                checkpoint.read_layer(path, LAYER)


@pytest.mark.parametrize("name", CASES)
def test_keys_that_are_missing(tmp_path: Path, rng: np.random.Generator, name: str) -> None:
    """An error that names the key, or the same result; other defaults have tests of their own."""
    for key in gguf_models.metadata(name):
        if key in ("expert_weights_norm", "expert_weights_scale", "expert_gating_func") or "clamp" in key:
            continue
        if key == "expert_group_count" or (key == "hash_layer_count" and CASES[name].table):
            continue
        keys = gguf_models.metadata(name)
        del keys[key]
        path = gguf_models.write(tmp_path / "model.gguf", name, keys)
        try:
            layer = mx.MoELayer.from_checkpoint(path, layer=LAYER)
        except ValueError as error:
            assert f"{gguf_models.architecture(name)}.{key}: expected " in str(error)
        else:
            check(layer, name, rng)


CONTRADICTIONS: dict[str, tuple[str, dict[str, Value], str]] = {
    "hidden size": (
        "qwen3moe",
        {"embedding_length": 32},
        "embedding_length: expected 64, as the tensors have, got 32",
    ),
    "size": ("llama", {"expert_feed_forward_length": 48}, "expert_feed_forward_length: expected 32, as"),
    "sizes": (
        "dots1",
        {"expert_feed_forward_length": [32, 48]},
        "expert_feed_forward_length: expected 32, as",
    ),
    "used": ("jamba", {"expert_used_count": 9}, r"expert_used_count: expected an integer in \[1, 8\], got 9"),
    "used by layer": (
        "jamba",
        {"expert_used_count": [3, 9]},
        "expert_used_count: expected an integer in .*, got 9",
    ),
    "none used": (
        "jamba",
        {"expert_used_count": [3, 0]},
        "expert_used_count: expected an integer in .*, got 0",
    ),
    "values": (
        "jamba",
        {"expert_used_count": [3, 3, 3]},
        "expert_used_count: expected one value, or one for each of 2",
    ),
    "dense": (
        "glm4moe",
        {"leading_dense_block_count": 2},
        "leading_dense_block_count: expected layer 1 among those",
    ),
    "step": (
        "ernie4_5-moe",
        {"interleave_moe_layer_step": 3},
        "interleave_moe_layer_step: expected layer 1 among",
    ),
    "prediction": (
        "glm4moe",
        {"nextn_predict_layers": 2},
        r"nextn_predict_layers: expected an integer in \[0, 1\], got 2",
    ),
    "shared": (
        "deepseek2",
        {"expert_shared_count": 0},
        "expert_shared_count: expected at least 1, as blk.1 has one, got 0",
    ),
    "no shared": (
        "granitehybrid",
        {"expert_shared_feed_forward_length": 64},
        "a tensor blk.1.ffn_down_shexp.weight, got none",
    ),
    "none": (
        "qwen3moe",
        {"expert_shared_count": 1},
        r"expert_shared_count: expected an integer in \[0, 0\], got 1",
    ),
    "shared size": (
        "laguna",
        {"expert_shared_feed_forward_length": 64},
        "expert_shared_feed_forward_length: expected 96, as",
    ),
    "groups": (
        "deepseek32",
        {"expert_group_count": 3},
        "expert_group_count: expected a divisor of 8 experts, got 3",
    ),
    "groups kept": (
        "deepseek32",
        {"expert_group_used_count": 5},
        r"expert_group_used_count: expected an integer in \[1, 4\]",
    ),
    "limit": (
        "maple",
        {"swiglu_clamp_exp": [0.0, -1.0]},
        "swiglu_clamp_exp: expected a finite number of at least 0, got -1",
    ),
    "limit nan": (
        "maple",
        {"swiglu_clamp_exp": [0.0, float("nan")]},
        "swiglu_clamp_exp: expected a finite number .*, got nan",
    ),
    "limit of another": (
        "qwen3moe",
        {"swiglu_clamp_exp": [0.0, 1.0]},
        "swiglu_clamp_exp: expected no such key, which may",
    ),
    "softcap": (
        "olmoe",
        {"router_logit_softcapping": 30.0},
        "router_logit_softcapping: expected no such key, .*, got 30.0",
    ),
    "chunks": (
        "qwen3moe",
        {"expert_chunk_feed_forward_length": 128},
        "expert_chunk_feed_forward_length: expected no such",
    ),
    "mixer": ("phimoe", {"expert_weights_norm": False}, "expert_weights_norm: expected no such key"),
    "mixer of three": ("phimoe", {"expert_used_count": 3}, r"expert_used_count: expected .*\[2, 2\], got 3"),
    "hash": ("deepseek4", {"hash_layer_count": 2}, "a tensor blk.1.ffn_gate_tid2eid.weight, got none"),
    "no hash": (
        "deepseek4 (hash)",
        {"hash_layer_count": 1},
        "expected a tensor blk.1.exp_probs_b.bias, got none",
    ),
    "hash weights": (
        "deepseek4 (hash)",
        {"expert_weights_norm": False},
        "expert_weights_norm: expected true in a layer",
    ),
    "sigmoid": (
        "deepseek4",
        {"expert_gating_func": 2},
        r"expert_gating_func: expected 4 \(sqrt of softplus\), got 2",
    ),
    "softmax": (
        "dots1",
        {"expert_gating_func": 1},
        r"expert_gating_func: expected sigmoid \(2\) with a correction bias, got 1",
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_contradictions_are_refused(tmp_path: Path, case: str) -> None:
    name, change, message = CONTRADICTIONS[case]
    path = gguf_models.write(tmp_path / "model.gguf", name, gguf_models.metadata(name) | change)
    with pytest.raises(ValueError, match=f"model.gguf.*{message}"):
        checkpoint.read_layer(path, LAYER)


def test_values_of_fewer_layers_than_the_file_has(tmp_path: Path) -> None:
    keys = gguf_models.metadata("maple") | {"swiglu_clamp_exp": [0.5]}
    del keys["block_count"]
    path = gguf_models.write(tmp_path / "model.gguf", "maple", keys)
    message = "swiglu_clamp_exp: expected a value for layer 1, which the file has, got 1 values"
    with pytest.raises(ValueError, match=message):
        checkpoint.open(path)


def test_values_for_each_layer(tmp_path: Path, rng: np.random.Generator) -> None:
    """One value or an array; layers of multi-token prediction have values and are no layers of the model."""
    keys = gguf_models.metadata("glm4moe") | {
        "block_count": 3,
        "nextn_predict_layers": 1,
        "expert_used_count": [0, 3, 2],
        "expert_feed_forward_length": [0, INTERMEDIATE, 7],
    }
    more = {key.replace("blk.1.", "blk.2."): array for key, array in gguf_models.stored("glm4moe").items()}
    path = gguf_models.write(
        tmp_path / "model.gguf", "glm4moe", keys, {**gguf_models.stored("glm4moe"), **more}
    )
    opened = checkpoint.open(path)
    assert (opened.num_layers, opened.moe_layers, opened.top_k) == (2, (LAYER,), 3)
    check(mx.MoELayer.from_checkpoint(path, layer=LAYER), "glm4moe", rng)
    with pytest.raises(ValueError, match=r"layer: expected an integer in \[0, 1\], got 2"):
        opened.read_layer(2)


@pytest.mark.parametrize(
    "name",
    [name for name in CASES if "exp" in str(CASES[name].keys) and CASES[name].keys.get("swiglu_clamp_exp")],
)
def test_limits(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """0 stands for none; without a limit of its own, the shared expert has that of the others or none."""
    keys: dict[str, Any] = gguf_models.metadata(name)
    shared_by_default = gguf_models.architecture(name) in ("deepseek4", "glm5-next")
    case = CASES[name]
    limited, free = case.activation, gguf_models.silu
    alone = {key: value for key, value in keys.items() if key != "swiglu_clamp_shexp"}
    for some, activation, shared in (
        (alone, limited, limited if shared_by_default else free),
        (keys | {"swiglu_clamp_exp": [9.0, 0.0], "swiglu_clamp_shexp": [0.0, 0.5]}, free, limited),
        (alone | {"swiglu_clamp_exp": 0.5}, limited, limited if shared_by_default else free),
        (alone | {"swiglu_clamp_exp": 0.0}, free, free),
    ):
        monkeypatch.setitem(CASES, name, replace(case, activation=activation, shared_activation=shared))
        path = gguf_models.write(tmp_path / "model.gguf", name, some)
        check(mx.MoELayer.from_checkpoint(path, layer=LAYER), name, rng)


def documented(name: str) -> str:
    """The line of an architecture in the documentation."""
    row = ARCHITECTURES[name]
    scores = {1: "softmax", 2: "sigmoid", 3: "softmax of the chosen", None: "as the file says"}
    shared = "with a gate" if row.has_shared_gate else "averaged" if row.is_average else "added"
    activations = (
        [row.activation, row.clamped] if row.clamped not in (None, row.activation) else [row.activation]
    )
    cells = [
        f"`{name}`",
        row.models,
        f"`{row.routing}`" if row.routing else scores[row.gating],
        "no" if row.routing or not row.renormalize else "yes",
        {"never": "", "maybe": f"{shared}, if there is one", "always": shared}[row.shared],
        " or ".join(f"`{each}`" for each in activations),
    ]
    return " ".join(f"| {cell}" if cell else "|" for cell in cells) + " |"


def test_documentation() -> None:
    text = (ROOT / "docs" / "models" / "gguf.md").read_text()
    table = text[text.index("| `general.architecture`") :].split("\n\n")[0].splitlines()[2:]
    assert table == [documented(name) for name in sorted(ARCHITECTURES)]
