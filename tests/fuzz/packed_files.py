"""``python -m fuzz.packed_files FOLDER`` writes packed files of every kind, for tests/cpp/capi_fuzz.cpp."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from packed_examples import FORMATS, ROUTINGS, SPECIAL_FORMATS, E, K, make_experts, make_layer

import mxfp4moe as mx


def write(folder: Path) -> None:
    """Experts and matrices of every format, layers of every routing."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate((*FORMATS, *SPECIAL_FORMATS)):
        make_experts(rng, name).save(folder / f"{number}.experts")
    for number, name in enumerate(ROUTINGS):
        make_layer(rng, name).save(folder / f"{number}.layer")
    experts, router = make_experts(rng, "mxfp4 of gpt-oss"), rng.standard_normal((E, K), np.float32)
    layer = mx.MoELayer(experts, router, top_k=2, activation="swigluoai", activation_format="int8")
    layer.save(folder / "int8.layer")
    layer.slice([0, 2]).save(folder / "slice.layer")
    weight = rng.standard_normal((40, 96), np.float32)
    for format in ("mxfp4", "mxfp8", "nvfp4", "fp8_block", "int4", "int8"):
        mx.pack_linear(weight, quantize=format, bias=weight[:, 0]).save(folder / f"{format}.linear")
    for format in ("bf16", "float32"):
        mx.pack_linear(weight, format=format).save(folder / f"{format}.linear")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
