"""What a packed file holds: experts, a layer, or a matrix; and the layout that its weights are packed in."""

from __future__ import annotations

import os
from typing import Any

from mxfp4moe import _core
from mxfp4moe._json import shorten
from mxfp4moe.packed.container import PackedFile

EXPERTS, LAYER, LINEAR = "experts", "layer", "linear"
DECODER, DECODER_LAYER = "decoder", "decoder_layer"
_KINDS = {
    EXPERTS: "packed experts, which PackedExperts.open reads",
    LAYER: "a packed layer, which MoELayer.open reads",
    LINEAR: "a packed matrix, which PackedLinear.open reads",
    DECODER: "a part of a packed model, which CausalLM.open reads",
    DECODER_LAYER: "a part of a packed model, which CausalLM.open reads",
}


def file_meta(kind: str, fields: dict[str, Any]) -> dict[str, Any]:
    """What a packed file of that kind says about itself, `fields` among it."""
    return fields | {"kind": kind, "layout_version": _core.layout_version()}


def open_packed_file(path: str | os.PathLike[str], kind: str, verify: bool) -> PackedFile:
    """Map a packed file of that kind, in this version's layout; compare its checksums if asked to."""
    file = PackedFile(path)
    found, version = file.meta.get("kind"), file.meta.get("layout_version")
    if found != kind:
        known = isinstance(found, str) and found in _KINDS
        raise file.error(_KINDS[kind], _KINDS[str(found)] if known else f"kind {shorten(found)}")
    if version != _core.layout_version():
        got = f"layout {shorten(version)}: use the mxfp4moe that wrote the file, or pack the checkpoint again"
        raise file.error(f"weights in packed layout {_core.layout_version()}", got)
    if verify:
        file.verify()
    return file
