"""A synthetic model folder written once more as GGUF, with the same experts, for llama.cpp."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mxfp4moe.checkpoint.model_folder import ModelFolder
from mxfp4moe.cli._bench.ggml_blocks import mxfp4_blocks, quantize_q8_0
from mxfp4moe.cli._synthetic_model import Decoder, GptOss

Kind: TypeAlias = Literal["F32", "BF16", "Q8_0", "MXFP4"]
_BLOCKS: dict[Kind, tuple[int, int]] = {"F32": (1, 4), "BF16": (1, 2), "Q8_0": (32, 34), "MXFP4": (32, 17)}
"""Numbers and bytes of a block."""


@dataclass(frozen=True)
class _Tensor:
    name: str
    kind: Kind
    sizes: tuple[int, ...]
    read: Callable[[], NDArray[Any]]

    @property
    def nbytes(self) -> int:
        numbers, size = _BLOCKS[self.kind]
        return math.prod(self.sizes) // numbers * size


def write_gguf(folder: Path, model: Decoder, path: Path, dense: Kind) -> None:
    """Write `model`, whose tensors are in `folder`, to `path`; matrices beside the experts become `dense`."""
    import gguf

    source = ModelFolder(folder)
    names = gguf.MODEL_ARCH_NAMES
    architecture = gguf.MODEL_ARCH.GPT_OSS if isinstance(model, GptOss) else gguf.MODEL_ARCH.QWEN3MOE
    writer = gguf.GGUFWriter(path, names[architecture])
    _add_metadata(writer, model)
    tensors = list(_tensors(source, model, dense))
    for each in tensors:
        kind = gguf.GGMLQuantizationType[each.kind]
        writer.add_tensor_info(each.name, each.sizes, np.dtype(np.float32), each.nbytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for each in tensors:
        writer.write_tensor_data(np.ascontiguousarray(each.read()))
    writer.close()


def _add_metadata(writer: Any, model: Decoder) -> None:
    writer.add_block_count(model.num_hidden_layers)
    writer.add_context_length(model.max_position_embeddings)
    writer.add_embedding_length(model.hidden_size)
    writer.add_feed_forward_length(model.moe_intermediate_size)
    writer.add_head_count(model.num_attention_heads)
    writer.add_head_count_kv(model.num_key_value_heads)
    writer.add_key_length(model.head_dim)
    writer.add_value_length(model.head_dim)
    writer.add_layer_norm_rms_eps(model.rms_norm_eps)
    writer.add_expert_count(model.num_experts)
    writer.add_expert_used_count(model.num_experts_per_tok)
    writer.add_expert_feed_forward_length(model.moe_intermediate_size)
    writer.add_rope_freq_base(model.config["rope_theta"])
    if isinstance(model, GptOss):
        import gguf

        scaling = model.config["rope_scaling"]
        writer.add_sliding_window(model.sliding_window)
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(scaling["factor"])
        writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
    # Token ids go in and logits come out: no vocabulary is needed, only its size.
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(model.vocab_size)


def _tensors(source: ModelFolder, model: Decoder, dense: Kind) -> Iterator[_Tensor]:
    def plain(name: str, of: str, kind: Kind) -> _Tensor:
        sizes = source.shape(of)
        return _Tensor(name, kind, sizes, partial(_read, source, of, kind))

    yield plain("token_embd.weight", "model.embed_tokens.weight", dense)
    yield plain("output_norm.weight", "model.norm.weight", "F32")
    yield plain("output.weight", "lm_head.weight", dense)
    is_gpt_oss = isinstance(model, GptOss)
    second_norm = "post_attention_norm" if is_gpt_oss else "ffn_norm"
    for layer in range(model.num_hidden_layers):
        ours, theirs = f"model.layers.{layer}.", f"blk.{layer}."
        yield plain(f"{theirs}attn_norm.weight", f"{ours}input_layernorm.weight", "F32")
        yield plain(f"{theirs}{second_norm}.weight", f"{ours}post_attention_layernorm.weight", "F32")
        for key, matrix in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "output")):
            yield plain(f"{theirs}attn_{matrix}.weight", f"{ours}self_attn.{key}_proj.weight", dense)
            if is_gpt_oss:
                yield plain(f"{theirs}attn_{matrix}.bias", f"{ours}self_attn.{key}_proj.bias", "F32")
        if is_gpt_oss:
            yield plain(f"{theirs}attn_sinks.weight", f"{ours}self_attn.sinks", "F32")
            yield plain(f"{theirs}ffn_gate_inp.weight", f"{ours}mlp.router.weight", "F32")
            yield plain(f"{theirs}ffn_gate_inp.bias", f"{ours}mlp.router.bias", "F32")
            yield from _gpt_oss_experts(source, model, f"{ours}mlp.experts.", theirs)
        else:
            yield plain(f"{theirs}attn_q_norm.weight", f"{ours}self_attn.q_norm.weight", "F32")
            yield plain(f"{theirs}attn_k_norm.weight", f"{ours}self_attn.k_norm.weight", "F32")
            yield plain(f"{theirs}ffn_gate_inp.weight", f"{ours}mlp.gate.weight", "F32")
            yield from _qwen3_experts(source, model, f"{ours}mlp.experts.", theirs)


def _gpt_oss_experts(source: ModelFolder, model: Decoder, ours: str, theirs: str) -> Iterator[_Tensor]:
    hidden, inner, experts = model.hidden_size, model.moe_intermediate_size, model.num_experts
    every, gates, ups = slice(None), slice(0, None, 2), slice(1, None, 2)
    for name, matrix, rows, sizes in (
        ("gate", "gate_up_proj", gates, (experts, inner, hidden)),
        ("up", "gate_up_proj", ups, (experts, inner, hidden)),
        ("down", "down_proj", every, (experts, hidden, inner)),
    ):

        def codes(matrix: str = matrix, rows: slice = rows) -> NDArray[Any]:
            parts = (_raw(source, f"{ours}{matrix}_{part}")[:, rows] for part in ("blocks", "scales"))
            return mxfp4_blocks(*parts)

        def bias(matrix: str = matrix, rows: slice = rows) -> NDArray[Any]:
            return _raw(source, f"{ours}{matrix}_bias")[:, rows].astype(np.float32)

        yield _Tensor(f"{theirs}ffn_{name}_exps.weight", "MXFP4", sizes, codes)
        yield _Tensor(f"{theirs}ffn_{name}_exps.bias", "F32", sizes[:2], bias)


def _qwen3_experts(source: ModelFolder, model: Decoder, ours: str, theirs: str) -> Iterator[_Tensor]:
    hidden, inner, experts = model.hidden_size, model.moe_intermediate_size, model.num_experts
    for name, sizes in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):

        def codes(name: str = name) -> NDArray[Any]:
            names = [f"{ours}{i}.{name}_proj.weight" for i in range(experts)]
            packed, scales = (
                np.stack([_raw(source, f"{each}_{part}") for each in names]) for part in ("packed", "scale")
            )
            return mxfp4_blocks(packed, scales)

        yield _Tensor(f"{theirs}ffn_{name}_exps.weight", "MXFP4", (experts, *sizes), codes)


def _raw(source: ModelFolder, name: str) -> NDArray[Any]:
    return source.tensor(name, ("BF16", "U8"), source.shape(name))


def _read(source: ModelFolder, name: str, kind: Kind) -> NDArray[Any]:
    weight = _raw(source, name)
    if kind == "F32":
        return weight.astype(np.float32)
    return quantize_q8_0(weight) if kind == "Q8_0" else weight.view(np.uint16)
