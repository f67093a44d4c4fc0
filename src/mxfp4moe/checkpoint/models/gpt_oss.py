"""gpt-oss (20b, 120b): experts whose gate and up rows alternate, with biases; a router with a bias."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mxfp4moe._arguments import cast
from mxfp4moe.checkpoint._config import Config
from mxfp4moe.checkpoint._experts import read_experts
from mxfp4moe.checkpoint._fields import Count, Number
from mxfp4moe.checkpoint._fused import FusedLayout, fused_arrays
from mxfp4moe.checkpoint._model import Model
from mxfp4moe.checkpoint._names import Block, Names
from mxfp4moe.checkpoint.model_folder import ModelFolder
from mxfp4moe.checkpoint.model_type import ModelType, Routing
from mxfp4moe.checkpoint.schemes import E8M0, FLOATS, Scheme, find_scheme, plain
from mxfp4moe.experts.weights import ExpertWeights

_OWN = Scheme("gpt-oss MXFP4", "mxfp4", plain.SCHEME.read, multiple_of=32)
"""How the published models are quantized."""


def _scheme(config: Config) -> Scheme:
    quantization = config.section("quantization_config")
    if quantization.get("quant_method") == "mxfp4":
        quantization.check_all_read()
        return _OWN
    scheme = find_scheme(config)
    return _OWN if scheme is plain.SCHEME else scheme


def _read_experts(folder: ModelFolder, block: Block, model: Model) -> ExpertWeights:
    gate_up, down = block.fused
    if gate_up not in folder and model.scheme is not _OWN:
        return read_experts(folder, block, model)
    hidden, intermediate, count = model.hidden_size, model.intermediate_size, model.num_experts
    sizes = hidden, intermediate

    def biases() -> dict[str, Any]:
        names = {"w13_bias": (f"{gate_up}_bias", 2 * intermediate), "w2_bias": (f"{down}_bias", hidden)}
        arrays = {key: folder.tensor(name, FLOATS, (count, rows)) for key, (name, rows) in names.items()}
        # pack_experts takes no float16 biases; float32 holds every float16 value.
        return {key: cast(a, np.float32) if a.dtype == np.float16 else a for key, a in arrays.items()}

    if gate_up in folder:
        arrays = fused_arrays(model.read_fused(folder, block)) | biases()
        arrays = plain.with_scales(arrays)
        return ExpertWeights("bf16", "plain floats, transposed", sizes, arrays, plain.to_bfloat16)

    def blocks(name: str, rows: int, columns: int) -> tuple[NDArray[Any], NDArray[Any]]:
        shape = (count, rows, columns // 32)
        return (
            folder.tensor(f"{name}_blocks", ("U8",), (*shape, 16)),
            folder.tensor(f"{name}_scales", E8M0, shape),
        )

    w13, w13_scales = blocks(gate_up, 2 * intermediate, hidden)
    w2, w2_scales = blocks(down, hidden, intermediate)
    arrays = {"w13": w13, "w13_scales": w13_scales, "w2": w2, "w2_scales": w2_scales, **biases()}
    return ExpertWeights("mxfp4", model.scheme.name, sizes, arrays | {"gate_up_layout": "interleaved"})


def _change(model: Model, config: Config) -> Model:
    return replace(model, is_stacked=True, has_biases=True, read_experts=_read_experts)


GPT_OSS = ModelType(
    ("gpt_oss",),
    Routing("topk_softmax"),
    names=(Names(router="router", layouts=(FusedLayout(is_transposed=True, is_interleaved=True),)),),
    intermediate_size=Count("intermediate_size"),
    activation="swigluoai",
    alpha=Number("swiglu_alpha", None),
    limit=Number("swiglu_limit", 7.0),
    tensors=("router_bias",),
    constants={"hidden_act": ("silu", "swigluoai")},  # it computes swigluoai, whichever of these is named
    scheme=_scheme,
    change=_change,
)

MODEL_TYPES = (GPT_OSS,)
