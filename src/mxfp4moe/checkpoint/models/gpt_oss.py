"""gpt-oss (20b, 120b): experts whose gate and up rows alternate, with biases; a router with a bias."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from mxfp4moe.checkpoint._config import Config
from mxfp4moe.checkpoint._model import Model, Names, Rule, read_num_experts, read_num_layers
from mxfp4moe.checkpoint._parts import ExpertWeights
from mxfp4moe.checkpoint.huggingface import ModelFolder
from mxfp4moe.checkpoint.schemes import FLOATS, Scheme, plain

MODEL_TYPES = ("gpt_oss",)

_SCALES = ("U8", "F8_E8M0")
_BIASES = ("BF16", "F32")


def read_model(config: Config) -> Model:
    """Read the configuration of gpt-oss."""
    quantization = config.section("quantization_config")
    quantization.choice("quant_method", ("mxfp4",), default="mxfp4")
    num_experts = read_num_experts(config, "num_local_experts")
    return Model(
        hidden_size=config.integer("hidden_size", multiple_of=32),
        intermediate_size=config.integer("intermediate_size", multiple_of=32),
        num_experts=num_experts,
        top_k=config.integer("num_experts_per_tok", "experts_per_token", maximum=num_experts),
        names=(Names("model.layers.{layer}.mlp", router="router"),),
        scheme=Scheme("gpt-oss MXFP4", "mxfp4", plain.SCHEME.read),
        rule=lambda layer: Rule("topk_softmax"),
        num_layers=read_num_layers(config),
        router_bias=True,
        activation="swigluoai",
        limit=config.positive_number("swiglu_limit", default=7.0),
        read_experts=_read_experts,
    )


def _read_experts(folder: ModelFolder, block: str, model: Model) -> ExpertWeights:
    experts, hidden, intermediate = f"{block}.experts", model.hidden_size, model.intermediate_size
    count, w13_rows = model.num_experts, 2 * intermediate

    def biases() -> dict[str, Any]:
        return {
            "w13_bias": folder.tensor(f"{experts}.gate_up_proj_bias", _BIASES, (count, w13_rows)),
            "w2_bias": folder.tensor(f"{experts}.down_proj_bias", _BIASES, (count, hidden)),
            "gate_up_layout": "interleaved",
        }

    if f"{experts}.gate_up_proj" in folder:
        # In bfloat16 both matrices are stored transposed, [E, K, N].
        w13 = folder.tensor(f"{experts}.gate_up_proj", FLOATS, (count, hidden, w13_rows))
        w2 = folder.tensor(f"{experts}.down_proj", FLOATS, (count, intermediate, hidden))
        arrays = {"w13": w13.transpose(0, 2, 1), "w2": w2.transpose(0, 2, 1), **biases()}
        return ExpertWeights("bf16", "plain floats, transposed", plain.with_scales(arrays), plain.to_bfloat16)

    def blocks(name: str, rows: int, columns: int) -> tuple[NDArray[Any], NDArray[Any]]:
        shape = (count, rows, columns // 32)
        return (
            folder.tensor(f"{experts}.{name}_blocks", ("U8",), (*shape, 16)),
            folder.tensor(f"{experts}.{name}_scales", _SCALES, shape),
        )

    w13, w13_scales = blocks("gate_up_proj", w13_rows, hidden)
    w2, w2_scales = blocks("down_proj", hidden, intermediate)
    arrays = {"w13": w13, "w13_scales": w13_scales, "w2": w2, "w2_scales": w2_scales, **biases()}
    return ExpertWeights("mxfp4", model.scheme.name, arrays)
