"""The matrices of experts in GGUF files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mxfp4moe._arguments import cast, value_error
from mxfp4moe.checkpoint.gguf.blocks import SPLIT, Split
from mxfp4moe.checkpoint.gguf.file import BLOCKS
from mxfp4moe.checkpoint.gguf.tensors import FLOATS, Tensors
from mxfp4moe.checkpoint.schemes import plain
from mxfp4moe.experts.weights import ExpertWeights
from mxfp4moe.formats import FORMATS

_WEIGHTS = (*FLOATS, *BLOCKS)


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
        (kind, *others) = {kind if kind in BLOCKS else "floats": None for kind in kinds}
        if others:
            place = f"{self.tensors.path}: tensors {self.name.format('*')}.weight"
            parts = " and ".join([", ".join(list(shapes)[:-1]), "down"])
            expected = f"{parts} all in {', all in '.join(BLOCKS)} or all in floats"
            raise value_error(place, expected, " and ".join(kinds))
        arrays: dict[str, Any] = {"w13": self._w13(matrices, intermediate), "w2": list(matrices["down"])}
        if not self.is_gated:
            arrays["gated"] = False
        if has_biases:
            both = [self._bias(part, (*leading, number)) for part, number in rows.items()]
            arrays |= {
                "w13_bias": np.concatenate(both, axis=-1),
                "w2_bias": self._bias("down", (*leading, hidden)),
            }
        format = kind.lower()
        needs_scales = format in FORMATS and FORMATS[format].has_tensor_scale
        arrays |= self._scales(tuple(rows), count, needs_scales)
        if kind in BLOCKS:
            return ExpertWeights(format, f"GGUF {kind}", sizes, arrays, partial(_decode, SPLIT[kind]))
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

    def _scales(self, parts: tuple[str, ...], count: int, are_needed: bool) -> dict[str, Any]:
        """What multiplies the products of each expert, before the bias is added; 1 where there is none."""
        names = {part: self._name(part, "scale") for part in (*parts, "down")}
        if not are_needed and not any(name in self.tensors for name in names.values()):
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


def _decode(split: Split, arrays: dict[str, Any]) -> dict[str, Any]:
    """Scales apart, and codes in the order of all other formats."""
    w13, w13_scales = _split_all(split, arrays["w13"])
    w2, w2_scales = _split_all(split, arrays["w2"])
    return {**arrays, "w13": w13, "w13_scales": w13_scales, "w2": w2, "w2_scales": w2_scales}


def _split_all(split: Split, matrices: Any) -> tuple[Any, Any]:
    """`split` of each matrix: of a list, or of gate and up."""
    if isinstance(matrices, tuple):
        (gate, gate_scales), (up, up_scales) = (_split_all(split, each) for each in matrices)
        return (gate, up), (gate_scales, up_scales)
    codes, scales = zip(*map(split, matrices), strict=True)
    return list(codes), list(scales)
