"""A model type outside of its mixture-of-experts blocks, as a row of data.

`mxfp4moe.checkpoint.models` has the other half: what a block of the type computes. A type that has a row in
both can be run as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from mxfp4moe.checkpoint._fields import Value
from mxfp4moe.checkpoint.model_type import Choice, Count, Flag, LayersFrom, LayerTypes, Number

MAX_HEADS, MAX_POSITIONS, MAX_VOCABULARY = 65_536, 2**31 - 1, 2**27

_EPSILON = Number("rms_norm_eps", 1e-6)
_NUM_HEADS = Count("num_attention_heads", maximum=MAX_HEADS)
_NUM_KV_HEADS = Count("num_key_value_heads", None, maximum=MAX_HEADS)
_HEAD_DIM = Count("head_dim", None, maximum=MAX_HEADS)
_LAYER_TYPES = LayerTypes("layer_types", sparse=("sliding_attention",), dense=("full_attention",))
_SLIDING = (_LAYER_TYPES, LayersFrom())
_MAX_POSITIONS = Count("max_position_embeddings", maximum=MAX_POSITIONS)
_DENSE_SIZE = Count("intermediate_size")
_IS_TIED = Flag("tie_word_embeddings", False)


@dataclass(frozen=True)
class DecoderType:
    """The decoder of a model type: norms, attention and dense layers around its mixture-of-experts blocks.

    Every decoder here has RMS norms before attention and before the block, each of which adds to the residual
    stream; the tensors have the names that Llama has made common. A row says the rest: constants or fields of
    config.json.
    """

    model_types: tuple[str, ...]
    _: KW_ONLY
    norm_epsilon: Value = _EPSILON
    num_heads: Count = _NUM_HEADS
    num_kv_heads: Count = _NUM_KV_HEADS
    """None stands for as many as there are heads."""
    head_dim: Count = _HEAD_DIM
    """None stands for the hidden size over the number of heads."""
    qkv_bias: Value = False
    output_bias: Value = False
    qk_norm: Value = "none"
    """Whether queries and keys have RMS norms: "none", of each "head", or of the "whole" projection."""
    clip: Value = None
    """The largest absolute value of queries, keys and values."""
    has_sinks: bool = False
    """Whether each head has a logit that takes part in the softmax and has no value."""
    window: Value = None
    """How many positions, its own among them, a token sees in layers that slide; None: all."""
    sliding: tuple[LayerTypes | LayersFrom, ...] = _SLIDING
    """Which layers slide where there is a window, as `ModelType.moe_layers` says which have experts."""
    base: float = 10_000.0
    """The base of the rotary embedding where the configuration does not say it."""
    rotary_fraction: float = 1.0
    """The part of each head that is rotated, likewise."""
    yarn: Mapping[str, Any] | None = None
    """The fields of YaRN where the configuration says nothing of the rotary embedding."""
    max_positions: Count = _MAX_POSITIONS
    dense_size: Count = _DENSE_SIZE
    """The intermediate size of layers without experts."""
    is_tied: Value = _IS_TIED
    """Whether the head has the weights of the embedding."""
    ignored: tuple[str, ...] = ()
    """Fields that this type does not look at, whatever they say."""
    constants: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Fields that may be missing or have these values; another one would change what is computed."""


def _kv_heads(default: int) -> Count:
    return Count("num_key_value_heads", default, null=None, maximum=MAX_HEADS)


_EPSILON_5 = Number("rms_norm_eps", 1e-5)
_QWEN_WINDOW = Choice("use_sliding_window", False, of={False: None, True: Count("sliding_window", 4096)})

GPT_OSS = DecoderType(
    ("gpt_oss",),
    norm_epsilon=_EPSILON_5,
    num_kv_heads=_kv_heads(8),
    head_dim=Count("head_dim", 64, null=None, maximum=MAX_HEADS),
    qkv_bias=Flag("attention_bias", True),
    output_bias=Flag("attention_bias", True),
    has_sinks=True,
    window=Count("sliding_window", 128, null=None),
    sliding=(_LAYER_TYPES, LayersFrom(step=2)),
    base=150_000.0,
    yarn={
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "original_max_position_embeddings": 4096,
        "truncate": False,
    },
)
MIXTRAL = DecoderType(
    ("mixtral",),
    norm_epsilon=_EPSILON_5,
    num_kv_heads=_kv_heads(8),
    window=Count("sliding_window", None),
    base=1_000_000.0,
)
QWEN3_MOE = DecoderType(
    ("qwen3_moe",),
    num_kv_heads=_kv_heads(4),
    qkv_bias=Flag("attention_bias", False),
    output_bias=Flag("attention_bias", False),
    qk_norm="head",
    window=_QWEN_WINDOW,
    ignored=("sliding_window", "max_window_layers"),
)
QWEN2_MOE = DecoderType(
    ("qwen2_moe",),
    num_kv_heads=_kv_heads(16),
    qkv_bias=Flag("qkv_bias", True),
    window=_QWEN_WINDOW,
    # Which layers slide if no list says it differs from one implementation to the next.
    sliding=(_LAYER_TYPES,),
    ignored=("sliding_window", "max_window_layers"),
)
GLM4_MOE = DecoderType(
    ("glm4_moe",),
    norm_epsilon=_EPSILON_5,
    num_kv_heads=_kv_heads(8),
    qkv_bias=Flag("attention_bias", False),
    qk_norm=Choice("use_qk_norm", False, of={False: "none", True: "head"}),
    rotary_fraction=0.5,
)
OLMOE = DecoderType(
    ("olmoe",),
    norm_epsilon=_EPSILON_5,
    qkv_bias=Flag("attention_bias", False),
    output_bias=Flag("attention_bias", False),
    qk_norm="whole",
    clip=Number("clip_qkv", None),
)

DECODERS = {
    name: row for row in (GPT_OSS, MIXTRAL, QWEN3_MOE, QWEN2_MOE, GLM4_MOE, OLMOE) for name in row.model_types
}
"""The types of models that can be run as a whole."""
