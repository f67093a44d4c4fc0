"""Operators for ONNX Runtime, and models that are converted to use them.

Their library is built from source, with the headers of ONNX Runtime; the wheels do not have it. Models
are made and run by what ``pip install 'mxfp4moe[onnxruntime]'`` brings.
"""

from mxfp4moe.onnxruntime._convert import convert
from mxfp4moe.onnxruntime._library import library_path

__all__ = ["convert", "library_path"]
