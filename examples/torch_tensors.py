import torch

import mxfp4moe as mx

torch.manual_seed(0)
w13 = torch.randn(16, 2 * 256, 512, dtype=torch.bfloat16)
w2 = torch.randn(16, 512, 256, dtype=torch.bfloat16)
experts = mx.pack_experts(*mx.quantize_mxfp4(w13), *mx.quantize_mxfp4(w2), format="mxfp4")

hidden_states = torch.randn(8, 512, dtype=torch.bfloat16)
topk_weights, topk_ids = torch.randn(8, 16).softmax(dim=-1).topk(4)
y = torch.empty_like(hidden_states)
mx.fused_experts(hidden_states, experts, topk_weights, topk_ids, out=y)  # into the tensor's own memory
print(y.shape, y.dtype)  # torch.Size([8, 512]) torch.bfloat16
