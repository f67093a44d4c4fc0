"""A decoder of one's own around MoELayer and PackedLinear: here one with random weights and two layers."""

import numpy as np

import mxfp4moe as mx

rng = np.random.default_rng(0)
VOCAB, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, EXPERTS = 100, 128, 8, 2, 16, 8


def weight(*shape):
    return rng.standard_normal(shape, np.float32) / np.float32(shape[-1]) ** 0.5


class Layer:
    def __init__(self):
        self.norms = np.ones((2, HIDDEN), np.float32)
        self.qkv = mx.pack_linear(weight((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN))  # in bfloat16
        self.out = mx.pack_linear(weight(HIDDEN, HEADS * HEAD_DIM), quantize="mxfp8")
        w13 = mx.quantize_mxfp4(weight(EXPERTS, 2 * 64, HIDDEN))
        w2 = mx.quantize_mxfp4(weight(EXPERTS, HIDDEN, 64))
        self.moe = mx.MoELayer(mx.pack_experts(*w13, *w2), weight(EXPERTS, HIDDEN), top_k=2)
        self.rotate = mx.RotaryEmbedding(HEAD_DIM, base=10000.0)

    def __call__(self, residual, cache):
        positions = np.arange(len(cache), len(cache) + len(residual))
        rows = mx.rms_norm(residual, self.norms[0], eps=1e-5, dtype="bfloat16")
        heads = self.qkv(rows).reshape(len(rows), -1, HEAD_DIM)
        q, k, v = np.split(heads, [HEADS, HEADS + KV_HEADS], axis=1)
        cache.append(self.rotate(k, positions), v)
        mixed = mx.attention(self.rotate(q, positions), cache, scale=HEAD_DIM**-0.5)
        residual = residual + self.out(mixed.reshape(len(rows), -1))
        return residual + self.moe(mx.rms_norm(residual, self.norms[1], eps=1e-5))


embedding, head = weight(VOCAB, HIDDEN), mx.pack_linear(weight(VOCAB, HIDDEN))
layers = [Layer(), Layer()]


def logits(ids, caches):
    residual = embedding[ids]
    for layer, cache in zip(layers, caches, strict=True):
        residual = layer(residual, cache)
    return head(mx.rms_norm(residual, eps=1e-5))


def new_caches():
    return [mx.KVCache(KV_HEADS, HEAD_DIM) for _ in layers]


ids = np.array([3, 1, 4, 1, 5, 9, 2, 6])
caches = new_caches()
pieces = [logits(ids[:3], caches), logits(ids[3:4], caches), logits(ids[4:], caches)]
print(np.array_equal(np.concatenate(pieces), logits(ids, new_caches())))  # True
