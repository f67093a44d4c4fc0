"""The matrices of experts in GGUF files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mxfp4moe._arguments import cast, join_choices, value_error
from mxfp4moe.checkpoint._arrange import as_int8, common_format, matrix_arguments, one_or_both
from mxfp4moe.checkpoint.gguf.blocks import BLOCK_TYPES
from mxfp4moe.checkpoint.gguf.tensors import FLOATS, Tensors
from mxfp4moe.checkpoint.schemes import Matrix, plain
from mxfp4moe.experts.weights import ExpertWeights
from mxfp4moe.formats import FORMATS

_WEIGHTS = (*FLOATS, *BLOCK_TYPES)
_ALIKE = [name for name, each in BLOCK_TYPES.items() if common_format((each.format, "int8"))]


@dataclass(frozen=True)
class Matrices:
    """Which tensors hold the matrices of the experts of a layer, or of its shared expert."""

    tensors: Tensors
    name: str
    """The name of a tensor without ".weight", in which ``{}`` stands for gate, up, gate_up or down."""
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
        stored = [BLOCK_TYPES[kind].format if kind in BLOCK_TYPES else "bf16" for kind in kinds]
        first = common_format(stored[:-1])
        if first is None:
            place = f"{self.tensors.path}: tensors {self.name.format('*')}.weight"
            expected = (
                f"{' and '.join(rows)} both in floats, both in NVFP4, or both in {join_choices(_ALIKE)}"
            )
            raise value_error(place, expected, " and ".join(kinds[:-1]))
        formats = first, stored[-1]
        arrays: dict[str, Any] = {"w13": self._w13(matrices, intermediate), "w2": list(matrices["down"])}
        if not self.is_gated:
            arrays["gated"] = False
        if has_biases:
            both = [self._bias(part, (*leading, number)) for part, number in rows.items()]
            arrays |= {
                "w13_bias": np.concatenate(both, axis=-1),
                "w2_bias": self._bias("down", (*leading, hidden)),
            }
        source = f"GGUF {' and '.join(dict.fromkeys(kinds))}"
        arrays |= self._scales(tuple(rows), count, formats)
        if formats == ("bf16", "bf16"):
            return ExpertWeights("bf16", source, sizes, plain.with_scales(arrays), plain.to_bfloat16)
        return ExpertWeights(one_or_both(formats), source, sizes, arrays, partial(_decode, kinds, formats))

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

    def _scales(self, parts: tuple[str, ...], count: int, formats: tuple[str, str]) -> dict[str, Any]:
        """What multiplies the products of each expert, before the bias is added; 1 where there is none."""
        names = {part: self._name(part, "scale") for part in (*parts, "down")}
        found = [name for name in names.values() if name in self.tensors]
        if not found and not any(FORMATS[format].has_tensor_scale for format in formats):
            return {}
        by_part = dict.fromkeys(parts, formats[0]) | {"down": formats[1]}
        for part, name in names.items():
            if name in found and FORMATS[by_part[part]].has_sum_scales:
                expected = f"no tensor {name} beside integers, whose scales are of groups"
                raise value_error(str(self.tensors.path), expected, "one")
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
        result = {"w13_tensor_scale": first, "w2_tensor_scale": down}
        names_of_formats = zip(result, formats, strict=True)
        return {name: result[name] for name, format in names_of_formats if not FORMATS[format].has_sum_scales}


def _decode(kinds: Sequence[str], formats: tuple[str, str], arrays: dict[str, Any]) -> dict[str, Any]:
    """Scales apart, and codes in the order of all other formats; `kinds` are the types of the tensors."""
    w13 = arrays["w13"]
    first = [list(part) for part in w13] if isinstance(w13, tuple) else [w13]
    of_first = kinds[:-1] if len(kinds) > len(first) else [kinds[0]] * len(first)
    decoded = [
        [_decoded(blocks, kind, formats[0]) for blocks in part]
        for part, kind in zip(first, of_first, strict=True)
    ]
    down = [_decoded(blocks, kinds[-1], formats[1]) for blocks in arrays["w2"]]
    return arrays | matrix_arguments(decoded, down, formats)


def _decoded(blocks: NDArray[Any], kind: str, format: str) -> Matrix:
    if kind not in BLOCK_TYPES:
        return Matrix(blocks)
    own_format, split = BLOCK_TYPES[kind]
    matrix = split(blocks)
    return matrix if own_format == format else as_int8(matrix, own_format)
