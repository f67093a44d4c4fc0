"""GGUF files of llama.cpp: experts in MXFP4, NVFP4, bfloat16, float16 or float32.

To add an architecture: a row of `ARCHITECTURES` in `architectures.py`.
"""

from mxfp4moe.checkpoint.gguf.file import is_gguf_file
from mxfp4moe.checkpoint.gguf.reader import GgufCheckpoint

__all__ = ["GgufCheckpoint", "is_gguf_file"]
