"""The FP4 experts of DeepSeek-V4: MXFP4 with the codes in int8 tensors and the scales in E8M0."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxfp4moe.checkpoint.schemes._scheme import Matrix, Scheme

if TYPE_CHECKING:
    from mxfp4moe.checkpoint.model_folder import ModelFolder


def _read(folder: ModelFolder, name: str, rows: int, columns: int) -> Matrix:
    return Matrix(
        folder.tensor(f"{name}.weight", ("I8", "U8"), (rows, columns // 2)),
        folder.tensor(f"{name}.scale", ("F8_E8M0", "U8"), (rows, columns // 32)),
    )


SCHEME = Scheme("DeepSeek FP4", "mxfp4", _read, multiple_of=32)
