"""One layer of each architecture that llama.cpp has, with random weights, and what it computes, in float64.

What is written here of an architecture is what its converter writes and its graph computes; the table of the
reader is not used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from gguf_bytes import Value, gguf_bytes

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
HIDDEN, INTERMEDIATE, SHARED, LATENT = 64, 32, 96, 32
NUM_EXPERTS, TOP_K, VOCABULARY = 8, 3, 40
LAYER, NUM_LAYERS = 1, 2
EPSILON = 1e-5

Array = np.ndarray[Any, Any]
Tensors = dict[str, Array]

SIGMOID: dict[str, Value] = {"expert_gating_func": 2}
SCALED: dict[str, Value] = {"expert_weights_norm": True, "expert_weights_scale": 2.5}


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def silu(gate: Array, up: Array) -> Array:
    return gate * _sigmoid(gate) * up


def gelu_tanh(gate: Array, up: Array) -> Array:
    return 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))) * up


def relu2(_: Array, up: Array) -> Array:
    return np.maximum(up, 0) ** 2


def swigluoai(gate: Array, up: Array) -> Array:
    gate, up = np.minimum(gate, 7), np.clip(up, -7, 7)
    return gate * _sigmoid(1.702 * gate) * (up + 1)


def clamped(limit: float) -> Callable[[Array, Array], Array]:
    return lambda gate, up: silu(np.minimum(gate, limit), np.clip(up, -limit, limit))


def clamped_after(limit: float) -> Callable[[Array, Array], Array]:
    return lambda gate, up: np.minimum(gate * _sigmoid(gate), limit) * np.clip(up, -limit, limit)


def situ(gate: Array, up: Array) -> Array:
    return 4 * np.tanh(gate / 4) * _sigmoid(gate) * 25 * np.tanh(up / 25)


@dataclass(frozen=True)
class Case:
    """An architecture as its converter writes it, and what it computes."""

    keys: dict[str, Value] = field(default_factory=dict)
    scores: str = "softmax"
    normalize: bool = True
    epsilon: float = 0.0
    """Added to the sum that weights are divided by."""
    factor: float = 1.0
    bias: str = ""
    """The name of the tensor of the correction bias."""
    groups: tuple[int, int, str] | None = None
    """Their number, how many are kept, and what scores one: the sum of its best two, or its maximum."""
    is_mixer: bool = False
    table: bool = False
    on_input: bool = False
    activation: Callable[[Array, Array], Array] = silu
    shared_activation: Callable[[Array, Array], Array] | None = None
    gated: bool = True
    biases: bool = False
    fused: bool = False
    shared: str = ""
    """How there is a shared expert: plain, gated, average, or fused (both matrices in ffn_up_shexp)."""
    router: bool = False
    """Whether the router has an input of its own, a norm and a scale."""
    latent: tuple[str, str, str] | None = None
    """The names of the projections and of the norm."""
    beside: tuple[str, ...] = ()


def _noaux(keys: dict[str, Value] | None = None, **more: Any) -> Case:
    """Sigmoid, a correction bias, normalized, a factor, and a shared expert."""
    values: dict[str, Any] = {
        "scores": "sigmoid",
        "factor": 2.5,
        "bias": "exp_probs_b.bias",
        "shared": "plain",
        **more,
    }
    shared: dict[str, Value] = {"expert_shared_count": 1} if values["shared"] else {}
    return Case({**SIGMOID, **SCALED, **shared, **(keys or {})}, **values)


_GROUPS: dict[str, Value] = {"expert_group_count": 4, "expert_group_used_count": 2}
_SHARED: dict[str, Value] = {"expert_shared_feed_forward_length": SHARED}


def _limits(*names: str, limit: float = 0.5) -> dict[str, Value]:
    return {f"swiglu_clamp_{name}": [0.0, limit] for name in names}


CASES: dict[str, Case] = {
    "afmoe": _noaux(),
    "arctic": Case(beside=("ffn_gate", "ffn_up", "ffn_down", "ffn_norm_exps")),
    "bailingmoe": Case(
        {"expert_weights_norm": True, "expert_weights_scale": 1.0, "expert_shared_count": 3}, shared="plain"
    ),
    "bailingmoe2": _noaux({**_GROUPS, **_SHARED}, groups=(4, 2, "top2_sum")),
    "bailingmoe3": _noaux(
        {**_GROUPS, **_limits("exp", "shexp")}, groups=(4, 2, "top2_sum"), activation=clamped_after(0.5)
    ),
    "cohere2moe": Case(
        {**SIGMOID, "expert_weights_norm": True, "expert_shared_count": 1, "leading_dense_block_count": 1},
        scores="sigmoid",
        shared="average",
    ),
    "cohere2moe (softmax)": Case({"expert_gating_func": 1, "expert_weights_norm": False}, scores="chosen"),
    "dbrx": Case(),
    "deepseek": Case(
        {"expert_weights_scale": 1.0, "expert_shared_count": 2, "leading_dense_block_count": 1},
        normalize=False,
        shared="plain",
    ),
    "deepseek2": _noaux({**_GROUPS, "leading_dense_block_count": 1}, groups=(4, 2, "top2_sum"), fused=True),
    "deepseek2 (V2)": Case(
        {
            "expert_gating_func": 1,
            "expert_group_count": 4,
            "expert_group_used_count": 2,
            "expert_weights_scale": 16.0,
            "expert_shared_count": 2,
        },
        normalize=False,
        factor=16.0,
        groups=(4, 2, "max"),
        shared="plain",
    ),
    "deepseek2-ocr": Case({"expert_shared_count": 2}, normalize=False, shared="plain"),
    "deepseek32": _noaux(_GROUPS, groups=(4, 2, "top2_sum")),
    "deepseek4": _noaux(
        {"expert_gating_func": 4, "hash_layer_count": 1, **_limits("exp", "shexp")},
        scores="sqrt_softplus",
        activation=clamped(0.5),
    ),
    "deepseek4 (hash)": _noaux(
        {"expert_gating_func": 4, "hash_layer_count": 2, **_limits("exp")},
        scores="sqrt_softplus",
        bias="",
        table=True,
        activation=clamped(0.5),
    ),
    "dots1": _noaux(),
    "dots3note": _noaux(),
    "ernie4_5-moe": Case(
        {"expert_shared_count": 2, "interleave_moe_layer_step": 2, **_SHARED},
        bias="exp_probs_b.bias",
        shared="plain",
    ),
    "exaone-moe": _noaux(),
    "gemma4": Case(activation=gelu_tanh, router=True, fused=True, beside=("ffn_gate", "ffn_up", "ffn_down")),
    "glm-dsa": _noaux(),
    "glm4moe": _noaux({"nextn_predict_layers": 0}),
    "glm5-next": _noaux(_limits("exp", "shexp"), activation=clamped(0.5)),
    "gpt-oss": Case(scores="chosen", activation=swigluoai, biases=True),
    "granite_swa": Case(_SHARED, shared="fused", fused=True),
    "granitehybrid": Case({"expert_shared_feed_forward_length": 0}),
    "granitemoe": Case(_SHARED, shared="plain"),
    "hunyuan-moe": Case({"expert_shared_count": 1, **_SHARED}, shared="plain"),
    "hy_v3": _noaux(bias="exp_probs_b"),
    "hy_v4": _noaux(_limits("exp"), activation=clamped(0.5), shared_activation=silu),
    "jamba": Case(normalize=False),
    "kimi-k3": _noaux(
        {
            "expert_latent_length": LATENT,
            "activation.situ_beta": 4.0,
            "activation.situ_linear_beta": 25.0,
        },
        activation=situ,
        latent=("ffn_routed_down", "ffn_routed_up", "ffn_routed_norm"),
        beside=("ffn_res_score",),
    ),
    "kimi-linear": _noaux({"leading_dense_block_count": 1}),
    "laguna": _noaux(_SHARED),
    "lfm2moe": Case(SIGMOID, scores="sigmoid", epsilon=1e-6, bias="exp_probs_b.bias"),
    "llada-moe": Case(normalize=False),
    "llama": Case(),
    "llama4": Case(
        {"expert_used_count": 1, "interleave_moe_layer_step": 2},
        scores="sigmoid",
        normalize=False,
        on_input=True,
        shared="plain",
    ),
    "maple": Case(_limits("exp"), activation=clamped(0.5)),
    "mellum": Case(),
    "mimo2": Case(SIGMOID, scores="sigmoid", bias="exp_probs_b.bias"),
    "minimax-01": Case(),
    "minimax-m2": Case(SIGMOID, scores="sigmoid", bias="exp_probs_b.bias"),
    "minimax-m3": _noaux(activation=swigluoai),
    "mistral3": Case(),
    "mistral4": Case(
        {"expert_gating_func": 1, **SCALED, **_GROUPS, "expert_shared_count": 1},
        factor=2.5,
        groups=(4, 2, "top2_sum"),
        shared="plain",
    ),
    "nemotron_h_moe": _noaux(
        {**_SHARED, "expert_group_count": 1, "expert_group_used_count": 1}, gated=False, activation=relu2
    ),
    "nemotron_h_moe (latent)": _noaux(
        {**_SHARED, "moe_latent_size": LATENT},
        gated=False,
        activation=relu2,
        latent=("ffn_latent_down", "ffn_latent_up", ""),
    ),
    "olmoe": Case(normalize=False),
    "phimoe": Case({"expert_used_count": 2}, is_mixer=True),
    "qwen2moe": Case(_SHARED, normalize=False, shared="gated"),
    "qwen35moe": Case(_SHARED, shared="gated", fused=True),
    "qwen3moe": Case(),
    "qwen3next": Case(_SHARED, shared="gated"),
    "qwen3vlmoe": Case(),
    "rnd1": Case(),
    "step35": _noaux(_limits("exp", "shexp"), activation=clamped_after(0.5)),
}
"""By architecture; what follows a space tells several of one architecture apart."""


def architecture(name: str) -> str:
    return name.split(" ")[0]


def metadata(name: str) -> dict[str, Value]:
    """The keys of the file of a case, without the name of the architecture."""
    return {
        "block_count": NUM_LAYERS,
        "embedding_length": HIDDEN,
        "attention.layer_norm_rms_epsilon": EPSILON,
        "expert_count": NUM_EXPERTS,
        "expert_used_count": TOP_K,
        "expert_feed_forward_length": INTERMEDIATE,
        **CASES[name].keys,
    }


def tensors(name: str) -> Tensors:
    """Random tensors of the case's layer; matrices of experts are bfloat16."""
    case, rng = CASES[name], np.random.default_rng(sum(name.encode()))
    width = LATENT if case.latent else HIDDEN

    def floats(*shape: int) -> Array:
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    def matrices(suffix: str, intermediate: int, size: int, *leading: int) -> Tensors:
        parts = {"gate": (intermediate, size), "up": (intermediate, size), "down": (size, intermediate)}
        if not case.gated:
            del parts["gate"]
        return {
            f"ffn_{p}_{suffix}.weight": floats(*leading, *shape).astype(BFLOAT16)
            for p, shape in parts.items()
        }

    found = {"ffn_gate_inp.weight": 4 * floats(NUM_EXPERTS, HIDDEN)}
    found |= matrices("exps", INTERMEDIATE, width, NUM_EXPERTS)
    if case.shared:
        found |= matrices("shexp", SHARED, HIDDEN)
    if case.shared == "gated":
        found["ffn_gate_inp_shexp.weight"] = 8 * floats(1, HIDDEN)
    if case.bias:
        found[case.bias] = floats(NUM_EXPERTS)
    if case.biases:
        found |= {"ffn_gate_inp.bias": floats(NUM_EXPERTS), "ffn_down_exps.bias": floats(NUM_EXPERTS, HIDDEN)}
        found |= {f"ffn_{part}_exps.bias": floats(NUM_EXPERTS, INTERMEDIATE) for part in ("gate", "up")}
    if case.table:
        rows = [rng.permutation(NUM_EXPERTS)[:TOP_K] for _ in range(VOCABULARY)]
        found["ffn_gate_tid2eid.weight"] = np.array(rows, np.int32)
    if case.router:
        found["ffn_gate_inp.scale"] = 8 * (1 + floats(HIDDEN))
        found["ffn_down_exps.scale"] = 1 + floats(NUM_EXPERTS)
    if case.latent:
        down, up, norm = case.latent
        found |= {f"{down}.weight": floats(LATENT, HIDDEN), f"{up}.weight": floats(HIDDEN, LATENT)}
        if norm:
            found[f"{norm}.weight"] = 1 + floats(LATENT)
    found |= {f"{beside}.weight": floats(HIDDEN) for beside in case.beside}
    return found


