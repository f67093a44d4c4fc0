"""The matrices of experts in GGUF files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mxfp4moe._arguments import cast, value_error
from mxfp4moe.checkpoint.gguf.tensors import FLOATS, Tensors
from mxfp4moe.checkpoint.schemes import plain
from mxfp4moe.experts.weights import ExpertWeights

_WEIGHTS = (*FLOATS, "MXFP4")


@dataclass(frozen=True)
class Matrices:
    """Which tensors hold the matrices of the experts of a layer, or of its shared expert."""

    tensors: Tensors
    name: str
    """Of a tensor without ".weight"; ``{}`` stands for gate, up, gate_up or down."""
    is_gated: bool
    fused: str = "gate_up"
    """What stands there in the name of one tensor with all gate rows, then all up rows."""

    @property
    def is_shared(self) -> bool:
        """Tensors of the shared expert have no axis of experts."""
        return self.name.endswith("_shexp")

    @property
    def exists(self) -> bool:
        """Whether the file has any of them."""
        return any(self._name(part) in self.tensors for part in ("gate", "up", "gate_up", "down"))

    def sizes(self) -> tuple[int, int]:
        """What an expert reads and returns, and the size in between."""
        shape = self.tensors.shape(self._name("down"), 2 if self.is_shared else 3)
        return shape[-2], shape[-1]

    def read(self, count: int, sizes: tuple[int, int], has_biases: bool = False) -> ExpertWeights:
        """Read `count` experts of these sizes."""
        hidden, intermediate = sizes
        rows = self._rows(intermediate)
        shapes = {part: (number, hidden) for part, number in rows.items()} | {"down": (hidden, intermediate)}
        leading = () if self.is_shared else (count,)
        matrices, kinds = {}, []
        for part, shape in shapes.items():
            array = self.tensors.tensor(self._name(part), _WEIGHTS, (*leading, *shape))
            matrices[part] = array if leading else array[None]
            kinds.append(self.tensors.type(self._name(part)))
        if "MXFP4" in kinds and set(kinds) != {"MXFP4"}:
            place = f"{self.tensors.path}: tensors {self.name.format('*')}.weight"
            parts = " and ".join([", ".join(list(shapes)[:-1]), "down"])
            raise value_error(place, f"{parts} all in MXFP4 or all in floats", " and ".join(kinds))
        arrays: dict[str, Any] = {"w13": self._w13(matrices, intermediate), "w2": list(matrices["down"])}
        if not self.is_gated:
            arrays["gated"] = False
        if has_biases:
            both = [self._bias(part, (*leading, number)) for part, number in rows.items()]
            arrays |= {
                "w13_bias": np.concatenate(both, axis=-1),
                "w2_bias": self._bias("down", (*leading, hidden)),
            }
        arrays |= self._scales(tuple(rows), count)
        if kinds[0] == "MXFP4":
            return ExpertWeights("mxfp4", "GGUF MXFP4", sizes, arrays, _decode)
        arrays = plain.with_scales(arrays)
        return ExpertWeights("bf16", f"GGUF {kinds[0]}", sizes, arrays, plain.to_bfloat16)

    def _name(self, part: str, suffix: str = "weight") -> str:
        return f"{self.name.format(part)}.{suffix}"

    def _rows(self, intermediate: int) -> dict[str, int]:
        """The parts of the first matrix, and the rows of each."""
        if not self.is_gated:
            return {"up": intermediate}
        if self._name("gate") not in self.tensors and self._name(self.fused) in self.tensors:
            return {self.fused: 2 * intermediate}
        return {"gate": intermediate, "up": intermediate}

    def _w13(self, matrices: dict[str, NDArray[Any]], intermediate: int) -> Any:
        if not self.is_gated:
            return list(matrices["up"])
        gate, up = (
            (matrices["gate"], matrices["up"])
            if "gate" in matrices
            else (matrices[self.fused][:, :intermediate], matrices[self.fused][:, intermediate:])
        )
        return list(gate), list(up)

    def _bias(self, part: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        return cast(self.tensors.tensor(self._name(part, "bias"), FLOATS, shape), np.float32)

    def _scales(self, parts: tuple[str, ...], count: int) -> dict[str, Any]:
        """What multiplies the products of each expert, before the bias is added."""
        names = {part: self._name(part, "scale") for part in (*parts, "down")}
        if not any(name in self.tensors for name in names.values()):
            return {}
        scales = {
            part: self.tensors.tensor(name, ("F32",), (count,))
            if name in self.tensors
            else np.ones(count, np.float32)
            for part, name in names.items()
        }
        down = scales.pop("down")
        first = np.stack([scales[part] for part in parts], axis=-1)
        if self.is_gated:
            first = np.broadcast_to(first, (count, 2))
        return {"w13_tensor_scale": first, "w2_tensor_scale": down}


def _decode(arrays: dict[str, Any]) -> dict[str, Any]:
    """Scales apart, and codes in the order of all other formats."""
    w13, w13_scales = _split_all(arrays["w13"])
    w2, w2_scales = _split_all(arrays["w2"])
    return {**arrays, "w13": w13, "w13_scales": w13_scales, "w2": w2, "w2_scales": w2_scales}


def _split_all(matrices: Any) -> tuple[Any, Any]:
    """`split_blocks` of each matrix: of a list, or of gate and up."""
    if isinstance(matrices, tuple):
        (gate, gate_scales), (up, up_scales) = map(_split_all, matrices)
        return (gate, up), (gate_scales, up_scales)
    codes, scales = zip(*map(split_blocks, matrices), strict=True)
    return list(codes), list(scales)


def split_blocks(blocks: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Codes [N, K / 32, 16], the even k in the low nibble, and scales [N, K / 32] of blocks [N, K / 32, 17].

    Byte j of a block in GGUF holds elements j (low nibble) and j + 16 (high nibble).
    """
    words = np.ascontiguousarray(blocks[..., 1:]).view("<u2")
    codes = np.empty((*blocks.shape[:-1], 16), np.uint8)
    # From its lowest nibble on, a word has the elements 2i, 2i + 16, 2i + 1, 2i + 17.
    codes[..., :8] = words & 0x0F | words >> 4 & 0xF0
    codes[..., 8:] = words >> 4 & 0x0F | words >> 8 & 0xF0
    return codes, np.ascontiguousarray(blocks[..., 0])
