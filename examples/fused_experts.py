import ml_dtypes
import numpy as np

import mxfp4moe as mx

num_tokens, hidden_size, intermediate_size, num_experts, top_k = 8, 512, 256, 16, 4
rng = np.random.default_rng(0)

# A checkpoint has its weights in MXFP4 already; here they are quantized. w13: gate rows, then up rows.
w13 = rng.standard_normal((num_experts, 2 * intermediate_size, hidden_size), np.float32) / hidden_size**0.5
w2 = rng.standard_normal((num_experts, hidden_size, intermediate_size), np.float32) / intermediate_size**0.5
w13_blocks, w13_scales = mx.quantize_mxfp4(w13)
w2_blocks, w2_scales = mx.quantize_mxfp4(w2)

# Pack once, then call for every batch.
experts = mx.pack_experts(w13_blocks, w13_scales, w2_blocks, w2_scales, format="mxfp4")
hidden_states = rng.standard_normal((num_tokens, hidden_size), np.float32).astype(ml_dtypes.bfloat16)
router_logits = rng.standard_normal((num_tokens, num_experts), np.float32)
topk_weights, topk_ids = mx.topk_softmax(router_logits, top_k)
y = mx.fused_experts(hidden_states, experts, topk_weights, topk_ids, activation="silu")
print(y.shape, y.dtype)  # (8, 512) bfloat16
