"""Where the library of operators is."""

from __future__ import annotations

from pathlib import Path

from mxfp4moe._embedding import library_dir

_NAME = "libmxfp4moe_onnxruntime.so"
_REMEDY = (
    "pip install . -Ccmake.define.MXFP4MOE_ONNXRUNTIME=FOLDER in the sources, with the folder of its headers"
)


def library_path() -> str:
    """Return the path of the library of operators, for `SessionOptions.register_custom_ops_library`.

    Returns
    -------
    str
        Of a shared library with the operators `FusedExperts`, `Linear`, `MoELayer` and `QuantizeMXFP4` of the
        domain `mxfp4moe`.

    Raises
    ------
    FileNotFoundError
        This installation was built without the operators; the message says how to build them.

    Examples
    --------
    >>> import mxfp4moe as mx
    >>> try:
    ...     path = mx.onnxruntime.library_path()
    ... except FileNotFoundError as error:
    ...     path = str(error).partition(":")[0]
    >>> path.endswith("libmxfp4moe_onnxruntime.so")
    True
    """
    path = Path(library_dir()) / _NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: expected the operators for ONNX Runtime, got an installation without them ({_REMEDY})"
        )
    return str(path)
