"""Facts of model types: one module each, with `MODEL_TYPES` and ``read_model(config)``.

`MODEL_TYPES` are values of ``model_type`` in config.json. How weights are quantized is not said here, but in
`mxfp4moe.checkpoint.schemes`, since any model may come in several quantizations.
"""

from __future__ import annotations

from collections.abc import Callable

from mxfp4moe._arguments import describe, join_choices
from mxfp4moe.checkpoint._config import Config
from mxfp4moe.checkpoint._model import Model
from mxfp4moe.checkpoint.models import (
    deepseek_v3,
    deepseek_v4,
    gpt_oss,
    minimax_m2,
    minimax_m3,
    mixtral,
    qwen3_moe,
)

_MODULES = (gpt_oss, deepseek_v3, deepseek_v4, qwen3_moe, mixtral, minimax_m2, minimax_m3)

MODELS: dict[str, Callable[[Config], Model]] = {
    model_type: module.read_model for module in _MODULES for model_type in module.MODEL_TYPES
}


def read_model(config: Config) -> Model:
    """What the model type of a configuration says, applied to its fields."""
    model_type = config.string("model_type")
    if model_type not in MODELS:
        raise config.error("model_type", join_choices(map(repr, MODELS)), describe(model_type))
    return MODELS[model_type](config)