def stored(name: str) -> Tensors:
    """The tensors as they stand in the file."""
    case, found = CASES[name], tensors(name)
    if case.fused:
        both = [found.pop(f"ffn_{part}_exps.weight") for part in ("gate", "up")]
        found["ffn_gate_up_exps.weight"] = np.concatenate(both, axis=1)
    if case.shared == "fused":
        both = [found.pop(f"ffn_{part}_shexp.weight") for part in ("gate", "up")]
        found["ffn_up_shexp.weight"] = np.concatenate(both)
    return {f"blk.{LAYER}.{key}": array for key, array in found.items()}


def write(
    path: Path, name: str, keys: dict[str, Value] | None = None, contents: Tensors | None = None
) -> Path:
    """Write the file of a case, or with these keys and tensors instead of its own."""
    kind = architecture(name)
    values = {f"{kind}.{key}": value for key, value in (metadata(name) if keys is None else keys).items()}
    some = stored(name) if contents is None else contents
    path.write_bytes(gguf_bytes({"general.architecture": kind, **values}, some))
    return path


# --- what it computes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inputs:
    """Hidden states, and what some architectures take besides."""

    hidden_states: Array
    router_hidden_states: Array
    input_ids: Array

    def besides(self, case: Case) -> dict[str, Array]:
        """The arguments of a layer besides the hidden states."""
        more = {"input_ids": self.input_ids} if case.table else {}
        return more | ({"router_hidden_states": self.router_hidden_states} if case.router else {})


