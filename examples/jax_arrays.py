import jax
import jax.numpy as jnp

import mxfp4moe as mx

keys = jax.random.split(jax.random.key(0), 4)
w13 = jax.random.normal(keys[0], (16, 2 * 256, 512), jnp.bfloat16)
w2 = jax.random.normal(keys[1], (16, 512, 256), jnp.bfloat16)
experts = mx.pack_experts(*mx.quantize_mxfp4(w13), *mx.quantize_mxfp4(w2), format="mxfp4")

hidden_states = jax.random.normal(keys[2], (8, 512), jnp.bfloat16)
router_logits = jax.random.normal(keys[3], (8, 16))
y = jnp.asarray(mx.fused_moe(hidden_states, experts, router_logits, top_k=4))
print(y.shape, y.dtype)  # (8, 512) bfloat16
