"""Attention over key/value caches, and rotary embeddings."""

from mxfp4moe.self_attention.attention import attention
from mxfp4moe.self_attention.cache import KVCache

__all__ = ["KVCache", "attention"]
