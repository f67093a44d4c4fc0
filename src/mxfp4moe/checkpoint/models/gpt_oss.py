"""gpt-oss (20b, 120b): experts whose gate and up rows alternate, with biases; a router with a bias."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mxfp4moe._arguments import cast
from mxfp4moe.checkpoint._config import Config
from mxfp4moe.checkpoint._fused import FusedLayout, fused_names
from mxfp4moe.checkpoint._model import Block, Model, Names, Rule, read_num_experts, read_num_layers
from mxfp4moe.checkpoint.model_folder import ModelFolder
from mxfp4moe.checkpoint.schemes import FLOATS, Scheme, plain
from mxfp4moe.experts.weights import ExpertWeights

MODEL_TYPES = ("gpt_oss",)

_SCALES = ("U8", "F8_E8M0")


def read_model(config: Config) -> Model:
    """Read the configuration of gpt-oss."""
    quantization = config.section("quantization_config")
    quantization.choice("quant_method", ("mxfp4",), default="mxfp4")
    quantization.check_all_read()
    num_experts = read_num_experts(config, "num_local_experts")
    return Model(
        hidden_size=config.integer("hidden_size", multiple_of=32),
        intermediate_size=config.integer("intermediate_size", multiple_of=32),
        num_experts=num_experts,
        top_k=config.integer("num_experts_per_tok", "experts_per_token", maximum=num_experts),
        names=(Names(router="router"),),
        fused_layouts=(FusedLayout(is_transposed=True, is_interleaved=True),),
        is_stacked=True,
        scheme=Scheme("gpt-oss MXFP4", "mxfp4", plain.SCHEME.read),
        rule=lambda layer: Rule("topk_softmax"),
        num_layers=read_num_layers(config),
        router_bias=True,
        activation="swigluoai",
        limit=config.positive_number("swiglu_limit", default=7.0),
        read_experts=_read_experts,
    )


def _read_experts(folder: ModelFolder, block: Block, model: Model) -> ExpertWeights:
    hidden, intermediate, count = model.hidden_size, model.intermediate_size, model.num_experts
    sizes = hidden, intermediate
    gate_up, down = fused_names(block.experts)

    def biases() -> dict[str, Any]:
        names = {"w13_bias": (f"{gate_up}_bias", 2 * intermediate), "w2_bias": (f"{down}_bias", hidden)}
        arrays = {key: folder.tensor(name, FLOATS, (count, rows)) for key, (name, rows) in names.items()}
        # pack_experts takes no float16 biases; float32 holds every float16 value.
        return {key: cast(a, np.float32) if a.dtype == np.float16 else a for key, a in arrays.items()}

    if gate_up in folder:
        arrays = model.read_fused(folder, block.experts).arrays() | biases()
        arrays = plain.with_scales(arrays)
        return ExpertWeights("bf16", "plain floats, transposed", sizes, arrays, plain.to_bfloat16)

    def blocks(name: str, rows: int, columns: int) -> tuple[NDArray[Any], NDArray[Any]]:
        shape = (count, rows, columns // 32)
        return (
            folder.tensor(f"{name}_blocks", ("U8",), (*shape, 16)),
            folder.tensor(f"{name}_scales", _SCALES, shape),
        )

    w13, w13_scales = blocks(gate_up, 2 * intermediate, hidden)
    w2, w2_scales = blocks(down, hidden, intermediate)
    arrays = {"w13": w13, "w13_scales": w13_scales, "w2": w2, "w2_scales": w2_scales, **biases()}
    return ExpertWeights("mxfp4", model.scheme.name, sizes, arrays | {"gate_up_layout": "interleaved"})
