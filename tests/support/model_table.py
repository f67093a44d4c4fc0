"""The table of model types in docs/models/types.md, made of the rows.

python tests/support/model_table.py    # writes the page anew
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from paths import ROOT

from mxfp4moe.checkpoint._fields import REQUIRED, Choice, Field
from mxfp4moe.checkpoint.model_type import ACTIVATIONS, ModelType, Routing
from mxfp4moe.checkpoint.models import MODELS, REFUSED

PAGE = ROOT / "docs" / "models" / "types.md"
HEAD = [
    "| `model_type` | models | routing | weights | activation | shared experts | special | GGUF |",
    "|---|---|---|---|---|---|---|---|",
]
REFUSED_HEAD = ["| `model_type` | why |", "|---|---|"]

# Names in words, and the architectures of GGUF files.
WORDS: dict[str, tuple[str, str]] = {
    "afmoe": ("Trinity", "afmoe"),
    "aria_text": ("Aria", ""),
    "bailing_hybrid": ("Ling, Ring", "bailingmoe bailingmoe2 bailingmoe3"),
    "beam": ("Beam", ""),
    "cohere2_moe": ("Cohere2-MoE", "cohere2moe"),
    "dbrx": ("DBRX", "dbrx"),
    "deepseek_v2": ("DeepSeek-V2", "deepseek2"),
    "deepseek_v3": ("DeepSeek-V3, R1, V3.2, Kimi-K2, K2.5", "deepseek2 deepseek32"),
    "deepseek_v4": ("DeepSeek-V4", "deepseek4"),
    "dots1": ("dots.llm1", "dots1"),
    "ernie4_5_moe": ("ERNIE-4.5", "ernie4_5-moe"),
    "exaone_moe": ("K-EXAONE", "exaone-moe"),
    "flex_olmo": ("FlexOlmo", ""),
    "flint": ("Flint", ""),
    "gemma4": ("Gemma-4", "gemma4"),
    "glm4_moe": ("GLM-4.5, 4.6, 4.7", "glm4moe"),
    "glm4_moe_lite": ("GLM-4.7-Flash", "deepseek2"),
    "glm5_next": ("GLM-5-Next", "glm5-next"),
    "glm_moe_dsa": ("GLM-5", "glm-dsa"),
    "gpt_oss": ("gpt-oss", "gpt-oss"),
    "granitemoe": ("Granite-3 MoE", "granitemoe"),
    "granitemoehybrid": ("Granite-4", "granitehybrid"),
    "granitemoeshared": ("Granite-3 MoE with a shared expert", "granitemoe"),
    "hunyuan_v1_moe": ("Hunyuan-A13B", "hunyuan-moe"),
    "hy_v3": ("Hy3", "hy_v3"),
    "hy_v4": ("Hy4", "hy_v4"),
    "inkling_text": ("Inkling", ""),
    "jamba": ("Jamba", "jamba"),
    "jetmoe": ("JetMoE", ""),
    "kimi_linear": ("Kimi-Linear, Kimi-K3", "kimi-linear kimi-k3"),
    "kolibri1": ("Kolibri", ""),
    "laguna": ("Laguna", "laguna"),
    "lara_mini": ("Lara-mini", ""),
    "lfm2_moe": ("LFM2-MoE", "lfm2moe"),
    "llama4_text": ("Llama-4", "llama4"),
    "longcat_flash": ("LongCat-Flash", ""),
    "mellum": ("Mellum", "mellum"),
    "mimo_v2_flash": ("MiMo-V2-Flash", "mimo2"),
    "minimax": ("MiniMax-01", "minimax-01"),
    "minimax_m2": ("MiniMax-M2", "minimax-m2"),
    "minimax_m3_vl": ("MiniMax-M3", "minimax-m3"),
    "mistral4": ("Mistral-4", "mistral4"),
    "mixtral": ("Mixtral", "llama"),
    "nemotron_h": ("Nemotron-3", "nemotron_h_moe"),
    "olmoe": ("OLMoE", "olmoe"),
    "phimoe": ("Phi-3.5-MoE", "phimoe"),
    "qwen2_moe": ("Qwen1.5-MoE, Qwen2-MoE", "qwen2moe"),
    "qwen3_5_moe": ("Qwen3.5, Qwen3.6", "qwen35moe"),
    "qwen3_moe": ("Qwen3-MoE", "qwen3moe"),
    "qwen3_next": ("Qwen3-Next", "qwen3next"),
    "qwen3_omni_moe": ("Qwen3-Omni", "qwen3vlmoe"),
    "qwen3_vl_moe": ("Qwen3-VL-MoE", "qwen3vlmoe"),
    "sarvam_moe": ("Sarvam", ""),
    "solar_open": ("Solar-Open", "glm4moe"),
    "step3p5": ("Step-3.5, Step-3.7", "step35"),
}
_BIASED = {"correction_bias": "a bias of the choice"}
_SPECIAL = {
    "expert_scale": "a factor of each expert",
    "tid2eid": "first layers by token id",
    "router_bias": "a bias of the router",
    "router_scale": "a norm and a scale before the router",
    "separate_router_input": "the router has an input of its own",
    "apply_router_weight_on_input": "router weights on the input of experts",
    "latent_down": "latent experts",
    "output_bias": "a bias of the result",
    "num_shared_experts": "shared experts that the router weighs",
    "logit_softcap": "capped logits",
    "norm_floor": "a floor of the sum of weights",
    "norm_order": "weights by a p-norm",
}


def possible(value: Any) -> Iterator[Any]:
    """The constants that a value may stand for; of a field that is no choice, the field."""
    if isinstance(value, Choice):
        for each in (*value.of.values(), *(() if value.otherwise is REQUIRED else (value.otherwise,))):
            yield from possible(each)
    else:
        yield value


def joined(texts: Iterable[str], word: str = ", ") -> str:
    return word.join(dict.fromkeys(text for text in texts if text))


def code(names: Iterable[str]) -> str:
    return joined(f"`{name}`" for name in names)


def routing_of(row: ModelType) -> str:
    functions: list[str] = []
    for routing in possible(row.routing):
        scoring = routing.arguments.get("scoring", "softmax")
        by_groups = routing.groups and routing.groups.function
        is_general = routing.function == "select_experts"
        functions.append(f"`select_experts` of {scoring}" if is_general else f"`{routing.function}`")
        if by_groups and by_groups != routing.function:
            functions.append(f"`{by_groups}`")
        elif by_groups:
            functions.append("groups")
    return joined(functions)


def weights_of(row: ModelType) -> str:
    texts = []
    for routing in possible(row.routing):
        value = routing.arguments.get("renormalize", True)
        if routing.function == "sparsemixer":
            texts.append("of a softmax")
        elif isinstance(value, Field):
            names = code(value.alternatives[:1])
            texts.append(f"normalized with {names} ({str(value.default).lower()})")
        else:
            texts.append("normalized" if value else "as scored")
    factors = [
        value.alternatives[0]
        for value in (*(r.arguments.get("routed_scaling_factor") for r in possible(row.routing)),
                      row.routed_scaling_factor)
        if isinstance(value, Field)
    ]  # fmt: skip
    return joined(texts, " or ") + (f"; times {code(factors)}" if factors else "")


def shared_of(row: ModelType) -> str:
    shared = row.shared
    if shared is None:
        return ""
    text = "with a gate" if shared.is_gated else "added"
    return text + (", or the mean" if isinstance(shared.average, Field) else "")


def special_of(row: ModelType) -> str:
    routings: list[Routing] = list(possible(row.routing))
    arguments = [name for r in routings for name in (*r.arguments, *r.tensors, *r.unused)]
    tensors = [name for names in possible(row.tensors) for name in names]
    texts = [_BIASED.get(name) or _SPECIAL.get(name, "") for name in (*arguments, *tensors, *row.options)]
    if not row.is_gated:
        texts.append("experts without a gate")
    if row.limit is not None and "situ" not in activations_of(row):
        texts.append("clamped gate and up")
    if isinstance(row.num_zero_experts, Field):
        texts.append("zero experts")
    return joined(texts)


def activations_of(row: ModelType) -> str:
    """By default, and others that are not in most types."""
    value = row.activation
    if not isinstance(value, Choice):
        return code([value])
    default = value.of.get(value.default, value.default)
    common = ACTIVATIONS.values()
    return code([default, *(name for name in value.of.values() if name not in common)])


def line(row: ModelType) -> str:
    models, architectures = WORDS[row.model_types[0]]
    cells = [
        code(row.model_types),
        models,
        routing_of(row),
        weights_of(row),
        activations_of(row),
        shared_of(row),
        special_of(row),
        code(architectures.split()),
    ]
    return "".join(f"| {cell} " if cell else "| " for cell in cells) + "|"


def tables() -> list[list[str]]:
    """What the page holds: the types that are read, and those that are refused, with their heads."""
    rows = {row.model_types[0]: row for row in MODELS.values()}
    read = [line(rows[name]) for name in sorted(WORDS)]
    return [
        [*HEAD, *read],
        [*REFUSED_HEAD, *(f"| `{name}` | {why} |" for name, why in sorted(REFUSED.items()))],
    ]


def table_in(text: str, head: list[str]) -> list[str]:
    return text[text.index(head[0]) :].split("\n\n")[0].splitlines()


if __name__ == "__main__":
    page = PAGE.read_text()
    for lines in tables():
        page = page.replace("\n".join(table_in(page, lines[:1])), "\n".join(lines))
    PAGE.write_text(page)
