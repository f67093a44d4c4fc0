"""Model types: rows of data by the kind of their routing, and functions for what is really different.

How weights are quantized is not said here, but in `mxfp4moe.checkpoint.schemes`, since any model may come in
several quantizations.
"""

from __future__ import annotations

from mxfp4moe._arguments import describe, type_error, value_error
from mxfp4moe.checkpoint._check_row import check_row
from mxfp4moe.checkpoint._config import Config
from mxfp4moe.checkpoint._model import Model
from mxfp4moe.checkpoint._read_model import read_model as read_row
from mxfp4moe.checkpoint.model_type import ModelType
from mxfp4moe.checkpoint.models import deepseek_v4, gpt_oss, inkling, latent, sigmoid, softmax

MODELS: dict[str, ModelType] = {
    name: row
    for module in (gpt_oss, deepseek_v4, softmax, sigmoid, latent, inkling)
    for row in module.MODEL_TYPES
    for name in row.model_types
}


REFUSED = {
    "axk1": "a norm follows its MoE block",
    "doge": "its router takes the tokens of a batch together",
    "inkling2_text": "its activation has two caps",
    "muse_spark_text": "a norm precedes its experts",
}
"""Model types that are known and not read, and why."""


def find_row(config: Config) -> ModelType:
    """The row of the model type of a configuration."""
    model_type = config.string("model_type")
    if model_type not in MODELS:
        expected = "'gpt_oss', 'mixtral' or another of mxfp4moe.checkpoint.supported_model_types()"
        why = f", which is not supported: {REFUSED[model_type]}" if model_type in REFUSED else ""
        raise config.error("model_type", expected, describe(model_type) + why)
    return MODELS[model_type]


def read_model(config: Config) -> Model:
    """What the model type of a configuration says, applied to its fields."""
    return read_row(find_row(config), config)


def add_row(row: ModelType) -> None:
    """Make a model type known; `mxfp4moe.register_model` for the rest."""
    if not isinstance(row, ModelType):
        raise type_error("row", "a mxfp4moe.checkpoint.ModelType", describe(row))
    check_row(row)
    for name in row.model_types:
        if name in MODELS:
            raise value_error("row.model_types", "names that are not registered", repr(name))
    MODELS.update(dict.fromkeys(row.model_types, row))
