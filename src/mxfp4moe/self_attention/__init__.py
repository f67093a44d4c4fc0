"""Attention over key/value caches, and rotary embeddings."""

from mxfp4moe.self_attention.attention import attention
from mxfp4moe.self_attention.cache import KVCache
from mxfp4moe.self_attention.rotary import RotaryEmbedding, YarnScaling

__all__ = ["KVCache", "RotaryEmbedding", "YarnScaling", "attention"]