def inputs(rng: np.random.Generator, num_tokens: int = 40) -> Inputs:
    states = rng.standard_normal((2, num_tokens, HIDDEN)).astype(BFLOAT16).astype(np.float32)
    return Inputs(states[0], states[1], rng.integers(0, VOCABULARY, num_tokens))


def expected(name: str, given: Inputs) -> tuple[Array, Array, Array]:
    """What the layer of a case gives in float64, the experts of each token, and whether these are clear.

    They are where rounding the logits does not change them.
    """
    case = CASES[name]
    found = {key: array.astype(np.float64) for key, array in tensors(name).items()}
    states = given.hidden_states.astype(np.float64)
    logits, errors = _logits(case, found, given)
    weights, ids, margins = _sparse_mixer(logits) if case.is_mixer else _route(case, found, logits, given)
    routed = _experts(case, found, states, weights, ids)
    # Two scores are compared, or two sums of two; no slope of a score is above 1.
    return routed + _shared(case, found, states, routed), ids, margins > 4 * errors


def _logits(case: Case, found: Tensors, given: Inputs) -> tuple[Array, Array]:
    """The logits, and the error of a token's logits as float32 sums of products in some order.

    The norm and the scale of a router are three more roundings of what is multiplied.
    """
    states = given.hidden_states.astype(np.float64)
    if case.router:
        states = given.router_hidden_states.astype(np.float64)
        states = states / np.sqrt((states**2).mean(axis=-1, keepdims=True) + EPSILON)
        states = states * found["ffn_gate_inp.scale"] / np.sqrt(HIDDEN)
    router = found["ffn_gate_inp.weight"]
    bias = found["ffn_gate_inp.bias"] if case.biases else np.zeros(NUM_EXPERTS)
    sums = np.abs(states) @ np.abs(router).T + np.abs(bias)
    return states @ router.T + bias, (HIDDEN + 4) * 2.0**-24 * sums.max(axis=-1)


