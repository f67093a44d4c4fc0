"""The FP4 experts of DeepSeek-V4: MXFP4 with the codes in int8 tensors and the scales in E8M0."""

from __future__ import annotations

from mxfp4moe.checkpoint.schemes.mx_formats import mxfp4

SCHEME = mxfp4("DeepSeek FP4", scale="scale", dtypes=("I8", "U8"))
