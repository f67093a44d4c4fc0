"""compressed-tensors ``mxfp4-pack-quantized``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxfp4moe.checkpoint._config import Config
from mxfp4moe.checkpoint.schemes._compressed import is_compressed
from mxfp4moe.checkpoint.schemes._scheme import Matrix, Scheme

if TYPE_CHECKING:
    from mxfp4moe.checkpoint.model_folder import ModelFolder

FORMAT = "mxfp4-pack-quantized"


def find(quantization: Config) -> Scheme | None:
    """The scheme of compressed-tensors with this format."""
    return SCHEME if is_compressed(quantization, FORMAT) else None


def _read(folder: ModelFolder, name: str, rows: int, columns: int) -> Matrix:
    return Matrix(
        folder.tensor(f"{name}.weight_packed", ("U8",), (rows, columns // 2)),
        folder.tensor(f"{name}.weight_scale", ("U8", "F8_E8M0"), (rows, columns // 32)),
    )


SCHEME = Scheme(f"compressed-tensors {FORMAT}", "mxfp4", _read, multiple_of=32)
