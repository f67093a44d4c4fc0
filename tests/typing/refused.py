"""A user's script with a mistake in every marked line: type checkers find each of them, and no other."""

from __future__ import annotations

import numpy as np

import mxfp4moe as mx

w = np.zeros((2, 64, 32), np.float32)
blocks, scales = mx.quantize_mxfp4(w, "even")  # error: keyword-only
mx.quantize_mxfp4(w, scale_rule="nearest")  # error: no such rule
experts = mx.pack_experts(w, None, w, None, format="fp32")  # error: no such format
mx.pack_experts(w, None, w, None, format="bf16", gate_up_layout="stacked")  # error: no such layout
mx.pack_linear(w[0], format="fp32")  # error: no such format
mx.pack_linear(w[0], quantize="bf16")  # error: nothing to quantize to
mx.pack_linear(w[0]).shape = (1, 1)  # error: read-only
mx.fused_experts(w, experts, w, w, activation="relu")  # error: no such activation
mx.fused_experts(w, experts, w, w, out=[[0.0]])  # error: no array
mx.fused_experts(w, "experts", w, w)  # error: no PackedExperts
mx.MoELayer.open("layer.packed", True)  # error: keyword-only
mx.MoELayer.from_checkpoint("model", nonfinite="ignore")  # error: no such choice
mx.MoELayer.from_checkpoint("model", quantize="bf16")  # error: nothing to quantize to
mx.load_layers("model", quantize="int3")  # error: no such format
layer = mx.MoELayer.from_checkpoint("model")
layer.top_k = 1  # error: read-only
mx.show_config(mode="json")  # error: no such mode
mx.show_config().keys()  # error: None
mx.fused_moe(w, experts, w)  # error: top_k
mx.select_experts(w, 2, scoring="relu")  # error: no such score
lm = mx.CausalLM.from_checkpoint("model", quantize_dense="fp4")  # error: no such format
lm.num_layers = 3  # error: read-only
lm.generate([1, 2], max_new_tokens="9")  # error: no int
mx.KVCache(2, 64, dtype="float16")  # error: no such dtype
mx.KVCache(2, 64).head_dim = 1  # error: read-only
mx.RotaryEmbedding(64, base=1e4).head_dim = 1  # error: read-only
mx.quantize_int4(w, 64)  # error: keyword-only
