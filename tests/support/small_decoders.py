"""Synthetic whole models of small widths."""

from __future__ import annotations

from mxfp4moe.cli._synthetic_model import Decoder, GptOss, Qwen3Moe

_SIZES = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts": 8,
    "moe_intermediate_size": 64,
    "vocab_size": 300,
}
SMALL_DECODERS: list[Decoder] = [GptOss(**_SIZES), Qwen3Moe(**_SIZES)]
