"""compressed-tensors ``mxfp4-pack-quantized``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxfp4moe.checkpoint.schemes._scheme import Matrix, Scheme

if TYPE_CHECKING:
    from mxfp4moe.checkpoint.model_folder import ModelFolder

FORMAT = "mxfp4-pack-quantized"
GROUP_SIZE = 32


def _read(folder: ModelFolder, name: str, rows: int, columns: int) -> Matrix:
    return Matrix(
        folder.tensor(f"{name}.weight_packed", ("U8",), (rows, columns // 2)),
        folder.tensor(f"{name}.weight_scale", ("U8", "F8_E8M0"), (rows, columns // GROUP_SIZE)),
    )


SCHEME = Scheme(f"compressed-tensors {FORMAT}", "mxfp4", _read, multiple_of=GROUP_SIZE)
