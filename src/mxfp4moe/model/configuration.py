"""A row of data and the files of a model folder make the description of a decoder."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mxfp4moe._arguments import value_error
from mxfp4moe._json import read_object, shorten
from mxfp4moe.checkpoint._config import Config
from mxfp4moe.checkpoint._fields import Choice, Count, Flag, Number, read_value
from mxfp4moe.checkpoint._moe_layers import find_moe_layers
from mxfp4moe.checkpoint.huggingface import HuggingFaceCheckpoint
from mxfp4moe.model.decoder_type import DECODERS, MAX_VOCABULARY, DecoderType
from mxfp4moe.model.description import DecoderDescription, RotaryDescription

_ROTARY_SECTIONS = ("rope_parameters", "rope_scaling")
"""Where the configuration says how positions are rotated: as transformers 5 has it, and as before."""

_VOCAB_SIZE = Count("vocab_size", maximum=MAX_VOCABULARY)
_OFF: dict[str, tuple[Any, ...]] = dict.fromkeys(
    (
        "attn_logit_softcapping", "final_logit_softcapping", "logit_soft_cap", "query_pre_attn_scalar",
        "attention_multiplier", "attention_scale", "clip_qkv", "sliding_window", "use_sliding_window",
        "attention_chunk_size", "use_qk_norm", "qk_layernorm", "use_qk_norm_per_head", "attention_bias",
        "qkv_bias", "use_bias", "alibi", "attn_output_gate", "attention_output_gate", "use_gated_attention",
        "attention_sink_bias", "add_swa_attention_sink_bias", "add_full_attention_sink_bias",
        "attn_temperature_tuning", "no_rope_layers", "no_rope_layer_interval", "nope_layer_interval",
        "rope_interleave", "rope_interleaved", "rotary_interleaved", "kv_lora_rank", "q_lora_rank",
        "scale_embeddings", "parallel_attn", "use_parallel_residual", "lm_head_bias", "num_kv_shared_layers",
        "index_topk", "linear_num_value_heads",
    ),
    (0, False, [], {}),
)  # fmt: skip
_FACTORS: dict[str, tuple[Any, ...]] = dict.fromkeys(
    ("logits_scaling", "logit_scale", "embedding_multiplier", "residual_multiplier", "lm_head_multiplier"),
    (1, False),
)
"""Fields that change what one decoder or another computes, and what they say where they change nothing."""


class TensorOptions(NamedTuple):
    """Which tensors a decoder has, as far as types differ in it."""

    has_qkv_bias: bool
    has_output_bias: bool
    is_tied: bool
    dense_size: int
    """The intermediate size of layers without experts, 0 if all have experts."""


def read_decoder(checkpoint: HuggingFaceCheckpoint) -> tuple[DecoderDescription, TensorOptions]:
    """The decoder of a checkpoint and its tensors; a ValueError names a field that is not computed."""
    config = Config.read(checkpoint.path / "config.json")
    row = find_decoder(config)
    num_layers, hidden = checkpoint.num_layers, checkpoint.hidden_size
    config.list_lengths = (num_layers,)
    for name, values in row.constants.items():
        config.choice(name, values, default=values[0])
    num_heads = row.num_heads.read(config)
    num_kv_heads = row.num_kv_heads.read(config) or num_heads
    if num_heads % num_kv_heads:
        name = row.num_kv_heads.name_in(config)
        raise config.error(name, f"a divisor of {num_heads} (num_attention_heads)", str(num_kv_heads))
    head_dim = row.head_dim.read(config)
    if head_dim is None:
        if hidden % num_heads:
            expected = f"a divisor of {hidden} (hidden_size), without head_dim"
            raise config.error("num_attention_heads", expected, str(num_heads))
        head_dim = hidden // num_heads
    has_dense = len(checkpoint.moe_layers) < num_layers
    options = TensorOptions(
        read_value(row.qkv_bias, config),
        read_value(row.output_bias, config),
        read_value(row.is_tied, config),
        row.dense_size.read(config) if has_dense else 0,
    )
    description = DecoderDescription(
        model_type=config.string("model_type"),
        hidden_size=hidden,
        vocab_size=_VOCAB_SIZE.read(config),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        rotary=_read_rotary(row, config, head_dim),
        norm_epsilon=read_value(row.norm_epsilon, config),
        windows=_read_windows(row, config, num_layers),
        max_positions=row.max_positions.read(config),
        qk_norm=read_value(row.qk_norm, config),
        clip=read_value(row.clip, config),
        has_sinks=row.has_sinks,
        activation=checkpoint.activation,
        end_ids=_read_end_ids(config, checkpoint.path),
    )
    _check_options(row, config)
    return description, options


def find_decoder(config: Config) -> DecoderType:
    """The row of the model type of a configuration."""
    model_type = config.string("model_type")
    if model_type not in DECODERS:
        expected = f"a model type that can be run as a whole ({', '.join(DECODERS)})"
        raise config.error("model_type", expected, shorten(model_type))
    return DECODERS[model_type]


def _check_options(row: DecoderType, config: Config) -> None:
    """Raise for a field that would change what is computed and that was not asked for."""
    neutral = _OFF | _FACTORS
    for name, value in config.unread().items():
        choices = () if name in row.ignored else neutral.get(name, ())
        if choices and not any(_is(value, choice) for choice in choices):
            raise config.error(name, repr(choices[0]), shorten(value))


def _is(value: Any, choice: Any) -> bool:
    return isinstance(value, bool) == isinstance(choice, bool) and bool(value == choice)


def _read_windows(row: DecoderType, config: Config, num_layers: int) -> tuple[int | None, ...]:
    window = read_value(row.window, config)
    listed = [rule for rule in row.sliding if rule.is_in(config)]
    if window is None and not listed:
        return (None,) * num_layers
    slides = find_moe_layers(listed or row.sliding, config, num_layers)
    result = tuple(window if slides(layer) else None for layer in range(num_layers))
    if window is None and any(map(slides, range(num_layers))):
        raise config.error("layer_types", "'full_attention' for each layer", "others, but no sliding_window")
    return result


def _read_rotary(row: DecoderType, config: Config, head_dim: int) -> RotaryDescription:
    sections = [name for name in _ROTARY_SECTIONS if config.section(name).fields]

    def named(*names: str, top: str = "") -> str:
        nested = [f"{section}.{name}" for section in _ROTARY_SECTIONS for name in names]
        return "|".join([*nested, top] if top else nested)

    base = Number(named("rope_theta", top="rope_theta"), row.base).read(config)
    name = named("partial_rotary_factor", top="partial_rotary_factor")
    fraction = Number(name, row.rotary_fraction).read(config)
    rotary_dim = int(head_dim * fraction)
    if not 0 < rotary_dim <= head_dim or rotary_dim % 2:
        expected = f"a part of a head that is an even number of its {head_dim}"
        raise config.error(Number(name).name_in(config), expected, shorten(fraction))
    yarn: dict[str, Any] | None = None
    if not sections and row.yarn is not None:
        yarn = dict(row.yarn)
    elif Choice(named("rope_type", "type"), "default", of={"default": False, "yarn": True}).read(config):
        yarn = _read_yarn(named, config)
    for section in _ROTARY_SECTIONS:
        config.section(section).check_all_read()
    return RotaryDescription(head_dim, base, rotary_dim, yarn)


def _read_yarn(named: Callable[..., str], config: Config) -> dict[str, Any]:
    """The arguments of `mxfp4moe.YarnScaling`."""
    positions = Count(named("original_max_position_embeddings", top="initial_context_length"))
    values = {
        "factor": Number(named("factor")),
        "beta_fast": Number(named("beta_fast"), 32.0),
        "beta_slow": Number(named("beta_slow"), 1.0),
        "original_max_position_embeddings": positions,
        "truncate": Flag(named("truncate"), True),
    }
    result = {key: each.read(config) for key, each in values.items()}
    factor = Number(named("attention_factor"), None).read(config)
    scales = [Number(named(name), None).read(config) for name in ("mscale", "mscale_all_dim")]
    if factor is None and all(scales):
        log = math.log(max(result["factor"], 1.0))
        factor = (0.1 * scales[0] * log + 1) / (0.1 * scales[1] * log + 1)
    return result if factor is None else result | {"attention_factor": factor}


def _read_end_ids(config: Config, folder: Path) -> tuple[int, ...]:
    """The tokens that end a text: as generation_config.json says, else as config.json does."""
    sources = [("config.json", config.get("eos_token_id"))]
    path = folder / "generation_config.json"
    if path.is_file():
        sources.insert(0, (path.name, read_object(path).get("eos_token_id")))
    for name, value in sources:
        if value is not None:
            ids = value if isinstance(value, list) else [value]
            if not all(type(each) is int and 0 <= each < _VOCAB_SIZE.read(config) for each in ids):
                place = f"{folder / name}: eos_token_id"
                raise value_error(place, "ids of the vocabulary", shorten(value))
            return tuple(dict.fromkeys(ids))
    return ()