def _best(scores: Array, count: int) -> tuple[Array, Array]:
    """The positions of the largest, and the distance of the last of them to the next."""
    order = np.argsort(-scores, axis=-1, kind="stable")
    ranked = np.take_along_axis(scores, order, -1)
    margin = (
        ranked[:, count - 1] - ranked[:, count] if count < scores.shape[-1] else np.full(len(scores), np.inf)
    )
    return order[:, :count], margin


def _route(case: Case, found: Tensors, logits: Array, given: Inputs) -> tuple[Array, Array, Array]:
    """Weights, ids, and the distance of the worst chosen expert, or group, to the best that was not."""
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    softmax = exponents / exponents.sum(axis=-1, keepdims=True)
    scores = {
        "softmax": softmax,
        "chosen": softmax,
        "sigmoid": _sigmoid(logits),
        "sqrt_softplus": np.sqrt(np.log1p(np.exp(logits))),
    }[case.scores]
    selection = scores + found.get(case.bias, np.zeros(NUM_EXPERTS))
    margins = np.full(len(logits), np.inf)
    if case.groups is not None:
        count, kept, how = case.groups
        grouped = np.sort(selection.reshape(len(logits), count, -1), axis=-1)
        group_scores = grouped[..., -2:].sum(axis=-1) if how == "top2_sum" else grouped[..., -1]
        best, margins = _best(group_scores, kept)
        is_kept = np.zeros(group_scores.shape, bool)
        np.put_along_axis(is_kept, best, True, axis=-1)
        selection = np.where(np.repeat(is_kept, NUM_EXPERTS // count, axis=-1), selection, -np.inf)
    ids, margin = _best(selection, case.keys.get("expert_used_count", TOP_K))
    if case.table:
        ids = found["ffn_gate_tid2eid.weight"].astype(int)[given.input_ids]
        margin = np.full(len(logits), np.inf)
    weights = np.take_along_axis(scores, ids, -1)
    if case.normalize:
        weights = weights / (weights.sum(axis=-1, keepdims=True) + case.epsilon)
    return weights * case.factor, ids, np.minimum(margin, margins)


def _sparse_mixer(logits: Array) -> tuple[Array, Array, Array]:
    """Two experts, each weighted by the softmax over those that are as good, within 2 * 0.01."""
    ids, weights, left = [], [], logits.copy()
    margins = np.full(len(logits), np.inf)
    for _ in range(2):
        best, margin = _best(left, 1)
        top = np.take_along_axis(left, best, -1)
        distance = (top - logits) / np.maximum(np.abs(logits), top)
        near = np.where((distance > 2 * 0.01) | np.isneginf(left), -np.inf, left)
        margins = np.minimum(margins, np.minimum(margin, np.abs(distance - 2 * 0.01).min(axis=-1)))
        exponents = np.exp(near - top)
        weights.append(np.take_along_axis(exponents / exponents.sum(axis=-1, keepdims=True), best, -1))
        ids.append(best)
        np.put_along_axis(left, best, -np.inf, axis=-1)
    return np.concatenate(weights, axis=-1), np.concatenate(ids, axis=-1), margins


def _expert(case: Case, parts: tuple[Array, ...], states: Array, biases: tuple[Array, ...] = ()) -> Array:
    products = [states @ matrix.T for matrix in parts[:-1]]
    if biases:
        products = [product + bias for product, bias in zip(products, biases, strict=False)]
    result = case.activation(products[0], products[-1]) @ parts[-1].T
    return result + biases[-1] if biases else result


def _experts(case: Case, found: Tensors, states: Array, weights: Array, ids: Array) -> Array:
    if case.latent:
        states = states @ found[f"{case.latent[0]}.weight"].T
    names = [f"ffn_{part}_exps" for part in ("gate", "up", "down") if part != "gate" or case.gated]
    result = np.zeros(states.shape)
    for token, (chosen, factors) in enumerate(zip(ids, weights, strict=True)):
        for expert, weight in zip(chosen, factors, strict=True):
            parts = tuple(found[f"{each}.weight"][expert] for each in names)
            biases = tuple(found[f"{each}.bias"][expert] for each in names) if case.biases else ()
            state = states[token] * (weight if case.on_input else 1)
            scale = found.get("ffn_down_exps.scale", np.ones(NUM_EXPERTS))[expert]
            result[token] += _expert(case, parts, state, biases) * scale * (1 if case.on_input else weight)
    if not case.latent:
        return result
    if case.latent[2]:
        result = result / np.sqrt((result**2).mean(axis=-1, keepdims=True) + EPSILON)
        result = result * found[f"{case.latent[2]}.weight"]
    return np.asarray(result @ found[f"{case.latent[1]}.weight"].T)


def _shared(case: Case, found: Tensors, states: Array, routed: Array) -> Array:
    """What is added to the routed sum."""
    if not case.shared:
        return np.zeros_like(routed)
    parts = tuple(found[f"ffn_{p}_shexp.weight"] for p in ("gate", "up", "down") if p != "gate" or case.gated)
    shared = _expert(replace(case, activation=case.shared_activation or case.activation), parts, states)
    if case.shared == "gated":
        return np.asarray(shared * _sigmoid(states @ found["ffn_gate_inp_shexp.weight"].T))
    return (shared - routed) / 2 if case.shared == "average" else shared
