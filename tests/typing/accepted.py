"""A user's script, which strict type checkers accept."""

from __future__ import annotations

from typing import Any, assert_type

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

import mxfp4moe as mx


def compute(x: NDArray[Any], w13: NDArray[np.float32], w2: NDArray[np.float32]) -> NDArray[Any]:
    blocks, scales = mx.quantize_mxfp4(w13, scale_rule="even", num_threads=2)
    assert_type(blocks, NDArray[np.uint8])
    experts = mx.pack_experts(blocks, scales, *mx.quantize_mxfp4(w2), gate_up_layout="interleaved")
    assert_type(experts, mx.PackedExperts)
    assert_type(experts.num_experts, int)
    logits = np.zeros((len(x), experts.num_experts), np.float32)
    weights, ids = mx.topk_softmax(logits, 2, renormalize=False)
    assert_type(mx.select_experts(logits, 2, scoring="sigmoid")[0], NDArray[np.float32])
    head = mx.pack_linear(w2[0], quantize="mxfp8", bias=np.zeros(len(w2[0]), np.float32))
    assert_type(head.shape, tuple[int, int])
    assert_type(head(x, dtype=np.float16), NDArray[Any])
    assert_type(mx.PackedLinear.open("head.packed"), mx.PackedLinear)
    out = np.empty(x.shape, ml_dtypes.bfloat16)
    mx.fused_experts(x, experts, weights, ids, activation="swigluoai", alpha=1.5, out=out)
    return mx.fused_moe(x, experts, logits.tolist(), 2, num_threads=1)


class Tensor:
    """An array of another library."""

    def __dlpack__(self, *, stream: int | None = None, max_version: tuple[int, int] | None = None) -> object:
        """Return a capsule."""
        raise BufferError

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return the CPU."""
        return (1, 0)


def compute_in_place(layer: mx.MoELayer, x: NDArray[Any], out: Tensor) -> None:
    assert_type(layer(x, out=out), NDArray[Any])


def load(path: str) -> list[mx.MoELayer]:
    layer = mx.MoELayer.from_checkpoint(path, layer=3, nonfinite="propagate")
    assert_type(layer, mx.MoELayer)
    assert_type(layer.router_bias, NDArray[Any] | None)
    layer.save("layer.packed")
    model = mx.checkpoint.open(path)
    print(model.describe_layer(3).routing, mx.reference.sigmoid(np.zeros(3, np.float32)))
    limited = mx.MoELayer.open("layer.packed", memory_limit=1 << 30)
    if (experts := limited.expert_cache) is not None:
        experts.prefetch(range(3))
        assert_type(experts.statistics().hit_rate, float)
    return [*mx.load_layers(path), mx.MoELayer.open("layer.packed", verify=True)]


def configure() -> str:
    mx.show_config()
    config = mx.show_config(mode="dicts")
    assert_type(config, dict[str, dict[str, Any]])
    with mx.use_isa("portable"), mx.num_threads(2):
        return mx.active_isa()


lm = mx.CausalLM.from_checkpoint("model", quantize_dense="int8", progress=False)
cache: mx.ModelCache = lm.new_cache(dtype="float32")
for token in lm.generate(np.array([1, 2]), max_new_tokens=9, temperature=0.7, seed=1, cache=cache):
    assert_type(token, int)
assert_type(lm([1, 2], cache), NDArray[np.float32])
assert_type(lm(np.array([[1, 2], [3, 4]]), last_only=True), NDArray[np.float32])
assert_type(lm([[1, 2], np.array([3])], [cache, lm.new_cache()]), list[NDArray[np.float32]])
for tokens in lm.generate([[1, 2], [3]], seed=[1, 2]):
    assert_type(tokens, list[int | None])
lm.save("packed", replace=True)
keys = mx.KVCache(2, 64, sliding_window=128)
attended: NDArray[Any] = mx.attention(np.zeros((1, 4, 64), np.float32), keys, scale=0.125)
normed: NDArray[Any] = mx.rms_norm(attended, eps=1e-6, dtype=np.float32)
