"""compressed-tensors ``nvfp4-pack-quantized``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mxfp4moe._arguments import value_error
from mxfp4moe.checkpoint.schemes._scheme import Matrix, Scheme

if TYPE_CHECKING:
    from mxfp4moe.checkpoint.model_folder import ModelFolder

FORMAT = "nvfp4-pack-quantized"
GROUP_SIZE = 16


def _read(folder: ModelFolder, name: str, rows: int, columns: int) -> Matrix:
    weight = folder.tensor(f"{name}.weight_packed", ("U8",), (rows, columns // 2))
    scales = folder.tensor(f"{name}.weight_scale", ("F8_E4M3",), (rows, columns // GROUP_SIZE))
    reciprocal = folder.tensor(f"{name}.weight_global_scale", ("F32",), (1,))[0]
    if not 0 < reciprocal < np.inf:
        place = f"{folder.path}: tensor {name}.weight_global_scale"
        raise value_error(place, "a finite number above 0", str(reciprocal))
    # The stored number multiplied the weights before they were rounded, so its reciprocal is the scale.
    return Matrix(weight, scales, float(np.float32(1) / reciprocal))


SCHEME = Scheme(f"compressed-tensors {FORMAT}", "nvfp4", _read, multiple_of=GROUP_SIZE)
