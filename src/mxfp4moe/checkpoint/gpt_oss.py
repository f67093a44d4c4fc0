"""gpt-oss (20b, 120b): MXFP4 experts whose gate and up rows alternate, a router with a bias."""

from __future__ import annotations

from mxfp4moe.checkpoint._parts import LayerParts
from mxfp4moe.checkpoint.huggingface import ModelFolder
from mxfp4moe.routing import topk_softmax

MODEL_TYPES = ("gpt_oss",)

_FLOATS = ("BF16", "F32")
_SCALES = ("U8", "F8_E8M0")


def read_layer(folder: ModelFolder, layer: int) -> LayerParts:
    """Read MoE layer `layer` of a gpt-oss folder."""
    config = folder.config
    hidden = config.integer("hidden_size", multiple_of=32)
    intermediate = config.integer("intermediate_size", multiple_of=32)
    num_experts = config.integer("num_local_experts")
    top_k = config.integer("num_experts_per_tok", "experts_per_token", maximum=num_experts)
    limit = config.positive_number("swiglu_limit", default=7.0)
    if "num_hidden_layers" in config.fields:  # without it, the tensors themselves show which layers there are
        last = config.integer("num_hidden_layers") - 1
        if layer > last:
            raise ValueError(f"layer: expected an integer in [0, {last}], got {layer}")
    method = config.section("quantization_config").get("quant_method", "mxfp4")
    if method != "mxfp4":
        raise config.error("quantization_config.quant_method", "'mxfp4'", repr(method))

    mlp = f"model.layers.{layer}.mlp"
    experts = f"{mlp}.experts"
    w13_rows = 2 * intermediate
    return LayerParts(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_experts=num_experts,
        top_k=top_k,
        experts={
            "w13": folder.tensor(
                f"{experts}.gate_up_proj_blocks", ("U8",), (num_experts, w13_rows, hidden // 32, 16)
            ),
            "w13_scales": folder.tensor(
                f"{experts}.gate_up_proj_scales", _SCALES, (num_experts, w13_rows, hidden // 32)
            ),
            "w2": folder.tensor(
                f"{experts}.down_proj_blocks", ("U8",), (num_experts, hidden, intermediate // 32, 16)
            ),
            "w2_scales": folder.tensor(
                f"{experts}.down_proj_scales", _SCALES, (num_experts, hidden, intermediate // 32)
            ),
            "w13_bias": folder.tensor(f"{experts}.gate_up_proj_bias", _FLOATS, (num_experts, w13_rows)),
            "w2_bias": folder.tensor(f"{experts}.down_proj_bias", _FLOATS, (num_experts, hidden)),
            "format": "mxfp4",
            "gate_up_layout": "interleaved",
        },
        router_weight=folder.tensor(f"{mlp}.router.weight", _FLOATS, (num_experts, hidden)),
        router_bias=folder.tensor(f"{mlp}.router.bias", _FLOATS, (num_experts,)),
        routing=topk_softmax,
        activation="swigluoai",
        limit=limit,
    )
