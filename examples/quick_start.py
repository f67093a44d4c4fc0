import numpy as np

import mxfp4moe as mx

rng = np.random.default_rng(0)
w13 = mx.quantize_mxfp4(rng.standard_normal((16, 2 * 256, 512), np.float32))  # 16 experts: gate and up
w2 = mx.quantize_mxfp4(rng.standard_normal((16, 512, 256), np.float32))  # and down
experts = mx.pack_experts(*w13, *w2, format="mxfp4")  # once; then call for every batch

hidden_states = rng.standard_normal((8, 512), np.float32)  # 8 tokens
router_logits = rng.standard_normal((8, 16), np.float32)
y = mx.fused_moe(hidden_states, experts, router_logits, top_k=4)  # each token's best 4 experts
print(y.shape, y.dtype)  # (8, 512) float32
