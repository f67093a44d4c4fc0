import jax
import jax.numpy as jnp

import mxfp4moe as mx
import mxfp4moe.jax

keys = jax.random.split(jax.random.key(0), 4)
embedding = jax.random.normal(keys[0], (512, 256), jnp.bfloat16)
w13 = jax.random.normal(keys[1], (16, 2 * 256, 256), jnp.bfloat16)
w2 = jax.random.normal(keys[2], (16, 256, 256), jnp.bfloat16)
experts = mx.pack_experts(*mx.quantize_mxfp4(w13), *mx.quantize_mxfp4(w2), format="mxfp4")
layer = mx.MoELayer(experts, jax.random.normal(keys[3], (16, 256)), top_k=4)


@jax.jit
def decode(first_tokens):
    def step(tokens, _):
        x = embedding[tokens]
        x += mxfp4moe.jax.layer(x, layer)
        tokens = jnp.argmax(x @ embedding.T, axis=-1).astype(tokens.dtype)
        return tokens, tokens

    return jax.lax.scan(step, first_tokens, length=8)[1].T


print(decode(jnp.array([1, 2, 3])).shape)  # (3, 8)
